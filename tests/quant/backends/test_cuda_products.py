"""Products and rows on a GPU against their NumPy twins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quant.backends import devices
from quant.backends.reference import rms_norm, silu_mul
from quant.qtensor import QuantSpec
from quant.quantizers import round_to_nearest

from .gpu import INT4, INT8, RANDOM, in_bytes, normal, shown_by
from .gpu import simulator as simulator

cuda = pytest.importorskip("numba.cuda")
if devices.missing() is not None:
    pytest.skip("there is neither a GPU nor the simulator", allow_module_level=True)

from quant.backends.cuda import matmul as products  # noqa: E402
from quant.backends.cuda import matvec as vectors  # noqa: E402
from quant.backends.cuda import memory, pointwise, tensor_cores  # noqa: E402
from quant.backends.cuda.jit import (  # noqa: E402
    THREADS,
    dp4a,
    has_tensor_cores,
    kernel,
    load2,
    load4,
    mma,
)


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
