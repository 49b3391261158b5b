"""Kernels for GPUs against their NumPy twins: on a GPU if there is one, else simulated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quant.backends import devices
from quant.backends.cpu import CpuProgram
from quant.backends.reference import attend, rms_norm, rotate, silu_mul, store_slots
from quant.backends.split import SplitProgram
from quant.cache import KeyValues, RollingCache
from quant.decoding.generation import generate
from quant.errors import CacheError, DeviceError
from quant.model import Model
from quant.qtensor import QuantSpec
from quant.quantizers import round_to_nearest
from quant.sampling import Sampler, Sampling

from ..models import TINY, random_model
from ..oracle import forward, kl_divergence
from .simulator import quick_simulator

cuda = pytest.importorskip("numba.cuda")
if devices.missing() is not None:
    pytest.skip("there is neither a GPU nor the simulator", allow_module_level=True)

from quant.backends.cuda import attention as attending  # noqa: E402 - only where it can be imported
from quant.backends.cuda import decode_attention as decoding  # noqa: E402
from quant.backends.cuda import matmul as products  # noqa: E402
from quant.backends.cuda import matvec as vectors  # noqa: E402
from quant.backends.cuda import memory, pointwise, tensor_cores  # noqa: E402
from quant.backends.cuda.jit import (  # noqa: E402
    SIMULATED,
    THREADS,
    dp4a,
    has_tensor_cores,
    kernel,
    load2,
    load4,
    mma,
)
from quant.backends.cuda.program import CudaAPIError, CudaProgram  # noqa: E402

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


@pytest.fixture(autouse=True)
def simulator() -> Iterator[None]:
    RANDOM.bit_generator.state = SEEDED  # no test depends on those before it
    with quick_simulator() if SIMULATED else nullcontext():
        yield


def normal(*shape: int) -> Any:
    return RANDOM.standard_normal(shape, np.float32)


def state(position: int, tokens: int, first: int = 0, wanted: int = 0) -> Any:
    return cuda.to_device(np.array([position, tokens, first, wanted], np.int64))


# --- kernels


def test_dp4a() -> None:
    @kernel
    def run(codes: Any, values: Any, totals: Any) -> None:
        i = cuda.grid(1)
        if i < totals.shape[0]:
            totals[i] = dp4a(codes[i], values[i], totals[i])

    codes = RANDOM.integers(0, 256, (20, 4), np.uint8)
    values = RANDOM.integers(-128, 128, (20, 4), np.int8)
    totals = cuda.to_device(np.arange(20, dtype=np.int32))
    run[1, 32](
        cuda.to_device(codes.view(np.uint32)[:, 0]),
        cuda.to_device(values.view(np.int32)[:, 0]),
        totals,
    )
    expected = (codes.astype(int) * values).sum(1) + np.arange(20)
    np.testing.assert_array_equal(totals.copy_to_host(), expected)


def test_wide_loads() -> None:
    @kernel
    def run(words: Any, halves: Any, output: Any) -> None:
        i = cuda.grid(1)
        if i < 6:
            four = load4(words, (i // 2, 4 * (i % 2)))
            two = load2(halves, (i,)) if i % 2 == 0 else load2(halves, (0,))
            for each in range(4):
                output[i, each] = four[each]
            output[i, 4] = two[0]
            output[i, 5] = two[1]

    words = RANDOM.integers(0, 1 << 32, (3, 8), np.uint32)
    halves = normal(8).astype(np.float16)
    output = cuda.to_device(np.zeros((6, 6)))
    run[1, 32](cuda.to_device(words), cuda.to_device(halves), output)
    shown = output.copy_to_host()
    np.testing.assert_array_equal(shown[:, :4], words.reshape(6, 4))
    pairs = [halves[i : i + 2] if i % 2 == 0 else halves[:2] for i in range(6)]
    np.testing.assert_array_equal(shown[:, 4:], pairs)


@pytest.mark.skipif(not has_tensor_cores(), reason="the GPU's tensor cores take no bytes")
def test_a_tensor_core() -> None:
    @kernel
    def run(a: Any, b: Any, c: Any, output: Any) -> None:
        i = cuda.threadIdx.x
        made = mma(
            (a[i, 0], a[i, 1], a[i, 2], a[i, 3]),
            (b[i, 0], b[i, 1]),
            (c[i, 0], c[i, 1], c[i, 2], c[i, 3]),
        )
        for each in range(4):
            output[i, each] = made[each]

    first = RANDOM.integers(0, 256, (16, 32), np.uint8)
    second = RANDOM.integers(-128, 128, (32, 8), np.int8)
    third = RANDOM.integers(-1000, 1000, (16, 8), np.int32)
    rows = first.view(np.uint32)  # [16, 8 words]
    columns = np.ascontiguousarray(second.T).view(np.int32)  # [8, 8 words]
    a, b, c = (
        np.zeros((32, n), kind) for n, kind in ((4, np.uint32), (2, np.int32), (4, np.int32))
    )
    expected = first.astype(int) @ second + third
    shown = np.zeros((32, 4), int)
    for thread in range(32):
        g, t = divmod(thread, 4)
        a[thread] = rows[g, t], rows[g + 8, t], rows[g, t + 4], rows[g + 8, t + 4]
        b[thread] = columns[g, t], columns[g, t + 4]
        for each, (row, column) in enumerate(
            ((g, 2 * t), (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1))
        ):
            c[thread, each], shown[thread, each] = third[row, column], expected[row, column]
    output = cuda.to_device(np.zeros((32, 4), np.int32))
    run[1, 32](*map(cuda.to_device, (a, b, c)), output)
    np.testing.assert_array_equal(output.copy_to_host(), shown)


def test_neighbours_exchange() -> None:
    @kernel
    def run(values: Any, sums: Any, largest: Any) -> None:
        i = cuda.threadIdx.x
        sums[i] = pointwise.warp_sum(values[i], 32)
        largest[i] = pointwise.warp_max(values[i], 8)

    values = RANDOM.integers(-1000, 1000, 32).astype(np.int32)
    sums, largest = (cuda.to_device(np.zeros(32, np.int32)) for _ in range(2))
    run[1, 32](cuda.to_device(values), sums, largest)
    np.testing.assert_array_equal(sums.copy_to_host(), np.full(32, values.sum()))
    tops = values.reshape(4, 8).max(1).repeat(8)
    np.testing.assert_array_equal(largest.copy_to_host(), tops)


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


@pytest.mark.parametrize(("planes", "steps"), [(2, 127 * 128), (1, 127)])
def test_rows_in_bytes(planes: int, steps: int) -> None:
    x = normal(3, 96)
    x[1, 32:64] = 0
    _, shown = in_bytes(x, 32, planes)
    largest = np.abs(x.reshape(3, 3, 32)).max(-1).repeat(32, axis=1)
    assert (np.abs(shown - x) <= 0.51 * largest / steps + 1e-9).all()


KINDS = [INT4, INT8, QuantSpec(4, 64, symmetric=True), QuantSpec(8, 128, symmetric=False)]


def kind_of(spec: QuantSpec) -> tuple[int, int, bool]:
    return spec.bits, spec.group_size, spec.symmetric


@pytest.mark.parametrize("spec", KINDS, ids=str)
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("cores", [False, True], ids=["dp4a", "tensor cores"])
def test_products_for_many_tokens(spec: QuantSpec, planes: int, cores: bool) -> None:
    if cores and not has_tensor_cores():
        pytest.skip("the GPU's tensor cores take no bytes")
    matrix = round_to_nearest(normal(40, 256), spec)
    twin = memory.to_device(matrix)
    rows, shown = in_bytes(normal(11, 256), spec.group_size, planes)
    output = cuda.to_device(np.zeros((11, 64), np.float32))
    if cores:
        tile = tensor_cores.tile_for(spec.group_size)
        run = tensor_cores.matmul(*kind_of(spec), planes, tile)
        height, width, threads = tile.row_blocks, tile.tokens, tile.threads
    else:
        run = products.matmul(*kind_of(spec), planes)
        height, width = products.TILE_BLOCKS, products.TILE_TOKENS
        threads = 16 * products.TILE_TOKENS
    run[(-(-3 // height), -(-11 // width)), threads](*twin.packed, *rows.arrays, 40, 11, output)
    expected = shown @ matrix.dequantize().T
    np.testing.assert_allclose(output.copy_to_host()[:, :40], expected, atol=1e-4)
    assert not output.copy_to_host()[:, 40:].any()  # the last row block is filled up


def test_a_tile_of_several_warps() -> None:
    tile = tensor_cores.Tile(row_warps=2, token_warps=2, blocks=1, octets=2)
    matrix = round_to_nearest(normal(50, 64), INT4)
    twin = memory.to_device(matrix)
    rows, shown = in_bytes(normal(35, 64), 32)
    output = cuda.to_device(np.zeros((35, 64), np.float32))
    run = tensor_cores.matmul(*kind_of(INT4), 2, tile)
    run[(2, 2), tile.threads](*twin.packed, *rows.arrays, 50, 35, output)
    expected = shown @ matrix.dequantize().T
    np.testing.assert_allclose(output.copy_to_host()[:, :50], expected, atol=1e-4)


@pytest.mark.parametrize("spec", KINDS, ids=str)
@pytest.mark.parametrize("heights", [(40,), (40, 16), (16, 24, 5)], ids=str)
def test_products_for_one_token(spec: QuantSpec, heights: tuple[int, ...]) -> None:
    rows, shown = in_bytes(normal(1, 384), spec.group_size)
    matrices = [round_to_nearest(normal(height, 384), spec) for height in heights]
    twins = [memory.to_device(each) for each in matrices]
    outputs = [cuda.to_device(np.zeros((1, 64), np.float32)) for _ in heights]
    joined: list[Any] = []
    for i in range(vectors.JOINED):
        which = i if i < len(heights) else 0
        joined += [*twins[which].flat, heights[which], outputs[which]]
    row_blocks = sum(-(-height // 16) for height in heights)
    lines = twins[0].codes.shape[1]
    for split in (1, 2):
        blocks = vectors.blocks_for(row_blocks, split)
        run = vectors.matvec(*kind_of(spec), split)
        run[blocks, vectors.THREADS](*joined, lines, *rows.arrays)
        assert_products(matrices, heights, outputs, shown)


def assert_products(matrices: Any, heights: Any, outputs: Any, shown: Any) -> None:
    for matrix, height, output in zip(matrices, heights, outputs, strict=True):
        made = output.copy_to_host()
        np.testing.assert_allclose(made[:, :height], shown @ matrix.dequantize().T, atol=1e-4)
        assert not made[:, height:].any()


def test_products_of_floats() -> None:
    matrix, x = normal(20, 48), normal(3, 64)
    output = cuda.to_device(np.zeros((3, 64), np.float32))
    products.float_matmul[(1, 3), THREADS](cuda.to_device(matrix), cuda.to_device(x), output)
    np.testing.assert_allclose(output.copy_to_host()[:, :20], x[:, :48] @ matrix.T, atol=1e-4)


@pytest.mark.parametrize("spec", [INT4, INT8, None], ids=str)
def test_embedding(spec: QuantSpec | None) -> None:
    table = normal(40, 32)
    matrix = table if spec is None else round_to_nearest(table, spec)
    twin = memory.to_device(matrix)
    ids = cuda.to_device(np.array([39, 0, 17], np.int64))
    x = cuda.to_device(np.zeros((3, 64), np.float32))
    if spec is None:
        pointwise.float_embed_row[3, THREADS](twin.floats, ids, x)
        expected = table
    else:
        kind = pointwise.embed_row(spec.bits, spec.group_size, spec.symmetric)
        kind[3, THREADS](twin.codes, twin.scales, twin.minimums, 32, ids, x)
        expected = matrix.dequantize()  # type: ignore[union-attr]
    np.testing.assert_allclose(x.copy_to_host()[:, :32], expected[[39, 0, 17]], rtol=1e-6)


@pytest.mark.parametrize("added", [False, True])
def test_norm(added: bool) -> None:
    x, delta, weight = normal(4, 192), normal(2, 192), normal(160)
    stream = x[2:, :160] + (delta[:, :160] if added else 0)
    expected = rms_norm(stream, weight, 1e-5)

    def run(norm: Any, *outputs: Any) -> None:
        rows = cuda.to_device(x)
        norm[2, pointwise.NORM_THREADS](
            rows, cuda.to_device(delta), added, cuda.to_device(weight), np.float32(1e-5),
            cuda.to_device(np.array([2], np.int64)), *outputs,
        )  # fmt: skip
        np.testing.assert_array_equal(rows.copy_to_host()[2:, :160], stream)

    output = cuda.to_device(np.zeros((2, 192), np.float32))
    run(pointwise.norm_row, output)
    np.testing.assert_allclose(output.copy_to_host()[:, :160], expected, rtol=1e-5)
    for planes, steps in ((2, 127 * 128), (1, 127)):
        rows = memory.rows_in_bytes(2, 160, 32)
        run(pointwise.norm_bytes(32, planes), *rows.arrays)
        largest = np.abs(expected.reshape(2, 5, 32)).max(-1).repeat(32, axis=1)
        shown = shown_by(rows, 32, planes)
        assert (np.abs(shown - expected) <= 0.51 * largest / steps + 1e-6).all()


def test_gate() -> None:
    gate, up = 10 * normal(2, 64), normal(2, 64)
    gate[0, 0], gate[0, 1] = -1000, 1000
    output = cuda.to_device(np.zeros((2, 64), np.float32))
    pointwise.silu_mul_row[2, THREADS](cuda.to_device(gate), cuda.to_device(up), 64, output)
    expected = silu_mul(gate, up)
    np.testing.assert_allclose(output.copy_to_host(), expected, rtol=1e-5, atol=1e-6)
    rows = memory.rows_in_bytes(2, 64, 32)
    pointwise.row_bytes(32, 2, True)[(1, 2), THREADS](
        cuda.to_device(gate), cuda.to_device(up), 64, *rows.arrays
    )
    largest = np.abs(expected.reshape(2, 2, 32)).max(-1).repeat(32, axis=1)
    assert (np.abs(shown_by(rows, 32) - expected) <= 0.51 * largest / (127 * 128) + 1e-6).all()


def twins_of(ring: KeyValues) -> tuple[Any, ...]:
    """Keys, values and scales on the device."""
    return tuple(
        cuda.to_device(
            array.view(np.float16) if array.dtype == np.uint16
            else array if array.size
            else np.zeros((1, 1), np.float32)
        )
        for array in memory.arrays_of(ring)
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["f32", "f16", "int8"])
def test_rope(kind: str) -> None:
    q, k, v, angle = normal(2, 32), normal(2, 16), normal(2, 16), normal(2, 8)
    if kind == "f16":  # beyond what it holds
        v[0, 0], v[0, 3], v[1, 5] = 1e6, -70000, np.inf
    cosines, sines = np.cos(angle), np.sin(angle)
    expected, ring = (KeyValues.allocate(SMALL, 64, kind) for _ in range(2))
    twins = twins_of(ring)
    queries, *others = map(cuda.to_device, (q, k, v, cosines, sines))
    pointwise.rope(kind, 16)[(2 + 1, 2), 32](
        state(70, 2), queries, 2, np.float32(0.25), *others, False, *twins
    )
    rotated = rotate(q.reshape(2, 2, 16), cosines, sines) / 4
    np.testing.assert_allclose(queries.copy_to_host().reshape(2, 2, 16), rotated, atol=1e-6)
    slots = np.array([6, 7])  # of the chunk, as its first position is 6 beyond a tile
    store_slots(expected, slots, rotate(k[:, None], cosines, sines), v[:, None])
    for twin, array in zip(twins, memory.arrays_of(expected), strict=True):
        if array.size:
            shown = array.view(np.float16) if array.dtype == np.uint16 else array
            tolerance = 1.01 if kind == "int8" else 1e-3
            np.testing.assert_allclose(
                twin.copy_to_host().astype(float), shown.astype(float), atol=tolerance
            )


def test_angles() -> None:
    frequencies = 1e4 ** (-np.arange(0, 16, 2) / 16)
    cosines, sines = (cuda.to_device(np.zeros((2, 8), np.float32)) for _ in range(2))
    pointwise.rope_angles[2, 32](state(30_000, 2), cuda.to_device(frequencies), cosines, sines)
    angles = np.array([30_000, 30_001])[:, None] * frequencies
    np.testing.assert_allclose(cosines.copy_to_host(), np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sines.copy_to_host(), np.sin(angles), atol=1e-6)


@pytest.mark.parametrize(
    ("position", "tokens", "window"),
    [(0, 3, None), (40, 3, None), (90, 3, 20), (100, 1, 24), (70, 1, None)],
)
def test_attention(position: int, tokens: int, window: int | None) -> None:
    slots = 64 if window else 128
    ring, chunk = (KeyValues.allocate(SMALL, size, "f32") for size in (slots, 128))
    held = np.arange(max(0, position - slots), position)
    store_slots(ring, held % slots, normal(held.size, 1, 16), normal(held.size, 1, 16))
    fresh = position % 64 + np.arange(tokens)
    keys, values = normal(tokens, 1, 16), normal(tokens, 1, 16)
    store_slots(chunk, fresh, keys, values)
    q = normal(tokens, 2, 16)
    expected = attend(q, position, ring, window, chunk)
    one = tokens == 1
    if one:
        store_slots(ring, np.array([position % slots]), keys, values)
    step = decoding.SPLIT if one else 0
    splits = -(-min(window or slots, slots) // decoding.SPLIT) + 1 if one else 1
    partial = cuda.to_device(np.full((tokens, 2, splits, 18), np.nan, np.float32))
    output = cuda.to_device(np.zeros((tokens, 32), np.float32))
    where = state(position, tokens)
    tile = max(1, attending.QUERIES // 2)
    attending.attention("f32", 16, 2)[(splits, 1, -(-tokens // tile)), attending.THREADS](
        where, cuda.to_device(q.reshape(tokens, 32)), False, window or 0, one, step, partial,
        *twins_of(ring), *twins_of(chunk),
    )  # fmt: skip
    combine(where, partial, splits, window, step, output)
    np.testing.assert_allclose(output.copy_to_host().reshape(tokens, 2, 16), expected, atol=1e-5)


def combine(where: Any, partial: Any, splits: int, window: int | None, step: int, out: Any) -> None:
    heads, tokens = partial.shape[1], partial.shape[0]
    attending.combine[(heads, tokens), attending.COMBINE_THREADS](
        where, partial, False, splits, window or 0, step, out
    )


@pytest.mark.parametrize("kind", ["f32", "f16", "int8"])
@pytest.mark.parametrize(
    ("group", "position", "window"),
    [(2, 70, None), (1, 0, None), (4, 130, 24), (6, 100, None), (3, 63, 64), (2, 200, 128)],
)
def test_attention_of_one_token(group: int, position: int, window: int | None, kind: str) -> None:
    config = replace(SMALL, num_attention_heads=group)
    slots = -(-window // 64) * 64 if window else 256
    ring, chunk = (KeyValues.allocate(config, size, kind) for size in (slots, 64))
    held = np.arange(max(0, position - slots), position)
    store_slots(ring, held % slots, normal(held.size, 1, 16), normal(held.size, 1, 16))
    own = normal(1, 1, 16), normal(1, 1, 16)
    store_slots(chunk, np.array([position % 64]), *own)
    q = normal(1, group, 16)
    expected = attend(q, position, ring, window, chunk)
    store_slots(ring, np.array([position % slots]), *own)
    splits = -(-min(window or slots, slots) // decoding.SPLIT) + 1
    # What is not written must not be read.
    partial = cuda.to_device(np.full((1, group, splits, 18), np.nan, np.float32))
    output = cuda.to_device(np.full((1, 16 * group), np.nan, np.float32))
    where = state(position, 1)
    tiles = -(-group // decoding.QUERIES)
    decoding.decode_attention(kind, 16, group)[(splits, 1, tiles), decoding.THREADS](
        where, cuda.to_device(q.reshape(1, 16 * group)), window or 0, partial, *twins_of(ring)
    )
    combine(where, partial, splits, window, decoding.SPLIT, output)
    got = output.copy_to_host().reshape(1, group, 16)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_many_splits_are_combined(as_bytes: bool) -> None:
    splits = 3 * attending.COMBINE_THREADS + 5
    size = 64
    partial = normal(1, 2, splits + 4, size + 2)
    partial[..., size] *= 30
    partial[..., size + 1] = np.abs(partial[..., size + 1]) + 0.1
    partial[:, :, splits:] = np.nan
    tops = partial[0, :, :splits, size]
    weights = np.exp(tops - tops.max(1, keepdims=True))
    total = (weights * partial[0, :, :splits, size + 1]).sum(1)
    expected = (weights[..., None] * partial[0, :, :splits, :size]).sum(1) / total[:, None]
    where = state(splits * decoding.SPLIT - 1, 1)
    held = cuda.to_device(partial)
    if as_bytes:
        rows = memory.rows_in_bytes(1, 2 * size, 32)
        run = attending.combine_bytes(size, 32, 2)[(2, 1), attending.COMBINE_THREADS]
        run(where, held, False, splits + 4, 0, decoding.SPLIT, *rows.arrays)
        got = shown_by(rows, 32)
        tolerance = 0.51 * np.abs(expected.reshape(2, -1, 32)).max(-1).repeat(32, 1) / (127 * 128)
    else:
        output = cuda.to_device(np.zeros((1, 2 * size), np.float32))
        combine(where, held, splits + 4, None, decoding.SPLIT, output)
        got, tolerance = output.copy_to_host(), np.zeros((2, size))
    error = np.abs(got.reshape(2, size) - expected)
    assert (error <= tolerance + 2e-4 * np.abs(expected) + 1e-5).all()


# --- choosing


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(temperature=0, repetition_penalty=1.5),
        Sampling(temperature=0.8, min_p=0.05, seed=1),
        Sampling(temperature=1.0, top_k=5, min_p=0.0, seed=2),
        Sampling(temperature=0.9, top_k=12, top_p=0.7, min_p=0.02, repetition_penalty=1.3, seed=3),
        Sampling(temperature=0.5, top_p=0.6, min_p=0.1, seed=4),
    ],
    ids=str,
)
def test_choosing_on_the_device(sampling: Sampling) -> None:
    model = random_model(SMALL, spec=None)
    session = model.session(32, backend="cuda")
    session.feed([1, 2, 3])
    program = session.program
    assert isinstance(program, CudaProgram)
    sampler = Sampler(sampling)
    for logits in (
        normal(40) * 3,
        normal(40) * 6,
        np.zeros(40, np.float32) + np.eye(40, dtype=np.float32)[7],
    ):
        program.memory.on(program.outputs[0])[:1].copy_to_device(
            np.pad(logits, (0, program.outputs[0].shape[1] - 40))[None]
        )
        draw = sampler.draw()
        history = [3, 3, 7, 12]
        token = program.choose(sampling, history, draw)
        expected = sampler.choose(logits, history, draw)
        # None where there are more candidates than the device sorts.
        assert token in (expected, None)
        assert token is not None or np.ptp(logits) == 1


# --- whole models


def model_of(spec: QuantSpec | None, layers: int = 2) -> Model:
    config = replace(SMALL, num_hidden_layers=layers, windows=SMALL.windows[:1] * layers)
    return random_model(config, spec=spec)


def assert_equal_but_for_rounding(got: Any, expected: Any) -> None:
    """Sums in another order may move an activation by one of its 16,256 steps."""
    np.testing.assert_allclose(got, expected, atol=2e-3)
    assert kl_divergence(expected, got).mean() < 1e-6


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
@pytest.mark.parametrize("spec", [INT4, INT8, None], ids=str)
def test_a_model(spec: QuantSpec | None, kv: str) -> None:
    model = model_of(spec)
    ids = RANDOM.integers(0, 40, 6).tolist()
    expected = model.session(128, kv=kv, backend="numpy").feed(ids, every=True)
    session = model.session(128, kv=kv, backend="cuda")
    got = np.concatenate([session.feed(ids[:4], every=True), session.feed(ids[4:5])[None]])
    got = np.concatenate([got, session.feed(ids[5:])[None]])
    assert kl_divergence(expected, got).mean() < 1e-4
    np.testing.assert_allclose(got, expected, atol=5e-2 if kv == "int8" else 5e-3)


def test_a_model_equals_the_processor() -> None:
    model = model_of(INT4)
    ids = RANDOM.integers(0, 40, 5).tolist()
    logits = [
        model.session(64, kv="f32", backend=backend).feed(ids, every=True)
        for backend in ("cpu", "cuda")
    ]
    assert_equal_but_for_rounding(logits[1], logits[0])


def test_a_window_that_wraps() -> None:
    model = model_of(None, layers=1)
    ids = RANDOM.integers(0, 40, 70).tolist()
    session = model.session(128, window=16, kv="f32", backend="cuda", chunk=40)
    got = np.stack([session.feed(ids[:66]), session.feed(ids[66:67]), session.feed(ids[67:])])
    expected = forward(model.config, model.weights, ids, 16)
    np.testing.assert_allclose(got, expected[[65, 66, 69]], atol=1e-3)


def test_the_same_words_from_every_backend() -> None:
    model = model_of(INT4)
    texts = [
        list(
            generate(
                model.session(64, backend=backend), [1, 2, 3], Sampling(0.7, seed=5), max_tokens=4
            )
        )
        for backend in ("numpy", "cpu", "cuda")
    ]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("layers", [0, 1, 2, 5])
def test_layers_on_two_devices(layers: int) -> None:
    model = model_of(INT4)
    ids = RANDOM.integers(0, 40, 5).tolist()
    expected = model.session(64, kv="f32").feed(ids, every=True)
    session = model.session(64, kv="f32", backend="cuda", gpu_layers=layers)
    kinds: dict[int, type] = {0: CpuProgram, 1: SplitProgram}
    assert type(session.program) is kinds.get(layers, CudaProgram)
    got = np.concatenate([session.feed(ids[:3], every=True), session.feed(ids[3:4])[None]])
    assert_equal_but_for_rounding(got, expected[:4])


def test_a_cache_goes_to_a_file_and_back(tmp_path: Path) -> None:
    model = model_of(INT4, layers=1)
    ids = RANDOM.integers(0, 40, 6).tolist()
    first = model.session(64, backend="cuda")
    first.feed(ids[:5])
    first.save(tmp_path / "cache", "tiny")
    expected = first.feed(ids[5:])
    for backend in ("cuda", "cpu"):
        session = model.session(64, backend=backend)
        session.restore(tmp_path / "cache", "tiny")
        assert_equal_but_for_rounding(session.feed(ids[5:]), expected)
    with pytest.raises(CacheError):
        model.session(64, backend="cuda").restore(tmp_path / "cache", "another")


def test_weights_are_copied_once() -> None:
    model = model_of(INT4, layers=1)
    for _ in range(2):
        model.session(64, backend="cuda").feed([1, 2])
    # Seven matrices, the embedding and the output.
    assert len(model.on_device) == 9
    program = model.session(64, backend="cuda").program
    assert isinstance(program, CudaProgram)
    assert program.needed_bytes() < 2_000_000
    fresh = model_of(INT4, layers=1).session(64, backend="cuda").program
    assert isinstance(fresh, CudaProgram)
    assert fresh.needed_bytes() - program.needed_bytes() == sum(
        matrix.nbytes for matrix in fresh.memory._matrices.values()
    )


def test_what_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [1_000_000_000]

    class Context:
        """A GPU on which two gigabytes wait to be freed."""

        @property
        def deallocations(self) -> Context:
            return self

        def clear(self) -> None:
            free[0] = 3_000_000_000

        def get_memory_info(self) -> tuple[int, int]:
            return free[0], 8_000_000_000

    monkeypatch.setattr(memory, "SIMULATED", False)
    monkeypatch.setattr(memory.cuda, "current_context", Context)
    memory.check_memory(500_000_000)
    assert free == [1_000_000_000]
    memory.check_memory(2_000_000_000)
    with pytest.raises(DeviceError, match=r"3.0 of 8.0 GB free.*needs 4.3 GB.*--gpu-layers"):
        memory.check_memory(4_000_000_000)


def test_what_the_driver_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(self: CudaProgram) -> None:
        raise CudaAPIError(2, "out of memory")

    monkeypatch.setattr(CudaProgram, "_prepare", prepare)
    with pytest.raises(DeviceError, match="out of memory"):
        model_of(None).session(32, backend="cuda").compile()


@pytest.mark.parametrize(
    ("capability", "version", "said"),
    [
        ((6, 0), (12, 4), r"compute capability is 6.0, and 6.1 is needed"),
        ((8, 0), (11, 8), r"driver is for CUDA 11.8, and 12.0 is needed"),
        ((6, 1), (12, 0), None),
        ((12, 0), (13, 0), None),
    ],
)
def test_what_is_too_old(
    capability: tuple[int, int], version: tuple[int, int], said: str | None
) -> None:
    driver = SimpleNamespace(get_version=lambda: version)
    fake = SimpleNamespace(
        get_current_device=lambda: SimpleNamespace(compute_capability=capability),
        cudadrv=SimpleNamespace(driver=SimpleNamespace(driver=driver)),
    )
    sentence = devices._too_old(fake)
    assert sentence is None if said is None else re.search(said, sentence or "")


def test_heads_that_do_not_fit_are_told() -> None:
    with pytest.raises(DeviceError, match="shared memory; use --device cpu"):
        attending.span_for(512, 32)


def test_without_the_compiler_or_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.chosen("auto") == "cuda"
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    assert devices.chosen("auto") == "cpu"
    with pytest.raises(DeviceError, match=r"pip install 'mistral-chat\[cuda\]'"):
        model_of(None).session(32, backend="cuda")
    monkeypatch.undo()
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="No NVIDIA GPU was found"):
        devices.check_device()


def test_a_ring_is_as_on_the_host() -> None:
    cache = RollingCache(SMALL, 100, None, "f16")
    assert memory.kind_of(cache.layers[0]) == "f16"


@pytest.mark.model
@pytest.mark.skipif(SIMULATED, reason="the real model would take hours in the simulator")
def test_the_default_model_on_a_gpu(default_model_home: Path) -> None:
    import quant
    from mistral_chat.tokenizers import load_tokenizer

    folder = default_model_home / "data" / "models" / "smollm2"
    model = quant.load(folder)
    text = (Path(__file__).resolve().parents[2] / "data" / "english.txt").read_text("utf-8")
    ids = load_tokenizer(folder).encode(text)
    expected, got = (
        model.session(1024, backend=backend).feed(ids, every=True) for backend in ("cpu", "cuda")
    )
    assert kl_divergence(expected, got).mean() <= 1e-4
    greedy = Sampling(temperature=0)
    texts = [
        list(generate(model.session(1024, backend=backend), ids[:40], greedy, max_tokens=40))
        for backend in ("cpu", "cuda")  # the graph of launches is replayed 38 times
    ]
    assert texts[0] == texts[1]
