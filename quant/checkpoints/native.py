"""The project's own folder: ``config.json`` and packed tensors, mapped and used without a copy.

``weights.safetensors`` is an ordinary safetensors file. A packed matrix NAME is stored as
NAME.codes (uint8), NAME.scales and, where asymmetric, NAME.minimums (float16); a float tensor as
NAME (float32). Codes begin at multiples of 64 bytes. The metadata hold the format's version, the
``QuantSpec`` and shape of each packed matrix, the source's name and digest, and the receipt of the
quantization.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

from ..config import read_config, write_config
from ..errors import CheckpointError, SpecError, StorageError
from ..qtensor import LINE, Floats, QuantSpec, QuantTensor, packed_shapes
from ..weights import Matrix
from .checkpoint import Checkpoint
from .names import tensor_names
from .tensors import SafetensorsFile, TensorPlace

FORMAT, FORMAT_VERSION = "mistral-chat", 1
CONFIG, WEIGHTS, JOURNAL = "config.json", "weights.safetensors", "journal.json"

_TYPES: dict[str, npt.DTypeLike] = {"U8": np.uint8, "F16": np.float16, "F32": np.float32}


class NativeCheckpoint:
    """A folder written by :func:`write`; see :class:`Checkpoint`.

    Raises :class:`~quant.errors.CheckpointError` for files that are missing, damaged, or of a
    version this program does not know.
    """

    format = "native folder"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.import_errors: dict[str, float] = {}
        self.config = read_config(folder / CONFIG)
        path = folder / WEIGHTS
        file = SafetensorsFile(path)
        metadata, self._places = file.metadata, file.tensors
        self._data = np.memmap(path, np.uint8, "r")
        if metadata.get("format") != FORMAT or metadata.get("format_version") != str(
            FORMAT_VERSION
        ):
            raise CheckpointError(
                f"{path} is not a model in this program's format {FORMAT_VERSION}; "
                "convert it again."
            )
        try:
            self.source = metadata["source"]
            self._digest: str = metadata["digest"]
            self._packed = {
                name: (QuantSpec(**fields["spec"]), (int(fields["rows"]), int(fields["columns"])))
                for name, fields in json.loads(metadata["packed"]).items()
            }
            self.receipt: dict[str, Any] = json.loads(metadata["receipt"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} lacks a part of its description: {error}.") from error

    def digest(self) -> str:
        return self._digest

    def describe(self, name: str) -> tuple[tuple[int, ...], QuantSpec | None]:
        if name in self._packed:
            spec, shape = self._packed[name]
            return shape, spec
        return self._place(name).shape, None

    def stored(self, name: str) -> tuple[str, int]:
        if name not in self._packed:
            place = self._place(name)
            return place.dtype, place.end - place.start
        spec = self._packed[name][0]
        parts = ("codes", "scales") if spec.symmetric else ("codes", "scales", "minimums")
        places = [self._place(f"{name}.{part}") for part in parts]
        kind = "symmetric" if spec.symmetric else "asymmetric"
        return (
            f"int{spec.bits} {kind} in groups of {spec.group_size}",
            sum(place.end - place.start for place in places),
        )

    def read(self, name: str) -> Matrix:
        if name not in self._packed:
            return self._array(name, "F32", None)
        spec, (rows, columns) = self._packed[name]
        codes, scales = packed_shapes(rows, columns, spec)
        return QuantTensor(
            spec,
            rows,
            columns,
            self._array(f"{name}.codes", "U8", codes),
            self._array(f"{name}.scales", "F16", scales),
            None if spec.symmetric else self._array(f"{name}.minimums", "F16", scales),
        )

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        return self._array(name, "F32", None)[start:stop]

    def _place(self, name: str) -> TensorPlace:
        if name not in self._places:
            raise CheckpointError(f"{self.folder} has no tensor {name}; convert the model again.")
        return self._places[name]

    def _array(self, name: str, kind: str, shape: tuple[int, ...] | None) -> npt.NDArray[Any]:
        place = self._place(name)
        if place.dtype != kind or (shape is not None and place.shape != shape):
            raise CheckpointError(f"{self.folder}: the tensor {name} has a wrong type or shape.")
        raw = self._data[place.start : place.end]
        return raw.view(_TYPES[kind]).reshape(place.shape)


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

    Raises :class:`~quant.errors.StorageError` if the target exists (and ``force`` is not given),
    the disk has no room, or cannot be written.
    """
    if target.exists() and not force:
        raise StorageError(f"{target} exists already; remove it, or allow it to be overwritten.")
    names = tensor_names(checkpoint.config)
    plans = {name: job.plan(name) for name in names}
    parts = {name: _parts(name, shape, spec) for name, (shape, spec) in plans.items()}
    size = sum(_nbytes(kind, shape) for group in parts.values() for kind, shape in group.values())
    with _working_folder(target, size, identity) as folder:
        write_config(checkpoint.config, folder / CONFIG)
        packed = {
            name: {"spec": asdict(spec), "rows": shape[0], "columns": shape[1]}
            for name, (shape, spec) in plans.items()
            if spec is not None
        }
        description = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "source": checkpoint.source,
            "digest": checkpoint.digest(),
            "packed": json.dumps(packed),
        }
        journal = Journal(folder, identity)
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
        if companions is not None:
            companions(folder)
        journal.remove()
        if target.exists() and force:
            shutil.rmtree(target)
        folder.chmod(0o755)
        folder.rename(target)
    return receipt


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

    def remove(self) -> None:
        """The work is done."""
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Layout:
    """Where each part lies: safetensors' header entries, and the first byte behind the header."""

    header: dict[str, Any]
    start: int
    end: int


def _layout(
    plans: dict[str, tuple[tuple[int, ...], QuantSpec | None]],
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
    plans: dict[str, tuple[tuple[int, ...], QuantSpec | None]],
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
        raw = np.frombuffer(stream.read(end - begin), _TYPES[place["dtype"]])
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


def _parts(
    name: str, shape: tuple[int, ...], spec: QuantSpec | None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    if spec is None:
        return {name: ("F32", shape)}
    rows, columns = shape
    codes, scales = packed_shapes(rows, columns, spec)
    parts = {f"{name}.codes": ("U8", codes), f"{name}.scales": ("F16", scales)}
    if not spec.symmetric:
        parts[f"{name}.minimums"] = ("F16", scales)
    return parts


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
    return prod(shape) * np.dtype(_TYPES[kind]).itemsize


@contextlib.contextmanager
def _working_folder(target: Path, size: int, identity: dict[str, Any] | None) -> Iterator[Path]:
    """A folder beside ``target`` to work in, to be renamed at the end.

    Otherwise it is gone afterwards; with an ``identity`` it stays, for the next call to go on in.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.parent / f".{target.name}.partial"
        there = sum(file.stat().st_blocks * 512 for file in partial.glob("*"))
        free = shutil.disk_usage(target.parent).free + (there if identity is not None else 0)
        if free < size:
            raise StorageError(
                f"{target} needs {size / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free there."
            )
        if identity is None:
            prefix = f".{target.name}."
            folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=target.parent))
        else:
            folder = partial
            folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}.") from error
    try:
        with alone_in(folder):
            try:
                yield folder
            except (CheckpointError, SpecError):  # it would fail again
                shutil.rmtree(folder, ignore_errors=True)
                raise
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise StorageError(f"{target} exists already.") from error
        raise StorageError(f"{target} could not be written: {error.strerror or error}.") from error
    finally:
        if identity is None:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go of when a process dies."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"Another process is writing {folder}; wait for it, or choose another target."
            ) from None
        yield
    finally:
        os.close(descriptor)
