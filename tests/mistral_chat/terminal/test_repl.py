"""The loop at the prompt, on a real terminal."""

from __future__ import annotations

import shutil
import stat
import sys
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
from ..pseudo_terminal import CTRL_C, CTRL_D, ENTER, Terminal


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


def test_a_talk_and_its_end(terminal: Callable[..., Terminal], paths: Paths) -> None:
    screen = terminal("first\nanswer", "second")
    screen.send("Hello" + ENTER)
    screen.wait_for("first answer")
    screen.ready()
    screen.send(ENTER)
    screen.send("Again" + ENTER)
    screen.wait_for("second")
    screen.ready()
    screen.send(CTRL_D)
    assert screen.ended() == 0
    assert stat.S_IMODE(paths.history_file.stat().st_mode) == 0o600
    history = paths.history_file.read_text(encoding="utf-8")
    assert "+Hello" in history
    assert "+Again" in history


def test_ctrl_c_stops_the_answer_and_keeps_it(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("...", "second")
    screen.send("Talk" + ENTER)
    screen.wait(lambda lines: any(line.startswith("word word") for line in lines))
    screen.send(CTRL_C)
    screen.ready()
    screen.send("More" + ENTER)
    screen.wait_for("second")
    screen.send("/undo" + ENTER)
    screen.wait_for("Taken back: More")
    screen.send("/undo" + ENTER)
    screen.wait_for("Taken back: Talk")
    screen.send("/bye" + ENTER)
    assert screen.ended() == 0


def test_slash_commands_and_two_slashes(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("one", "two")
    screen.send("/sett" + ENTER)
    screen.wait_for("There is no command /sett; did you mean '/set'? /help lists them.")
    screen.ready()
    screen.send("//etc is what?" + ENTER)
    screen.wait_for("one")
    screen.ready()
    screen.send("/retry" + ENTER)
    screen.wait_for("two")
    screen.ready()
    screen.send("/und" + ENTER)
    screen.wait_for("Taken back: /etc is what?")


def test_an_answer_of_nothing_leaves_the_talk_as_it_was(
    terminal: Callable[..., Terminal],
) -> None:
    screen = terminal("first", "", "")
    screen.send("one" + ENTER)
    screen.wait_for("first")
    screen.ready()
    screen.send("two" + ENTER)
    nothing = "Nothing was written; the conversation is as it was before."
    screen.wait_for(nothing)
    screen.ready()
    screen.send("/retry" + ENTER)
    screen.wait_for(nothing, times=2)
    screen.ready()
    screen.send("/undo" + ENTER)
    screen.wait_for("Taken back: one")


def test_what_is_typed_during_an_answer_is_asked_next(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("...", "second", "third", arguments=["--max-tokens", "60"])
    screen.send("one" + ENTER)
    screen.wait(lambda lines: any(line.startswith("word word") for line in lines))
    screen.send("two" + ENTER + "thr")
    screen.wait_for("second")
    screen.wait_for("> thr")
    assert not any("word" in line and "two" in line for line in screen.lines())
    screen.send("ee" + ENTER)
    screen.wait_for("third")
    screen.ready()
    screen.send("/undo" + ENTER)
    screen.wait_for("Taken back: three")
    screen.ready()
    screen.send("/undo" + ENTER)
    screen.wait_for("Taken back: two")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell that has jobs")
@pytest.mark.parametrize("answer", ["first", "..."])
def test_ctrl_z_suspends_and_fg_goes_on(
    fake_environment: Callable[..., Mapping[str, str]], answer: str
) -> None:
    shell = "import os; os.execvp('bash', ['bash', '--norc', '--noprofile', '-i'])"
    environment = fake_environment(answer, "second", PS1="$ ")
    screen = Terminal(environment, program=("-c", shell))
    screen.send(f"{sys.executable} {' '.join(FAKE_MAIN)} --max-tokens 60" + ENTER)
    screen.ready()
    if answer == "...":
        screen.send("one" + ENTER)
        screen.wait(lambda lines: any(line.startswith("word word") for line in lines))
    else:
        screen.send("draft")
        screen.wait_for("> draft")
    screen.send("\x1a")
    screen.wait(lambda lines: any("Stopped" in line for line in lines))
    # The shell's terminal shows what is typed and takes Enter, whatever the talk made of it.
    screen.send("stty -a | grep -o ' icrnl'; echo it is $((40 + 2))" + ENTER)
    screen.wait_for("it is 42")
    screen.wait_for(" icrnl")
    screen.send("fg" + ENTER)
    if answer == "...":
        screen.ready()
        screen.send("two" + ENTER)
        screen.wait_for("second")
    else:
        screen.wait(lambda lines: "$ fg" in lines and "> draft" in lines[lines.index("$ fg") :])
        screen.send(ENTER)
        screen.wait_for("first")
    screen.ready()
    screen.send(CTRL_D)
    screen.wait(lambda lines: any("Kept as" in line for line in lines))
    screen.process.close(force=True)


def test_a_path_of_nobodys_home_does_not_end_the_talk(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("first", "second")
    screen.send("one" + ENTER)
    screen.wait_for("first")
    screen.ready()
    screen.send("/file ~nosuchuser/x" + ENTER)
    screen.wait(lambda lines: any("~nosuchuser is none here" in line for line in lines))
    screen.ready()
    screen.send("/file ~nosuchuser/\t" + CTRL_C)
    screen.ready()
    screen.send("two" + ENTER)
    screen.wait_for("second")


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


def test_a_loop_is_told(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("word word (loop)")
    screen.send("one" + ENTER)
    screen.wait(lambda lines: any("began to repeat itself" in line for line in lines))
