"""What of a moderated talk lies on the disk, with a real engine on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from mistral_chat.engines.events import Finished, TextDelta
from mistral_chat.engines.local import ChatEngine
from mistral_chat.settings import Settings
from mistral_chat.talk.chat import Chat
from mistral_chat.talk.sessions import SessionFile
from mistral_chat.templates import template_for
from mistral_chat.tokenizers import tokenizer_from_gguf
from quant import SessionOptions

from ...quant.models import TINY, random_model
from ..fakes import FakeEngine, tiny_metadata

TOKENIZER = tokenizer_from_gguf(tiny_metadata())
CONFIG = replace(TINY, vocab_size=TOKENIZER.vocab_size, max_position_embeddings=1024)


class Talk:
    """A talk whose moderator refuses an answer when it is told to."""

    def __init__(self, path: Path, window: int | None = None) -> None:
        model = random_model(replace(CONFIG, windows=(window, window)))
        engine: Any = ChatEngine(
            model,
            TOKENIZER,
            template_for(TOKENIZER),
            "tiny",
            SessionOptions(max_context=1024, backend="numpy"),
        )
        engine.stop_ids = ()  # so that answers are as long as they may be
        settings = Settings(
            guardrail="moderate", moderator="guard", max_tokens=40, seed=5, loop_detector=False
        )
        self.guard = FakeEngine()
        self.chat = Chat(engine, settings, store=SessionFile.open(path))
        self.chat.load_moderator = lambda name: self.guard

    def hear(self, events: Iterator[Any], refuse: bool) -> str:
        """The text of an answer, which is refused or not."""
        for event in events:
            if isinstance(event, TextDelta) and refuse:
                self.guard.rules[""] = 1
        self.guard.rules.clear()
        assert isinstance(event, Finished)
        assert event.finish_reason == ("refused" if refuse else "length")
        return event.text

    def ask(self, question: str, refuse: bool = False, again: bool = False) -> str:
        return self.hear(self.chat.ask(question, again=again), refuse)

    def saved(self) -> list[int]:
        """The ids in the file that a talk leaves."""
        assert self.chat.store is not None
        assert self.chat.save_cache() > 0
        with safe_open(self.chat.store.cache_path, "np") as file:
            ids: list[int] = file.get_tensor("ids").tolist()
        return ids

    def kept(self) -> list[int]:
        """The ids of the conversation that is kept."""
        *before, answer = self.chat.messages()
        return self.chat.engine.template.encode(before) + TOKENIZER.encode(answer.text)


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    return Talk(tmp_path / "s.jsonl")


def test_an_answer_is_kept_as_it_was_read(talk: Talk) -> None:
    answer = talk.ask("one")
    ids = talk.saved()
    assert ids == talk.chat.engine.session.ids
    assert len(ids) > len(talk.kept()) - len(TOKENIZER.encode(answer))
    assert talk.saved() == ids  # saving changes nothing more


def test_a_refused_answer_is_not_on_the_disk(talk: Talk) -> None:
    talk.ask("one")
    refused = talk.ask("two", refuse=True)
    session = talk.chat.engine.session
    assert len(session.ids) > len(talk.kept()) + len("two")
    ids = talk.saved()
    assert ids == talk.kept()[: len(ids)]
    assert session.ids == ids
    assert "two" not in TOKENIZER.show(ids)
    data = talk.chat.store.path.read_text("utf-8") if talk.chat.store else ""
    assert refused
    assert refused not in data
    # The talk goes on from there.
    talk.ask("three")
    assert "three" in TOKENIZER.show(talk.saved())


def test_nor_one_that_was_to_take_another_s_place(talk: Talk) -> None:
    answer = talk.ask("one")
    before = talk.saved()
    talk.chat.settings = replace(talk.chat.settings, seed=6)
    refused = talk.ask("one", refuse=True, again=True)
    assert refused != answer
    ids = talk.saved()
    assert ids == talk.kept()[: len(ids)]
    assert len(ids) <= len(before)
    # Nor what was to go on after it.
    talk.chat.settings = replace(talk.chat.settings, seed=7)
    talk.hear(talk.chat.go_on(), refuse=True)
    ids = talk.saved()
    assert ids == talk.kept()[: len(ids)]


def test_a_window_that_moved_on_is_forgotten_whole(tmp_path: Path) -> None:
    talk = Talk(tmp_path / "s.jsonl", window=64)
    talk.ask("one")
    talk.chat.settings = replace(talk.chat.settings, max_tokens=200)
    talk.ask("two", refuse=True)
    assert talk.saved() == []


def test_a_talk_without_an_answer_leaves_nothing(talk: Talk) -> None:
    talk.ask("one", refuse=True)
    assert talk.chat.save_cache() == 0
    assert talk.chat.store is not None
    assert not talk.chat.store.cache_path.exists()
