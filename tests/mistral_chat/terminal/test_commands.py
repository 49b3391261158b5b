"""The slash commands."""

from __future__ import annotations

from typing import Any

import pytest

from mistral_chat.engines.events import Finished, Timings, Usage
from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.settings import Paths, Settings, live_settings
from mistral_chat.talk.chat import Chat
from mistral_chat.talk.sessions import SessionFile, Talk, Turn, read_talk
from mistral_chat.terminal.commands import COMMANDS, Room, completions, find, run
from quant.errors import SamplingError

from ..fakes import FakeEngine

FINISHED = Finished("Hi", "stop", Usage(5, 2, 3), Timings(3, 1.0, 3, 0.5), 11)


@pytest.fixture
def chat() -> Chat:
    fake: Any = FakeEngine()
    return Chat(fake, Settings(), Talk([Turn("one", "1"), Turn("two", "2")]), last=FINISHED)


@pytest.fixture
def room(chat: Chat, paths: Paths) -> Room:
    def switch(name: str) -> None:
        chat.engine.name = name

    return Room(chat, paths, switch)


def test_help_names_every_command(chat: Chat, room: Room) -> None:
    text = run(room, "/help").text
    assert all(f"/{command.name}" in text for command in COMMANDS)


@pytest.mark.parametrize(
    ("word", "name"),
    [("h", "help"), ("sys", "system"), ("set", "set"), ("b", "bye"), ("exit", "bye"), ("q", "bye")],
)
def test_unique_prefixes_and_aliases_work(word: str, name: str) -> None:
    assert find(word).name == name


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("s", "/save or /sessions or /set or /show"),
        ("retyr", "did you mean '/retry'"),
        ("", "/help"),
    ],
)
def test_other_words_are_an_error_that_helps(chat: Chat, room: Room, word: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run(room, f"/{word}")


def test_an_argument_where_none_is_taken_is_an_error(chat: Chat, room: Room) -> None:
    with pytest.raises(UsageError, match="/clear takes no argument"):
        run(room, "/clear all")


def test_system_sets_and_shows(chat: Chat, room: Room) -> None:
    assert "No system prompt" in run(room, "/system").text
    run(room, "/system Be brief")
    assert run(room, "/system").text == "Be brief"
    assert chat.messages()[0] == Message(Role.SYSTEM, "Be brief")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("temperature", "0", 0.0), ("top_k", "5", 5), ("seed", "1", 1), ("max_tokens", "9", 9)],
)
def test_set_takes_every_sampling_setting(
    chat: Chat, room: Room, name: str, text: str, value: Any
) -> None:
    assert run(room, f"/set {name} {text}").text == f"{name} = {value}"
    assert getattr(chat.settings, name) == value
    assert run(room, f"/set {name}").text == f"{name} = {value}"


