"""Tensors of a checkpoint made into what a native folder stores, in reading order.

Without calibration every tensor stands for itself. With it, a layer's matrices are quantized in the
order in which they are computed, each for inputs that the quantized matrices before it give; so the
order of ``tensor_names`` is also the order of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..errors import SpecError
from ..qtensor import (
    ROW_BLOCK,
    Floats,
    QuantSpec,
    QuantTensor,
    check_columns,
    packed_shapes,
)
from ..quantizers import (
    InputMoments,
    quantize_gptq,
    squared_norms,
)
from ..quantizers.calibration import LayerPass, mean_squares, second_moments
from ..quantizers.grids import searched_grids, spanning_grids
from ..quantizers.recipe import Recipe
from ..weights import Matrix, check_finite
from .checkpoint import Checkpoint

SLAB_WEIGHTS = 1 << 20
"""Weights of a float matrix that a thread takes at once: as float32 4 MB, which caches hold."""

STAGES = {"q": 0, "k": 0, "v": 0, "o": 1, "gate": 2, "up": 2, "down": 3}
"""When a matrix's inputs are known, within its layer."""


Moments = InputMoments | Floats
"""Of a matrix's inputs: prepared for GPTQ, or for a search of grids mean squares [columns]."""


@dataclass(frozen=True)
class Calibration:
    """Texts as token ids, each read by itself; and the threads that read them."""

    texts: Sequence[Sequence[int]]
    threads: int = 1


class Conversion:
    """Makes the tensors of ``checkpoint`` by ``recipe``; ``errors`` has what each was left with.

    Raises :class:`~quant.errors.SpecError` for GPTQ without a calibration.
    """

    def __init__(
        self, checkpoint: Checkpoint, recipe: Recipe, calibration: Calibration | None = None
    ) -> None:
        if recipe.method == "gptq" and (calibration is None or not calibration.texts):
            raise SpecError("GPTQ needs a text to calibrate with.")
        self.errors: dict[str, float] = {}
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._calibration = calibration if recipe.method != "rtn" else None
        self._pass: LayerPass | None = None
        self._at = (0, 0)  # the layer and stage that the pass has reached
        self._layer: dict[str, Matrix] = {}  # the finished tensors of that layer
        self._moments: Moments | None = None  # of the inputs at that stage

    def plan(self, name: str) -> tuple[tuple[int, ...], QuantSpec | None]:
        """Shape and packing of what :meth:`make` gives; raises SpecError where it cannot be."""
        shape, packed = self._checkpoint.describe(name)
        if packed is not None or len(shape) < 2:
            return shape, packed
        spec = self._recipe.spec_of(name)
        check_columns_of(name, shape, spec)
        return shape, spec

    def make(self, name: str) -> Matrix:
        """The tensor as it is to be stored; names must come in reading order."""
        shape, packed = self._checkpoint.describe(name)
        if packed is not None or len(shape) < 2:
            tensor = self._checkpoint.read(name)
            check_finite(name, tensor)
            if name in self._checkpoint.import_errors:
                self.errors[name] = self._checkpoint.import_errors[name]
        else:
            moments = self._inputs(name)
            spec = self._recipe.spec_of(name)
            tensor, self.errors[name] = self._quantized(name, spec, moments)
        self.finished(name, tensor)
        return tensor

    def finished(self, name: str, tensor: Matrix) -> None:
        """Take note of a tensor that is done, be it from an earlier run."""
        if self._calibration is None:
            return
        if name == "embedding":
            self._pass = LayerPass(
                self._checkpoint.config,
                lambda ids: rows_of(tensor, ids),
                self._calibration.texts,
                threads=self._calibration.threads,
            )
        elif name.startswith("layers."):
            _, number, part = name.split(".")
            self._advance(int(number), STAGES.get(part, 0))
            self._layer[part] = tensor

    def _inputs(self, name: str) -> Moments | None:
        """What calibration knows of the matrix's inputs, if there is one."""
        if self._pass is None or not name.startswith("layers."):
            return None
        _, number, part = name.split(".")
        self._advance(int(number), STAGES[part])
        if self._moments is None:
            gather: Callable[[Iterator[Floats]], Moments]
            gather = _moments_of if self._recipe.method == "gptq" else mean_squares
            layer, stage = self._layer, STAGES[part]
            window = self._checkpoint.config.windows[int(number)]
            if stage == 0:
                self._moments = gather(self._pass.normed(_norm(layer["attention_norm"])))
            elif stage == 1:
                self._moments = gather(self._pass.attended(layer, window))
            elif stage == 2:
                self._moments = gather(self._pass.normed(_norm(layer["mlp_norm"])))
            else:
                self._moments = gather(self._pass.gated(layer))
        return self._moments

    def _advance(self, number: int, stage: int) -> None:
        """Bring the residual streams to where inputs of that stage can be gathered."""
        if self._pass is None or self._at == (number, stage):
            return
        self._moments = None
        layer, done = self._at
        if done < 2 and (number, stage) >= (layer, 2):
            self._pass.add_attention(self._layer, self._checkpoint.config.windows[layer])
        if number > layer:
            self._pass.add_mlp(self._layer)
            self._layer = {}
        self._at = (number, stage)

    def _quantized(
        self, name: str, spec: QuantSpec, moments: Moments | None
    ) -> tuple[QuantTensor, float]:
        try:
            if isinstance(moments, InputMoments):
                rows = self._checkpoint.describe(name)[0][0]
                floats = self._checkpoint.read_rows(name, 0, rows)
                tensor = quantize_gptq(floats, spec, moments)
                error, size = squared_norms(floats, tensor)
                return tensor, float(np.sqrt(error / size)) if size else 0.0
            searched = self._recipe.method != "rtn"
            return quantized_in_slabs(self._checkpoint, name, spec, searched, moments)
        except SpecError as reason:
            raise SpecError(f"The tensor {name} cannot be quantized: {reason}") from reason


