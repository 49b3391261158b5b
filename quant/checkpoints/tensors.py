"""Safetensors files: the header checked, tensors read when they are asked for.

Format: https://github.com/huggingface/safetensors. Tensors are read from the file and not mapped:
mapped pages count as this process's memory for as long as nothing else wants it, and a model of
15 GB must pass through a computer that has 4.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors

from ..errors import CheckpointError, UnsupportedError
from ..files import open_file
from ..qtensor import Floats

FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a number of each type that is read as float32."""


MOST_HEADER = 1 << 24
"""Bytes of the longest header that is read; published models have some hundred thousand."""


@dataclass(frozen=True)
class TensorPlace:
    """A tensor's type (safetensors' name), shape, and its bytes in the file, start to end."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def to_floats(raw: npt.NDArray[np.uint8], dtype: str) -> Floats:
    """Little-endian F32, F16 or BF16 as float32, flat.

    bfloat16 is the upper half of a float32, so nothing is rounded:

    >>> to_floats(np.array([0x80, 0x3F], np.uint8), "BF16").tolist()
    [1.0]
    """
    if dtype == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if dtype == "F16":
        return raw.view("<f2").astype(np.float32)
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def read_bytes(path: Path, start: int, end: int) -> npt.NDArray[np.uint8]:
    """Bytes ``start`` to ``end`` of a file; raises CheckpointError where it is shorter by now."""
    try:
        with open_file(path) as file:
            raw = np.fromfile(file, np.uint8, end - start, offset=start)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if len(raw) != end - start:
        raise CheckpointError(f"{path} has become shorter while it was read; fetch it again.")
    return raw


def digest_of(paths: Sequence[Path]) -> str:
    """SHA-256 of the files' contents, one after the other, in hexadecimal."""
    whole = hashlib.sha256()
    for path in paths:
        with open_file(path) as file:
            while block := file.read(1 << 22):
                whole.update(block)
    return whole.hexdigest()


class SafetensorsFile:
    """The header of a safetensors file: ``metadata`` and the places of its ``tensors``.

    Raises :class:`~quant.errors.CheckpointError` for a file that is missing, damaged or cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_file(path) as stream:
                length = int.from_bytes(stream.read(8), "little")
                if length > MOST_HEADER:
                    raise ValueError(f"its header has {length} bytes")
                header: dict[str, Any] = json.loads(stream.read(length))
            with safetensors.safe_open(path, "np") as file:  # checks every offset
                self.metadata: dict[str, str] = file.metadata() or {}
        except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
            raise CheckpointError(
                f"{path} is missing or damaged ({error}); fetch it again."
            ) from error
        header.pop("__metadata__", None)
        first = 8 + length
        self.tensors = {
            name: TensorPlace(
                entry["dtype"],
                tuple(entry["shape"]),
                first + entry["data_offsets"][0],
                first + entry["data_offsets"][1],
            )
            for name, entry in header.items()
        }

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop`` of a float tensor as float32 [stop - start, ...]."""
        place = self.float_place(name)
        row = prod(place.shape[1:]) * FLOAT_BYTES[place.dtype]
        raw = read_bytes(self.path, place.start + start * row, place.start + stop * row)
        return to_floats(raw, place.dtype).reshape(stop - start, *place.shape[1:])

    def float_place(self, name: str) -> TensorPlace:
        """The place of a tensor; raises UnsupportedError where it holds no floats known here."""
        place = self.tensors[name]
        if place.dtype not in FLOAT_BYTES:
            raise UnsupportedError(
                f"{self.path}: the tensor {name} is stored as {place.dtype}; supported are "
                f"{', '.join(FLOAT_BYTES)}."
            )
        return place
