"""Models in files: what can be read, and turning it into the project's own folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, SpecError
from ..model import Model
from ..qtensor import QuantSpec, QuantTensor
from ..quantizers import relative_error, round_to_nearest
from ..weights import MATRICES, Layer, Matrix, Weights, check_shapes
from .gguf import GGUFCheckpoint
from .native import WEIGHTS, Checkpoint, NativeCheckpoint, write

DEFAULT_SPEC = QuantSpec(bits=4, group_size=64, symmetric=False)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at ``path``: a native folder, or a GGUF file.

    Raises :class:`~quant.errors.CheckpointError` for anything else.
    """
    place = Path(path)
    if place.is_dir():
        if (place / WEIGHTS).exists():
            return NativeCheckpoint(place)
        raise CheckpointError(f"The folder {place} holds no model: there is no {WEIGHTS} in it.")
    return GGUFCheckpoint(place)


def load(path: str | Path, spec: QuantSpec | None = None) -> Model:
    """Load a model for use.

    Quantized weights stay as they are; float matrices are quantized by ``spec``, or kept as floats
    where it is ``None``. A native folder is mapped, not copied.

    Raises :class:`~quant.errors.CheckpointError` and its kin.
    """
    checkpoint = open_checkpoint(path)
    config = checkpoint.config

    def read(name: str) -> Matrix:
        return _converted(checkpoint, name, spec)

    embedding = read("embedding")
    weights = Weights(
        embedding=embedding,
        layers=tuple(
            Layer(
                attention_norm=_floats(read(f"layers.{i}.attention_norm")),
                mlp_norm=_floats(read(f"layers.{i}.mlp_norm")),
                **{name: read(f"layers.{i}.{name}") for name in MATRICES},
            )
            for i in range(config.num_hidden_layers)
        ),
        norm=_floats(read("norm")),
        head=embedding if config.tie_word_embeddings else read("head"),
    )
    check_shapes(weights, config)
    return Model(config, weights, checkpoint.source, checkpoint.digest)


def quantize(
    source: str | Path,
    target: str | Path,
    spec: QuantSpec | None = None,
    progress: Callable[[int, int], None] | None = None,
    companions: Callable[[Path], None] | None = None,
    force: bool = False,
) -> None:
    """Write the model at ``source`` as a native folder at ``target``, whole or not at all.

    Matrices that are quantized already are repacked without loss, floats are quantized by ``spec``
    (default: int4 in asymmetric groups of 64). ``progress(done, total)`` counts tensors.
    ``companions`` may add files of its own (a tokenizer) to the folder before it gets its name.

    Raises :class:`~quant.errors.CheckpointError`, :class:`~quant.errors.SpecError` and
    :class:`~quant.errors.StorageError`; in each case nothing is left behind.
    """
    checkpoint = open_checkpoint(source)
    spec = spec or DEFAULT_SPEC
    errors: dict[str, float] = {}

    def convert(name: str) -> tuple[tuple[int, ...], QuantSpec | None, Callable[[], Matrix]]:
        shape, packed = checkpoint.describe(name)
        if packed is None and len(shape) == 2:
            packed = spec

        def make() -> Matrix:
            tensor = checkpoint.read(name)
            if packed is None or isinstance(tensor, QuantTensor):
                return tensor
            quantized = _quantized(tensor, name, packed)
            errors[name] = relative_error(tensor, quantized)
            return quantized

        return shape, packed, make

    def receipt() -> dict[str, Any]:
        return {"method": "rtn" if errors else "lossless", "relative_errors": errors}

    write(checkpoint, Path(target), convert, receipt, progress, companions, force)


def _converted(checkpoint: Checkpoint, name: str, spec: QuantSpec | None) -> Matrix:
    tensor = checkpoint.read(name)
    if spec is None or isinstance(tensor, QuantTensor) or tensor.ndim < 2:
        return tensor
    return _quantized(tensor, name, spec)


def _quantized(tensor: Any, name: str, spec: QuantSpec) -> QuantTensor:
    try:
        return round_to_nearest(tensor, spec)
    except SpecError as error:
        raise SpecError(f"The tensor {name} cannot be quantized: {error}") from error


def _floats(matrix: Matrix) -> Any:
    if isinstance(matrix, QuantTensor):
        raise CheckpointError("A norm's weight is quantized; norms must be floats.")
    return matrix