def test_set_alone_lists_them(chat: Chat, room: Room) -> None:
    text = run(room, "/set").text
    assert all(f"{row.name} = " in text for row in live_settings())
    assert "seed = (not set)" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/set temprature 1", "did you mean 'temperature'"),
        ("/set temperature hot", "must be a number"),
        ("/set context 5", "start with --context"),
    ],
)
def test_set_refuses_what_means_nothing(chat: Chat, room: Room, line: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run(room, line)
    assert chat.settings == Settings()


def test_set_refuses_what_the_sampler_refuses(chat: Chat, room: Room) -> None:
    with pytest.raises(SamplingError):
        run(room, "/set top_p 2")
    assert chat.settings == Settings()


def test_show_tells_model_and_settings(chat: Chat, room: Room) -> None:
    text = run(room, "/show").text
    for part in ("fake.gguf", "d" * 64, "chatml", "100 tokens", "temperature = 0.7"):
        assert part in text


def test_clear_forgets_all(chat: Chat, room: Room) -> None:
    run(room, "/clear")
    assert chat.messages() == []
    assert "No answer yet" in run(room, "/stats").text


def test_undo_takes_back_one_turn(chat: Chat, room: Room) -> None:
    assert run(room, "/undo").text == "Taken back: two"
    assert [turn.user for turn in chat.turns] == ["one"]
    run(room, "/undo")
    with pytest.raises(UsageError, match="nothing"):
        run(room, "/undo")


def test_retry_asks_the_last_question_again(chat: Chat, room: Room) -> None:
    assert run(room, "/retry").ask == "two"
    assert run(room, "/edit").edit == "two"
    assert run(room, "/continue").go_on
    assert len(chat.turns) == 2
    chat.clear()
    for line in ("/retry", "/edit", "/continue", "/copy"):
        with pytest.raises(UsageError, match="There is no"):
            run(room, line)


def test_stats_tell_the_last_answer(chat: Chat, room: Room) -> None:
    text = run(room, "/stats").text
    for part in ("12 of 100 tokens", "3.0 tokens/s", "6.0 tokens/s", "seed 11"):
        assert part in text


def test_bye_leaves(chat: Chat, room: Room) -> None:
    assert run(room, "/bye").leave


def test_a_session_is_forked_named_and_loaded(chat: Chat, room: Room, paths: Paths) -> None:
    assert "goes on as copy" in run(room, "/fork copy").text
    assert read_talk(paths.sessions / "copy.jsonl").turns == chat.turns
    run(room, "/undo")
    run(room, "/save first")
    assert not (paths.sessions / "copy.jsonl").exists()
    run(room, "/fork second")
    run(room, "/undo")
    text = run(room, "/sessions").text
    assert "first" in text
    assert "second" not in text  # it holds nothing any more
    assert "1 turns" in run(room, "/load first").text
    assert [turn.user for turn in chat.turns] == ["one"]
    assert "No session mentions" in run(room, "/sessions nothing like it").text
    with pytest.raises(UsageError, match="did you mean 'first'"):
        run(room, "/load firts")
    with pytest.raises(UsageError, match="cannot be a session's name"):
        run(room, "/save ../x")
    with pytest.raises(UsageError, match="already"):
        run(room, "/fork second")
    with pytest.raises(UsageError, match="/load needs one"):
        run(room, "/load")


def test_a_private_talk_is_kept_when_it_gets_a_name(chat: Chat, room: Room, paths: Paths) -> None:
    assert not paths.sessions.exists()
    run(room, "/save kept")
    assert read_talk(paths.sessions / "kept.jsonl").turns == chat.turns


def test_the_context_is_drawn(chat: Chat, room: Room) -> None:
    chat.set_system("Be very brief")
    lines = run(room, "/context").text.splitlines()
    assert lines[0] == "[###" + "." * 37 + "]"
    assert [line.split() for line in lines[1:]] == [
        ["system", "prompt", "3", "tokens", "3", "%"],
        ["turns", "4", "tokens", "4", "%"],
        ["free", "93", "tokens", "93", "%"],
    ]
    chat._record("evict", turns=1, summary=None)
    assert "first 1 of 2 turns are no longer told" in run(room, "/context").text


def test_a_file_is_attached(chat: Chat, room: Room, tmp_path: Any) -> None:
    (tmp_path / "notes.txt").write_text("my notes")
    assert "notes.txt (8 characters)" in run(room, f"/file {tmp_path}/notes.txt").text
    assert chat.composed("Why?") == "my notes\n\nWhy?"
    with pytest.raises(UsageError, match="cannot be read"):
        run(room, "/file /no/such/file")


def test_the_model_is_switched(chat: Chat, room: Room) -> None:
    assert run(room, "/model").text == "fake (fake.gguf)"
    run(room, "/model other")
    assert chat.engine.name == "other"


def test_completion(chat: Chat, room: Room, paths: Paths, tmp_path: Any) -> None:
    assert completions(room, "/se") == ["/set", "/sessions"]
    assert completions(room, "hello") == completions(room, "//se") == []
    assert completions(room, "/set temp") == ["/set temperature"]
    assert completions(room, "/set on_full s") == [
        "/set on_full stop", "/set on_full slide", "/set on_full summarize",
    ]  # fmt: skip
    assert completions(room, "/set plain o") == ["/set plain on", "/set plain off"]
    SessionFile.open(paths.sessions / "talk.jsonl").record("turn", user="a", assistant="b")
    assert completions(room, "/load ta") == ["/load talk"]
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder").mkdir()
    assert completions(room, f"/file {tmp_path}/no") == [f"/file {tmp_path}/notes.txt"]
    assert f"/file {tmp_path}/folder/" in completions(room, f"/file {tmp_path}/")
    for words in ("/nothing x", "/file a\0b", f"/file {'x' * 300}/", "/file ~nosuchuser/x"):
        assert completions(room, words) == []
    assert "/help undo" in completions(room, "/help ")
