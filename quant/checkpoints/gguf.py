"""GGUF files: the header read with every length checked, blocks repacked without loss.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header is parsed here and not
by the ``gguf`` package, whose reader trusts the lengths that a damaged file claims.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import ModelConfig, from_gguf
from ..errors import CheckpointError, UnsupportedError
from ..qtensor import Floats, QuantSpec, pack
from ..weights import Matrix
from .names import gguf_name, tensor_shape

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
_BLOCK = 32

F32, F16, Q4_0, Q4_1, Q8_0, BF16 = 0, 1, 2, 3, 8, 30
_BYTES = {
    F32: (1, 4),
    F16: (1, 2),
    BF16: (1, 2),
    Q4_0: (_BLOCK, 18),
    Q4_1: (_BLOCK, 20),
    Q8_0: (_BLOCK, 34),
}
"""Weights and bytes of a block, for each type that can be read."""

LOSSLESS = {
    Q4_0: QuantSpec(4, _BLOCK, symmetric=True),
    Q4_1: QuantSpec(4, _BLOCK, symmetric=False),
    Q8_0: QuantSpec(8, _BLOCK, symmetric=True),
}
"""Types whose codes and scales are taken over as they are."""


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
    """A GGUF file, mapped: ``metadata`` and the places of its ``tensors``.

    Raises :class:`~quant.errors.CheckpointError` for a file that is missing, is no GGUF, is cut off
    or contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.data = np.memmap(path, np.uint8, "r")
        except FileNotFoundError:
            raise CheckpointError(f"There is no file {path}.") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        header = _Header(path, self.data)
        if len(self.data) < 4 or bytes(header.take(4)) != b"GGUF":
            raise CheckpointError(f"{path} is not a GGUF file.")
        version = header.number("I")
        if version not in (2, 3):
            raise UnsupportedError(f"{path} is a GGUF of version {version}; 2 and 3 can be read.")
        tensors, values = header.number("Q"), header.number("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(values):
            name = header.text()
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
            if kind not in _BYTES:
                raise UnsupportedError(
                    f"{self.path}: the tensor {name} has the quantization type {_type_name(kind)}; "
                    f"supported are {', '.join(_type_name(kind) for kind in _BYTES)}."
                )
            weights, size = _BYTES[kind]
            if shape and shape[-1] % weights:
                raise CheckpointError(f"{self.path} is damaged: {name} has broken blocks.")
            start = base + offset
            end = start + prod(shape) // weights * size
            if end > len(self.data):
                raise CheckpointError(
                    f"{self.path} is cut off: {name} should end at byte {end}, the file at "
                    f"{len(self.data)}; fetch it again."
                )
            places[name] = TensorInfo(kind, shape, start, end)
        return places


def _type_name(kind: int) -> str:
    from gguf.constants import GGMLQuantizationType  # only for messages

    try:
        return GGMLQuantizationType(kind).name
    except ValueError:
        return f"number {kind}"


class GGUFCheckpoint:
    """A model in a GGUF file; see :class:`~quant.checkpoints.Checkpoint`."""

    def __init__(self, path: Path) -> None:
        self._file = GGUFFile(path)
        self.source = path.name
        shapes = {name: info.shape for name, info in self._file.tensors.items()}
        self.config: ModelConfig = from_gguf(self._file.metadata, shapes)

    def digest(self) -> str:
        return hashlib.sha256(self._file.data.data).hexdigest()

    def describe(self, name: str) -> tuple[tuple[int, ...], QuantSpec | None]:
        info = self._info(name)
        return info.shape, LOSSLESS.get(info.kind)

    def read(self, name: str) -> Matrix:
        info = self._info(name)
        raw = self._file.data[info.start : info.end]
        order: npt.NDArray[np.int64] | None = None
        if name.endswith((".q", ".k")):
            order = half_split_order(info.shape[0], self.config.head_dim)
        if info.kind not in LOSSLESS:
            floats = _floats(raw, info)
            return floats if order is None else floats[order]
        codes, scales, minimums = _blocks(raw, info)
        if not all(np.isfinite(part).all() for part in (scales, minimums) if part is not None):
            raise CheckpointError(
                f"{self._file.path} is damaged: {name} has scales that are no numbers."
            )
        if order is not None:
            codes, scales = codes[order], scales[order]
            minimums = None if minimums is None else minimums[order]
        return pack(codes, scales, minimums, LOSSLESS[info.kind])

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
        return info


def half_split_order(rows: int, head_dim: int) -> npt.NDArray[np.int64]:
    """Rows of interleaved RoPE pairs in the half-split order of this engine.

    >>> half_split_order(4, 4).tolist()
    [0, 2, 1, 3]
    """
    heads = np.arange(rows).reshape(-1, head_dim // 2, 2)
    return heads.swapaxes(1, 2).reshape(-1)


def _floats(raw: npt.NDArray[np.uint8], info: TensorInfo) -> Floats:
    if info.kind == F32:
        return raw.view("<f4").astype(np.float32).reshape(info.shape)
    if info.kind == F16:
        return raw.view("<f2").astype(np.float32).reshape(info.shape)
    bits = raw.view("<u2").astype(np.uint32) << 16  # bfloat16 is the upper half of a float32
    return bits.view(np.float32).reshape(info.shape)


def _blocks(
    raw: npt.NDArray[np.uint8], info: TensorInfo
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16], npt.NDArray[np.float16] | None]:
    """Of a blocked tensor codes uint8 [rows, columns], scales, minimums float16 [rows, groups]."""
    rows, columns = info.shape
    blocks = raw.reshape(rows, columns // _BLOCK, _BYTES[info.kind][1])

    def half(at: int) -> npt.NDArray[np.float16]:
        return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")[..., 0].astype(np.float16)

    if info.kind == Q8_0:
        codes = blocks[..., 2:] ^ np.uint8(128)  # int8 + 128
        return codes.reshape(rows, columns), half(0), None
    nibbles = blocks[..., 4 if info.kind == Q4_1 else 2 :]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1)
    return codes.reshape(rows, columns), half(0), half(2) if info.kind == Q4_1 else None


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Every key and value in a GGUF's header, arrays as lists.

    Raises :class:`~quant.errors.CheckpointError` as :class:`GGUFFile` does.
    """
    return GGUFFile(Path(path)).metadata
