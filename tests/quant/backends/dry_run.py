"""Compiles for real GPUs what sessions launch, on a machine without one; run by a test.

Device arrays are NumPy's, and a launch does not run: its kernel is compiled to PTX for the types it
was launched with, and assembled. What the assembler says of each is printed as one JSON object.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from numba import cuda
from numba.cuda import dispatcher

from quant.backends import protocol as backend
from quant.backends.cuda import graphs, jit, memory, program
from quant.qtensor import QuantSpec
from quant.sampling import Sampling

from ..models import TINY, random_model

Shape = int | tuple[int, ...]


class Array(np.ndarray):  # type: ignore[type-arg]
    """Stands for an array of the device."""

    def copy_to_device(self, source: Any, stream: Any = None) -> None:
        self[...] = source

    def copy_to_host(self, target: Any = None, stream: Any = None) -> Any:
        return np.zeros(self.shape, self.dtype)


def to_device(array: Any) -> Any:
    return np.array(array).view(Array)


def device_array(shape: Shape, dtype: Any) -> Any:
    return np.zeros(shape, dtype).view(Array)


def assembler() -> str:
    """The assembler that came with the compiler."""
    for folder in map(Path, sys.path):
        for path in folder.glob("nvidia/*/bin/ptxas*"):
            return str(path)
    raise SystemExit("there is no ptxas")


class Launches:
    """What was launched: kernels and types, each once."""

    def __init__(self) -> None:
        self.seen: dict[tuple[Any, ...], Any] = {}

    def configure(self, kernel: Any, configuration: Any) -> Callable[..., None]:
        """Stands for CUDADispatcher.__getitem__."""
        grid, threads, *_ = configuration
        assert 0 < np.prod(threads) <= 1024
        assert np.all(np.atleast_1d(grid) > 0)

        def launch(*arguments: Any) -> None:
            types = tuple(
                cuda.typing.typeof.typeof(np.asarray(each) if isinstance(each, Array) else each)
                for each in arguments
            )
            self.seen[kernel.py_func, types] = kernel

        return launch


def compiled(kernel: Any, types: tuple[Any, ...], capability: tuple[int, int]) -> dict[str, Any]:
    """What the assembler says of a kernel."""
    bounds = kernel.targetoptions.get("launch_bounds")
    ptx, _ = cuda.compile_ptx(kernel.py_func, types, cc=capability, launch_bounds=bounds)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        done = subprocess.run(
            [assembler(), "-v", "-arch=sm_{}{}".format(*capability), str(path), "-o", "/dev/null"],
            capture_output=True,
            text=True,
            check=False,
        )
    said = done.stderr

    def number(pattern: str) -> int:
        return int(match[1]) if (match := re.search(pattern, said)) else 0

    return {
        "failed": said if done.returncode else "",
        "registers": number(r"Used (\d+) registers"),
        "stack": number(r"(\d+) bytes stack frame"),
        "shared": number(r"(\d+) bytes smem"),
        "doubles": len(re.findall(r"\.f64\b", ptx)),
        "tensor_cores": ptx.count("mma.sync"),
        "wide_loads": len(re.findall(r"ld\.global\.nc\.v4", ptx)),
    }


def record(spec: QuantSpec | None, kv: str, prefill: str) -> None:
    """Launch all that a session has."""
    session = random_model(TINY, spec=spec).session(64, kv=kv, prefill=prefill, backend="cuda")
    session.feed([1, 2, 3])
    session.feed([4])
    session.program.choose(Sampling(temperature=0.7, top_k=5, repetition_penalty=1.1), [1], 0.5)


def main(capability: tuple[int, int]) -> None:
    device = SimpleNamespace(compute_capability=capability)
    launches = Launches()
    stream = SimpleNamespace(synchronize=lambda: None)

    def configure(kernel: Any, configuration: Any) -> Callable[..., None]:
        return launches.configure(kernel, configuration)

    with (
        mock.patch.object(backend, "check_device"),
        mock.patch.object(program, "check_memory"),
        mock.patch.object(program, "upload"),
        mock.patch.object(program, "download"),
        mock.patch.object(memory, "upload"),
        mock.patch.object(memory, "download"),
        mock.patch.object(graphs.Graph, "run", lambda self, stream, launch: launch()),
        mock.patch.object(cuda, "to_device", to_device),
        mock.patch.object(cuda, "device_array", device_array),
        mock.patch.object(cuda, "stream", return_value=stream),
        mock.patch.object(cuda, "get_current_device", return_value=device),
        mock.patch.object(dispatcher, "get_current_device", return_value=device),
        mock.patch.object(dispatcher.CUDADispatcher, "__getitem__", configure),
    ):
        assert not jit.SIMULATED
        record(QuantSpec(4, 32, symmetric=False), "f16", "exact")
        record(QuantSpec(8, 64, symmetric=True), "int8", "fast")
        record(None, "f32", "exact")
        report = [
            {
                "kernel": function.__name__,
                "types": str(types),
                "made_of": jit.ingredients(function),
                **compiled(kernel, types, capability),
            }
            for (function, types), kernel in launches.seen.items()
        ]
    # What a kernel is made of names it on the disk: whole numbers and names, in any process.
    sys.stdout.write(json.dumps(report, default=int))


if __name__ == "__main__":
    main((int(sys.argv[1]), int(sys.argv[2])))
