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
from ..errors import CheckpointError
from ..qtensor import Floats, QuantSpec, QuantTensor, packed_shapes
from ..weights import Matrix
from .tensors import SafetensorsFile, TensorPlace

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
        return raw.view(TYPES[kind]).reshape(place.shape)
