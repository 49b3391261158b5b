"""Sessions: chunks, windows, rings, cache types and backends give the same logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from quant.errors import CacheError, ConfigError, ContextFullError, InputError
from quant.model import Model, Session
from quant.qtensor import HALF_MAX, QuantSpec

from .models import TINY, random_model, random_weights
from .oracle import forward, kl_divergence

IDS = np.random.default_rng(9).integers(0, TINY.vocab_size, 60).tolist()
WINDOW = 24
LONG = np.random.default_rng(10).integers(0, TINY.vocab_size, 200).tolist()  # wraps 64 slots thrice
PACKED = QuantSpec(4, 32, symmetric=False)


def feed_in_chunks(session: Session, ids: list[int], sizes: list[int]) -> Any:
    """Logits of every id, fed by ``feed`` calls of the given sizes in turn."""
    rows, start, turn = [], 0, 0
    while start < len(ids):
        size = sizes[turn % len(sizes)]
        rows.append(session.feed(ids[start : start + size], every=True))
        start, turn = start + size, turn + 1
    return np.concatenate(rows)


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("window", [None, WINDOW, 8])
@pytest.mark.parametrize("spec", [None, PACKED, QuantSpec(8, 64, symmetric=True)], ids=str)
def test_logits_equal_the_oracle(backend: str, window: int | None, spec: QuantSpec | None) -> None:
    model = random_model(spec=spec)
    session = model.session(window=window, kv="f32", backend=backend)
    expected = forward(TINY, model.weights, LONG, window)
    assert 0.3 < expected.std() < 3
    exact = spec is None or backend == "numpy"  # else activations are rounded to 15 bits
    got = session.feed(LONG, every=True)
    np.testing.assert_allclose(got, expected, atol=1e-4 if exact else 2e-3)


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
@pytest.mark.parametrize("window", [None, WINDOW, 100])
@pytest.mark.parametrize("sizes", [[1], [7], [64], [5, 1, 30]], ids=str)
def test_chunks_do_not_matter(kv: str, window: int | None, sizes: list[int]) -> None:
    model = random_model(spec=PACKED)
    whole = model.session(window=window, kv=kv).feed(LONG, every=True)
    parts = feed_in_chunks(model.session(window=window, kv=kv), LONG, sizes)
    np.testing.assert_array_equal(parts, whole)
    inner = model.session(window=window, kv=kv, chunk=7).feed(LONG, every=True)
    np.testing.assert_array_equal(inner, whole)


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
def test_backends_agree_and_share_their_cache_format(kv: str) -> None:
    model = random_model(spec=PACKED)
    cpu = model.session(window=WINDOW, kv=kv, backend="cpu")
    numpy = model.session(window=WINDOW, kv=kv, backend="numpy")
    np.testing.assert_allclose(
        cpu.feed(LONG), numpy.feed(LONG), atol=2e-2 if kv == "int8" else 5e-3
    )
    for ours, theirs in zip(cpu.cache.layers, numpy.cache.layers, strict=True):
        assert ours.keys.shape == theirs.keys.shape
        if kv == "f32":
            np.testing.assert_allclose(ours.keys, theirs.keys, atol=1e-3)
            np.testing.assert_allclose(ours.values, theirs.values, atol=1e-3)


@pytest.mark.parametrize("kv", ["f16", "int8"])
def test_a_smaller_cache_is_close_to_a_float_one(kv: str) -> None:
    model = random_model()
    exact = model.session(kv="f32").feed(IDS, every=True)
    small = model.session(kv=kv).feed(IDS, every=True)
    assert np.abs(small - exact).max() < (3e-2 if kv == "f16" else 0.2)


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_what_float16_cannot_hold_becomes_its_largest(backend: str) -> None:
    weights = random_weights(TINY, None)
    # Scores stay as they were: what keys gain, queries lose.
    layers = tuple(
        replace(
            layer,
            k=layer.k * np.float32(4e4),
            q=layer.q / np.float32(4e4),
            v=layer.v * np.float32(3e4),
        )
        for layer in weights.layers
    )
    model = Model(TINY, replace(weights, layers=layers), "large", lambda: "")
    exact, half = (model.session(kv=kv, backend=backend) for kv in ("f32", "f16"))
    exact.feed(IDS)
    assert np.isfinite(half.feed(IDS)).all()
    beyond = 0
    for ours, theirs in zip(half.cache.layers[:1], exact.cache.layers[:1], strict=True):
        for part in ("keys", "values"):
            stored = getattr(ours, part).view(np.float16).astype(np.float32)
            expected = np.clip(getattr(theirs, part), -HALF_MAX, HALF_MAX)
            np.testing.assert_allclose(stored, expected, rtol=1e-3)
            beyond += int((np.abs(stored) == HALF_MAX).sum())
    assert beyond > 10


def test_fast_prefill_is_close() -> None:
    model = random_model(spec=PACKED)
    exact = model.session().feed(IDS, every=True)
    fast = model.session(prefill="fast").feed(IDS, every=True)
    assert not np.array_equal(exact, fast)
    assert kl_divergence(exact, fast).mean() < 5e-3


def test_single_tokens_are_exact_in_a_fast_session_too() -> None:
    model = random_model(spec=PACKED)
    fast, exact = model.session(prefill="fast"), model.session()
    for token in IDS[:5]:
        np.testing.assert_array_equal(fast.feed([token]), exact.feed([token]))


def test_layers_may_have_windows_of_their_own() -> None:
    config = replace(TINY, windows=(None, 8))
    model = random_model(config)
    session = model.session(kv="f32")
    np.testing.assert_allclose(
        feed_in_chunks(session, LONG, [7]), forward(config, model.weights, LONG), atol=1e-4
    )
    assert [layer.slots for layer in session.cache.layers] == [256, 64]


def test_a_head_size_that_is_not_hidden_by_heads() -> None:
    config = replace(TINY, head_dim=16, tie_word_embeddings=True)
    model = random_model(config)
    logits = model.session(kv="f32").feed(IDS, every=True)
    np.testing.assert_allclose(logits, forward(config, model.weights, IDS), atol=1e-4)


def test_groups_that_differ_within_a_layer() -> None:
    model = random_model(spec=PACKED)
    other = random_model(spec=QuantSpec(8, 64, symmetric=True))
    mixed = [
        replace(layer, k=odd.k, gate=odd.gate)
        for layer, odd in zip(model.weights.layers, other.weights.layers, strict=True)
    ]
    model.weights = replace(model.weights, layers=tuple(mixed))
    logits = model.session(kv="f32").feed(IDS, every=True)
    np.testing.assert_allclose(logits, forward(TINY, model.weights, IDS), atol=2e-3)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    model = random_model(spec=PACKED)
    one = model.session(threads=1).feed(IDS, every=True)
    many = model.session(threads=threads)
    np.testing.assert_array_equal(many.feed(IDS[:50], every=True), one[:50])
    for i in range(50, 60):
        np.testing.assert_array_equal(many.feed([IDS[i]]), one[i])


def test_trim_goes_back_until_the_ring_has_wrapped() -> None:
    model = random_model(spec=PACKED)
    session = model.session()
    first = session.feed(IDS[:30])
    session.feed(IDS[30:])
    session.trim(29)
    assert (session.position, session.ids) == (29, IDS[:29])
    np.testing.assert_array_equal(session.feed([IDS[29]]), first)

    ring = model.session(window=WINDOW)
    ring.feed(LONG[:60])
    ring.trim(10)  # the 64 slots have not wrapped yet
    ring.feed(LONG[10:])
    ring.trim(190)  # they have, but still hold what token 190 sees
    with pytest.raises(CacheError, match="feed it again"):
        ring.trim(150)
    assert ring.position == 190
    ring.trim(0)
    fresh = model.session(window=WINDOW)
    np.testing.assert_array_equal(ring.feed(LONG), fresh.feed(LONG))


def test_trimming_a_wrapped_ring_by_nothing_is_nothing() -> None:
    ring = random_model().session(window=64)
    ring.feed(LONG)
    ring.trim(200)
    assert ring.position == 200
    with pytest.raises(CacheError, match="not among"):
        ring.trim(201)


def test_a_broken_chunk_is_never_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    session = random_model().session(window=64, chunk=70)
    session.feed(LONG[:130])

    def break_off(*arguments: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session.program, "run", break_off)
    with pytest.raises(KeyboardInterrupt):
        session.feed(LONG[130:])
    monkeypatch.undo()
    assert session.position == 130
    with pytest.raises(CacheError):
        session.feed(LONG[130:])


def test_the_cache_holds_the_window_and_no_more() -> None:
    config = replace(TINY, max_position_embeddings=1 << 15)
    model = random_model(config)
    full = model.session(max_context=1 << 12).cache.nbytes
    assert full == 2 * 2 * 2 * 32 * 2 * (1 << 12)  # layers, k and v, heads, head_dim, bytes, slots
    assert model.session(max_context=1 << 12, window=512).cache.nbytes == full // 8
    assert model.session(max_context=1 << 12, kv="int8").cache.nbytes == full // 2 * (1 + 4 / 32)


def test_feed_reports_and_stops() -> None:
    session = random_model().session(chunk=16)
    seen: list[tuple[int, int]] = []
    session.feed(IDS, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(16, 60), (32, 60), (48, 60), (60, 60)]
    session.trim(0)
    session.feed(IDS, cancel=lambda: session.position >= 16)
    assert session.position == 32


@pytest.mark.parametrize(
    ("ids", "error", "sentence"),
    [
        ([], InputError, "nothing to read"),
        ([96], InputError, "vocabulary of 96"),
        ([-1], InputError, "vocabulary of 96"),
        ([1] * 257, ContextFullError, "needs 257 tokens, but only 256"),
    ],
)
def test_ids_that_cannot_be_read(ids: list[int], error: type[Exception], sentence: str) -> None:
    session = random_model().session()
    with pytest.raises(error, match=sentence):
        session.feed(ids)
    assert session.position == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"max_context": 0}, "1 to 256"),
        ({"max_context": 257}, "1 to 256"),
        ({"prefill": "slow"}, "exact or fast"),
        ({"backend": "abacus"}, "no backend 'abacus'"),
        ({"threads": 0}, "At least one thread"),
        ({"chunk": 0}, "at least one token"),
    ],
)
def test_sessions_that_cannot_be(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        random_model().session(**arguments)


def test_caches_that_cannot_be() -> None:
    with pytest.raises(CacheError, match="int8"):
        random_model().session(kv="int4")
    with pytest.raises(CacheError, match="at least one token"):
        random_model().session(window=0)
