"""The prompt, on a real terminal."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from mistral_chat.errors import UsageError
from mistral_chat.settings import Paths, Settings
from mistral_chat.talk.chat import Chat
from mistral_chat.talk.sessions import SessionFile, read_talk
from mistral_chat.terminal.pastes import Pastes, is_open_block, unwrap_block
from mistral_chat.terminal.prompt import open_history
from mistral_chat.terminal.render import Notes
from mistral_chat.terminal.repl import Repl

from ..conftest import FAKE_MAIN
from ..fakes import FakeEngine
from ..pseudo_terminal import Terminal

CTRL_C = "\x03"
CTRL_D = "\x04"
CTRL_J = "\n"
ENTER = "\r"
ALT_ENTER = "\x1b\r"
PASTE = "\x1b[200~{}\x1b[201~"


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


@pytest.fixture
def terminal(
    fake_environment: Callable[..., Mapping[str, str]],
) -> Iterator[Callable[..., Terminal]]:
    """Opens the prompt with these answers waiting."""
    opened: list[Terminal] = []

    def open_terminal(
        *answers: str, arguments: Sequence[str] = (), columns: int = 80, **more: str
    ) -> Terminal:
        environment = fake_environment(*answers, **more)
        opened.append(Terminal(environment, arguments, columns))
        opened[-1].ready()
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.process.close(force=True)


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


def test_ctrl_c_clears_the_line_and_stays(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("answer")
    screen.send("not this")
    screen.wait_for("> not this")
    screen.send(CTRL_C)
    screen.ready()
    screen.send("this" + ENTER)
    screen.wait_for("answer")
    screen.send("/bye" + ENTER)
    assert screen.ended() == 0


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


@pytest.mark.parametrize("key", [CTRL_J, ALT_ENTER])
def test_a_new_line_does_not_send(terminal: Callable[..., Terminal], key: str) -> None:
    screen = terminal("answer")
    screen.send("one" + key + "two")
    screen.wait_for("> one")
    screen.wait_for(". two")
    assert "answer" not in screen.lines()
    screen.send(ENTER)
    screen.wait_for("answer")
    screen.ready()
    screen.send("/undo" + ENTER)
    screen.wait_for("Taken back: one")
    screen.wait_for("two")


def test_a_paste_never_sends(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("answer")
    screen.send(PASTE.format("one\ntwo\n"))
    screen.wait_for(". two")
    assert "answer" not in screen.lines()
    screen.send(ENTER)
    screen.wait_for("answer")


def test_three_quotes_open_a_block(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("answer")
    screen.send('"""/one' + ENTER + "two" + ENTER)
    screen.wait_for(". two")
    assert "answer" not in screen.lines()
    screen.send('"""' + ENTER)
    screen.wait_for("answer")
    screen.ready()
    screen.send("/undo" + ENTER)
    screen.wait_for("Taken back: /one")


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


def test_blocks_are_told_from_other_text() -> None:
    assert is_open_block('"""')
    assert is_open_block('""""')
    assert not is_open_block('""""""')
    assert unwrap_block('"""\nfirst\n second\n"""') == "first\n second"
    assert unwrap_block('a """quote"""') == 'a """quote"""'


def write_editor(folder: Path, script: str) -> str:
    """An editor that is a shell script; the file's name is ``$1``."""
    path = folder / "editor.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_the_toolbar_tells_model_context_and_speed(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("first")
    assert "fake  context 12 of 100" in screen.toolbar()
    screen.send("Hello" + ENTER)
    screen.wait_for("first")
    screen.ready()
    assert "tokens/s" in screen.toolbar()


def test_markdown_is_drawn_and_stays(terminal: Callable[..., Terminal]) -> None:
    answer = (
        "# Title\n\nSome *soft* and **hard** words.\n\n- one\n- two\n\n"
        "```python\nx = 1\n```\n\n| 名 | b |\n|---|---|\n| 漢字 | 🙂 |\n\nEnd <b>here</b>."
    )
    screen = terminal(answer, "plain *text*")
    screen.send("Draw" + ENTER)
    lines = screen.wait_for("End <b>here</b>.")
    assert "Some soft and hard words." in lines
    assert " • one" in lines
    assert " x = 1" in lines
    assert "```python" not in lines
    # Each block once: nothing that was drawn on the way is left.
    assert sum("Title" in line for line in lines) == 1
    assert sum("漢" in line for line in lines) == 1
    screen.ready()
    screen.send("/set plain on" + ENTER)
    screen.wait_for("plain = on")
    screen.ready()
    screen.send("Again" + ENTER)
    screen.wait_for("plain *text*")


