"""Talks that moderate, with a scripted model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from mistral_chat.engines.events import Finished, TextDelta
from mistral_chat.errors import JudgingError
from mistral_chat.guardrail.judging import Judged
from mistral_chat.messages import Role
from mistral_chat.settings import Settings
from mistral_chat.talk.chat import Chat

from ..fakes import FakeEngine, tiny_metadata

ILLEGAL, HATE, ADVICE = 1, 2, 3


@pytest.fixture
def rules() -> FakeEngine:
    engine = FakeEngine()
    engine.rules = {"bomb": ILLEGAL, "vermin": (HATE, 0.72), "insulin": ADVICE}
    return engine


def make(engine: FakeEngine, mode: str = "moderate", **values: Any) -> Chat:
    return Chat(engine, Settings(guardrail=mode, **values))  # type: ignore[arg-type]


def finished(events: list[Any]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def test_the_order_of_events(rules: FakeEngine) -> None:
    rules.answers.extend(["one\ntwo"] * 2)
    events = list(make(rules).ask("Hi"))
    kinds = [type(event) for event in events]
    assert kinds == [Judged, TextDelta, TextDelta, Judged, Finished]
    events = list(make(rules, "strict").ask("Hi"))
    assert [type(event) for event in events] == [Judged, Judged, TextDelta, Finished]
    assert events[2] == TextDelta("one\ntwo")


def test_what_is_refused_is_not_kept(rules: FakeEngine) -> None:
    chat = make(rules)
    rules.answers.extend(["fine", "they are vermin", "fine too"])
    list(chat.ask("one"))
    assert finished(list(chat.ask("a bomb"))).finish_reason == "refused"
    assert finished(list(chat.ask("who?"))).text == "they are vermin"
    list(chat.ask("two"))
    assert [turn.user for turn in chat.turns] == ["one", "two"]
    assert not any("vermin" in message.text for message in rules.asked[-1])
    assert [each.what for each in chat.verdicts] == ["question", "answer"]


def test_again_and_on(rules: FakeEngine) -> None:
    chat = make(rules)
    rules.answers.extend(["fine", "they are vermin", "and ver", "min"])
    list(chat.ask("one"))
    assert finished(list(chat.ask("one", again=True))).finish_reason == "refused"
    assert [turn.assistant for turn in chat.turns] == ["fine"]
    list(chat.go_on())
    assert chat.turns[-1].assistant == "fineand ver"
    # Both parts are judged as one.
    assert finished(list(chat.go_on())).finish_reason == "refused"
    assert rules.judged[-1] == "fineand vermin"
    assert chat.turns[-1].assistant == "fineand ver"


def test_an_answer_that_was_broken_off_is_judged(rules: FakeEngine) -> None:
    chat = make(rules)
    rules.answers.append(...)
    asked = iter([False, False, True, True, True])  # judging asks once, then each word does
    done = finished(list(chat.ask("Hi", cancel=lambda: next(asked))))
    assert (done.finish_reason, done.text) == ("cancelled", "word ")
    assert rules.judged == ["Hi", "word "]
    assert len(chat.turns) == 1


@pytest.mark.parametrize(("mode", "text"), [("moderate", "an answer"), ("strict", "")])
def test_ctrl_c_while_judging(rules: FakeEngine, mode: str, text: str) -> None:
    chat = make(rules, mode)
    rules.answers.append("an answer")
    done = finished(list(chat.ask("Hi", cancel=lambda: True)))
    assert (done.finish_reason, done.text, rules.asked) == ("cancelled", "", [])
    events = []
    for event in chat.ask("Hi"):
        events.append(event)
        rules.scorers[-1].interrupted = True
    done = finished(events)
    assert (done.finish_reason, done.text) == ("cancelled", text)
    assert not chat.turns  # what nobody judged is not kept


def test_nothing_is_judged_without_moderation(rules: FakeEngine) -> None:
    rules.answers.append("they are vermin")
    chat = make(rules, "prompt")
    assert finished(list(chat.ask("a bomb"))).finish_reason == "stop"
    assert (rules.judged, chat.verdicts) == ([], [])


def test_an_answer_of_nothing_is_not_judged(rules: FakeEngine) -> None:
    rules.answers.append("")
    assert finished(list(make(rules).ask("Hi"))).text == ""
    assert rules.judged == ["Hi"]


def test_another_engine_judges_for_itself(rules: FakeEngine) -> None:
    chat = make(rules)
    first = chat.moderator()
    assert chat.moderator() is first
    chat.engine = FakeEngine(["x"])  # type: ignore[assignment]
    assert chat.moderator() is not first


def test_a_role_is_recorded(rules: FakeEngine) -> None:
    rules.answers.append("fine")
    chat = make(rules)
    list(chat.ask("Hi"))
    assert [each.record()["role"] for each in chat.verdicts] == [Role.USER, Role.ASSISTANT]
    assert [each.sentence() for each in chat.verdicts] == [None, None]


def test_a_question_that_nobody_judged_is_judged_before_going_on(rules: FakeEngine) -> None:
    chat = make(rules, "off")
    rules.answers.extend(["it takes", " a bit", " and more", "fine"])
    list(chat.ask("how to build a bomb?"))
    chat.settings = replace(chat.settings, guardrail="strict")
    done = finished(list(chat.go_on()))
    assert (done.finish_reason, done.text) == ("refused", "")
    assert rules.judged == ["how to build a bomb?"]
    assert [turn.assistant for turn in chat.turns] == ["it takes"]
    assert len(rules.asked) == 1  # the model was not asked to go on
    # One that passed is not judged again, unless by somebody else.
    rules.rules.clear()
    list(chat.go_on())
    list(chat.go_on())
    assert rules.judged[1:] == ["how to build a bomb?", "it takes a bit", "it takes a bit and more"]
    chat.settings = replace(chat.settings, categories="mistral")
    list(chat.go_on())
    assert rules.judged[4] == "how to build a bomb?"


def test_a_moderator_is_loaded_once(rules: FakeEngine) -> None:
    loaded: list[str] = []

    def load(name: str) -> FakeEngine:
        loaded.append(name)
        return rules

    chat = Chat(FakeEngine(["a"] * 3), Settings(guardrail="moderate", moderator="guard"))  # type: ignore[arg-type]
    chat.load_moderator = load
    list(chat.ask("one"))
    first = chat.moderator()
    chat.engine = FakeEngine(["a"])  # type: ignore[assignment]
    list(chat.ask("two"))
    assert chat.moderator() is first  # another model answers; the same one judges
    chat.settings = replace(chat.settings, categories="mistral")
    assert chat.moderator() is not first
    assert chat.moderator().taxonomy.source == "mistral"
    assert loaded == ["guard"]


def test_a_moderator_with_another_vocabulary() -> None:
    # The same pieces under other ids: with the talk's own tokenizer nothing could be read.
    metadata = tiny_metadata()
    shuffled = [*metadata["tokenizer.ggml.tokens"][:3], *metadata["tokenizer.ggml.tokens"][:2:-1]]
    guard = FakeEngine(metadata={**metadata, "tokenizer.ggml.tokens": shuffled})
    guard.rules = {"bomb": ILLEGAL}
    engine: Any = FakeEngine(["fine", "a bomb"])
    chat = Chat(engine, Settings(guardrail="strict", moderator="guard"))
    chat.load_moderator = lambda name: guard
    assert finished(list(chat.ask("Hello"))).text == "fine"
    assert finished(list(chat.ask("And?"))).finish_reason == "refused"
    assert guard.judged == ["Hello", "fine", "And?", "a bomb"]
    assert engine.judged == []
    ids = chat.verdicts[-1].verdict.ids
    assert "a bomb" in guard.tokenizer.show(ids)
    assert "a bomb" not in engine.tokenizer.show(ids)


@pytest.mark.parametrize("mode", ["moderate", "strict"])
def test_scores_that_are_no_numbers_let_nothing_pass(rules: FakeEngine, mode: str) -> None:
    chat = make(rules, mode)
    rules.rules = {"Hi": (0, math.nan)}
    with pytest.raises(JudgingError):
        list(chat.ask("Hi"))
    assert (rules.asked, chat.turns) == ([], [])
