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
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import read_config, write_config
from ..errors import CheckpointError, StorageError
from ..qtensor import LINE, Floats, QuantSpec, QuantTensor, packed_shapes
from ..weights import Matrix
from .checkpoint import Checkpoint
from .names import tensor_names
from .tensors import SafetensorsFile, TensorPlace

FORMAT, FORMAT_VERSION = "mistral-chat", 1
CONFIG, WEIGHTS = "config.json", "weights.safetensors"

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


def write(
    checkpoint: Checkpoint,
    target: Path,
    convert: Callable[[str], tuple[tuple[int, ...], QuantSpec | None, Callable[[], Matrix]]],
    receipt: Callable[[], dict[str, Any]],
    progress: Callable[[int, int], None] | None,
    companions: Callable[[Path], None] | None,
    force: bool,
) -> None:
    """Write ``checkpoint`` as a native folder at ``target``, whole or not at all.

    ``convert`` gives for a name the shape and packing to store and a function that makes the
    tensor; one tensor is in memory at a time. ``receipt`` is asked after the last one.

    Raises :class:`~quant.errors.StorageError` if the target exists (and ``force`` is not given),
    the disk has no room, or cannot be written.
    """
    if target.exists() and not force:
        raise StorageError(f"{target} exists already; remove it, or allow it to be overwritten.")
    names = tensor_names(checkpoint.config)
    plans = {name: convert(name) for name in names}
    parts = {name: _parts(name, shape, spec) for name, (shape, spec, _) in plans.items()}
    size = sum(_nbytes(kind, shape) for group in parts.values() for kind, shape in group.values())
    with _temporary_folder(target, size) as folder:
        write_config(checkpoint.config, folder / CONFIG)
        packed = {
            name: {"spec": asdict(spec), "rows": shape[0], "columns": shape[1]}
            for name, (shape, spec, _) in plans.items()
            if spec is not None
        }
        description = {
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "source": checkpoint.source,
            "digest": checkpoint.digest(),
            "packed": json.dumps(packed),
        }
        with (folder / WEIGHTS).open("w+b") as stream:
            _write_tensors(stream, plans, parts, description, receipt, progress)
            stream.flush()
            os.fsync(stream.fileno())
        if companions is not None:
            companions(folder)
        if target.exists() and force:
            shutil.rmtree(target)
        folder.chmod(0o755)
        folder.rename(target)


def _write_tensors(
    stream: Any,
    plans: dict[str, tuple[tuple[int, ...], QuantSpec | None, Callable[[], Matrix]]],
    parts: dict[str, dict[str, tuple[str, tuple[int, ...]]]],
    description: dict[str, str],
    receipt: Callable[[], dict[str, Any]],
    progress: Callable[[int, int], None] | None,
) -> None:
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
    room = len(json.dumps({"__metadata__": description, **header})) + 256 * len(plans) + 4096
    start = -(-(8 + room) // LINE) * LINE
    stream.truncate(start + offset)
    for number, (name, (_, _, make)) in enumerate(plans.items()):
        for part, array in _arrays(name, make()).items():
            stream.seek(start + header[part]["data_offsets"][0])
            stream.write(np.ascontiguousarray(array).data)
        if progress is not None:
            progress(number + 1, len(plans))
    description = {**description, "receipt": json.dumps(receipt())}
    text = json.dumps({"__metadata__": description, **header}).encode()
    if len(text) > start - 8:
        raise StorageError("The description of the model does not fit into its header.")
    stream.seek(0)
    stream.write((start - 8).to_bytes(8, "little") + text.ljust(start - 8))


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
def _temporary_folder(target: Path, size: int) -> Iterator[Path]:
    """A folder beside ``target`` that is gone afterwards unless it was renamed."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < size:
            raise StorageError(
                f"{target} needs {size / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free there."
            )
        folder = Path(
            tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        )
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}.") from error
    try:
        yield folder
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise StorageError(f"{target} exists already.") from error
        raise StorageError(f"{target} could not be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
