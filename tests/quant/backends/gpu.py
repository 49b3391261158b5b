"""What tests of the GPU have in common: on a GPU if there is one, else simulated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quant.backends import devices
from quant.qtensor import QuantSpec

from ..models import TINY
from .simulator import quick_simulator

cuda = pytest.importorskip("numba.cuda")
if devices.missing() is not None:
    pytest.skip("there is neither a GPU nor the simulator", allow_module_level=True)

from quant.backends.cuda import memory, pointwise  # noqa: E402 - only where it can be imported
from quant.backends.cuda.jit import SIMULATED, THREADS  # noqa: E402

RANDOM = np.random.default_rng(5)
SEEDED = RANDOM.bit_generator.state
SMALL = replace(
    TINY,
    vocab_size=40,
    hidden_size=32,
    intermediate_size=64,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
)
INT4 = QuantSpec(4, 32, symmetric=False)
INT8 = QuantSpec(8, 32, symmetric=True)


def normal(*shape: int) -> Any:
    return RANDOM.standard_normal(shape, np.float32)


def state(position: int, tokens: int, first: int = 0, wanted: int = 0) -> Any:
    return cuda.to_device(np.array([position, tokens, first, wanted], np.int64))


@pytest.fixture(autouse=True)
def simulator() -> Iterator[None]:
    RANDOM.bit_generator.state = SEEDED  # no test depends on those before it
    with quick_simulator() if SIMULATED else nullcontext():
        yield


def in_bytes(x: Any, group_size: int, planes: int = 2) -> tuple[Any, Any]:
    """Rows on the device in bytes, and what they stand for."""
    tokens, columns = x.shape
    rows = memory.rows_in_bytes(tokens, columns, group_size)
    source = cuda.to_device(x)
    pointwise.row_bytes(group_size, planes, False)[(-(-columns // (4 * THREADS)), tokens), THREADS](
        source, source, columns, *rows.arrays
    )
    return rows, shown_by(rows, group_size, planes)


def shown_by(rows: Any, group_size: int, planes: int = 2) -> Any:
    """The numbers that rows in bytes stand for; their sums are checked."""
    tokens, groups = rows.factors.shape
    whole = rows.high.copy_to_host().view(np.int8).astype(np.int64)
    if planes == 2:
        low = rows.low.copy_to_host().view(np.int8)
        assert low.min() >= -64
        assert low.max() <= 63
        whole = 128 * whole + low
    np.testing.assert_array_equal(
        rows.sums.copy_to_host(), whole.reshape(tokens, groups, -1).sum(-1)
    )
    return whole * np.repeat(rows.factors.copy_to_host(), group_size, axis=1)
