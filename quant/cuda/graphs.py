"""A token's launches as one CUDA graph: the device does not wait for Python between them."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

from numba import cuda

from ..devices import OVERLAPPING
from ..errors import DeviceError
from .jit import SIMULATED
from .transfers import checked

logger = logging.getLogger(__name__)


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
    """The launches as an executable graph, whose launches overlap where the driver can do that."""
    if overlapping(driver):
        try:
            return _instance(driver, stream, launch, _overlap)
        except DeviceError:
            logger.info("launches of a graph do not overlap: the driver refused")
    return _instance(driver, stream, launch, None)


def _instance(
    driver: Any, stream: int, launch: Callable[[], None], change: Callable[[Any, Any], None] | None
) -> Any:
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    # Memory that Numba frees meanwhile would break the recording off.
    with cuda.defer_cleanup():
        checked(driver.cuStreamBeginCapture(stream, mode))
        try:
            launch()
        finally:
            graph = checked(driver.cuStreamEndCapture(stream))
    try:
        if change is not None:
            change(driver, graph)
        return checked(driver.cuGraphInstantiate(graph, 0))
    finally:
        checked(driver.cuGraphDestroy(graph))


def overlapping(driver: Any) -> bool:
    """Whether a launch may begin before the one before it has ended, as its kernels then expect."""
    capability = tuple(cuda.get_current_device().compute_capability)
    return hasattr(driver, "CUgraphEdgeData") and capability >= OVERLAPPING


def _overlap(driver: Any, graph: Any) -> None:
    """Let each launch begin as soon as all blocks of the one before it run.

    Its blocks then ask for weights, and wait before they read what the one before writes
    (:func:`quant.cuda.intrinsics.wait_for_previous`). CUDA driver API, edges of graphs.
    """

    def call(name: str, *arguments: Any) -> Any:
        # The form with data about edges has a name of its own in the bindings for CUDA 12.
        return getattr(driver, f"{name}_v2", getattr(driver, name))(*arguments)

    *_, count = _several(call("cuGraphGetEdges", graph))
    sources, targets, *_ = _several(call("cuGraphGetEdges", graph, count))
    data = driver.CUgraphEdgeData()
    data.from_port = driver.CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC
    data.type = int(driver.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC)
    checked(call("cuGraphRemoveDependencies", graph, sources, targets, None, count))
    checked(call("cuGraphAddDependencies", graph, sources, targets, [data] * count, count))


def _several(result: tuple[Any, ...]) -> tuple[Any, ...]:
    checked(result[:1])
    return result[1:]
