"""``mistral-chat pull``: a model from the hub, or from anywhere, among those of this computer."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mistral_chat.errors import ModelMissingError, UsageError
from mistral_chat.models.download import Progress, check_free_space
from mistral_chat.models.hub import cached_repository, fetch, is_offline, list_repository
from mistral_chat.models.names import (
    EMBEDDED,
    HUB_MODELS,
    ORIGIN,
    folder_name,
    install,
    installed,
    model_in,
    open_tokenizer,
    put_in_place,
    refuse_foreign,
    sweep,
)
from mistral_chat.models.quantizing import Order, Quantized, quantize_weights
from mistral_chat.models.repositories import RemoteFile, Repository
from mistral_chat.settings import Paths
from mistral_chat.system.files import expanded
from mistral_chat.system.private import own_file
from mistral_chat.tokenizers import check_vocabulary
from quant.checkpoints import open_checkpoint
from quant.checkpoints.folders import INDEX, choose_files
from quant.checkpoints.native import WEIGHTS, NativeCheckpoint
from quant.config import read_json
from quant.errors import CheckpointError, ConfigError, StorageError
from quant.files import alone_in, discard, own_folder
from quant.quantizers.recipe import Recipe

PULLS = "pulls"
GGUF = ".gguf"
MOST_NAMES = 12
MOST_LABEL_BYTES = 230
"""Of the name of an installed model's folder; file systems allow 255, and some get endings."""
MOST_INDEX_BYTES = 1 << 27
USEFUL_SECONDS = 30 * 24 * 3600
"""What was interrupted longer ago is not going to be continued."""
BEGINNING_SECONDS = 3600
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

_PART = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

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
    sweep(paths)
    _sweep_pulls(paths)
    if name in EMBEDDED:
        if wish.recipe is not None:
            raise UsageError(f"{name} comes quantized; pull it without --quantize.")
        path = None if wish.force else installed(name, paths)
        return _result(name, path or install(EMBEDDED[name], paths, progress, force=wish.force))
    own = expanded(name)
    if own.exists():
        return _adopt(own, wish, paths, progress)
    reference = Reference.parse(name)
    if reference is None:
        raise UsageError(
            f"{name!r} is neither a model's short name, nor a path, nor like org/repository."
        )
    label = _label(reference, reference.file)
    # A part of a file's name is no label yet, and a branch no commit; then the hub is asked first.
    if reference.revision is None and (reference.file is None or reference.file.endswith(GGUF)):
        here = _here(label, None, reference.file, wish, paths)
        if here is not None:
            return here
    repository = _repository(reference)
    file = None if reference.file is None else chosen_gguf(repository, reference.file)
    label = _label(reference, file.name if file else None)
    here = _here(label, repository, file.name if file else None, wish, paths)
    if here is not None:
        return here
    with _workplace(label, paths) as work:
        for other in work.iterdir():
            if other.name != repository.revision:
                discard(other)
        folder = own_folder(work / repository.revision, keep=False)

        def read_index() -> object:
            return _index(repository, folder, progress)

        files = (file,) if file else chosen_files(repository, read_index)
        source = _bring(repository, files, folder, progress)
        return _settle(label, source, wish, paths, progress)


@contextmanager
def _workplace(label: str, paths: Paths) -> Iterator[Path]:
    """A folder for what is fetched of a model, for nobody else.

    It is gone when all went well, and stays where something in it can be continued.
    """
    if len(os.fsencode(folder_name(label))) > MOST_LABEL_BYTES:
        raise UsageError(
            f"The name {label} is too long for a folder here; fetch it by other means, and name "
            "its path."
        )
    paths.data.mkdir(parents=True, exist_ok=True)
    work = own_folder(own_folder(paths.data / PULLS) / folder_name(label), keep=False)
    with alone_in(work):
        try:
            yield work
        except (CheckpointError, ConfigError):  # it would fail again
            discard(work)
            raise
        except BaseException:
            if not _holds_files(work):
                discard(work)
            raise
        discard(work)


