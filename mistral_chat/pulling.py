"""``mistral-chat pull``: a model from the hub, or from anywhere, among those of this computer."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mistral_chat.download import Progress, check_free_space
from mistral_chat.errors import ModelMissingError, UsageError
from mistral_chat.files import expanded
from mistral_chat.hub import (
    RemoteFile,
    Repository,
    cached_repository,
    fetch,
    is_offline,
    list_repository,
)
from mistral_chat.models import (
    EMBEDDED,
    HUB_MODELS,
    folder_name,
    install,
    installed,
    model_in,
    open_tokenizer,
    remove,
)
from mistral_chat.quantizing import Order, Quantized, quantize_weights
from mistral_chat.settings import Paths
from mistral_chat.tokenizers import check_vocabulary
from quant.checkpoints import open_checkpoint
from quant.checkpoints.folders import CONFIG, CONSOLIDATED, INDEX, PARAMS, SINGLE
from quant.checkpoints.native import NativeCheckpoint
from quant.files import alone_in
from quant.quantizers.recipe import Recipe

ORIGIN = "origin.json"
GGUF = ".gguf"
MOST_NAMES = 12
SHARDS = "model-*-of-*.safetensors"
COMPANIONS = (
    "generation_config.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Small files that a model's folder may have beside its weights; patterns."""

_ADDRESS = re.compile(
    r"(?:https?://[^/]+/|hf\.co/|huggingface\.co/)?"
    r"(?P<repository>[\w.-]+/[\w.-]+)"
    r"(?:/(?:resolve|blob|tree)/(?P<branch>[^/]+))?"
    r"(?:@(?P<revision>[\w.-]+))?"
    r"(?:[/:](?P<file>[^?:@]+))?(?:\?.*)?"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository of the hub, at a revision (None: its main branch), and a GGUF file in it."""

    repository: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, name: str) -> Reference | None:
        """What a name or an address of the hub means; None where it is neither.

        >>> Reference.parse("org/repo")
        Reference(repository='org/repo', revision=None, file=None)
        >>> Reference.parse("org/repo/folder/model.gguf").file
        'folder/model.gguf'
        >>> Reference.parse("hf.co/org/repo@v2:Q4_0")
        Reference(repository='org/repo', revision='v2', file='Q4_0')
        >>> Reference.parse("https://huggingface.co/org/repo/blob/main/m.gguf?download=true")
        Reference(repository='org/repo', revision='main', file='m.gguf')
        """
        if name in HUB_MODELS:
            return cls(HUB_MODELS[name].repository)
        found = _ADDRESS.fullmatch(name)
        if found is None:
            return None
        revision = found["branch"] or found["revision"]
        return cls(found["repository"], revision, found["file"] or None)


@dataclass(frozen=True)
class Pulled:
    """What ``pull`` leaves; ``quantized`` only where it was asked for."""

    name: str
    path: str
    bytes: int
    quantized: Quantized | None = None

    def to_json(self) -> str:
        """One JSON object in the names of the fields."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def sentences(self) -> list[str]:
        """What a person wants to know, a line each."""
        lines = [] if self.quantized is None else self.quantized.sentences()
        size = f"{self.bytes / 1e9:.2f} GB"
        return [*lines, f"{self.name} is here, {size}: mistral-chat -m {self.name}"]


@dataclass(frozen=True)
class Wish:
    """What to do with a model once it is here: nothing, or quantize it by ``recipe``."""

    recipe: Recipe | None = None
    force: bool = False
    check: bool = True
    threads: int | None = None


def pull(name: str, wish: Wish, paths: Paths, progress: Progress) -> Pulled:
    """Bring the model of that name, address or path among the installed ones.

    Raises UsageError for what makes no sense, ModelMissingError where there is no such model or no
    way to it, IntegrityError, StorageError, and what quantizing raises.
    """
    if name in EMBEDDED:
        if wish.recipe is not None:
            raise UsageError(f"{name} comes quantized; pull it without --quantize.")
        if wish.force and installed(name, paths):
            remove(name, paths)
        return _result(name, installed(name, paths) or install(EMBEDDED[name], paths, progress))
    own = expanded(name)
    if own.exists():
        return _adopt(own, wish, paths, progress)
    reference = Reference.parse(name)
    if reference is None:
        raise UsageError(
            f"{name!r} is neither a model's short name, nor a path, nor like org/repository."
        )
    label = _label(reference, reference.file)
    # A part of a file's name is no label yet; then the hub has to be asked first.
    if reference.file is None or reference.file.endswith(GGUF):
        here = _here(label, wish, paths)
        if here is not None:
            return here
    repository, files = _listing(reference)
    label = _label(reference, files[0].name if reference.file else None)
    here = _here(label, wish, paths)
    if here is not None:
        return here
    work = paths.data / "pulls" / folder_name(label)
    work.mkdir(parents=True, exist_ok=True)
    with alone_in(work):
        for other in work.iterdir():
            if other.name != repository.revision:
                shutil.rmtree(other)
        source = _bring(repository, files, work / repository.revision, progress)
        result = _settle(label, source, wish, paths, progress)
        shutil.rmtree(work)
    return result


def _label(reference: Reference, file: str | None) -> str:
    """The name that the model will be installed under."""
    if file is not None:
        return f"{reference.repository}/{Path(file).name}"
    short = {model.repository: model.name for model in HUB_MODELS.values()}
    return short.get(reference.repository, reference.repository)


def _here(label: str, wish: Wish, paths: Paths) -> Pulled | None:
    """The model if it is installed already and is as wished for."""
    here = installed(label, paths)
    if here is None or wish.force:
        return None
    if wish.recipe is not None and open_checkpoint(here).format != NativeCheckpoint.format:
        raise UsageError(
            f"{label} is here already, not quantized; --force replaces it, and 'mistral-chat "
            f"quantize-weights {label} TARGET' makes another."
        )
    return _result(label, here)


def _listing(reference: Reference) -> tuple[Repository, tuple[RemoteFile, ...]]:
    """The repository, and those of its files that make up the model."""
    if is_offline():
        folder = cached_repository(reference.repository, reference.revision)
        if folder is None:
            raise ModelMissingError(
                f"{reference.repository} is not on this computer, and HF_HUB_OFFLINE is set; "
                "unset it to download."
            )
        found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = tuple(
            RemoteFile(str(path.relative_to(folder)), path.stat().st_size, None, None)
            for path in found
        )
        repository = Repository(reference.repository, folder.name, files)
    else:
        repository = list_repository(reference.repository, reference.revision)
    return repository, chosen_files(repository, reference.file)


def chosen_files(repository: Repository, file: str | None) -> tuple[RemoteFile, ...]:
    """The files of a model: a GGUF file where ``file`` (its name, or a part of it) asks for one.

    Else the weights as Hugging Face names them, or as Mistral does, with what belongs to them.
    Raises ModelMissingError, which tells the GGUF files if there is nothing else.
    """
    ggufs = {each.name: each for each in repository.files if each.name.endswith(GGUF)}
    if file is not None:
        fitting = [name for name in ggufs if name == file]
        fitting = fitting or [name for name in ggufs if file.lower() in name.lower()]
        if len(fitting) != 1:
            several = "several GGUF files" if fitting else "no GGUF file"
            raise ModelMissingError(
                f"{repository.name} has {several} named like {file!r}; it has {_names(ggufs)}."
            )
        return (ggufs[fitting[0]],)
    names = {each.name: each for each in repository.files if "/" not in each.name}
    if CONFIG in names and INDEX in names:
        wanted = [CONFIG, INDEX, *fnmatch.filter(names, SHARDS)]
    elif CONFIG in names and SINGLE in names:
        wanted = [CONFIG, SINGLE]
    elif PARAMS in names and fnmatch.filter(names, CONSOLIDATED):
        wanted = [PARAMS, *fnmatch.filter(names, CONSOLIDATED)]
    elif ggufs:
        raise ModelMissingError(
            f"{repository.name} holds GGUF files; name one of them, as in {repository.name}/"
            f"{next(iter(ggufs))}: {_names(ggufs)}."
        )
    else:
        raise ModelMissingError(
            f"{repository.name} holds no weights in safetensors or GGUF files; choose a repository "
            "that does."
        )
    for pattern in COMPANIONS:
        wanted += fnmatch.filter(names, pattern)
    return tuple(names[name] for name in dict.fromkeys(wanted))


def _names(files: Sequence[str] | Mapping[str, object]) -> str:
    shown = sorted(files)[:MOST_NAMES]
    more = len(files) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "") if shown else "none"


