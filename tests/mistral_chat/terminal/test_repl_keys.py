"""What is typed at the prompt: keys, blocks, pastes, the editor, the history."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mistral_chat.errors import UsageError
from mistral_chat.settings import Paths
from mistral_chat.terminal.pastes import Pastes, is_open_block, unwrap_block
from mistral_chat.terminal.prompt import open_history

from ..pseudo_terminal import ALT_ENTER, CTRL_C, CTRL_J, ENTER, PASTE, Terminal
from .conftest import write_editor


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


def test_blocks_are_told_from_other_text() -> None:
    assert is_open_block('"""')
    assert is_open_block('""""')
    assert not is_open_block('""""""')
    assert unwrap_block('"""\nfirst\n second\n"""') == "first\n second"
    assert unwrap_block('a """quote"""') == 'a """quote"""'


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
