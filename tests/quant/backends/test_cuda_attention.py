"""Attention, RoPE and choosing on a GPU against their NumPy twins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quant.backends import devices
from quant.backends.reference import attend, rotate, store_slots
from quant.cache import KeyValues
from quant.sampling import Sampler, Sampling

from ..models import random_model
from .gpu import SMALL, normal, shown_by, state
from .gpu import simulator as simulator

cuda = pytest.importorskip("numba.cuda")
if devices.missing() is not None:
    pytest.skip("there is neither a GPU nor the simulator", allow_module_level=True)

from quant.backends.cuda import attention as attending  # noqa: E402 - only where it can be imported
from quant.backends.cuda import decode_attention as decoding  # noqa: E402
from quant.backends.cuda import memory, pointwise  # noqa: E402
from quant.backends.cuda.program import CudaProgram  # noqa: E402


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