def _sweep_pulls(paths: Paths) -> None:
    """Remove what was left of earlier pulls that nobody is going to continue."""
    pulls = paths.data / PULLS
    if not pulls.is_dir():
        return
    for work in own_folder(pulls).iterdir():
        newest = max(path.lstat().st_mtime for path in (work, *work.rglob("*")))
        # A folder without files may be that of a pull that begins at this moment.
        useful = USEFUL_SECONDS if _holds_files(work) else BEGINNING_SECONDS
        if time.time() - newest > useful:
            _discard_unused(work)


def _discard_unused(work: Path) -> None:
    """Remove the workplace of a pull, unless a process works there."""
    # What cannot be tidied up does no harm.
    with suppress(OSError, StorageError):
        if work.is_symlink() or not work.is_dir():
            discard(work)
            return
        with alone_in(work):
            discard(work)


def _holds_files(folder: Path) -> bool:
    return any(path.is_symlink() or not path.is_dir() for path in folder.rglob("*"))


def _label(reference: Reference, file: str | None) -> str:
    """The name that the model will be installed under."""
    if file is not None:
        return f"{reference.repository}/{Path(file).name}"
    short = {model.repository: model.name for model in HUB_MODELS.values()}
    return short.get(reference.repository, reference.repository)


def _here(
    label: str, repository: Repository | None, file: str | None, wish: Wish, paths: Paths
) -> Pulled | None:
    """The model if it is installed already and is as wished for.

    ``repository`` is None as long as the hub has not been asked, and any commit will do.
    """
    here = installed(label, paths)
    if here is None or wish.force:
        return None
    if wish.recipe is not None and open_checkpoint(here).format != NativeCheckpoint.format:
        raise UsageError(
            f"{label} is here already, not quantized; --force replaces it, and 'mistral-chat "
            f"quantize-weights {label} TARGET' makes another."
        )
    _check_same(label, repository, file, here)
    # What a pull that was killed at its very end left is of no use any more.
    _discard_unused(paths.data / PULLS / folder_name(label))
    return _result(label, here)


def _check_same(label: str, repository: Repository | None, file: str | None, here: Path) -> None:
    """Raise UsageError where what is installed under a name is known to be something else."""
    folder = here if here.is_dir() else here.parent
    if not (folder / ORIGIN).is_file():
        return
    origin = read_json(folder / ORIGIN)
    known = origin.get("files")
    other = "/" in (file or "") and isinstance(known, dict) and file not in known
    if repository is not None and origin.get("revision") != repository.revision:
        other = True
    if other:
        raise UsageError(
            f"{label} is here already, from another file or revision; --force replaces it."
        )


def _repository(reference: Reference) -> Repository:
    """What the hub, or without a network its cache, has of a repository."""
    if not is_offline():
        return list_repository(reference.repository, reference.revision)
    repository = cached_repository(reference.repository, reference.revision)
    if repository is None:
        raise ModelMissingError(
            f"{reference.repository} is not on this computer, and HF_HUB_OFFLINE is set; "
            "unset it to download."
        )
    return repository


def chosen_gguf(repository: Repository, file: str) -> RemoteFile:
    """The GGUF file of that name, or the one that has it as a part of its name.

    Raises ModelMissingError, which tells the GGUF files, where there is not exactly one, and
    UsageError for a part of a file that was split.
    """
    ggufs = _ggufs(repository)
    fitting = [name for name in ggufs if name == file]
    fitting = fitting or [name for name in ggufs if file.lower() in name.lower()]
    parts = [part for part in map(_PART.search, fitting) if part and int(part["count"]) > 1]
    if parts and len(parts) == len(fitting):
        raise UsageError(
            f"{fitting[0]} of {repository.name} is part {int(parts[0]['number'])} of "
            f"{int(parts[0]['count'])} of a GGUF file that was split, and parts are not read; "
            "choose a file that is whole, or fetch all parts by other means and put them together "
            "with llama-gguf-split --merge."
        )
    if len(fitting) != 1:
        several = "several GGUF files" if fitting else "no GGUF file"
        raise ModelMissingError(
            f"{repository.name} has {several} named like {file!r}; it has {_names(ggufs)}."
        )
    return ggufs[fitting[0]]


def _ggufs(repository: Repository) -> dict[str, RemoteFile]:
    return {each.name: each for each in repository.files if each.name.endswith(GGUF)}


