"""Models in files: what can be read, and turning it into the project's own folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, SpecError
from ..model import Model
from ..qtensor import ROW_BLOCK, QuantSpec, QuantTensor, check_columns, packed_shapes
from ..quantizers import round_to_nearest, squared_norms
from ..weights import MATRICES, Layer, Matrix, Weights, check_shapes
from .checkpoint import Checkpoint
from .folders import CONFIG, CONSOLIDATED, INDEX, PARAMS, SINGLE, open_huggingface, open_mistral
from .gguf import GGUFCheckpoint
from .native import WEIGHTS, NativeCheckpoint, write
from .pickles import refuse_pickle, refuse_pickles

DEFAULT_SPEC = QuantSpec(bits=4, group_size=64, symmetric=False)


SLAB_WEIGHTS = 1 << 23
"""Weights of a float matrix that are in memory at once while it is quantized: 32 MB as float32."""


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at ``path``: a native, a Hugging Face or a Mistral folder, or a GGUF file.

    What a folder is, its files tell; one with both Hugging Face's and Mistral's is read as the
    former. Raises :class:`~quant.errors.CheckpointError` for anything else.
    """
    place = Path(path)
    if not place.is_dir():
        refuse_pickle(place)
        return GGUFCheckpoint(place)
    if (place / WEIGHTS).exists() and (place / CONFIG).exists():
        return NativeCheckpoint(place)
    if (place / CONFIG).exists() and any((place / name).exists() for name in (INDEX, SINGLE)):
        return open_huggingface(place)
    if (place / PARAMS).exists() and any(place.glob(CONSOLIDATED)):
        return open_mistral(place)
    refuse_pickles(place)
    raise CheckpointError(
        f"The folder {place} holds no model: there is neither {SINGLE} (or its index) with "
        f"{CONFIG}, nor consolidated.safetensors with {PARAMS}."
    )


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
        if packed is not None or len(shape) < 2:
            return shape, packed, lambda: checkpoint.read(name)
        check_columns_of(name, shape, spec)

        def make() -> Matrix:
            quantized, errors[name] = _quantized(checkpoint, name, spec)
            return quantized

        return shape, spec, make

    def receipt() -> dict[str, Any]:
        left = {**checkpoint.import_errors, **errors}
        return {"method": "rtn" if left else "lossless", "relative_errors": left}

    write(checkpoint, Path(target), convert, receipt, progress, companions, force)


def check_columns_of(name: str, shape: tuple[int, ...], spec: QuantSpec) -> None:
    """Raise SpecError, naming the tensor, unless whole groups fill its columns."""
    try:
        check_columns(shape[1], spec)
    except SpecError as error:
        raise SpecError(f"The tensor {name} cannot be quantized: {error}") from error


def _converted(checkpoint: Checkpoint, name: str, spec: QuantSpec | None) -> Matrix:
    shape, packed = checkpoint.describe(name)
    if spec is None or packed is not None or len(shape) < 2:
        return checkpoint.read(name)
    return _quantized(checkpoint, name, spec)[0]


def _quantized(checkpoint: Checkpoint, name: str, spec: QuantSpec) -> tuple[QuantTensor, float]:
    """A float matrix packed by ``spec`` and the relative error left, a slab of rows at a time."""
    (rows, columns), _ = checkpoint.describe(name)
    check_columns_of(name, (rows, columns), spec)
    codes_shape, scales_shape = packed_shapes(rows, columns, spec)
    codes, scales = np.empty(codes_shape, np.uint8), np.empty(scales_shape, np.float16)
    minimums = None if spec.symmetric else np.empty(scales_shape, np.float16)
    whole = QuantTensor(spec, rows, columns, codes, scales, minimums)
    # Slabs of whole heads, which are whole row blocks too.
    step = checkpoint.config.head_dim
    step *= max(1, SLAB_WEIGHTS // (step * columns))
    error = size = 0.0
    for start in range(0, rows, step):
        floats = checkpoint.read_rows(name, start, min(start + step, rows))
        try:
            part = round_to_nearest(floats, spec)
        except SpecError as reason:
            raise SpecError(f"The tensor {name} cannot be quantized: {reason}") from reason
        block = slice(start // ROW_BLOCK, start // ROW_BLOCK + len(part.codes))
        codes[block], scales[block] = part.codes, part.scales
        if minimums is not None and part.minimums is not None:
            minimums[block] = part.minimums
        added = squared_norms(floats, part)
        error, size = error + added[0], size + added[1]
    return whole, float(np.sqrt(error / size)) if size else 0.0


def _floats(matrix: Matrix) -> Any:
    if isinstance(matrix, QuantTensor):
        raise CheckpointError("A norm's weight is quantized; norms must be floats.")
    return matrix