def quantized_in_slabs(
    checkpoint: Checkpoint,
    name: str,
    spec: QuantSpec,
    searched: bool = False,
    energies: Floats | None = None,
) -> tuple[QuantTensor, float]:
    """A float matrix rounded to the nearest, and the relative error; a slab of rows at a time.

    With ``searched`` the grids are searched, weighed by ``energies`` float32 [columns]. Raises
    :class:`~quant.errors.SpecError` as ``round_to_nearest``.
    """
    (rows, columns), _ = checkpoint.describe(name)
    check_columns(columns, spec)
    codes_shape, scales_shape = packed_shapes(rows, columns, spec)
    codes, scales = np.empty(codes_shape, np.uint8), np.empty(scales_shape, np.float16)
    minimums = None if spec.symmetric else np.empty(scales_shape, np.float16)
    whole = QuantTensor(spec, rows, columns, codes, scales, minimums)
    # Slabs of whole heads, which are whole row blocks too.
    step = checkpoint.config.head_dim
    step *= max(1, SLAB_WEIGHTS // (step * columns))

    def slab(start: int) -> tuple[float, float]:
        floats = checkpoint.read_rows(name, start, min(start + step, rows))
        grids = searched_grids(floats, spec, energies) if searched else spanning_grids(floats, spec)
        part, lost, kept = grids.encode(floats)
        block = slice(start // ROW_BLOCK, start // ROW_BLOCK + len(part.codes))
        codes[block], scales[block] = part.codes, part.scales
        if minimums is not None and part.minimums is not None:
            minimums[block] = part.minimums
        return lost, kept

    with ThreadPoolExecutor() as pool:
        # Summed in the order of the rows, whoever was first.
        lost, kept = zip(*pool.map(slab, range(0, rows, step)), strict=True)
    error, size = sum(lost), sum(kept)
    return whole, float(np.sqrt(error / size)) if size else 0.0


def check_columns_of(name: str, shape: tuple[int, ...], spec: QuantSpec) -> None:
    """Raise SpecError, naming the tensor, unless whole groups fill its columns."""
    try:
        check_columns(shape[1], spec)
    except SpecError as error:
        raise SpecError(f"The tensor {name} cannot be quantized: {error}") from error


def rows_of(matrix: Matrix, ids: Sequence[int]) -> Floats:
    """Rows float32 [len(ids), columns] of a matrix, of which only what is needed is unpacked."""
    rows = np.asarray(ids)
    if not isinstance(matrix, QuantTensor):
        return np.asarray(matrix[rows])
    blocks, place = np.unique(rows // ROW_BLOCK, return_inverse=True)
    minimums = None if matrix.minimums is None else matrix.minimums[blocks]
    part = QuantTensor(
        matrix.spec,
        len(blocks) * ROW_BLOCK,
        matrix.columns,
        matrix.codes[blocks],
        matrix.scales[blocks],
        minimums,
    )
    return np.asarray(part.dequantize()[place * ROW_BLOCK + rows % ROW_BLOCK])


def _moments_of(inputs: Iterator[Floats]) -> InputMoments:
    return InputMoments.of(second_moments(inputs))


def _norm(tensor: Matrix) -> Floats:
    if isinstance(tensor, QuantTensor):
        raise SpecError("A norm's weight is quantized; norms must be floats.")
    return tensor
