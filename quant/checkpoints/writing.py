"""Writing a native folder: whole or not at all, and resumed where it was interrupted.

The work is done in a folder beside the target, which takes the target's name at the end. Until then
a journal in it tells which tensors are whole on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import write_config
from ..errors import CheckpointError, SpecError, StorageError
from ..files import alone_in, discard, new_folder, own_folder, put_back, put_in_place, sweep
from ..qtensor import LINE, QuantSpec, QuantTensor
from ..weights import Matrix
from .checkpoint import Checkpoint
from .names import tensor_names
from .native import CONFIG, FORMAT, FORMAT_VERSION, TYPES, WEIGHTS, parts_of
from .tensors import SafetensorsFile

JOURNAL, PARTIAL = "journal.json", ".partial"

Plans = dict[str, tuple[tuple[int, ...], QuantSpec | None]]
"""Each tensor's shape and, where it is packed, how."""


@dataclass(frozen=True)
class Job:
    """Where the tensors of a folder come from.

    ``plan`` gives for a name the shape and packing to store, ``make`` the tensor; names are asked
    for in reading order, one tensor at a time. ``finished`` is told of a tensor that an earlier run
    has made. ``receipt`` is asked after the last one, and ``finish`` for what is known only then:
    it is given the folder, complete but for the receipt's last entries.
    """

    plan: Callable[[str], tuple[tuple[int, ...], QuantSpec | None]]
    make: Callable[[str], Matrix]
    finished: Callable[[str, Matrix], None]
    receipt: Callable[[], dict[str, Any]]
    finish: Callable[[Path], dict[str, Any]]


def write(
    checkpoint: Checkpoint,
    target: Path,
    job: Job,
    progress: Callable[[int, int], None] | None,
    companions: Callable[[Path], None] | None,
    force: bool,
    identity: dict[str, Any] | None,
) -> dict[str, Any]:
    """Write ``checkpoint`` as a native folder at ``target``, whole or not at all; the receipt.

    With an ``identity`` (what is being made of what) the folder that is worked in survives an
    interruption, and the next call with an equal one goes on after the last tensor in it.

    With ``force`` a model that this program has made gives way to the new one, once that is whole;
    anything else never does. Raises :class:`~quant.errors.StorageError` if the target exists and
    must stay, the disk has no room, or cannot be written.
    """
    _check_target(target, force)
    names = tensor_names(checkpoint.config)
    plans = {name: job.plan(name) for name in names}
    parts = {name: parts_of(name, shape, spec) for name, (shape, spec) in plans.items()}
    size = sum(_nbytes(kind, shape) for group in parts.values() for kind, shape in group.values())
    with _working_folder(target, size, identity) as folder:
        journal = Journal(folder, identity)
        if not journal.done:
            for path in folder.iterdir():
                discard(path)
        write_config(checkpoint.config, folder / CONFIG)
        if companions is not None:
            companions(folder)
        _check_nothing_is_lost(target, folder)
        description = _description(checkpoint, plans)
        weights = folder / WEIGHTS
        with weights.open("r+b" if weights.exists() else "w+b") as stream:
            layout = _layout(plans, parts, description)
            _write_tensors(stream, plans, layout, job, journal, progress)
            receipt = job.receipt() | {"relative_errors": journal.errors}
            if journal.errors and receipt["method"] == "lossless":
                receipt = {**receipt, "method": "rtn"}
            _write_header(stream, layout, description, receipt)
        added = job.finish(folder)
        if added:
            receipt |= added
            with weights.open("r+b") as stream:
                _write_header(stream, layout, description, receipt)
        _check_target(target, force)
        _check_nothing_is_lost(target, folder)
        folder.chmod(0o755)
        put_in_place(folder, target)
        # Not before: a process that is killed here has lost nothing.
        (target / JOURNAL).unlink(missing_ok=True)
    return receipt


def _description(checkpoint: Checkpoint, plans: Plans) -> dict[str, str]:
    """What the file's header tells beside the tensors."""
    packed = {
        name: {"spec": asdict(spec), "rows": shape[0], "columns": shape[1]}
        for name, (shape, spec) in plans.items()
        if spec is not None
    }
    return {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "source": checkpoint.source,
        "digest": checkpoint.digest(),
        "packed": json.dumps(packed),
    }


