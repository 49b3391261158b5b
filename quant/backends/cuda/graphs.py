"""A token's launches as one CUDA graph: the device does not wait for Python between them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from numba import cuda

from .jit import SIMULATED
from .transfers import checked


class Graph:
    """Launches that are the same each time: carried out once, then recorded, then replayed.

    All that changes from token to token lies in memory of the device, so one recording serves.
    Whoever has the graph keeps the arrays that it was recorded with.
    """

    def __init__(self) -> None:
        self._ran = False
        self._recorded: Any = None

    def run(self, stream: Any, launch: Callable[[], None]) -> None:
        """Do on ``stream`` what ``launch`` does. Raises DeviceError where the driver refuses."""
        if SIMULATED or not self._ran:
            # The first time kernels are compiled and loaded, which cannot be recorded.
            launch()
            self._ran = True
            return
        from cuda.bindings import driver  # there only beside numba-cuda

        if self._recorded is None:
            self._recorded = _record(driver, int(stream), launch)
            weakref.finalize(self, driver.cuGraphExecDestroy, self._recorded).atexit = False
        checked(driver.cuGraphLaunch(self._recorded, int(stream)))


def _record(driver: Any, stream: int, launch: Callable[[], None]) -> Any:
    """The launches as an executable graph."""
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    # Memory that Numba frees meanwhile would break the recording off.
    with cuda.defer_cleanup():
        checked(driver.cuStreamBeginCapture(stream, mode))
        try:
            launch()
        finally:
            graph = checked(driver.cuStreamEndCapture(stream))
    try:
        return checked(driver.cuGraphInstantiate(graph, 0))
    finally:
        checked(driver.cuGraphDestroy(graph))
