"""GGUF files: the header read with every length checked, tensors read when they are asked for.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is parsed here and not
by the ``gguf`` package, whose reader trusts the lengths that a damaged file claims.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import ModelConfig, from_gguf
from ..errors import CheckpointError, UnsupportedError
from ..files import open_file
from ..qtensor import Floats, QuantSpec
from ..weights import Matrix
from .blocks import BLOCK_TYPES, import_blocks
from .names import gguf_name, half_split_order, tensor_names, tensor_shape
from .tensors import FLOAT_BYTES, digest_of, read_bytes, to_floats

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
MOST_HEADER, MOST_ENTRIES = 1 << 27, 1 << 22
"""Bytes of the longest header, and entries of the longest array, that are read. Published models
have some ten million bytes and half a million entries."""

FLOAT_TYPES = {0: "F32", 1: "F16", 30: "BF16"}
"""Types of floats that are read, by GGML's number."""


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: GGML's type number, shape (rows first), bytes ``start`` to ``end``."""

    kind: int
    shape: tuple[int, ...]
    start: int
    end: int


class _Header:
    """A cursor over the file that refuses to read past its end."""

    def __init__(self, path: Path, data: npt.NDArray[np.uint8]) -> None:
        self.path = path
        self.data = data.data
        self.at = 0

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.at:
            raise CheckpointError(
                f"{self.path} is damaged or cut off: its header goes beyond the end of the file."
            )
        part = self.data[self.at : self.at + count]
        self.at += count
        if self.at > MOST_HEADER:
            raise CheckpointError(
                f"{self.path} has a header of more than {MOST_HEADER / 1e6:.0f} MB, which no model "
                "has; it is damaged."
            )
        return part

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        # Some vocabularies hold bytes that are no UTF-8; they must come back as they were.
        return bytes(self.take(self.number("Q"))).decode("utf-8", "surrogateescape")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        raise CheckpointError(f"{self.path} is damaged: a value has the unknown type {kind}.")

    def array(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if count > MOST_ENTRIES:
            raise CheckpointError(
                f"{self.path} holds an array of {count} entries, more than any vocabulary has; it "
                "is damaged."
            )
        if kind in _SCALARS:
            size = struct.calcsize("<" + _SCALARS[kind])
            part = self.take(count * size)
            return list(struct.unpack(f"<{count}{_SCALARS[kind]}", part))
        if kind != _STRING:
            raise CheckpointError(
                f"{self.path} is damaged: an array holds the unknown type {kind}."
            )
        self.take(8 * count)  # a string has at least its length
        self.at -= 8 * count
        return [self.text() for _ in range(count)]


class GGUFFile:
    """The header of a GGUF file: ``metadata`` and the places of its ``tensors``.

    Raises :class:`~quant.errors.CheckpointError` for a file that is missing, is no GGUF, is cut off
    or contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_file(path) as file:
                data = np.memmap(file, np.uint8, "r")
        except FileNotFoundError:
            raise CheckpointError(f"There is no file {path}.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"{path} cannot be read: {reason}.") from error
        header = _Header(path, data)
        if len(data) < 4 or bytes(header.take(4)) != b"GGUF":
            raise CheckpointError(f"{path} is not a GGUF file.")
        version = header.number("I")
        if version in (2 << 24, 3 << 24):
            raise UnsupportedError(
                f"{path} is a GGUF in big-endian byte order; fetch the file for other computers."
            )
        if version not in (2, 3):
            raise UnsupportedError(f"{path} is a GGUF of version {version}; 2 and 3 can be read.")
        tensors, values = header.number("Q"), header.number("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(values):
            name = header.text()
            if name in self.metadata:
                raise CheckpointError(f"{path} is damaged: it says {name} twice.")
            self.metadata[name] = header.value(header.number("I"))
        self.tensors = self._places(header, tensors)

    def _places(self, header: _Header, count: int) -> dict[str, TensorInfo]:
        found = []
        for _ in range(count):
            name, dimensions = header.text(), header.number("I")
            if dimensions > 4:
                raise CheckpointError(
                    f"{self.path} is damaged: {name} has {dimensions} dimensions."
                )
            shape = tuple(header.number("Q") for _ in range(dimensions))[::-1]
            found.append((name, shape, header.number("I"), header.number("Q")))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise CheckpointError(f"{self.path} is damaged: its alignment is {alignment!r}.")
        base = -(-header.at // alignment) * alignment
        places = {}
        for name, shape, kind, offset in found:
            if kind not in FLOAT_TYPES and kind not in BLOCK_TYPES:
                known = [*FLOAT_TYPES.values(), *(block.name for block in BLOCK_TYPES.values())]
                raise UnsupportedError(
                    f"{self.path}: the tensor {name} has the quantization type {_type_name(kind)}; "
                    f"supported are {', '.join(known)}."
                )
            if kind in BLOCK_TYPES:
                weights, size = BLOCK_TYPES[kind].weights, BLOCK_TYPES[kind].nbytes
            else:
                weights, size = 1, FLOAT_BYTES[FLOAT_TYPES[kind]]
            if name in places:
                raise CheckpointError(f"{self.path} is damaged: it holds {name} twice.")
            if shape and shape[-1] % weights:
                raise CheckpointError(f"{self.path} is damaged: {name} has broken blocks.")
            start = base + offset
            end = start + prod(shape) // weights * size
            if end > len(header.data):
                raise CheckpointError(
                    f"{self.path} is cut off: {name} should end at byte {end}, the file at "
                    f"{len(header.data)}; fetch it again."
                )
            places[name] = TensorInfo(kind, shape, start, end)
        return places


def _type_name(kind: int) -> str:
    from gguf.constants import GGMLQuantizationType  # only for messages

    try:
        return GGMLQuantizationType(kind).name
    except ValueError:
        return f"number {kind}"


def _refuse_other_contents(path: Path, file: GGUFFile) -> None:
    """Raise UnsupportedError for a GGUF that holds something else than one whole model."""
    metadata = file.metadata
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedError(
            f"{path} holds no model but what belongs to one (its general.type is {kind!r}); name "
            "the model's own file."
        )
    parts = metadata.get("split.count", 1)
    if parts != 1:
        number = metadata.get("split.no", 0)
        shown = number + 1 if isinstance(number, int) else number
        raise UnsupportedError(
            f"{path} is part {shown} of {parts} of a model; put them together with "
            "'llama-gguf-split --merge FIRST-PART WHOLE.gguf', and name the whole file."
        )
    if not file.tensors:
        raise UnsupportedError(
            f"{path} has no tensors: it is a vocabulary alone; name the model's own file."
        )


class GGUFCheckpoint:
    """A model in a GGUF file; see :class:`~quant.checkpoints.checkpoint.Checkpoint`.

    Raises :class:`~quant.errors.CheckpointError` too for a tensor that a model of this geometry
    does not have: it would be computed wrongly.
    """

    format = "GGUF file"

    def __init__(self, path: Path) -> None:
        self._file = GGUFFile(path)
        _refuse_other_contents(path, self._file)
        self.source = path.name
        self.import_errors: dict[str, float] = {}
        shapes = {name: info.shape for name, info in self._file.tensors.items()}
        if "rope_freqs.weight" in shapes:
            raise UnsupportedError(
                f"{path} holds rope_freqs.weight: the model needs a rope scaling by tabulated "
                "factors, which is not supported."
            )
        self.config: ModelConfig = from_gguf(self._file.metadata, shapes)
        for name in sorted(set(shapes) - {gguf_name(own) for own in tensor_names(self.config)}):
            raise UnsupportedError(
                f"{path} holds the tensor {name}, which a model of its architecture does not have "
                "here; it would be computed wrongly."
            )

    def digest(self) -> str:
        return digest_of([self._file.path])

    def stored(self, name: str) -> tuple[str, int]:
        info = self._info(name)
        kind = FLOAT_TYPES.get(info.kind) or BLOCK_TYPES[info.kind].name
        return kind, info.end - info.start

    def describe(self, name: str) -> tuple[tuple[int, ...], QuantSpec | None]:
        info = self._info(name)
        return info.shape, None if info.kind in FLOAT_TYPES else BLOCK_TYPES[info.kind].spec

    def read(self, name: str) -> Matrix:
        info = self._info(name)
        if info.kind in FLOAT_TYPES:
            return self.read_rows(name, 0, info.shape[0])
        kind = BLOCK_TYPES[info.kind]
        order = self._order(name, info.shape[0])
        raw = read_bytes(self._file.path, info.start, info.end)
        try:
            tensor, error = import_blocks(raw, (info.shape[0], info.shape[1]), kind, order)
        except ValueError as reason:
            raise CheckpointError(
                f"{self._file.path} is damaged: {name} has scales that are no numbers."
            ) from reason
        if not kind.exact:
            self.import_errors[name] = error
        return tensor

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        info = self._info(name)
        dtype = FLOAT_TYPES[info.kind]
        row = prod(info.shape[1:]) * FLOAT_BYTES[dtype]
        raw = read_bytes(self._file.path, info.start + start * row, info.start + stop * row)
        floats = to_floats(raw, dtype).reshape(stop - start, *info.shape[1:])
        order = self._order(name, stop - start)
        return floats if order is None else floats[order]

    def _order(self, name: str, rows: int) -> npt.NDArray[np.int64] | None:
        if not name.endswith((".q", ".k")):
            return None
        return half_split_order(rows, self.config.head_dim)

    def _info(self, name: str) -> TensorInfo:
        info = self._file.tensors.get(gguf_name(name))
        if info is None:
            raise CheckpointError(f"{self._file.path} has no tensor {gguf_name(name)}.")
        expected = tensor_shape(self.config, name)
        if info.shape != expected:
            raise CheckpointError(
                f"{self._file.path}: the tensor {gguf_name(name)} has the shape {info.shape}; "
                f"the model's geometry asks for {expected}."
            )
        if len(expected) == 1 and info.kind not in FLOAT_TYPES:
            raise CheckpointError(f"{self._file.path}: {gguf_name(name)} must hold floats.")
        return info


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Every key and value in a GGUF's header, arrays as lists.

    Raises :class:`~quant.errors.CheckpointError` as :class:`GGUFFile` does.
    """
    return GGUFFile(Path(path)).metadata
