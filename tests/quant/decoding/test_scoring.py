"""Log-probabilities of continuations: against plain passes, and what is read for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import quant
from quant.batch import Part
from quant.errors import CacheError, ContextFullError, InputError
from quant.qtensor import QuantSpec
from quant.quantizers.divergence import log_softmax

from ..models import TINY, random_model

PROMPT = [5, 17, 40, 8, 9, 22, 61]
LABELS = [[7], [8, 9], [8, 10, 3], [8, 10, 3, 2], [30, 31, 32], [8, 9]]


@pytest.fixture(scope="module")
def model() -> quant.Model:
    return random_model(spec=QuantSpec(4, 32, False))


def one_by_one(model: quant.Model, ids: Sequence[int], label: Sequence[int]) -> float:
    """A continuation's log-probability from one plain pass over all of it."""
    rows = model.session(backend="numpy").feed([*ids, *label], every=True)
    chances = log_softmax(rows)
    return float(sum(chances[len(ids) + place - 1, token] for place, token in enumerate(label)))


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_scores_are_those_of_plain_passes(model: quant.Model, backend: str) -> None:
    session = model.session(backend=backend)
    scores = quant.score(session, PROMPT, LABELS)
    assert scores is not None
    np.testing.assert_allclose(scores, [one_by_one(model, PROMPT, each) for each in LABELS], 1e-4)
    assert session.ids == PROMPT


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=1, max_size=6),
    st.lists(st.integers(0, 95), min_size=1, max_size=20),
)
def test_any_tree_of_labels(labels: list[list[int]], ids: list[int]) -> None:
    model = random_model(spec=None)
    scores = quant.score(model.session(backend="numpy"), ids, labels)
    assert scores is not None
    np.testing.assert_allclose(scores, [one_by_one(model, ids, each) for each in labels], 1e-4)


def fed(session: quant.Session, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ids each later pass reads."""
    counts: list[int] = []
    plain = session._batch.read

    def read(parts: Sequence[Part], *more: Any) -> Any:
        counts.append(sum(len(part.ids) for part in parts))
        return plain(parts, *more)

    monkeypatch.setattr(session._batch, "read", read)
    return counts


def test_what_is_shared_is_read_once(model: quant.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session = model.session()
    counts = fed(session, monkeypatch)
    quant.score(session, PROMPT, [[7], [9], [11]])
    assert counts == [7]  # labels of one token cost nothing
    quant.score(session, [*PROMPT[:4], 50, 51], [[7], [8, 9, 1], [8, 9, 2], [8, 9, 3, 4]])
    # The prompt's new part; 8, 9 and 3, of which all labels but for their last ids are parts.
    assert counts[1:] == [2, 3]
    quant.score(session, [*PROMPT[:4], 50], [[8, 9, 1], [7, 3, 1], [7, 3, 2], [30, 31]])
    assert counts[3:] == [1, 5]


def test_a_cancelled_score_is_none(model: quant.Model) -> None:
    assert quant.score(model.session(chunk=2), PROMPT, LABELS, cancel=lambda: True) is None
    calls = iter([False] * 3 + [True] * 100)  # past the prompt, before the branches
    session = model.session(chunk=2)
    assert quant.score(session, PROMPT, LABELS, cancel=lambda: next(calls)) is None
    again = quant.score(session, PROMPT, LABELS)
    np.testing.assert_array_equal(again, quant.score(model.session(chunk=2), PROMPT, LABELS))


def test_progress_is_of_the_prompt(model: quant.Model) -> None:
    seen: list[tuple[int, int]] = []
    quant.score(model.session(chunk=4), PROMPT, [[7]], lambda *done: seen.append(done))
    assert seen == [(4, 7), (7, 7)]


def test_bad_input(model: quant.Model) -> None:
    with pytest.raises(InputError, match="without ids"):
        quant.score(model.session(), PROMPT, [[7], []])
    with pytest.raises(InputError):
        quant.score(model.session(), PROMPT, [[7, 8], [TINY.vocab_size]])
    with pytest.raises(ContextFullError):
        quant.score(model.session(max_context=8), PROMPT, [[8, 9, 10]])
    session = model.session(window=64)
    quant.score(session, list(range(80)) * 2, [[1, 2, 3], [4, 5]])
    with pytest.raises(CacheError):  # the ring has wrapped: there is no way back
        quant.score(session, list(range(80)) + [0] * 80, [[1]])


def test_branches_leave_a_ring_that_has_wrapped_as_it_was(model: quant.Model) -> None:
    session, plain = (model.session(window=64, chunk=50) for _ in range(2))
    ids = [(7 * place) % TINY.vocab_size for place in range(150)]
    scores = quant.score(session, ids, LABELS)
    for label, got in zip(LABELS, scores, strict=True):
        plain.trim(0)
        rows = log_softmax(plain.feed([*ids, *label], every=True)[-len(label) - 1 :])
        assert got == sum(rows[place, token] for place, token in enumerate(label))
    plain.trim(0)
    plain.feed(ids)
    np.testing.assert_array_equal(session.feed([3, 4]), plain.feed([3, 4]))


def test_a_branch_fits_into_a_pass(model: quant.Model) -> None:
    session = model.session(max_context=200, chunk=40)
    session.feed(PROMPT)
    with pytest.raises(InputError, match="does not fit into a pass"):
        session.branch([[1] * 60])
    with pytest.raises(InputError, match="nothing to read"):
        session.branch([[1], []])
    rows = session.branch([[place % 90] * 15 for place in range(30)])
    assert rows.shape == (450, TINY.vocab_size)
    assert session.ids == PROMPT


def test_reuse_keeps_what_is_shared(model: quant.Model) -> None:
    session = model.session()
    session.feed(PROMPT)
    assert session.reuse([*PROMPT, 3]) == 7
    assert session.reuse(PROMPT) == 6  # the last one is fed again, for its logits
    assert session.ids == PROMPT[:6]
    assert session.reuse([*PROMPT[:2], 1, 1]) == 2
    assert session.reuse([1]) == 0
    assert session.ids == []
