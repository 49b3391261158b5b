"""Measuring the engine: prefill, decode, passes that sequences share, and what the machine could
do at best.
"""

from __future__ import annotations

from .passes import MOST_PASSES, Pass, PassResult, PassTimer, measure_passes
from .roofline import Probes, Roofline, dot_products, read_bandwidth
from .sessions import (
    Result,
    attention_seconds,
    decode_seconds,
    measure,
    prefill_seconds,
    pretend,
)
from .shapes import GEOMETRIES, random_model

__all__ = [
    "GEOMETRIES",
    "MOST_PASSES",
    "Pass",
    "PassResult",
    "PassTimer",
    "Probes",
    "Result",
    "Roofline",
    "attention_seconds",
    "decode_seconds",
    "dot_products",
    "measure",
    "measure_passes",
    "prefill_seconds",
    "pretend",
    "random_model",
    "read_bandwidth",
]
