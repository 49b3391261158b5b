"""The project's own folder: ``config.json`` and packed tensors, mapped and used without a copy.

``weights.safetensors`` is an ordinary safetensors file. A packed matrix NAME is stored as
NAME.codes (uint8), NAME.scales and, where asymmetric, NAME.minimums (float16); a float tensor as
NAME (float32). Codes begin at multiples of 64 bytes. The metadata hold the format's version, the
``QuantSpec`` and shape of each packed matrix, the source's name and digest, and the receipt of the
quantization.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import read_config
from ..errors import CheckpointError, SpecError
from ..files import open_file
from ..qtensor import Floats, QuantSpec, QuantTensor, check_columns, packed_shapes
from ..weights import Matrix
from .names import tensor_names, tensor_shape
from .tensors import SafetensorsFile

FORMAT, FORMAT_VERSION = "mistral-chat", 1
CONFIG, WEIGHTS = "config.json", "weights.safetensors"

TYPES: dict[str, npt.DTypeLike] = {"U8": np.uint8, "F16": np.float16, "F32": np.float32}


class NativeCheckpoint:
    """A folder written by :mod:`~quant.checkpoints.writing`; see :class:`Checkpoint`.

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
        try:
            with open_file(path) as stream:
                self._data = np.memmap(stream, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
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
            packed = _object(metadata["packed"])
            self._specs = {name: QuantSpec(**fields["spec"]) for name, fields in packed.items()}
            shapes = {name: (fields["rows"], fields["columns"]) for name, fields in packed.items()}
            self.receipt: dict[str, Any] = _object(metadata["receipt"])
        except (KeyError, TypeError, ValueError, RecursionError, SpecError) as error:
            raise CheckpointError(f"{path} lacks a part of its description: {error}.") from error
        names = tensor_names(self.config)
        if any(shapes[name] != tensor_shape(self.config, name) for name in shapes if name in names):
            raise CheckpointError(f"{path} contradicts {CONFIG}; convert the model again.")
        for name in names:
            self._check(name)

    def digest(self) -> str:
        return self._digest

    def describe(self, name: str) -> tuple[tuple[int, ...], QuantSpec | None]:
        return tensor_shape(self.config, name), self._specs.get(name)

    def stored(self, name: str) -> tuple[str, int]:
        places = [self._places[part] for part in self._parts(name)]
        size = sum(place.end - place.start for place in places)
        spec = self._specs.get(name)
        if spec is None:
            return places[0].dtype, size
        kind = "symmetric" if spec.symmetric else "asymmetric"
        return f"int{spec.bits} {kind} in groups of {spec.group_size}", size

    def read(self, name: str) -> Matrix:
        arrays = [self._array(part) for part in self._parts(name)]
        spec = self._specs.get(name)
        if spec is None:
            return arrays[0]
        rows, columns = tensor_shape(self.config, name)
        codes, scales, *minimums = arrays
        return QuantTensor(spec, rows, columns, codes, scales, minimums[0] if minimums else None)

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        return self._array(name)[start:stop]

    def _parts(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        return parts_of(name, tensor_shape(self.config, name), self._specs.get(name))

    def _check(self, name: str) -> None:
        """Raise CheckpointError unless what is stored of a tensor is what is asked of it."""
        shape, spec = self.describe(name)
        if spec is not None:
            if len(shape) != 2:
                raise CheckpointError(f"{self.folder}: the tensor {name} must hold floats.")
            try:
                check_columns(shape[1], spec)
            except SpecError as error:
                raise CheckpointError(f"{self.folder}: the tensor {name}: {error}") from error
        for part, (kind, expected) in self._parts(name).items():
            place = self._places.get(part)
            if place is None:
                raise CheckpointError(
                    f"{self.folder} has no tensor {part}; convert the model again."
                )
            if place.dtype != kind or place.shape != expected:
                raise CheckpointError(
                    f"{self.folder}: the tensor {part} is stored as {place.dtype} "
                    f"{list(place.shape)}; the model's geometry asks for {kind} {list(expected)}."
                )

    def _array(self, part: str) -> npt.NDArray[Any]:
        place = self._places[part]
        array = self._data[place.start : place.end].view(TYPES[place.dtype]).reshape(place.shape)
        # Other programs may have written it anywhere; kernels want numbers where numbers can be.
        return np.require(array, requirements="A")


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def parts_of(
    name: str, shape: tuple[int, ...], spec: QuantSpec | None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What a tensor is stored as: safetensors' type and shape of each part, by its name.

    >>> parts_of("norm", (64,), None)
    {'norm': ('F32', (64,))}
    """
    if spec is None:
        return {name: ("F32", shape)}
    rows, columns = shape
    codes, scales = packed_shapes(rows, columns, spec)
    parts = {f"{name}.codes": ("U8", codes), f"{name}.scales": ("F16", scales)}
    if not spec.symmetric:
        parts[f"{name}.minimums"] = ("F16", scales)
    return parts
