"""Sequences that share passes: each computes what it would alone, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.backends.scratch import HEAD_TOKENS
from quant.batch import Batch, Part, SessionOptions
from quant.errors import CacheError, ConfigError, ContextFullError, InputError
from quant.model import Model, Session
from quant.qtensor import QuantSpec

from .models import TINY, random_model

CONTEXT, ROWS, SEQUENCES = 300, 64, 4
SPECS = (None, QuantSpec(4, 32, symmetric=False), QuantSpec(8, 32, symmetric=True))


@cache
def model_of(windows: tuple[int | None, ...], spec: QuantSpec | None) -> Model:
    return random_model(replace(TINY, windows=windows, max_position_embeddings=CONTEXT), spec)


def batch_of(model: Model, sequences: int = SEQUENCES, **options: object) -> Batch:
    chosen = replace(SessionOptions(CONTEXT, chunk=ROWS), **options)  # type: ignore[arg-type]
    return Batch(model.config, model.weights, model.on_device, chosen, sequences)


@dataclass(frozen=True)
class Event:
    """A sequence reads ``tokens`` ids, or, with none, begins anew.

    With ``branches`` it reads them so many times, as parts that are not kept. With ``copied`` it
    first becomes a copy of that sequence's first half.
    """

    sequence: int
    tokens: int
    wanted: int
    branches: int = 0
    copied: int | None = None


EVENTS = st.builds(
    Event,
    sequence=st.integers(0, SEQUENCES - 1),
    tokens=st.sampled_from([0, 1, 1, 1, 2, 3, 5, 8, 15]),
    wanted=st.integers(0, 3),
    branches=st.sampled_from([0, 0, 1, 2]),
    copied=st.none() | st.integers(0, SEQUENCES - 1),
)
PASSES = st.lists(
    st.lists(EVENTS, min_size=1, max_size=SEQUENCES, unique_by=lambda event: event.sequence),
    max_size=24,
)


def read_alone(session: Session, part: Part) -> npt.NDArray[np.float32]:
    if part.kept:
        return session.feed(part.ids, every=True)[len(part.ids) - part.wanted :]
    before = list(session.ids)
    session.trim(0)
    rows = session.feed([*before, *part.ids], every=True)
    session.trim(0)
    if before:
        session.feed(before)
    return rows[len(rows) - part.wanted :]


def copy(batch: Batch, alone: list[Session], source: int, target: int) -> None:
    """Copy half of a sequence, if it still holds what the next token sees."""
    half = batch.caches[source].position // 2
    try:
        batch.copy(source, target, half)
    except CacheError:
        with pytest.raises(CacheError):
            alone[source].trim(half)
        return
    ids = alone[source].ids[:half]
    alone[target].trim(0)
    if ids:
        alone[target].feed(ids)


@settings(max_examples=60)
@given(
    passes=PASSES,
    windows=st.sampled_from([(None, None), (64, None), (40, 64), (1, 7)]),
    kv=st.sampled_from(["f32", "f16", "int8"]),
    spec=st.sampled_from(SPECS),
    threads=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_company_changes_no_bit(
    passes: list[list[Event]],
    windows: tuple[int | None, ...],
    kv: str,
    spec: QuantSpec | None,
    threads: int,
    seed: int,
) -> None:
    model, random = model_of(windows, spec), np.random.default_rng(seed)
    batch = batch_of(model, kv=kv, threads=threads)
    alone = [model.session(CONTEXT, kv=kv, threads=1, chunk=13) for _ in range(SEQUENCES)]
    for events in passes:
        parts: list[Part] = []
        for event in events:
            if event.copied is not None:
                copy(batch, alone, event.copied, event.sequence)
            room = CONTEXT - batch.caches[event.sequence].position
            if event.tokens == 0 or room < event.tokens:
                batch.trim(event.sequence, 0)
                alone[event.sequence].trim(0)
            if event.tokens:
                ids = random.integers(0, TINY.vocab_size, event.tokens).tolist()
                wanted = min(event.wanted, event.tokens)
                if event.branches:
                    parts += event.branches * [Part(event.sequence, ids, wanted, kept=False)]
                else:
                    parts.append(Part(event.sequence, ids, wanted))
        if not parts or not batch.has_room(parts):
            continue
        got = batch.read(parts)
        expected = [read_alone(alone[part.sequence], part) for part in parts]
        np.testing.assert_array_equal(got, np.concatenate(expected))
        for part in parts:
            assert batch.ids[part.sequence] == alone[part.sequence].ids


@pytest.mark.parametrize("windows", [(None, None), (64, 5)])
def test_the_numpy_backend_says_the_same(windows: tuple[int | None, ...]) -> None:
    model, random = model_of(windows, None), np.random.default_rng(0)
    batches = [batch_of(model, kv="f32", backend=backend) for backend in ("cpu", "numpy")]
    for _ in range(12):
        parts = [
            Part(int(sequence), random.integers(0, TINY.vocab_size, count).tolist(), int(count))
            for sequence in random.permutation(SEQUENCES)[:3]
            for count in [int(random.integers(1, 9))]
        ]
        got, expected = (batch.read(parts) for batch in batches)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_the_numpy_backend_branches_and_copies_as_well() -> None:
    model = model_of((None, 40), None)
    batches = [batch_of(model, kv="f32", backend=backend) for backend in ("cpu", "numpy")]
    results = []
    for batch in batches:
        batch.read([Part(0, [3] * 30), Part(1, [4] * 9)])
        batch.copy(0, 2, 25)
        branches = [Part(2, [7, 8, 9], 3, kept=False), Part(2, [7, 1], 2, kept=False)]
        rows = [batch.read([*branches, Part(1, [5])]), batch.read([Part(2, [6] * 20, 20)])]
        results.append(np.concatenate(rows))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-4)


def test_a_pass_has_bounds() -> None:
    batch = batch_of(model_of((None, None), None))
    for parts in ([], [Part(0, [1] * (ROWS + 1))], [Part(0, [1] * 60, 60)]):
        with pytest.raises(InputError, match=f"1 to {ROWS} tokens"):
            batch.read(parts)
    for parts, said in (
        ([Part(0, [1]), Part(0, [2])], "one part"),
        ([Part(SEQUENCES, [1])], "no sequence"),
        ([Part(-1, [1])], "no sequence"),
        ([Part(0, [1], 2)], "2 of 1"),
        ([Part(0, [], 0)], "nothing to read"),
        ([Part(0, [1]), Part(1, [TINY.vocab_size])], "outside the model's vocabulary"),
        ([Part(0, [-1])], "outside the model's vocabulary"),
    ):
        with pytest.raises(InputError, match=said):
            batch.read(parts)
    assert batch.ids == ([], [], [], [])
    for _ in range(CONTEXT // 60):
        batch.read([Part(0, [1] * 60)])
    with pytest.raises(ContextFullError):
        batch.read([Part(1, [1]), Part(0, [1])])
    assert batch.ids[1] == []
    with pytest.raises(ConfigError, match="At least one sequence"):
        batch_of(model_of((None, None), None), 0)


def test_a_ring_that_wrapped_cannot_be_taken_back_but_its_neighbours_can() -> None:
    batch = batch_of(model_of((5, 5), None))
    for _ in range(3):
        batch.read([Part(0, [1] * 40), Part(1, [2] * 20)])
    with pytest.raises(CacheError, match="overwritten"):
        batch.trim(0, 30)
    batch.trim(1, 55)
    assert (len(batch.ids[0]), len(batch.ids[1])) == (120, 55)


def test_more_sequences_than_rows_of_logits_are_held_for_one() -> None:
    count = HEAD_TOKENS + 3
    model = model_of((None, None), SPECS[1])
    batch = batch_of(model, count)
    got = batch.read([Part(sequence, [sequence % 7]) for sequence in range(count)])
    expected = model.session(CONTEXT)
    for sequence in (0, 6, HEAD_TOKENS, count - 1):
        expected.trim(0)
        np.testing.assert_array_equal(got[sequence], expected.feed([sequence % 7]))
