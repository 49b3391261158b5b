"""Every kernel against its plain NumPy twin, over shapes with odd tails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quant.backends import reference
from quant.backends.scratch import HEAD_TOKENS, TOKEN_PADDING, WIDTH_PADDING, padded_tokens
from quant.kernels import matmul, pointwise
from quant.kernels.program import TOKEN_BLOCK
from quant.qtensor import QuantSpec
from quant.quantizers import round_to_nearest

from ..test_qtensor import SPECS

TILES = {
    (4, "exact"): matmul.exact_int4,
    (8, "exact"): matmul.exact_int8,
    (4, "fast"): matmul.fast_int4,
    (8, "fast"): matmul.fast_int8,
}
PLANES = {"exact": 2, "fast": 1}
WIDTHS = [("exact", width) for width in matmul.EXACT_WIDTHS]
WIDTHS += [("fast", width) for width in matmul.FAST_WIDTHS]


def quantized(x: Any, group_size: int, planes: int, tile: int = 1) -> tuple[Any, ...]:
    """The rows of ``x`` in bytes, as the kernel makes them: high, low, scales, sums, totals."""
    tokens, columns = x.shape
    groups = (tokens, columns // group_size)
    high, low = np.zeros(x.shape, np.int8), np.zeros(x.shape, np.int8)
    scales, totals = np.zeros(groups, np.float32), np.zeros(groups, np.float32)
    sums = np.zeros(groups, np.int32)
    for t in range(tokens):
        pointwise.quantize_row(
            x.reshape(-1), t * columns, columns, 0, columns, group_size, planes, t, tile,
            high.reshape(-1), low.reshape(-1), scales.reshape(-1), sums.reshape(-1),
            totals.reshape(-1),
        )  # fmt: skip
    return high, low, scales, sums, totals


def test_tiles_hold_the_words_of_their_tokens_side_by_side() -> None:
    x = np.random.default_rng(7).standard_normal((6, 128)).astype(np.float32)
    for plain, tiled in zip(quantized(x, 64, 2), quantized(x, 64, 2, tile=3), strict=True):
        width = 4 if plain.dtype == np.int8 else 1
        words = plain.reshape(2, 3, -1, width)
        np.testing.assert_array_equal(tiled.reshape(2, -1, 3, width), words.swapaxes(1, 2))


def product(mode: str, width: int, weights: Any, x: Any) -> Any:
    """``x @ weights.T`` by tiles of ``width`` tokens, as the program calls them."""
    tokens = -(-x.shape[0] // width) * width
    padded = np.zeros((tokens, x.shape[1]), np.float32)
    padded[: x.shape[0]] = x
    group = weights.spec.group_size
    high, low, scales, sums, totals = quantized(padded, group, PLANES[mode], width)
    blocks = weights.codes.shape[0]
    rows = matmul.rows_of(width)
    room = -(-blocks // rows) * rows * 16
    output = np.full((tokens, room), np.nan, np.float32)
    halves = np.zeros(0, np.uint16)
    if weights.minimums is not None:
        halves = weights.minimums.view(np.uint16).reshape(-1)
    for token in range(0, tokens, width):
        for block in range(0, blocks, rows):
            TILES[weights.spec.bits, mode](
                width, weights.codes.reshape(-1), 0, 0,
                weights.scales.view(np.uint16).reshape(-1), halves,
                weights.spec.zero, weights.columns, group, block, min(rows, blocks - block) - 1,
                high.reshape(-1), low.reshape(-1),
                scales.reshape(-1), sums.reshape(-1), totals.reshape(-1),
                token, output.reshape(-1), room,
            )  # fmt: skip
    return output[: x.shape[0], : weights.rows]


@pytest.mark.parametrize(("mode", "width"), WIDTHS)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (17, 5), (80, 13)])
def test_products(mode: str, width: int, spec: QuantSpec, rows: int, tokens: int) -> None:
    random = np.random.default_rng(rows + tokens)
    weights = round_to_nearest(
        random.standard_normal((rows, 2 * spec.group_size)).astype(np.float32), spec
    )
    x = random.standard_normal((tokens, weights.columns)).astype(np.float32)
    expected = x.astype(np.float64) @ weights.dequantize().T
    got = product(mode, width, weights, x)
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert error < (1e-4 if mode == "exact" else 2e-2)
    # Whoever shares a tile, and however wide it is, the bits are the same.
    narrowest = min(each for of, each in WIDTHS if of == mode)
    np.testing.assert_array_equal(got, product(mode, narrowest, weights, x))


@pytest.mark.parametrize(("mode", "planes"), PLANES.items())
def test_the_width_of_tiles(mode: str, planes: int) -> None:
    widths = [width for of, width in WIDTHS if of == mode]
    assert matmul.width_for(1, planes) == 1
    for tokens in range(2, 300):
        width = matmul.width_for(tokens, planes)
        assert width in widths
        room = -(-tokens // width) * width
        assert room <= padded_tokens(tokens)
        assert room - tokens < width


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_products_of_zeros_and_extremes(spec: QuantSpec) -> None:
    weights = np.zeros((20, 2 * spec.group_size), np.float32)
    weights[3, : spec.group_size] = 1e-3
    weights[4] = np.linspace(-30000, 30000, weights.shape[1])
    packed = round_to_nearest(weights, spec)
    x = np.zeros((2, weights.shape[1]), np.float32)
    x[1] = np.linspace(-1e6, 1e6, weights.shape[1])
    got = product("exact", 2, packed, x)
    assert (got[0] == 0).all()
    expected = x[1].astype(np.float64) @ packed.dequantize().T
    np.testing.assert_allclose(got[1], expected, rtol=1e-3, atol=np.abs(expected).max() * 1e-4)


def test_float_rows() -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal((5, 37)).astype(np.float32)
    x = random.standard_normal((3, 40)).astype(np.float32)
    output = np.zeros((3, 16), np.float32)
    for row in range(5):
        matmul.float_row(weights.reshape(-1), 37, row, x.reshape(-1), 40, 3, output.reshape(-1), 16)
    np.testing.assert_allclose(output[:, :5], x[:, :37] @ weights.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_activations_in_bytes(planes: int, group_size: int) -> None:
    x = np.random.default_rng(2).standard_normal((3, 256)).astype(np.float32)
    x[1, :group_size] = 0
    high, low, scales, sums, totals = quantized(x, group_size, planes)
    wide = np.repeat(scales, group_size, axis=1)
    whole = high.astype(np.int32) * (128 if planes == 2 else 1) + low
    assert np.abs(whole * wide - x).max() <= wide.max() * 0.5001
    np.testing.assert_array_equal(sums, whole.reshape(3, -1, group_size).sum(-1))
    np.testing.assert_allclose(totals, sums * scales, rtol=1e-6)
    assert np.abs(high).max() == 127


def test_the_worked_example_of_two_planes() -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :2] = 1.0, 0.5
    high, low, scales, _, _ = quantized(x, 32, 2)
    assert scales[0, 0] == np.float32(1) / np.float32(16256)
    assert (high[0, 1], low[0, 1]) == (64, -64)


def test_exp() -> None:
    from quant.kernels.jit import kernel
    from quant.kernels.simd import load, store

    @kernel
    def run(x, y):  # type: ignore[no-untyped-def]
        for i in range(0, x.size, 16):
            store(y, i, pointwise.exp(load(x, i)))

    x = np.linspace(-86, 80, 16 * 1000).astype(np.float32)
    y = np.empty_like(x)
    run(x, y)
    np.testing.assert_allclose(y, np.exp(x.astype(np.float64)), rtol=3e-7 * 4)
    run(np.full(16, -1e30, np.float32), y)
    assert 0 <= y[0] < 1e-37


@pytest.mark.parametrize("with_delta", [False, True])
def test_norm(with_delta: bool) -> None:
    random = np.random.default_rng(3)
    x = random.standard_normal(96).astype(np.float32)
    delta = random.standard_normal(96 if with_delta else 0).astype(np.float32)
    weight = random.standard_normal(96).astype(np.float32)
    total = x + delta if with_delta else x.copy()
    output = np.zeros(96, np.float32)
    pointwise.norm_row(x, delta, weight, np.float32(1e-5), 0, 0, 96, output, 0)
    expected = reference.rms_norm(total[None], weight, 1e-5)[0]
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(x, total)


def test_gate() -> None:
    random = np.random.default_rng(4)
    gate = (random.standard_normal(64) * 20).astype(np.float32)
    gate[0] = -1000
    up = random.standard_normal(64).astype(np.float32)
    output = np.zeros(64, np.float32)
    pointwise.silu_mul_row(gate, up, 0, 64, output, 0)
    np.testing.assert_allclose(output, reference.silu_mul(gate, up), rtol=1e-5, atol=1e-6)


def test_rotation() -> None:
    x = np.random.default_rng(5).standard_normal(32).astype(np.float32)
    frequencies = 10000.0 ** (-np.arange(0, 32, 2) / 32)
    cosines, sines = np.zeros(16, np.float32), np.zeros(16, np.float32)
    pointwise.rope_angles(31999.0, frequencies, cosines, sines, 0)
    np.testing.assert_allclose(cosines, np.cos(31999.0 * frequencies), atol=1e-6)
    expected = reference.rotate(x[None, None], cosines[None], sines[None])[0, 0] * 0.5
    pointwise.rotate_head(x, 0, 16, cosines, sines, 0, np.float32(0.5))
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_row_of_the_embedding(spec: QuantSpec) -> None:
    weights = np.random.default_rng(6).standard_normal((21, 256)).astype(np.float32)
    packed = round_to_nearest(weights, spec)
    row = pointwise.embed_row_int4 if spec.bits == 4 else pointwise.embed_row_int8
    halves = np.zeros(0, np.uint16)
    if packed.minimums is not None:
        halves = packed.minimums.view(np.uint16).reshape(-1)
    output = np.zeros(256, np.float32)
    for number in (0, 15, 20):
        row(
            packed.codes.reshape(-1), packed.scales.view(np.uint16).reshape(-1), halves,
            256, spec.group_size, number, output, 0,
        )  # fmt: skip
        np.testing.assert_allclose(output, packed.dequantize()[number], rtol=1e-6, atol=1e-7)


def test_buffers_have_room_for_whole_tiles() -> None:
    for _, width in WIDTHS:
        assert WIDTH_PADDING % (16 * matmul.rows_of(width)) == 0
        assert TOKEN_PADDING % width == 0
        assert HEAD_TOKENS % width == 0
        assert TOKEN_BLOCK % width == 0
