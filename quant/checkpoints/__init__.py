"""Models in files: what can be read, and turning it into the project's own folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..errors import CheckpointError, SpecError
from ..model import Model
from ..qtensor import QuantSpec, QuantTensor
from ..quantizers.recipe import Recipe
from ..weights import MATRICES, Layer, Matrix, Weights
from .checkpoint import Checkpoint
from .comparison import compare as compare
from .conversion import Calibration as Calibration
from .conversion import Conversion, quantized_in_slabs
from .dequantized import Dequantized
from .folders import CONFIG, CONSOLIDATED, INDEX, PARAMS, SINGLE, open_huggingface, open_mistral
from .gguf import GGUFCheckpoint
from .names import tensor_names
from .native import WEIGHTS, NativeCheckpoint
from .pickles import refuse_pickle, refuse_pickles
from .rotated import Rotated
from .writing import Job, write

ROTATION_SEED = 1

DEFAULT_SPEC = QuantSpec(bits=4, group_size=64, symmetric=False)


def fitting_spec(config: ModelConfig, spec: QuantSpec = DEFAULT_SPEC) -> QuantSpec:
    """``spec``, or the same with groups of 32 where its own do not fill a matrix's columns.

    >>> from quant.bench import GEOMETRIES
    >>> fitting_spec(GEOMETRIES["mistral-7b"]).group_size
    64
    >>> from dataclasses import replace
    >>> fitting_spec(replace(GEOMETRIES["mistral-7b"], intermediate_size=14368)).group_size
    32
    """
    widths = [columns for _, columns in config.matrices().values()]
    fits = all(columns % spec.group_size == 0 for columns in widths)
    return spec if fits else replace(spec, group_size=32)


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
    ggufs = sorted(path.name for path in place.glob("*.gguf"))
    if ggufs:
        raise CheckpointError(
            f"{place} is a folder of GGUF files; name the file: {place / ggufs[0]}"
            + (f" (or another of {len(ggufs)})." if len(ggufs) > 1 else ".")
        )
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
    return Model(config, weights, checkpoint.source, checkpoint.digest)


def quantize(
    source: str | Path,
    target: str | Path,
    spec: QuantSpec | None = None,
    progress: Callable[[int, int], None] | None = None,
    companions: Callable[[Path], None] | None = None,
    force: bool = False,
    *,
    recipe: Recipe | None = None,
    calibration: Calibration | None = None,
    check: Calibration | None = None,
    checking: Callable[[int, int], None] | None = None,
    resume: bool = False,
    requantize: bool = False,
    rotate: bool = False,
) -> dict[str, Any]:
    """Write the model at ``source`` as a native folder at ``target``, whole or not at all.

    Matrices that are quantized already are repacked without loss; floats are quantized by
    ``recipe``, or all of them by ``spec`` (default: int4 in asymmetric groups of 64).
    ``progress(done, total)`` counts tensors. ``companions`` may add files of its own (a tokenizer)
    to the folder before it gets its name. ``calibration`` are the texts that GPTQ, or the search of
    grids, looks at; over the texts of ``check`` the result is compared with its source, and
    ``checking(done, total)`` counts the layers of that. With ``resume`` what an interrupted call
    has finished is kept beside the target, and taken up by the next one that asks for the same.
    With ``requantize`` matrices that are quantized already are dequantized and quantized anew.
    With ``rotate`` the residual stream is turned first (see ``quantizers/rotation.py``).
    Returns the receipt, which is kept in the file too.

    Raises :class:`~quant.errors.CheckpointError`, :class:`~quant.errors.SpecError` and
    :class:`~quant.errors.StorageError`; nothing is left behind but what can be resumed.
    """
    checkpoint = open_checkpoint(source)
    if requantize:
        checkpoint = Dequantized(checkpoint)
    original = checkpoint
    if rotate:
        refuse_packed(checkpoint)
        checkpoint = Rotated(checkpoint, ROTATION_SEED)
    if recipe is None:
        recipe = Recipe(spec or DEFAULT_SPEC, head=spec or DEFAULT_SPEC)
    conversion = Conversion(checkpoint, recipe, calibration)

    def finish(folder: Path) -> dict[str, Any]:
        return {} if check is None else _checked(original, folder, check, checking)

    texts = [list(text) for text in calibration.texts] if calibration else []
    asked = {"recipe": recipe.describe(), "requantize": requantize, "rotate": rotate}
    identity = {**asked, "texts": texts, "source": _state_of(Path(source))} if resume else None
    receipt = partial(_receipt, recipe, conversion, rotate)
    job = Job(conversion.plan, conversion.make, conversion.finished, receipt, finish)
    return write(checkpoint, Path(target), job, progress, companions, force, identity)


def _receipt(recipe: Recipe, conversion: Conversion, rotate: bool) -> dict[str, Any]:
    """How a model was quantized, and how far each tensor is from what it was."""
    method = recipe.method if conversion.errors else "lossless"
    told = {"method": method, "relative_errors": conversion.errors}
    if conversion.errors:
        told["recipe"] = {**recipe.describe(), "rotate": rotate}
    return told


def _checked(
    original: Checkpoint,
    folder: Path,
    check: Calibration,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """How far what was written is from its source, as the receipt has it."""
    result = compare(original, NativeCheckpoint(folder), check.texts, check.threads, progress)
    return {
        "check": {
            "tokens": result.tokens,
            "kl_mean": result.mean,
            "kl_median": result.median,
            "kl_percentile_99": result.percentile_99,
            "top_token_agreement": result.agreement,
        }
    }


def refuse_packed(checkpoint: Checkpoint) -> None:
    """Raise :class:`~quant.errors.SpecError` unless all matrices of a checkpoint are floats."""
    for name in tensor_names(checkpoint.config):
        if checkpoint.describe(name)[1] is not None:
            raise SpecError(
                f"{checkpoint.source} is quantized already and cannot be rotated as it is; "
                "quantize it anew, or take its float weights."
            )


def _state_of(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a checkpoint's files: another state is another source."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(file, file.stat()) for file in files if file.is_file()]
    return [(str(file.absolute()), state.st_size, state.st_mtime_ns) for file, state in states]


def _converted(checkpoint: Checkpoint, name: str, spec: QuantSpec | None) -> Matrix:
    shape, packed = checkpoint.describe(name)
    if spec is None or packed is not None or len(shape) < 2:
        return checkpoint.read(name)
    try:
        return quantized_in_slabs(checkpoint, name, spec)[0]
    except SpecError as reason:
        raise SpecError(f"The tensor {name} cannot be quantized: {reason}") from reason


def _floats(matrix: Matrix) -> Any:
    if isinstance(matrix, QuantTensor):
        raise CheckpointError("A norm's weight is quantized; norms must be floats.")
    return matrix
