"""Texts that are judged together, by a tiny real model: the verdicts of each alone, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

import quant
from mistral_chat.engines import scorer as scorer_module
from mistral_chat.engines.local import ChatEngine
from mistral_chat.engines.scorer import SessionScorer
from mistral_chat.errors import JudgingError, UsageError
from mistral_chat.guardrail.moderation import Moderator, Said, SelfReflection
from mistral_chat.guardrail.prompt import Category, Taxonomy, Verdict
from mistral_chat.messages import Role
from mistral_chat.templates import template_for
from mistral_chat.tokenizers import tokenizer_from_gguf
from quant.errors import InputError
from quant.qtensor import QuantSpec

from ...quant.models import TINY, random_model
from ..fakes import tiny_metadata

TOKENIZER = tokenizer_from_gguf(tiny_metadata())
CONFIG = replace(TINY, vocab_size=TOKENIZER.vocab_size, max_position_embeddings=2048)
MODEL = random_model(CONFIG, QuantSpec(4, 32, symmetric=False))
# Of a random model about half is refused; two labels begin alike and share branches.
TAXONOMY = Taxonomy(
    "t", (Category("evil", "e", threshold=0.8), Category("evil one", "o", threshold=0.8)), "fine"
)
LABELS = [[5], [6, 7], [6, 8, 9]]


def moderator_of(**options: Any) -> Moderator:
    chosen = quant.SessionOptions(**{"max_context": 1024, **options})
    engine = ChatEngine(MODEL, TOKENIZER, template_for(TOKENIZER), "tiny", chosen)
    return SelfReflection(engine, TAXONOMY)


def texts_of(seed: int, size: int) -> list[Said]:
    """Texts of both roles, many short and some of several windows."""
    chosen = random.Random(seed)
    texts = []
    for _ in range(size):
        letters = chosen.choice([3, 20, 60, 900 if chosen.random() < 0.5 else 2000])
        text = "".join(chosen.choices("abcdefgh .\n", k=letters)) + "!"
        texts.append(Said(text, chosen.choice([Role.USER, Role.ASSISTANT]), "a question"))
    return texts


@pytest.fixture(scope="module")
def texts() -> list[Said]:
    return texts_of(4, 20)


@pytest.fixture(scope="module")
def alone(texts: list[Said]) -> list[Verdict | None]:
    moderator = moderator_of()
    return [moderator.judge(each.text, each.role, each.question) for each in texts]


def test_the_texts_are_of_all_kinds(alone: list[Verdict]) -> None:
    refused = [each.refused for each in alone]
    assert {True, False} == set(refused)
    assert any(each.read > 1 for each in alone)
    assert any(each.read < each.windows for each in alone)


@pytest.mark.parametrize(
    ("at_once", "options"),
    [(1, {}), (2, {"kv": "f16"}), (3, {"chunk": 40}), (7, {"threads": 1}), (16, {}), (50, {})],
)
def test_company_changes_no_bit_of_a_verdict(
    texts: list[Said], alone: list[Verdict], at_once: int, options: dict[str, Any]
) -> None:
    # A Verdict is equal where all its floats are.
    assert list(moderator_of(**options).judge_all(texts, at_once)) == alone


def test_every_window_has_the_same_verdict(texts: list[Said]) -> None:
    one, many = (list(moderator_of().verdicts(texts, at_once)) for at_once in (1, 5))
    assert one == many
    counts = [len(found) for found in one if found is not None]
    assert len(counts) == len(texts)
    assert counts == [found[0].windows for found in one if found is not None]
    # Nothing that was judged before is left behind.
    moderator = moderator_of()
    assert list(moderator.verdicts(texts[:3], 5)) == many[:3]
    assert list(moderator.verdicts(texts[3:], 5)) == many[3:]
    assert list(moderator.verdicts(texts, 2)) == many


def test_plain_numpy_judges_many(texts: list[Said]) -> None:
    short = [each for each in texts if len(each.text) < 50][:4]
    moderator = moderator_of(backend="numpy")
    expected = [moderator.judge(each.text, each.role, each.question) for each in short]
    for found, verdict in zip(moderator.judge_all(short, 3), expected, strict=True):
        assert found is not None
        assert verdict is not None
        assert found.probabilities == pytest.approx(verdict.probabilities, rel=1e-3)


# --- what is taken, and when


def asking(numbers: Sequence[int], sent: list[Any] | None = None) -> Any:
    """Asks for the scores after a prompt of these numbers, and after one that goes on with them."""
    for prompt in (list(numbers), [*numbers, 3, 4]):
        scores = yield prompt
        if sent is not None:
            sent.append((prompt, scores))
    return sum(numbers)


def scorer_of(**options: Any) -> SessionScorer:
    return SessionScorer(MODEL, quant.SessionOptions(**{"max_context": 128, **options}))


def test_each_is_sent_what_it_would_be_sent_alone() -> None:
    sent: list[Any] = []
    scorer = scorer_of()
    askings = [asking([1, 2, 7, number], sent) for number in range(9)]
    assert list(scorer.score_all(askings, LABELS, 4)) == [10 + number for number in range(9)]
    assert len(sent) == 18
    for prompt, scores in sent:
        assert scores == scorer_of().score(prompt, LABELS)


def test_any_number_of_texts_and_few_of_them_at_once() -> None:
    taken: list[int] = []

    def askings() -> Iterator[Any]:
        for number in count():
            taken.append(number)
            yield asking([1, number % 90])

    scorer = scorer_of()
    found = scorer.score_all(askings(), LABELS, 4)
    for number in range(200):
        assert next(found) == 1 + number % 90
        assert len(taken) <= number + 1 + 4 * 4
    found.close()
    # Whoever stops listening leaves nothing behind.
    assert list(scorer.score_all([asking([2])], LABELS, 4)) == [2]


def test_a_long_text_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def long() -> Any:
        for number in range(60):
            yield [1, number]
        return "long"

    ended: list[int] = []

    def short(number: int) -> Any:
        yield [2, number]
        ended.append(number)
        return "short"

    found = scorer_of().score_all([long(), *map(short, range(100))], LABELS, 4)
    assert next(found) == "long"
    # Of the results that wait so many are held, and no more.
    assert ended == list(range(scorer_module.HELD_BACK * 4 - 1))
    assert list(found) == ["short"] * 100


def test_cancelling_ends_within_a_pass() -> None:
    scorer = scorer_of()
    asked = count()
    found = list(scorer.score_all(map(asking, [[1], [2], [3]] * 9), LABELS, 2, lambda: True))
    assert found == [None]
    found = list(
        scorer.score_all(map(asking, [[1], [2], [3]] * 9), LABELS, 2, lambda: next(asked) == 9)
    )
    assert found[-1] is None
    assert 1 < len(found) < 9
    assert found[:-1] == ([1, 2, 3] * 9)[: len(found) - 1]
    assert list(scorer.score_all([asking([7])], LABELS, 2, lambda: False)) == [7]


def test_an_error_is_raised_in_its_place() -> None:
    def fails(early: bool) -> Any:
        if early:
            raise UsageError("early")
        yield [1, 2]
        raise JudgingError

    def given(*middle: Any) -> Iterator[Any]:
        return scorer_of().score_all([asking([5]), *middle, asking([6])], LABELS, 3)

    for middle, error in (
        (fails(True), UsageError), (fails(False), JudgingError), (asking([300]), InputError),
    ):  # fmt: skip
        found = given(middle)
        assert next(found) == 5
        with pytest.raises(error):
            next(found)
    with pytest.raises(InputError, match="without ids"):
        list(scorer_of().score_all([asking([1])], [[1], []], 2))


def test_no_more_at_once_than_memory_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, str, int]] = []

    def three(config: Any, weights: int, context: int, kind: str, most: int) -> int:
        asked.append((weights, context, kind, most))
        return 3

    monkeypatch.setattr(scorer_module, "sequences_that_fit", three)
    scorer = scorer_of(kv="int8")
    list(scorer.score_all([asking([1])], LABELS, 10))
    assert len(scorer._shared(10)[1].batch.caches) == 3
    list(scorer.score_all([asking([1])], LABELS, 10))
    assert asked == [(MODEL.weight_bytes, 128, "int8", 10)]