def chosen_files(
    repository: Repository, read_index: Callable[[], object]
) -> tuple[RemoteFile, ...]:
    """The files of a model: weights as Hugging Face or Mistral names them, and what belongs there.

    ``read_index`` gives the content of the index, where there is one that counts. Raises
    ModelMissingError, which tells the GGUF files if there is nothing else, or names the file that
    the index names and the repository lacks; and what reading the index raises.
    """
    names = {each.name: each for each in repository.files if "/" not in each.name}
    chosen = choose_files(names, read_index)
    ggufs = _ggufs(repository)
    if chosen is None and ggufs:
        raise ModelMissingError(
            f"{repository.name} holds GGUF files; name one of them, as in {repository.name}/"
            f"{next(iter(ggufs))}: {_names(ggufs)}."
        )
    if chosen is None:
        raise ModelMissingError(
            f"{repository.name} holds no weights in safetensors or GGUF files; choose a repository "
            "that does."
        )
    missing = [name for name in chosen.weights if name not in names]
    if missing:
        raise ModelMissingError(
            f"The index of {repository.name} names {_names(missing)}, which is not in the "
            "repository; choose another repository or revision."
        )
    wanted = [chosen.config, *([chosen.index] if chosen.index else []), *chosen.weights]
    for pattern in COMPANIONS:
        wanted += fnmatch.filter(names, pattern)
    return tuple(names[name] for name in dict.fromkeys(wanted))


def _index(repository: Repository, folder: Path, progress: Progress) -> object:
    """The content of the repository's index, which is fetched into ``folder``."""
    (file,) = (each for each in repository.files if each.name == INDEX)
    if file.size > MOST_INDEX_BYTES:
        raise CheckpointError(
            f"{INDEX} of {repository.name} is too large for an index; choose another repository."
        )
    check_free_space(folder, file.size)
    label = f"Downloading {repository.name}"
    fetch(repository, file, folder / INDEX, lambda here: progress(label, here, file.size))
    return read_json(folder / INDEX)


def _names(files: Sequence[str] | Mapping[str, object]) -> str:
    shown = sorted(files)[:MOST_NAMES]
    more = len(files) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "") if shown else "none"


def _bring(
    repository: Repository, files: Sequence[RemoteFile], folder: Path, progress: Progress
) -> Path:
    """All files in ``folder``; what to open there."""
    total = sum(file.size for file in files)
    there = sum(path.lstat().st_size for path in folder.iterdir())
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
    with own_file(folder / ORIGIN) as stream:
        stream.write((json.dumps(origin, indent=2) + "\n").encode())
    _keep_only(folder, {ORIGIN, *(Path(file.name).name for file in files)})
    found = model_in(folder)
    if found is None:
        raise ModelMissingError(f"{repository.name} holds no model that can be opened.")
    return found


def _keep_only(folder: Path, names: set[str]) -> None:
    """Remove from a folder what does not belong to the model, such as pieces of transfers."""
    for path in folder.iterdir():
        if path.name not in names:
            discard(path)


def _settle(label: str, source: Path, wish: Wish, paths: Paths, progress: Progress) -> Pulled:
    """Install what lies at ``source``, as it is (moved) or quantized."""
    target = paths.models / folder_name(label)
    # A model that cannot be used is told now, not at the first question.
    check_vocabulary(open_tokenizer(source), open_checkpoint(source).config.vocab_size)
    refuse_foreign(target)
    paths.models.mkdir(parents=True, exist_ok=True)
    if wish.recipe is None:
        put_in_place(source if source.is_dir() else source.parent, target)
        return _result(label, model_in(target) or target)
    # What was pulled as it is gives way only once all is done.
    other = target.exists() and not (target / WEIGHTS).is_file()
    made = target.with_name(f".{target.name}.quantized") if other else target
    order = Order(source, made, wish.recipe, check=wish.check, force=True, threads=wish.threads)
    quantized = replace(quantize_weights(order, progress), target=str(target))
    if other:
        put_in_place(made, target)
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
    size = sum(file.lstat().st_size for file in folder.iterdir() if file.is_file())
    return Pulled(label, str(path), size)