def _check_target(target: Path, force: bool) -> None:
    """Raise StorageError unless nothing is there, or a model of this program's may be replaced."""
    if target.name in ("", ".."):
        raise StorageError(f"{target} is a folder that is there already; name a new one.")
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise StorageError(f"{target} exists already; remove it, or allow it to be overwritten.")
    if target.is_symlink() or not target.is_dir():
        raise StorageError(f"{target} is no folder, and is not replaced; choose another target.")
    here = Path.cwd()
    if target.resolve() in (here, *here.parents):
        raise StorageError(f"{target} is the working folder, or holds it; choose another target.")
    if not _is_model(target):
        raise StorageError(
            f"{target} is no model that this program has made, and is not replaced; choose another "
            "target."
        )


def _is_model(folder: Path) -> bool:
    try:
        return SafetensorsFile(folder / WEIGHTS).metadata.get("format") == FORMAT
    except CheckpointError:
        return False


def _check_nothing_is_lost(target: Path, made: Path) -> None:
    """Raise StorageError where ``target`` holds a file that the model in ``made`` does not."""
    if not target.is_dir():
        return
    known = {path.name for path in made.iterdir()} | {WEIGHTS, JOURNAL}
    foreign = sorted({path.name for path in target.iterdir()} - known)
    if foreign:
        raise StorageError(
            f"{target} holds {foreign[0]}, which is no part of the model and would be lost with "
            "it; move it elsewhere, or choose another target."
        )


class Journal:
    """Which tensors are whole on disk, and the errors they were left with.

    Without an ``identity`` nothing is kept. Each entry is on disk after its tensor is; a file that
    is damaged, or of another identity, counts as empty.
    """

    def __init__(self, folder: Path, identity: dict[str, Any] | None) -> None:
        self._path = folder / JOURNAL
        self._identity = None
        if identity is not None:
            text = json.dumps(identity, sort_keys=True)
            self._identity = hashlib.sha256(text.encode()).hexdigest()
        self.done: list[str] = []
        self.errors: dict[str, float] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            if self._identity is not None and kept["identity"] == self._identity:
                self.done, self.errors = list(kept["done"]), dict(kept["errors"])

    @property
    def keeps(self) -> bool:
        """Whether entries outlive the process."""
        return self._identity is not None

    def add(self, name: str, error: float | None) -> None:
        """Note that a tensor is done."""
        self.done.append(name)
        if error is not None:
            self.errors[name] = error
        if self._identity is None:
            return
        new = self._path.with_suffix(".new")
        values = {"identity": self._identity, "done": self.done, "errors": self.errors}
        with new.open("w", encoding="utf-8") as file:
            json.dump(values, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)


@dataclass(frozen=True)
class Layout:
    """Where each part lies: safetensors' header entries, and the first byte behind the header."""

    header: dict[str, Any]
    start: int
    end: int