def _bring(
    repository: Repository, files: Sequence[RemoteFile], folder: Path, progress: Progress
) -> Path:
    """All files in ``folder``; what to open there."""
    folder.mkdir(exist_ok=True)
    total = sum(file.size for file in files)
    there = sum(path.stat().st_size for path in folder.iterdir())
    check_free_space(folder, max(0, total - there))
    before = 0
    for file in files:

        def report(here: int, before: int = before) -> None:
            progress(f"Downloading {repository.name}", before + here, total)

        # Only the last part of the name: what a repository calls its files must not lead elsewhere.
        fetch(repository, file, folder / Path(file.name).name, report)
        before += file.size
    origin = {
        "repository": repository.name,
        "revision": repository.revision,
        "files": {file.name: file.digest for file in files},
    }
    (folder / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
    found = model_in(folder)
    if found is None:
        raise ModelMissingError(f"{repository.name} holds no model that can be opened.")
    return found


def _settle(label: str, source: Path, wish: Wish, paths: Paths, progress: Progress) -> Pulled:
    """Install what lies at ``source``, as it is (moved) or quantized."""
    target = paths.models / folder_name(label)
    # A model that cannot be used is told now, not at the first question.
    check_vocabulary(open_tokenizer(source), open_checkpoint(source).config.vocab_size)
    paths.models.mkdir(parents=True, exist_ok=True)
    if wish.recipe is None:
        if installed(label, paths) is not None:
            remove(label, paths)
        (source if source.is_dir() else source.parent).rename(target)
        return _result(label, model_in(target) or target)
    order = Order(source, target, wish.recipe, check=wish.check, force=True, threads=wish.threads)
    quantized = quantize_weights(order, progress)
    return replace(_result(label, target), quantized=quantized)


def _adopt(path: Path, wish: Wish, paths: Paths, progress: Progress) -> Pulled:
    """A model that is on this computer already: quantized among the installed ones."""
    label = path.absolute().stem if path.is_file() else path.absolute().name
    if wish.recipe is None:
        raise UsageError(
            f"{path} is on this computer already: mistral-chat -m {path}. With --quantize 4 it "
            "becomes an installed model of four bits."
        )
    if installed(label, paths) is not None and not wish.force:
        raise UsageError(f"A model named {label} is installed already; --force replaces it.")
    return _settle(label, path, wish, paths, progress)


def _result(label: str, path: Path) -> Pulled:
    folder = path if path.is_dir() else path.parent
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return Pulled(label, str(path), size)
