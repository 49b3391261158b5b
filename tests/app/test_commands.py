"""The slash commands."""

from __future__ import annotations

from typing import Any

import pytest

from mistral_chat.commands import COMMANDS, Chat, find, run
from mistral_chat.engine import Finished, Timings, Usage
from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.settings import Settings, sampling_settings
from quant.errors import SamplingError

from .fakes import FakeEngine

FINISHED = Finished("Hi", "stop", Usage(5, 2, 3), Timings(3, 1.0, 3, 0.5), 11)


@pytest.fixture
def chat() -> Chat:
    fake: Any = FakeEngine()
    turns = [
        Message(Role.USER, "one"),
        Message(Role.ASSISTANT, "1"),
        Message(Role.USER, "two"),
        Message(Role.ASSISTANT, "2"),
    ]
    return Chat(fake, Settings(), turns, FINISHED)


def test_help_names_every_command(chat: Chat) -> None:
    text = run(chat, "/help").text
    assert all(f"/{command.name}" in text for command in COMMANDS)


@pytest.mark.parametrize(
    ("word", "name"),
    [("h", "help"), ("sys", "system"), ("se", "set"), ("b", "bye"), ("exit", "bye"), ("q", "bye")],
)
def test_unique_prefixes_and_aliases_work(word: str, name: str) -> None:
    assert find(word).name == name


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("s", "/set or /show or /stats or /system"),
        ("retyr", "did you mean '/retry'"),
        ("", "/help"),
    ],
)
def test_other_words_are_an_error_that_helps(chat: Chat, word: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run(chat, f"/{word}")


def test_an_argument_where_none_is_taken_is_an_error(chat: Chat) -> None:
    with pytest.raises(UsageError, match="/clear takes no argument"):
        run(chat, "/clear all")


def test_system_sets_and_shows(chat: Chat) -> None:
    assert "No system prompt" in run(chat, "/system").text
    run(chat, "/system Be brief")
    assert run(chat, "/system").text == "Be brief"
    assert chat.messages()[0] == Message(Role.SYSTEM, "Be brief")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("temperature", "0", 0.0), ("top_k", "5", 5), ("seed", "1", 1), ("max_tokens", "9", 9)],
)
def test_set_takes_every_sampling_setting(chat: Chat, name: str, text: str, value: Any) -> None:
    assert run(chat, f"/set {name} {text}").text == f"{name} = {value}"
    assert getattr(chat.settings, name) == value
    assert run(chat, f"/set {name}").text == f"{name} = {value}"


def test_set_alone_lists_them(chat: Chat) -> None:
    text = run(chat, "/set").text
    assert all(f"{row.name} = " in text for row in sampling_settings())
    assert "seed = (not set)" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/set temprature 1", "did you mean 'temperature'"),
        ("/set temperature hot", "must be a number"),
        ("/set context 5", "start with --context"),
    ],
)
def test_set_refuses_what_means_nothing(chat: Chat, line: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run(chat, line)
    assert chat.settings == Settings()


def test_set_refuses_what_the_sampler_refuses(chat: Chat) -> None:
    with pytest.raises(SamplingError):
        run(chat, "/set top_p 2")
    assert chat.settings == Settings()


def test_show_tells_model_and_settings(chat: Chat) -> None:
    text = run(chat, "/show").text
    for part in ("fake.gguf", "d" * 64, "chatml", "100 tokens", "temperature = 0.7"):
        assert part in text


def test_clear_forgets_all(chat: Chat) -> None:
    run(chat, "/clear")
    assert chat.messages() == []
    assert "No answer yet" in run(chat, "/stats").text


def test_undo_takes_back_one_turn(chat: Chat) -> None:
    assert run(chat, "/undo").text == "Taken back: two"
    assert [turn.text for turn in chat.turns] == ["one", "1"]
    run(chat, "/undo")
    with pytest.raises(UsageError, match="nothing"):
        run(chat, "/undo")


def test_retry_asks_the_last_question_again(chat: Chat) -> None:
    outcome = run(chat, "/retry")
    assert outcome.ask == "two"
    assert [turn.text for turn in chat.turns] == ["one", "1"]


def test_stats_tell_the_last_answer(chat: Chat) -> None:
    text = run(chat, "/stats").text
    for part in ("12 of 100 tokens", "3.0 tokens/s", "6.0 tokens/s", "seed 11"):
        assert part in text


def test_bye_leaves(chat: Chat) -> None:
    assert run(chat, "/bye").leave
