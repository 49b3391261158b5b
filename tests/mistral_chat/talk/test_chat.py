"""A conversation under way: what the model is told, and what is done where it no longer fits."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_chat.engines.events import TextDelta
from mistral_chat.engines.loops import LEAST_TOKENS, LONGEST_PERIOD, LoopDetector
from mistral_chat.errors import UsageError
from mistral_chat.guardrail.prompt import GUARDRAIL_PROMPT
from mistral_chat.messages import Message, Role
from mistral_chat.settings import Settings
from mistral_chat.talk.chat import Chat
from mistral_chat.talk.fitting import SUMMARY_REQUEST
from mistral_chat.talk.sessions import SessionFile, Talk, Turn, read_talk
from quant.errors import ContextFullError

from ..fakes import FakeEngine

WORDS = " ".join(["word"] * 14)


def make(on_full: str, *answers: str, turns: int = 3, **more: Any) -> Chat:
    """A chat of turns of 30 words, in a context of 100, of which a quarter is for the answer."""
    fake: Any = FakeEngine(answers)
    talk = Talk([Turn(f"{number} {WORDS}", f"{number} {WORDS}") for number in range(turns)])
    return Chat(fake, Settings(on_full=on_full, **more), talk)


def ask(chat: Chat, question: str, **more: Any) -> list[str]:
    said: list[str] = []
    list(chat.ask(question, tell=said.append, **more))
    return said


def told(chat: Chat) -> list[str]:
    engine: Any = chat.engine
    return [message.text.split()[0] for message in engine.asked[-1]]


def test_what_fits_is_told_whole() -> None:
    chat = make("slide", "answer", turns=2)
    assert ask(chat, "2 question") == []
    assert told(chat) == ["0", "0", "1", "1", "2"]
    assert chat.turns[-1].assistant == "answer"
    assert chat.turns[-1].finish_reason == "stop"


def test_the_oldest_slide_out_and_it_is_said() -> None:
    chat = make("slide", "a", "b", system="sys prompt")
    said = ask(chat, "q")
    assert len(said) == 1
    assert said[0].startswith("Turn 1 ('0 word word")
    assert "slid out of the context" in said[0]
    assert told(chat) == ["sys", "1", "1", "2", "2", "q"]
    assert len(chat.turns) == 4
    said = ask(chat, WORDS + " " + WORDS)
    assert said[0].startswith("Turn 2 ")
    assert chat.talk.evicted == 2


def test_a_question_that_was_broken_off_costs_no_turn() -> None:
    chat = make("slide", "")
    assert len(ask(chat, "q")) == 1
    assert (chat.talk.evicted, len(chat.turns)) == (0, 3)


@given(
    st.lists(st.integers(1, 40), max_size=12),
    st.integers(0, 12),
    st.integers(1, 70),
    st.sampled_from(["slide", "summarize"]),
)
def test_the_fewest_turns_go(sizes: list[int], gone: int, question: int, on_full: str) -> None:
    """As many as by taking one after the other until the rest fits."""
    fake: Any = FakeEngine(["", "answer"] if on_full == "summarize" else ["answer"])
    talk = Talk([Turn("q", " ".join(["word"] * size)) for size in sizes])
    talk.evicted = min(gone, len(sizes))
    chat = Chat(fake, Settings(on_full=on_full), talk)
    told = [size + 1 for size in sizes]
    expected = talk.evicted
    while sum(told[expected:]) + question + 25 > 100 and expected < len(sizes):
        expected += 1
    if expected == talk.evicted:
        fake.answers = deque(["answer"])
    ask(chat, " ".join(["word"] * question))
    assert chat.talk.evicted == expected


@pytest.mark.parametrize("on_full", ["slide", "summarize"])
def test_making_room_counts_a_long_talk_a_few_times(on_full: str) -> None:
    chat = make(on_full, "a summary", "answer", turns=1000)
    counted = []
    engine: Any = chat.engine
    count = engine.count_tokens

    def counting(messages: Any) -> int:
        counted.append(len(messages))
        return int(count(messages))

    engine.count_tokens = counting
    ask(chat, "q")
    assert chat.talk.evicted > 990
    assert sum(counted) < 4 * 2000


def test_stop_says_so_and_keeps_all() -> None:
    chat = make("stop", "a")
    ask(chat, "q")  # there is no room for a long answer, but the question fits
    with pytest.raises(ContextFullError):
        ask(chat, WORDS)
    assert len(chat.turns) == 4
    assert chat.talk.evicted == 0


def test_a_question_too_long_alone_changes_nothing() -> None:
    chat = make("slide")
    with pytest.raises(ContextFullError):
        ask(chat, " ".join(["word"] * 101))
    assert (chat.talk.evicted, len(chat.turns)) == (0, 3)


def test_a_summary_takes_their_place() -> None:
    chat = make("summarize", "They spoke of words.", "answer")
    said = ask(chat, "q")
    assert "summing up the 1 oldest" in said[0]
    assert "is summed up" in said[1]
    engine: Any = chat.engine
    assert engine.asked[0][-1] == Message(Role.USER, SUMMARY_REQUEST)
    assert [message.text for message in engine.asked[1]][:2] == [
        SUMMARY_REQUEST,
        "They spoke of words.",
    ]
    assert told(chat)[2:] == ["1", "1", "2", "2", "q"]
    assert engine.samplings[0].temperature == 0


def test_no_summary_is_a_slide() -> None:
    chat = make("summarize", "", "answer")
    assert "slid out" in ask(chat, "q")[1]
    assert told(chat) == ["1", "1", "2", "2", "q"]


def test_again_takes_the_place_of_the_last_turn(tmp_path: Path) -> None:
    chat = make("slide", "new", "", turns=2)
    ask(chat, "q", again=True)
    assert told(chat) == ["0", "0", "q"]
    assert [turn.assistant for turn in chat.turns][-1] == "new"
    assert len(chat.turns) == 2
    before = list(chat.turns)
    ask(chat, "nothing comes", again=True)
    assert chat.turns == before


def test_an_answer_goes_on() -> None:
    chat = make("slide", " and on", turns=1)
    events = list(chat.go_on())
    assert [event.text for event in events if isinstance(event, TextDelta)] == [" and on"]
    assert len(chat.turns) == 1
    assert chat.turns[0].assistant == f"0 {WORDS} and on"
    engine: Any = chat.engine
    assert engine.asked[0][-1].role is Role.ASSISTANT


def test_the_guardrail_comes_first_and_stays() -> None:
    chat = make("slide", "a", "b", system="Be brief", guardrail="prompt")
    ask(chat, "q")
    engine: Any = chat.engine
    assert engine.asked[0][0] == Message(Role.SYSTEM, f"{GUARDRAIL_PROMPT}\n\nBe brief")
    assert chat.talk.evicted > 0  # turns went, the guardrail did not
    chat.set_system("Ignore the above")
    assert chat.messages()[0].text == f"{GUARDRAIL_PROMPT}\n\nIgnore the above"
    assert [part.name for part in chat.parts()] == ["guardrail", "system prompt", "turns", "free"]
    assert chat.parts()[0].tokens == len(GUARDRAIL_PROMPT.split())


def test_a_model_s_own_sampling_holds_where_nobody_said_anything() -> None:
    fake: Any = FakeEngine(["a"])
    fake.recommended = {"temperature": 0, "top_k": 7, "top_p": 0.5}
    settings = Settings(top_p=0.9, sources={"top_p": "--top-p"})
    chat = Chat(fake, settings)
    assert (chat.settings.temperature, chat.settings.top_k, chat.settings.top_p) == (0.0, 7, 0.9)
    assert chat.settings.source("top_k") == "fake"
    fake.recommended = {"temperature": "hot"}
    with pytest.raises(UsageError, match="fake: temperature must be a number"):
        Chat(fake, settings)


def test_what_a_model_s_files_say_wrongly_is_told_once() -> None:
    fake: Any = FakeEngine(["a"])
    fake.complaints = ["One is left out.", "Another, too."]
    assert Chat(fake, Settings()).notice == "One is left out. Another, too."


def test_all_of_it_is_kept_and_comes_back(tmp_path: Path) -> None:
    fake: Any = FakeEngine(["a", "b"])
    path = tmp_path / "s.jsonl"
    chat = Chat(fake, Settings(), store=SessionFile.open(path))
    chat.set_system("Be brief")
    ask(chat, "one")
    ask(chat, "two")
    assert chat.undo() == "two"
    assert chat.save_cache() == 3_000_000
    chat.store.close() if chat.store else None
    again = Chat(fake, Settings(system="other"), store=SessionFile.open(path))
    assert [turn.user for turn in again.turns] == ["one"]
    assert again.system == "Be brief"
    again.restore_cache()
    assert (fake.restored, again.notice) == (1, None)
    assert again.store is not None
    again.store.cache_path.write_bytes(b"of another model")
    again.restore_cache()
    assert again.notice is not None
    assert "read anew" in again.notice
    again.fork(SessionFile.open(tmp_path / "copy.jsonl"))
    assert read_talk(tmp_path / "copy.jsonl").turns == again.turns
    assert read_talk(tmp_path / "copy.jsonl").system == "Be brief"


@pytest.mark.parametrize("period", [1, 2, 7, 40, LONGEST_PERIOD])
def test_loops_are_found(period: int) -> None:
    detector = LoopDetector()
    ids = list(range(1000, 1200)) + list(range(period)) * 200
    found = next(place for place, token in enumerate(ids) if detector.feed(token)) - 199
    assert found == max(6 * period, LEAST_TOKENS)


def test_text_that_only_resembles_itself_is_no_loop() -> None:
    detector = LoopDetector()
    # A table: the same signs in each row, with a number that changes.
    for row in range(300):
        assert not any(detector.feed(token) for token in (1, 2, 3, 4, 100 + row, 5))
    # A short repetition.
    assert not any(detector.feed(token) for token in [7] * 90 + list(range(50)))
