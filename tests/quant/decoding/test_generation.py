"""Sampling and generation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.decoding.generation import generate
from quant.errors import ContextFullError, SamplingError
from quant.qtensor import QuantSpec
from quant.sampling import Sampler, Sampling, candidates, penalize

from ..models import random_model

GREEDY = Sampling(temperature=0)
PROBABILITIES = np.log(np.array([0.05, 0.5, 0.15, 0.3]))


def kept(**arguments: Any) -> list[int]:
    sampling = Sampling(**{"temperature": 1.0, "min_p": 0.0, **arguments})
    return candidates(PROBABILITIES, sampling)[0].tolist()


def test_what_may_be_drawn() -> None:
    assert kept() == [1, 3, 2, 0]
    assert kept(top_k=2) == [1, 3]
    assert kept(top_p=0.75) == [1, 3]
    assert kept(top_p=0.5) == [1]
    assert kept(top_p=0.0) == [1]
    assert kept(min_p=0.2) == [1, 3, 2]
    assert kept(top_k=3, top_p=0.6) == [1, 3]
    assert kept(min_p=1.0) == [1]


@given(
    seed=st.integers(0, 2**32 - 1),
    top_k=st.integers(0, 60),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    temperature=st.floats(0.01, 10),
)
def test_a_draw_is_always_one_of_the_candidates(
    seed: int, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    scores = np.random.default_rng(seed).standard_normal(50).astype(np.float32) * 5
    sampling = Sampling(temperature, top_k, top_p, min_p, seed=seed)
    ids, weights = candidates(scores.astype(np.float64), sampling)
    assert ids[0] == scores.argmax()
    assert (np.diff(weights) <= 0).all()
    assert Sampler(sampling).choose(scores, []) in ids


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(Sampling(temperature=1, min_p=0, seed=5))
    logits = PROBABILITIES.astype(np.float32)
    draws = np.bincount([sampler.choose(logits, []) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(draws, [0.05, 0.5, 0.15, 0.3], atol=0.03)


def test_seeds() -> None:
    logits = np.random.default_rng(0).standard_normal(50).astype(np.float32)

    def draws(seed: int | None) -> tuple[list[int], int]:
        sampler = Sampler(Sampling(temperature=2, seed=seed))
        return [sampler.choose(logits, []) for _ in range(20)], sampler.seed

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    first, seed = draws(None)
    assert draws(seed)[0] == first


def test_repetition_penalty() -> None:
    scores = np.array([2.0, -2.0, 1.0])
    np.testing.assert_array_equal(penalize(scores, [0, 1, 1], 2.0), [1.0, -4.0, 1.0])
    assert scores[0] == 2
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=3))
    assert sampler.choose(scores.astype(np.float32), [0]) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"temperature": -0.1}, "temperature must be between 0 and 100, not -0.1"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -1}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": -1}, "seed"),
    ],
)
def test_senseless_sampling(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SamplingError, match=sentence):
        Sampling(**arguments)


# One expectation for all backends: what a tiny seeded model says.
GOLDEN = {
    "floats": [14, 39, 63, 16, 16, 16, 16, 16, 12, 12, 12, 12],
    "int4": [63, 16, 91, 16, 42, 32, 78, 12, 12, 5, 16, 33],
}


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("spec", [None, QuantSpec(4, 32, symmetric=False)], ids=["floats", "int4"])
def test_golden_greedy_output(backend: str, spec: QuantSpec | None) -> None:
    session = random_model(spec=spec).session(backend=backend)
    tokens = list(generate(session, [1, 5, 9], GREEDY, max_tokens=12))
    assert tokens == GOLDEN["floats" if spec is None else "int4"]


def test_stop_ids_end_it_and_are_not_yielded() -> None:
    model = random_model()
    free = list(generate(model.session(), [1, 5, 9], GREEDY, max_tokens=12))
    last = next(i for i in range(1, 12) if free[i] not in free[:i])
    generation = generate(model.session(), [1, 5, 9], GREEDY, stop={free[last]})
    assert list(generation) == free[:last]
    assert generation.finish_reason == "stop"
    assert generation.timings.generated_tokens == last
    assert generation.timings.prompt_tokens == 3


def test_length_and_context() -> None:
    session = random_model().session(max_context=8)
    generation = generate(session, [1, 5, 9], GREEDY)
    assert len(list(generation)) == 6  # the last token was never fed
    assert generation.finish_reason == "context"
    assert session.position == 8
    generation = generate(random_model().session(), [1], GREEDY, max_tokens=3)
    assert len(list(generation)) == 3
    assert generation.finish_reason == "length"
    assert list(generate(random_model().session(), [1], GREEDY, max_tokens=0)) == []


def test_cancel_between_tokens_and_between_chunks() -> None:
    session = random_model().session(chunk=4)
    got: list[int] = []
    generation = generate(session, [1, 5, 9], GREEDY, cancel=lambda: len(got) == 2)
    got.extend(token for token in generation if not got.append(token))  # type: ignore[func-returns-value]
    assert len(got) == 2
    assert generation.finish_reason == "cancelled"
    session.trim(0)
    generation = generate(session, [1] * 20, GREEDY, cancel=lambda: session.position >= 4)
    assert list(generation) == []
    assert generation.finish_reason == "cancelled"
    assert session.position == 8


def test_what_does_not_fit_is_refused_at_once() -> None:
    session = random_model().session(max_context=8)
    with pytest.raises(ContextFullError) as caught:
        generate(session, [1] * 9, GREEDY)
    assert (caught.value.needed, caught.value.available) == (9, 8)


def test_the_same_seed_gives_the_same_text_on_any_number_of_threads() -> None:
    model = random_model(spec=QuantSpec(4, 64, symmetric=True))
    sampling = Sampling(temperature=1.5, seed=11)
    texts = [
        list(generate(model.session(threads=threads), [1, 2, 3], sampling, max_tokens=30))
        for threads in (1, 2, 3)
    ]
    assert texts[0] == texts[1] == texts[2]
