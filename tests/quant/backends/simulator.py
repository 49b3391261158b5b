"""Numba's CUDA simulator, with a barrier that waits and shared arrays that are made once.

The simulator's own barrier polls all threads, which takes minutes for what takes seconds, and two
threads that ask for a block's shared array at the same moment may each get one of their own.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np


class Block:
    """The threads of a block: where they wait for each other."""

    def __init__(self, threads: int) -> None:
        self._changed = threading.Condition()
        self._alive = threads
        self._waiting = 0
        self._round = 0
        self.failed = False

    def wait(self) -> None:
        """Wait until all threads that still run have come here."""
        with self._changed:
            here = self._round
            self._waiting += 1
            self._release()
            self._changed.wait_for(lambda: self._round > here or self.failed)
            if self.failed:
                raise RuntimeError("another thread of the block failed")

    def leave(self, failed: bool) -> None:
        """A thread has ended."""
        with self._changed:
            self._alive -= 1
            self.failed |= failed
            self._release()
            self._changed.notify_all()

    def _release(self) -> None:
        if 0 < self._alive == self._waiting:
            self._waiting = 0
            self._round += 1
            self._changed.notify_all()


def _run(self: Any, grid_point: Any, *arguments: Any) -> None:
    """Stands for BlockManager.run."""
    from numba.cuda.simulator.kernel import BlockThread

    points = list(np.ndindex(*self._block_dim))
    self.block = Block(len(points))

    def body() -> None:
        failed = True
        try:
            self._f(*arguments)
            failed = False
        finally:
            self.block.leave(failed)

    threads = [BlockThread(body, self, grid_point, point, self._debug) for point in points]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [thread.exception for thread in threads if thread.exception]
    for kind, trace in errors:
        if "another thread" not in str(kind):
            raise kind.with_traceback(trace)


def _syncthreads(self: Any) -> None:
    """Stands for BlockThread.syncthreads."""
    self._manager.block.wait()


_LOCK = threading.Lock()


def _shared_array(self: Any, shape: Any, dtype: Any, alignment: None = None) -> Any:
    """Stands for FakeCUDAShared.array: an array for each line that asks for one."""
    from numba.core import types
    from numba.np import numpy_support

    caller = sys._getframe(1)
    key = (caller.f_code, caller.f_lineno)
    with _LOCK:
        if key not in self._allocations:
            kind = numpy_support.as_dtype(dtype) if isinstance(dtype, types.Type) else dtype
            self._allocations[key] = np.empty(shape, kind)
        return self._allocations[key]


@contextmanager
def quick_simulator() -> Iterator[None]:
    """Within it the simulator has this module's barrier and shared arrays."""
    from numba.cuda.simulator import kernel, kernelapi

    with (
        mock.patch.object(kernel.BlockManager, "run", _run),
        mock.patch.object(kernel.BlockThread, "syncthreads", _syncthreads),
        mock.patch.object(kernelapi.FakeCUDAShared, "array", _shared_array),
    ):
        yield
