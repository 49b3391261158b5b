"""Tasks that share passes: each is sent what it would be sent alone, and nobody is kept waiting."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quant
from quant.batch import shared_start
from quant.decoding.answers import Answer
from quant.decoding.scheduling import LEAST_PIECE, WORTHWHILE, Running, Scheduler
from quant.decoding.scoring import score, scoring
from quant.decoding.tasks import Branches, Further, Prompt, Task, Wish
from quant.errors import ConfigError, ContextFullError, InputError, NotFiniteError
from quant.qtensor import QuantSpec
from quant.sampling import Sampling

from ..models import TINY, random_model

CONTEXT = 240
SPEC = QuantSpec(4, 32, symmetric=False)
GREEDY = Sampling(temperature=0)


@cache
def model_of(windows: tuple[int | None, ...] = (None, None)) -> quant.Model:
    return random_model(replace(TINY, windows=windows, max_position_embeddings=CONTEXT), SPEC)


def scheduler_of(sequences: int = 3, budget: int = 24, **options: Any) -> Scheduler:
    model = options.pop("model", None) or model_of()
    chosen = {"max_context": CONTEXT, "chunk": 40, **options}
    return Scheduler(model, quant.SessionOptions(**chosen), sequences, budget)


def run(scheduler: Scheduler) -> None:
    while scheduler.busy:
        scheduler.step()


@dataclass
class Script:
    """Wishes of a task, one after the other, and the logits that it was sent."""

    wishes: list[Wish]
    sent: list[npt.NDArray[np.float32]] = field(default_factory=list)

    def task(self) -> Task[int]:
        for wish in self.wishes:
            self.sent.append((yield wish))
        return len(self.sent)

    def check(self, model: quant.Model, **options: Any) -> None:
        """Compare with a session that nobody else has a part in, fed in another way."""
        session = model.session(CONTEXT, chunk=23, threads=1, **options)
        ids: list[int] = []
        for wish, got in zip(self.wishes, self.sent, strict=False):
            if isinstance(wish, Branches):
                expected = []
                for run_ids in wish.runs:
                    session.trim(0)
                    rows = session.feed([*ids, *run_ids], every=True)
                    expected.append(rows[len(ids) :])
                np.testing.assert_array_equal(got, np.concatenate(expected))
                continue
            ids = list(wish.ids) if isinstance(wish, Prompt) else [*ids, *wish.ids]
            session.trim(0)
            rows = session.feed(ids, every=True)
            wanted = 1 if isinstance(wish, Prompt) else wish.wanted
            np.testing.assert_array_equal(got, rows[len(ids) - wanted :])


STEMS = [[(place * step) % TINY.vocab_size for place in range(90)] for step in (5, 5, 7)]
"""What prompts begin with; two of them are the same."""


@st.composite
def scripts(draw: Any) -> Script:
    seed = draw(st.integers(0, 1 << 16))
    random = np.random.default_rng(seed)

    def some(count: int) -> list[int]:
        return [int(each) for each in random.integers(0, TINY.vocab_size, count)]

    wishes: list[Wish] = []
    length = 0
    kinds = draw(st.lists(st.sampled_from("ftbfp"), max_size=5))
    for kind in ("p", *kinds):
        if kind == "p":
            stem = STEMS[random.integers(len(STEMS))][: random.integers(0, 90)]
            ids = [*stem, *some(int(random.integers(1, 60)))]
            wishes.append(Prompt(ids))
            length = len(ids)
        elif kind == "b":
            wishes.append(
                Branches([some(int(n)) for n in random.integers(1, 6, random.integers(1, 12))])
            )
        else:
            count = 1 if kind == "t" else int(random.integers(1, 30))
            wishes.append(Further(some(count), int(random.integers(0, count + 1))))
            length += count
    return Script(wishes)


@settings(max_examples=50)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 6), scripts()), min_size=1, max_size=7),
    cancelled=st.dictionaries(st.integers(0, 6), st.integers(0, 20), max_size=2),
    windows=st.sampled_from([(None, None), (64, None), (40, 64), (5, 70)]),
    kv=st.sampled_from(["f32", "f16", "int8"]),
    sequences=st.integers(1, 4),
    budget=st.integers(1, 60),
    threads=st.integers(1, 2),
)
def test_company_changes_no_bit(
    arrivals: list[tuple[int, Script]],
    cancelled: dict[int, int],
    windows: tuple[int | None, ...],
    kv: str,
    sequences: int,
    budget: int,
    threads: int,
) -> None:
    model = model_of(windows)
    scheduler = scheduler_of(sequences, budget, model=model, kv=kv, threads=threads)
    handed_in: dict[int, Running[int]] = {}
    turn = 0
    while scheduler.busy or len(handed_in) < len(arrivals):
        for number, (arrival, script) in enumerate(arrivals):
            if arrival <= turn and number not in handed_in:
                handed_in[number] = scheduler.submit(script.task())
            if cancelled.get(number) == turn and number in handed_in:
                scheduler.cancel(handed_in[number])
        scheduler.step()
        turn += 1
        assert turn < 2000
    for number, (_, script) in enumerate(arrivals):
        running = handed_in[number]
        assert running.done
        if number not in cancelled:
            assert running.error is None
            assert running.result == len(script.wishes) == len(script.sent)
        script.check(model, kv=kv)


def test_answers_are_those_of_a_session() -> None:
    model, random = model_of(), np.random.default_rng(0)
    scheduler = scheduler_of(3)
    prompts = [random.integers(0, TINY.vocab_size, 5 + 9 * n).tolist() for n in range(8)]
    samplings = [Sampling(temperature=0.7 * (n % 2), seed=n) for n in range(8)]
    samplings[3] = Sampling(temperature=0.9, repetition_penalty=1.3, top_p=0.9, seed=5)
    answers = [
        Answer(each, {2, 7}, 25, CONTEXT - len(ids))
        for each, ids in zip(samplings, prompts, strict=True)
    ]
    running = [
        scheduler.submit(answer.task(ids)) for answer, ids in zip(answers, prompts, strict=True)
    ]
    run(scheduler)
    for answer, ids, sampling, one in zip(answers, prompts, samplings, running, strict=True):
        generation = quant.generate(model.session(CONTEXT), ids, sampling, {2, 7}, max_tokens=25)
        assert answer.ids == list(generation)
        assert answer.finish_reason == generation.finish_reason
        assert (one.prompt, one.cached, one.error) == (len(ids), 0, None)
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}


def test_what_prompts_share_is_read_once() -> None:
    scheduler, stem = scheduler_of(4), STEMS[0]
    parts = watched(scheduler)
    running = [scheduler.submit(Script([Prompt([*stem, n, n])]).task()) for n in range(9)]
    run(scheduler)
    assert [each.cached for each in running] == [0] + 8 * [len(stem)]
    assert sum(len(part.ids) for each in parts for part in each) == len(stem) + 2 * 9
    # What is finished is still held.
    again = scheduler.submit(Script([Prompt([*stem, 8, 8, 4])]).task())
    run(scheduler)
    assert again.cached == len(stem) + 2


def test_a_leader_that_is_cancelled_leaves_nobody_waiting() -> None:
    scheduler, stem = scheduler_of(3), STEMS[0]
    first, *others = [scheduler.submit(Script([Prompt([*stem, n])]).task()) for n in range(3)]
    scheduler.step()
    scheduler.cancel(first)
    scheduler.cancel(first)
    run(scheduler)
    assert first.done
    assert first.result is None
    # One of the two goes on from where the first stopped, and the other waits for that one.
    assert [each.cached for each in others] == [40, len(stem)]


def watched(scheduler: Scheduler) -> list[list[Any]]:
    """The parts of each later pass."""
    passes: list[list[Any]] = []
    plain = scheduler.batch.read

    def read(parts: list[Any]) -> Any:
        passes.append(list(parts))
        return plain(parts)

    scheduler.batch.read = read  # type: ignore[method-assign]
    return passes


def test_who_is_being_answered_is_in_every_pass() -> None:
    scheduler = scheduler_of(3, budget=20)
    passes = watched(scheduler)
    answer = Answer(GREEDY, (), 30, CONTEXT)
    scheduler.submit(answer.task([1, 2, 3]))
    scheduler.step()
    for n in range(4):
        scheduler.submit(Script([Prompt([n, *STEMS[2]])]).task())
    while answer.finish_reason is None:
        scheduler.step()
    run(scheduler)
    answering, reading = passes[1:30], passes[30:]
    for parts in answering:
        assert sum(len(part.ids) for part in parts) <= 20
        assert sum(part.sequence == 0 and len(part.ids) == 1 for part in parts) == 1
    assert sum(len(part.ids) for parts in answering[:15] for part in parts) == 15 * 20
    assert all(sum(len(part.ids) for part in parts) <= 40 for parts in reading)


def test_prompts_move_on_beside_many_answers() -> None:
    scheduler = scheduler_of(8, budget=1)
    assert scheduler.budget == 8 + LEAST_PIECE
    assert WORTHWHILE > 1


def test_branches_are_not_starved() -> None:
    """Rows of logits are few, and answers take one each in every pass."""
    scheduler = scheduler_of(49, budget=80)
    for n in range(48):
        scheduler.submit(Answer(GREEDY, (), 40, CONTEXT).task([n]))
    labels = [[1, 2, 3, 4], [5, 6, 7, 8], [9]]
    running = scheduler.submit(scoring([5, 6, 7], labels))
    for _ in range(5):
        scheduler.step()
    assert running.done
    expected = score(model_of().session(CONTEXT), [5, 6, 7], labels)
    np.testing.assert_array_equal(running.result, expected)


def test_faults_end_the_task_that_has_them() -> None:
    scheduler = scheduler_of(2)
    long = [1] * (CONTEXT - 2)

    def greedy() -> Generator[Wish, Any, None]:
        yield Prompt(long)
        yield Further([1])
        yield Further([1])
        yield Further([1])

    tasks: list[Any] = [
        greedy(),
        Script([Prompt([1]), Further([TINY.vocab_size])]).task(),
        Script([Prompt([1]), Further([])]).task(),
        Script([Prompt([1]), Further([1], 2)]).task(),
        Script([Prompt([1]), Branches([[2], []])]).task(),
        Script([Prompt([1]), Branches([[2] * 50])]).task(),
        Script([Prompt([1]), Prompt([1] * (CONTEXT + 1))]).task(),
    ]
    running = [scheduler.submit(task) for task in tasks]
    good = scheduler.submit(Script([Prompt([4, 5]), Further([6])]).task())
    run(scheduler)
    assert [type(each.error) for each in running] == [
        ContextFullError, InputError, InputError, InputError, InputError, InputError,
        ContextFullError,
    ]  # fmt: skip
    assert good.result == 2


def test_what_can_never_fit_is_refused_at_once() -> None:
    scheduler = scheduler_of(2)
    for wish, kind in (
        (Prompt([]), InputError),
        (Prompt([-1]), InputError),
        (Prompt([1] * (CONTEXT + 1)), ContextFullError),
        (Further([1]), InputError),
    ):
        with pytest.raises(kind):
            scheduler.submit(Script([wish]).task())
    assert not scheduler.busy
    assert scheduler.step() == []
    with pytest.raises(ConfigError, match="at least one token"):
        scheduler_of(2, budget=0)


def test_logits_that_are_no_numbers_are_one_tasks_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = scheduler_of(2)
    plain = scheduler.batch.read

    def read(parts: list[Any]) -> Any:
        logits = plain(parts)
        row = 0
        for part in parts:
            if 13 in part.ids:
                logits[row : row + part.wanted] = np.nan
            row += part.wanted
        return logits

    monkeypatch.setattr(scheduler.batch, "read", read)
    bad, good = (
        scheduler.submit(Answer(GREEDY, (), 3, CONTEXT).task(ids)) for ids in ([5, 13], [5, 6])
    )
    run(scheduler)
    assert isinstance(bad.error, NotFiniteError)
    assert good.error is None


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=30))
def test_shared_start(ids: list[int], others: list[int]) -> None:
    count = shared_start(ids, others)
    assert ids[:count] == others[:count]
    assert count == min(len(ids), len(others)) or ids[count] != others[count]
