"""What a device offers: the steps of a forward pass, recorded once and run for each chunk.

``quant.batch`` writes the forward pass by calling these functions in order, one call for each step
of the network. A backend notes what it has to do; :meth:`Program.run` then does it for any number
of tokens. So the forward pass is written once, and each device decides how to carry it out:
``numpy`` calls plain NumPy, ``cpu`` walks a table with all threads in one compiled call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..cache import KeyValues
from ..config import ModelConfig
from ..errors import ConfigError
from ..qtensor import Floats
from ..sampling import Sampling
from ..weights import Matrix
from .devices import check_device
from .spans import Span


class Program(Protocol):
    """A forward pass being recorded, then run.

    ``head`` marks steps that only serve the logits: they work on the tokens whose logits were asked
    for, and their rows are those tokens alone, but for ``q`` and ``x``, which hold the whole chunk.
    ``readers`` are the matrices that multiply a step's output next; a backend may prepare for them.
    """

    def embed(self, table: Matrix, ids: npt.NDArray[np.int64], x: Floats) -> None:
        """``x[t] = table[ids[t]]``."""

    def norm(
        self,
        x: Floats,
        delta: Floats | None,
        weight: Floats,
        output: Floats,
        readers: Sequence[Matrix],
        head: bool = False,
    ) -> None:
        """``x += delta``, then ``output = x / rms(x) * weight``."""

    def matmul(
        self, x: Floats, products: Sequence[tuple[Matrix, Floats]], head: bool = False
    ) -> None:
        """``output = x @ matrix.T`` for each (matrix, output); they may run side by side."""

    def angles(self, cosines: Floats, sines: Floats) -> None:
        """Cosines and sines of RoPE's angles for the positions of the chunk."""

    def rope(
        self,
        q: Floats,
        k: Floats,
        v: Floats,
        cosines: Floats,
        sines: Floats,
        ring: KeyValues,
        chunk: KeyValues,
    ) -> None:
        """Rotate q (and scale it by 1/sqrt(head_dim)) and k; write k and v to ring or chunk."""

    def attention(
        self,
        q: Floats,
        ring: KeyValues,
        window: int | None,
        chunk: KeyValues,
        output: Floats,
        readers: Sequence[Matrix],
        head: bool = False,
    ) -> None:
        """Softmax attention of each token over ring and chunk, causal, ``window`` keys at most."""

    def commit(self, chunk: KeyValues, ring: KeyValues) -> None:
        """Write the chunk's keys and values into the ring, if they are not there yet."""

    def gate(
        self,
        gate: Floats,
        up: Floats,
        output: Floats,
        readers: Sequence[Matrix],
        head: bool = False,
    ) -> None:
        """``output = silu(gate) * up``."""

    def compile(self) -> None:
        """Make everything ready to run; where kernels are compiled this may take seconds."""

    def is_compiled(self) -> bool:
        """Whether :meth:`compile` has nothing left to compile on this machine."""

    def run(self, spans: Sequence[Span]) -> None:
        """Run all steps for the rows of ``spans``, whose ids lie in the buffer of ids.

        Logits are computed of the tokens that are wanted, one row behind the other.
        """

    def fetch(self, rows: int) -> None:
        """Bring so many rows of logits to where they were recorded; :meth:`run` may not."""

    def choose(self, sampling: Sampling, history: Sequence[int], draw: float) -> int | None:
        """The id that follows, chosen where the logits are; None where the caller has to choose.

        ``draw`` is the random number, 0 to 1. See :class:`~quant.sampling.Sampler`.
        """

    def read_back(self) -> None:
        """Bring the cache's arrays up to date, where a device holds what was written since."""

    def take_up(self) -> None:
        """Take over the cache's arrays, which were filled from elsewhere."""

    def copy(self, source: int, target: int, slots: int) -> None:
        """Copy the first ``slots`` slots of a sequence's rings to those of another.

        Of a ring that has fewer, all.
        """


BACKENDS = ("cpu", "numpy", "cuda")


def new_program(
    backend: str,
    config: ModelConfig,
    tokens: int,
    planes: int,
    threads: int,
    shared: dict[int, Any],
    gpu_layers: int | None = None,
) -> Program:
    """An empty program of ``backend`` for chunks of up to ``tokens`` tokens.

    ``planes`` (1 or 2) is the precision of a prompt's activations in bytes; ``shared`` is what a
    device keeps for all sessions of a model; of the layers the last ``gpu_layers`` run on the GPU
    (None: all), the others on the processor. Raises :class:`~quant.errors.ConfigError` for a
    backend that does not exist, :class:`~quant.errors.DeviceError` for a GPU that is not there.
    """
    if backend == "cuda":
        check_device()
    host = backend == "cpu" or (backend == "cuda" and gpu_layers == 0)
    split = backend == "cuda" and 0 < (gpu_layers or 0) < config.num_hidden_layers
    if host or split:
        from .cpu import CpuProgram  # compiled kernels take half a second to import

        processor = CpuProgram(config, tokens, planes, threads)
        if host:
            return processor
    if backend == "cuda":
        from .cuda.program import CudaProgram  # only where it is asked for

        device = CudaProgram(config, tokens, planes, shared)
        if not split:
            return device
        from .split import SplitProgram

        return SplitProgram(processor, device, config.num_hidden_layers - (gpu_layers or 0))
    if backend == "numpy":
        from .reference import ReferenceProgram

        return ReferenceProgram(config)
    raise ConfigError(f"There is no backend {backend!r}; there are {', '.join(BACKENDS)}.")