def _layout(
    plans: Plans,
    parts: dict[str, dict[str, tuple[str, tuple[int, ...]]]],
    description: dict[str, str],
) -> Layout:
    # Whole lines first, so that all of them begin at a multiple of 64; the receipt is known only at
    # the end and goes where blanks have been kept for it.
    entries = [(part, *place) for group in parts.values() for part, place in group.items()]
    entries.sort(key=lambda entry: _nbytes(entry[1], entry[2]) % LINE != 0)
    header: dict[str, Any] = {}
    offset = 0
    for part, kind, shape in entries:
        end = offset + _nbytes(kind, shape)
        header[part] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    room = len(json.dumps({"__metadata__": description, **header})) + 256 * len(plans) + 8192
    start = -(-(8 + room) // LINE) * LINE
    return Layout(header, start, start + offset)


def _write_tensors(
    stream: Any,
    plans: Plans,
    layout: Layout,
    job: Job,
    journal: Journal,
    progress: Callable[[int, int], None] | None,
) -> None:
    stream.truncate(layout.end)
    kept = set(journal.done)
    for number, (name, (shape, spec)) in enumerate(plans.items()):
        if name in kept:
            job.finished(name, _read_back(stream, layout, name, shape, spec))
        else:
            tensor = job.make(name)
            for part, array in _arrays(name, tensor).items():
                stream.seek(layout.start + layout.header[part]["data_offsets"][0])
                stream.write(np.ascontiguousarray(array).data)
            if journal.keeps:
                stream.flush()
                os.fsync(stream.fileno())
            journal.add(name, job.receipt()["relative_errors"].get(name))
        if progress is not None:
            progress(number + 1, len(plans))


def _read_back(
    stream: Any, layout: Layout, name: str, shape: tuple[int, ...], spec: QuantSpec | None
) -> Matrix:
    """A tensor that an earlier run has written."""

    def part(kind: str) -> npt.NDArray[Any]:
        place = layout.header[kind]
        begin, end = place["data_offsets"]
        stream.seek(layout.start + begin)
        raw = np.frombuffer(stream.read(end - begin), TYPES[place["dtype"]])
        return raw.reshape(place["shape"])

    if spec is None:
        return part(name)
    minimums = None if spec.symmetric else part(f"{name}.minimums")
    codes, scales = part(f"{name}.codes"), part(f"{name}.scales")
    return QuantTensor(spec, shape[0], shape[1], codes, scales, minimums)


def _write_header(
    stream: Any, layout: Layout, description: dict[str, str], receipt: dict[str, Any]
) -> None:
    description = {**description, "receipt": json.dumps(receipt)}
    text = json.dumps({"__metadata__": description, **layout.header}).encode()
    if len(text) > layout.start - 8:
        raise StorageError("The description of the model does not fit into its header.")
    stream.seek(0)
    stream.write((layout.start - 8).to_bytes(8, "little") + text.ljust(layout.start - 8))
    stream.flush()
    os.fsync(stream.fileno())


def _arrays(name: str, tensor: Matrix) -> dict[str, npt.NDArray[Any]]:
    if not isinstance(tensor, QuantTensor):
        return {name: tensor}
    arrays: dict[str, npt.NDArray[Any]] = {
        f"{name}.codes": tensor.codes,
        f"{name}.scales": tensor.scales,
    }
    if tensor.minimums is not None:
        arrays[f"{name}.minimums"] = tensor.minimums
    return arrays


def _nbytes(kind: str, shape: tuple[int, ...]) -> int:
    return prod(shape) * np.dtype(TYPES[kind]).itemsize


@contextlib.contextmanager
def _working_folder(target: Path, size: int, identity: dict[str, Any] | None) -> Iterator[Path]:
    """A folder of this person's own beside ``target`` to work in.

    It is gone afterwards, or has the target's name; with an ``identity`` it stays where it was not
    done, for the next call to go on in.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        put_back(target)
        _sweep(target.parent)
        partial = target.parent / f".{target.name}{PARTIAL}"
        there = sum(file.stat().st_blocks * 512 for file in partial.glob("*"))
        free = shutil.disk_usage(target.parent).free + (there if identity is not None else 0)
        if free < size:
            raise StorageError(
                f"{target} needs {size / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free there."
            )
        if identity is None:
            folder = new_folder(target)
        else:
            folder = partial
            own_folder(folder, keep=False)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}.") from error
    try:
        with alone_in(folder):
            try:
                yield folder
            except BaseException as error:
                # It would fail again, or there is nothing to go on with.
                hopeless = isinstance(error, (CheckpointError, SpecError))
                if hopeless or not (folder / JOURNAL).exists():
                    shutil.rmtree(folder, ignore_errors=True)
                raise
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise StorageError(f"{target} exists already.") from error
        raise StorageError(f"{target} could not be written: {error.strerror or error}.") from error
    finally:
        if identity is None:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what calls that were killed have left there, but what can be resumed."""
    sweep(parent)
    for path in parent.glob(f".*{PARTIAL}"):
        if not (path / JOURNAL).exists():
            with contextlib.suppress(OSError, StorageError):
                own_folder(path)
                with alone_in(path):
                    shutil.rmtree(path, ignore_errors=True)
