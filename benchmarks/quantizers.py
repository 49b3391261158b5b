"""What each way to quantize does to the default model: KL against its own float weights.

    python benchmarks/quantizers.py [--rotated] [--dithered] [METHOD ...]

The model's weights lie on a 4-bit grid already, which flatters methods that find it again (and
makes Q4_1's lossless). With ``--rotated`` its residual stream is turned by a random orthogonal
matrix, with the norms' gains folded in: the same function, whose weights lie on no grid. With
``--dithered`` each weight is moved by up to half a step: another function, on no grid either.
Embedding and output have 8 bits in each row; calibration and measuring use the texts of the
package.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import quant
from mistral_chat.models.names import locate, open_tokenizer
from mistral_chat.models.texts import calibration_text, held_out_text, pieces
from mistral_chat.settings import Paths
from quant.checkpoints import Calibration, compare, open_checkpoint
from quant.checkpoints.conversion import Conversion
from quant.checkpoints.dequantized import Dequantized
from quant.checkpoints.names import tensor_names
from quant.checkpoints.rotated import Rotated
from quant.qtensor import QuantSpec, QuantTensor
from quant.quantizers.recipe import Recipe

EIGHT = QuantSpec(8, 64)
METHODS = {
    "q4_0": Recipe(QuantSpec(4, 32, symmetric=True), EIGHT, "rtn"),
    "q4_1": Recipe(QuantSpec(4, 32), EIGHT, "rtn"),
    "rtn": Recipe(QuantSpec(4, 64), EIGHT, "rtn"),
    "mse": Recipe(QuantSpec(4, 64), EIGHT, "mse"),
    "gptq": Recipe(QuantSpec(4, 64), EIGHT, "gptq"),
    "gptq-32": Recipe(QuantSpec(4, 32, symmetric=True), EIGHT, "gptq"),
    "int8-rtn": Recipe(EIGHT, EIGHT, "rtn"),
    "int8-gptq": Recipe(EIGHT, EIGHT, "gptq"),
}


class Held:
    """A checkpoint whose tensors are held in memory: floats, or what a conversion made."""

    format, source = "memory", "memory"

    def __init__(self, config: quant.ModelConfig, tensors: dict[str, Any]) -> None:
        self.config, self._tensors = config, tensors
        self.import_errors: dict[str, float] = {}

    def describe(self, name: str) -> tuple[tuple[int, ...], QuantSpec | None]:
        tensor = self._tensors[name]
        return tensor.shape, getattr(tensor, "spec", None)

    def read(self, name: str) -> Any:
        return self._tensors[name]

    def read_rows(self, name: str, start: int, stop: int) -> Any:
        return self._tensors[name][start:stop]


def dithered(held: Held, steps: dict[str, Any]) -> Held:
    """The weights moved off their old grid by up to half of its step: another model, as good."""
    random = np.random.default_rng(2)
    tensors = {}
    for name in tensor_names(held.config):
        tensor = held.read(name)
        if name in steps:
            tensor = (
                tensor + random.uniform(-0.5, 0.5, tensor.shape).astype(np.float32) * steps[name]
            )
        tensors[name] = tensor
    return Held(held.config, tensors)


def grid_steps(checkpoint: Any) -> dict[str, Any]:
    """The step of the 4-bit grid that each weight lies on, float32 in the matrices' shapes."""
    steps = {}
    for name in tensor_names(checkpoint.config):
        tensor = checkpoint.read(name)
        if isinstance(tensor, QuantTensor) and tensor.spec.bits == 4:
            rows = tensor.scales.transpose(0, 2, 1).reshape(-1, tensor.scales.shape[1])
            whole = np.repeat(rows[: tensor.rows].astype(np.float32), tensor.spec.group_size, 1)
            steps[name] = whole
    return steps


def run(reference: Any, methods: Sequence[str], threads: int) -> None:
    """Print a line for each method."""
    paths = Paths.from_environment(os.environ)
    tokenizer = open_tokenizer(default_model(paths))
    calibration = Calibration(pieces(tokenizer, calibration_text()), threads)
    texts = pieces(tokenizer, held_out_text())
    print(f"{'method':10} bits/weight  mean KL   median     p99  same token  seconds")
    for method in methods:
        started = time.perf_counter()
        recipe = METHODS[method]
        conversion = Conversion(reference, recipe, calibration)
        made = {name: conversion.make(name) for name in tensor_names(reference.config)}
        seconds = time.perf_counter() - started
        other = Held(reference.config, made)
        result = compare(reference, other, texts, threads)  # type: ignore[arg-type]
        print(
            f"{method:10} {recipe.spec.bits_per_weight:11.2f} {result.mean:8.4f} "
            f"{result.median:8.4f} {result.percentile_99:7.3f} {result.agreement:11.1%} "
            f"{seconds:8.0f}",
            flush=True,
        )


def default_model(paths: Paths) -> Path:
    """Where the default model is; it is fetched if it is not there."""
    return locate("smollm2", paths, lambda _label, _done, _total: None)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--rotated", action="store_true")
    parser.add_argument("--dithered", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    path = default_model(Paths.from_environment(os.environ))
    checkpoint = Dequantized(open_checkpoint(path))
    floats = {name: checkpoint.read(name) for name in tensor_names(checkpoint.config)}
    held = Held(checkpoint.config, floats)
    if arguments.dithered:
        held = dithered(held, grid_steps(open_checkpoint(path)))
    reference: Any = Rotated(held, seed=1) if arguments.rotated else held  # type: ignore[arg-type]
    run(reference, arguments.methods or list(METHODS), arguments.threads)


if __name__ == "__main__":
    main()
