"""The loop at the prompt, on a real terminal."""

from __future__ import annotations

import shutil
import stat
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import pytest

from mistral_chat.settings import Paths, Settings
from mistral_chat.talk.chat import Chat
from mistral_chat.talk.sessions import SessionFile, read_talk
from mistral_chat.terminal.render import Notes
from mistral_chat.terminal.repl import Repl

from ..conftest import FAKE_MAIN
from ..fakes import FakeEngine
from ..pseudo_terminal import CTRL_C, CTRL_D, CTRL_Z, ENTER, OpenTerminal, Terminal


@pytest.fixture
def chat() -> Any:
    """A talk that keeps nothing."""
    fake: Any = FakeEngine()
    return Chat(fake, Settings())


def open_repl_of(chat: Chat, paths: Paths) -> Repl:
    """The prompt of a talk whose model is there."""
    loaded: Future[Chat] = Future()
    loaded.set_result(chat)
    return Repl(loaded, lambda name: chat.engine, paths, Notes(), sys.stdout, "fake")


def test_a_talk_and_its_end(terminal: OpenTerminal, paths: Paths) -> None:
    screen = terminal("first\nanswer", "second")
    screen.ask("Hello", "first answer")
    screen.send(ENTER)
    screen.ask("Again", "second")
    screen.leave()
    assert stat.S_IMODE(paths.history_file.stat().st_mode) == 0o600
    history = paths.history_file.read_text(encoding="utf-8")
    assert "+Hello" in history
    assert "+Again" in history


def test_ctrl_c_stops_the_answer_and_keeps_it(terminal: OpenTerminal) -> None:
    screen = terminal("...", "second", "...", "after")
    screen.enter("Talk")
    screen.see_words()
    screen.send(CTRL_C)
    screen.ready()
    screen.ask("More", "second")
    screen.take_back("More", "Talk")
    # So it does where the terminal was made narrower in the middle.
    screen.ask("/clear", "The conversation is empty again.")
    written = sum("word word" in line for line in screen.lines())
    screen.enter("Talk")
    screen.wait(lambda lines: sum("word word" in line for line in lines) > written)
    screen.resize(50)
    time.sleep(0.3)
    screen.send(CTRL_C)
    screen.ready()
    screen.ask("More", "after")
    screen.enter("/bye")
    assert screen.ended() == 0


def test_slash_commands_and_two_slashes(terminal: OpenTerminal) -> None:
    screen = terminal("one", "Zm9v", "second")
    screen.ask("/sett", "There is no command /sett; did you mean '/set'? /help lists them.")
    screen.ask("//etc is what?", "one")
    screen.ask("/retry", "Zm9v")
    # Copying goes through the terminal.
    screen.ask("/copy", "The last answer was copied.")
    assert "\x1b]52;c;Wm05dg==" in screen.raw
    # The path of nobody's home does not end the talk.
    screen.enter("/file ~nosuchuser/x")
    screen.see("~nosuchuser is none here")
    screen.ready()
    screen.send("/file ~nosuchuser/\t" + CTRL_C)
    screen.ready()
    screen.ask("two", "second")
    screen.take_back("two")
    screen.ask("/und", "Taken back: /etc is what?")


def test_an_answer_of_nothing_leaves_the_talk_as_it_was(terminal: OpenTerminal) -> None:
    screen = terminal("first", "", "", "word word (loop)")
    screen.ask("one", "first")
    nothing = "Nothing was written; the conversation is as it was before."
    screen.ask("two", nothing)
    screen.ask("/retry", nothing)
    screen.take_back("one")
    # One that repeats itself is told, too.
    screen.enter("one")
    screen.see("began to repeat itself")


def test_what_is_typed_during_an_answer_is_asked_next(terminal: OpenTerminal) -> None:
    screen = terminal("...", "second", "third", arguments=["--max-tokens", "60"])
    screen.enter("one")
    screen.see_words()
    screen.send("two" + ENTER + "thr")
    screen.wait_for("second")
    screen.wait_for("> thr")
    assert not any("word" in line and "two" in line for line in screen.lines())
    screen.ask("ee", "third")
    screen.take_back("three", "two")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell that has jobs")
@pytest.mark.parametrize("answer", ["first", "..."])
def test_ctrl_z_suspends_and_fg_goes_on(
    fake_environment: Callable[..., Mapping[str, str]], answer: str
) -> None:
    shell = "import os; os.execvp('bash', ['bash', '--norc', '--noprofile', '-i'])"
    environment = fake_environment(answer, "second", PS1="$ ")
    screen = Terminal(environment, program=("-c", shell))
    screen.enter(f"{sys.executable} {' '.join(FAKE_MAIN)} --max-tokens 60")
    screen.ready()
    if answer == "...":
        screen.enter("one")
        screen.see_words()
    else:
        screen.send("draft")
        screen.wait_for("> draft")
    screen.send(CTRL_Z)
    screen.see("Stopped")
    # The shell's terminal shows what is typed and takes Enter, whatever the talk made of it.
    screen.enter("stty -a | grep -o ' icrnl'; echo it is $((40 + 2))")
    screen.wait_for("it is 42")
    screen.wait_for(" icrnl")
    screen.enter("fg")
    if answer == "...":
        screen.ready()
        screen.ask("two", "second")
    else:
        screen.wait(lambda lines: "$ fg" in lines and "> draft" in lines[lines.index("$ fg") :])
        screen.ask("", "first")
    screen.send(CTRL_D)
    screen.see("Kept as")
    screen.process.close(force=True)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (MemoryError(), "not enough memory"),
        (RecursionError(), "nested too deeply"),
        (RuntimeError("can't start new thread"), "starts no more threads"),
        (OSError(28, "No space left on device"), "The disk is full"),
    ],
)
def test_what_is_told_in_a_sentence_does_not_end_the_talk(
    chat: Chat, paths: Paths, capsys: pytest.CaptureFixture[str], fault: Exception, said: str
) -> None:
    chat.engine.answers += [fault, "after"]
    lines = iter(["one", "two"])
    open_repl_of(chat, paths)._loop(lambda _draft: next(lines, "/bye"))
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == "after\n"
    assert [turn.user for turn in chat.turns] == ["two"]


def test_a_fault_of_the_program_loses_nothing_that_was_said(chat: Chat, paths: Paths) -> None:
    chat.fork(SessionFile.open(paths.sessions / "kept.jsonl"))
    chat.engine.answers += ["first", KeyError("a fault")]
    lines = iter(["one", "two"])
    with pytest.raises(KeyError):
        open_repl_of(chat, paths)._loop(lambda _draft: next(lines))
    kept = read_talk(paths.sessions / "kept.jsonl")
    assert [(turn.user, turn.assistant) for turn in kept.turns] == [("one", "first")]