def test_plain_is_the_text_as_it_is(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("*as it is*", MISTRAL_CHAT_PLAIN="on")
    screen.send("Hi" + ENTER)
    screen.wait_for("*as it is*")


@pytest.mark.parametrize("more", [{"TERM": "dumb"}, {"MISTRAL_CHAT_PLAIN": "on"}])
def test_one_answer_without_an_escape_code(
    fake_environment: Callable[..., Mapping[str, str]], more: dict[str, str]
) -> None:
    environment = fake_environment("*as it is*\n\n- one\n", **more)
    screen = Terminal(environment, ["Hi"])
    assert screen.ended() == 0
    assert "*as it is*\r\n\r\n- one\r\n" in screen.raw
    assert "\x1b" not in screen.raw


def test_one_answer_is_drawn_on_a_terminal(
    fake_environment: Callable[..., Mapping[str, str]],
) -> None:
    screen = Terminal(fake_environment("*soft*\n\n- one\n"), ["-q", "Hi"])
    assert screen.ended() == 0
    assert "*soft*" not in screen.raw
    assert "\x1b" in screen.raw


def test_twenty_columns(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("A sentence that is longer than the terminal.", columns=20)
    screen.send("Hi" + ENTER)
    screen.wait_for("longer than the")
    screen.ready()


def test_a_terminal_that_is_resized(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("...", "after")
    screen.send("Talk" + ENTER)
    screen.wait(lambda lines: any(line.startswith("word word") for line in lines))
    screen.resize(50)
    time.sleep(0.3)
    screen.send(CTRL_C)
    screen.ready()
    screen.send("More" + ENTER)
    screen.wait_for("after")


def test_a_paste_of_200_lines(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("answer", FAKE_CONTEXT="1000")
    text = "\n".join(f"line {number}" for number in range(200))
    screen.send(PASTE.format(text))
    screen.wait(lambda lines: any("line 199" in line for line in lines))
    assert "answer" not in screen.lines()
    screen.send(ENTER)
    screen.wait_for("answer")
    screen.ready()
    screen.send("/undo" + ENTER)
    screen.wait_for("line 198")


def test_a_paste_that_is_too_long_for_a_line(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("answer", MISTRAL_CHAT_ON_FULL="stop")
    screen.send("Sum up: " + PASTE.format("word " * 6000))
    screen.wait(lambda lines: any("[paste 1: 30000 characters]" in line for line in lines))
    screen.send(ENTER)
    screen.wait(lambda lines: any("6002 tokens" in line for line in lines))
    # What was typed is there again, to be shortened.
    screen.wait(lambda lines: [x for x in lines if x][-2].startswith("> Sum up: [paste 1"))


def test_an_editor_edits_the_last_question(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    editor = write_editor(tmp_path, 'printf "Hello again" > "$1"')
    screen = terminal("one", "two", EDITOR=editor, VISUAL="")
    screen.send("Hello" + ENTER)
    screen.wait_for("one")
    screen.ready()
    screen.send("/edit" + ENTER)
    screen.wait_for("two")
    screen.ready()
    screen.send("/undo" + ENTER)
    screen.wait_for("Taken back: Hello again")
    screen.ready()
    screen.send("/undo" + ENTER)
    screen.wait_for("There is nothing to take back yet.")


@pytest.mark.parametrize(("script", "said"), [("exit 3", "ended with code 3"), (None, "started")])
def test_an_editor_that_fails(
    terminal: Callable[..., Terminal], tmp_path: Path, script: str | None, said: str
) -> None:
    editor = "/no/such/editor" if script is None else write_editor(tmp_path, script)
    screen = terminal("one", EDITOR=editor, VISUAL="")
    screen.send("Hello" + ENTER)
    screen.wait_for("one")
    screen.ready()
    screen.send("/edit" + ENTER)
    screen.wait(lambda lines: any(said in line for line in lines))
    screen.ready()
    screen.send("/undo" + ENTER)
    screen.wait_for("Taken back: Hello")


def test_ctrl_g_opens_the_editor_on_the_line(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    editor = write_editor(tmp_path, 'printf "edited" > "$1"')
    screen = terminal("one", EDITOR=editor, VISUAL="")
    screen.send("Hello" + "\x07")
    screen.wait_for("> edited")


def test_tab_completes(terminal: Callable[..., Terminal]) -> None:
    screen = terminal()
    screen.send("/und\t")
    screen.wait_for("> /undo")
    screen.send(CTRL_C)
    screen.ready()
    screen.send("/set on_full su\t")
    screen.wait_for("> /set on_full summarize")


def test_ctrl_r_finds_what_was_typed(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("one")
    screen.send("A question" + ENTER)
    screen.wait_for("one")
    screen.ready()
    screen.send("\x12quest")
    screen.wait(lambda lines: lines.count("> A question") == 2)


def test_vi_mode(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("one", arguments=["--vi"])
    screen.send("hello word\x1b")
    time.sleep(1)
    screen.send("0dwi")
    screen.wait_for("> word")


def test_a_session_goes_on_after_a_restart(terminal: Callable[..., Terminal], paths: Paths) -> None:
    screen = terminal("first")
    screen.send("one" + ENTER)
    screen.wait_for("first")
    screen.ready()
    screen.send("/save work" + ENTER)
    screen.wait_for("The session is named work.")
    screen.ready()
    screen.send(CTRL_D)
    assert screen.ended() == 0
    assert "Kept as work, with 3 MB of cache" in screen.raw
    screen = terminal("second", arguments=["--continue"])
    screen.wait_for("Going on with work, 1 turns.")
    screen.send("two" + ENTER)
    screen.wait_for("second")
    screen.ready()
    screen.send("/fork other" + ENTER)
    screen.wait(lambda lines: any("goes on as other" in line for line in lines))
    screen.ready()
    assert screen.toolbar().endswith("other")
    screen.send("/undo" + ENTER)
    screen.wait_for("Taken back: two")
    screen.ready()
    screen.send("/load work" + ENTER)
    screen.wait_for("work, 2 turns.")
    assert stat.S_IMODE((paths.sessions / "work.jsonl").stat().st_mode) == 0o600


def test_a_turn_that_cannot_be_kept_is_shown_and_its_line_comes_back(
    terminal: Callable[..., Terminal], paths: Paths
) -> None:
    screen = terminal("first", "second", "third", arguments=["--session", "work"])
    screen.send("one" + ENTER)
    screen.wait_for("first")
    screen.ready()
    path = paths.sessions / "work.jsonl"
    path.write_bytes(path.read_bytes() + b"of another program\n")
    screen.send("two" + ENTER)
    screen.wait_for("second")
    screen.wait(lambda lines: any("This turn is not kept" in line for line in lines))
    screen.wait_for("> two")
    screen.send("\x15/fork other" + ENTER)
    screen.wait(lambda lines: any("goes on as other" in line for line in lines))
    screen.ready()
    screen.send("three" + ENTER)
    screen.wait_for("third")
    screen.ready()
    kept = read_talk(paths.sessions / "other.jsonl").turns
    assert [turn.user for turn in kept] == ["one", "three"]
    screen.send(CTRL_D)
    assert screen.ended() == 0
    screen = terminal("fourth", arguments=["--session", "work"])
    assert "work.damaged-1.jsonl" in "".join(screen.raw.split())


def test_a_killed_talk_goes_on(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("first", "...")
    screen.send("one" + ENTER)
    screen.wait_for("first")
    screen.ready()
    screen.send("two" + ENTER)
    screen.wait(lambda lines: any(line.startswith("word word") for line in lines))
    screen.process.kill(signal.SIGKILL)
    screen = terminal("second", arguments=["-c"])
    screen.wait(lambda lines: any("1 turns" in line for line in lines))


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


def test_private_leaves_nothing(terminal: Callable[..., Terminal], paths: Paths) -> None:
    screen = terminal("first", arguments=["--private"])
    screen.send("one" + ENTER)
    screen.wait_for("first")
    screen.ready()
    screen.send(CTRL_D)
    assert screen.ended() == 0
    assert not paths.state.exists()


def test_a_loop_is_told(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("word word (loop)")
    screen.send("one" + ENTER)
    screen.wait(lambda lines: any("began to repeat itself" in line for line in lines))


def test_the_prompt_shows_every_token(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("first", NO_COLOR="1")
    screen.send("/prompt" + ENTER)
    screen.wait_for("Nothing was asked yet.")
    screen.ready()
    screen.send("he" + ENTER)
    screen.wait_for("first")
    screen.ready()
    screen.send("/prompt" + ENTER)
    screen.wait(lambda lines: any("<|im_start|>" in line for line in lines))


def test_copying_goes_through_the_terminal(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("Zm9v")
    screen.send("one" + ENTER)
    screen.wait_for("Zm9v")
    screen.ready()
    screen.send("/copy" + ENTER)
    screen.wait_for("The last answer was copied.")
    assert "\x1b]52;c;Wm05dg==" in screen.raw


def test_a_history_that_is_a_pipe_is_not_waited_for(paths: Paths) -> None:
    paths.history_file.parent.mkdir(parents=True)
    os.mkfifo(paths.history_file)
    with pytest.raises(UsageError, match="is a pipe or a device"):
        open_history(paths.history_file)


def test_a_paste_holds_no_halves_of_characters() -> None:
    pastes = Pastes()
    mark = pastes.mark("\udcff" * 30_000)
    assert pastes.expand(mark) == "\ufffd" * 30_000
    assert pastes.mark("caf\udce9") == "caf\ufffd"


def test_long_pastes_have_a_mark() -> None:
    pastes = Pastes()
    assert pastes.mark("short\r\ntext") == "short\ntext"
    marks = [pastes.mark(letter * 30_000) for letter in "ab"]
    assert marks == ["[paste 1: 30000 characters]", "[paste 2: 30000 characters]"]
    assert pastes.expand(f"x {marks[1]} y") == "x " + "b" * 30_000 + " y"
