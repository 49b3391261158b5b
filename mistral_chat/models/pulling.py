"""``mistral-chat pull``: a model from the hub, or from anywhere, among those of this computer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mistral_chat.errors import ModelMissingError, UsageError
from mistral_chat.models.choosing import GGUF, Reference, chosen_files, chosen_gguf
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
from mistral_chat.models.workplaces import discard_unused, place_of, sweep_workplaces, workplace
from mistral_chat.settings import Paths
from mistral_chat.system.files import expanded
from mistral_chat.system.private import own_file
from mistral_chat.tokenizers import check_vocabulary
from quant.checkpoints import open_checkpoint
from quant.checkpoints.folders import INDEX
from quant.checkpoints.native import WEIGHTS, NativeCheckpoint
from quant.config import read_json
from quant.errors import CheckpointError
from quant.files import discard, own_folder
from quant.quantizers.recipe import Recipe

MOST_INDEX_BYTES = 1 << 27


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
    sweep_workplaces(paths)
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
    with workplace(label, paths) as work:
        for other in work.iterdir():
            if other.name != repository.revision:
                discard(other)
        folder = own_folder(work / repository.revision, keep=False)

        def read_index() -> object:
            return _index(repository, folder, progress)

        files = (file,) if file else chosen_files(repository, read_index)
        source = _bring(repository, files, folder, progress)
        return _settle(label, source, wish, paths, progress)


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
    discard_unused(place_of(label, paths))
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
