"""The worker that measures torch's int4 products. ``against_torch.py`` starts it.

Requests: ``{"load": {"device", "layer", "output", "layers", "group_size", "threads"}}`` (shapes are
rows and columns), ``{"test": {"tokens"}}``. It needs torch and NumPy alone.

Weights are random, int4 with bfloat16 scales and zero points, activations bfloat16: what
``torch._weight_int4pack_mm`` takes. All matrices of all layers and the output are multiplied, and
nothing else is done: no attention, norm, rotation or gate.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from protocol import serve

INNER_TILES = 8
"""Columns of 16 that a packed tile holds on a GPU (2, 4 or 8; 8 is the fastest for one token)."""


class Torch:
    """Packed matrices on one device."""

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request."""
        if "load" in request:
            return self._load(**request["load"])
        return {"seconds": self._measure(**request["test"])}

    def _load(
        self,
        device: str,
        layer: Sequence[tuple[int, int]],
        output: tuple[int, int],
        layers: int,
        group_size: int,
        threads: int,
    ) -> dict[str, Any]:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self._device = torch.device(device)
        self._group_size = group_size
        self._stack = [self._matrix(*shape) for _ in range(layers) for shape in layer]
        self._output = self._matrix(*output)
        name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        return {"version": torch.__version__, "device": name}

    def _matrix(self, rows: int, columns: int) -> tuple[Any, Any, int]:
        """Packed codes, scales and zero points [groups, rows, 2], columns."""
        if self._device.type == "cuda":
            pairs = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
            codes = torch._convert_weight_to_int4pack(pairs.to(self._device), INNER_TILES)
        else:
            whole = torch.randint(0, 16, (rows, columns), dtype=torch.int32)
            codes = torch._convert_weight_to_int4pack_for_cpu(whole, 1)
        scales = torch.full(
            (columns // self._group_size, rows, 2), 0.01, dtype=torch.bfloat16, device=self._device
        )
        return codes, scales, columns

    def _measure(self, tokens: int) -> float:
        """Seconds for all products of ``tokens`` tokens; the output for the last of them only."""
        inputs = {
            columns: torch.randn(tokens, columns, dtype=torch.bfloat16, device=self._device)
            for _, _, columns in (*self._stack, self._output)
        }
        self._multiply(inputs)  # brings what is needed into memory
        if self._device.type == "cpu":
            start = time.perf_counter()
            self._multiply(inputs)
            return time.perf_counter() - start
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._multiply(inputs)
        graph.replay()
        torch.cuda.synchronize()
        start = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def _multiply(self, inputs: dict[int, Any]) -> None:
        on_gpu = self._device.type == "cuda"
        product = torch._weight_int4pack_mm if on_gpu else torch._weight_int4pack_mm_for_cpu
        for codes, scales, columns in self._stack:
            product(inputs[columns], codes, self._group_size, scales)
        codes, scales, columns = self._output
        product(inputs[columns][-1:], codes, self._group_size, scales)


if __name__ == "__main__":
    serve(Torch().answer)
