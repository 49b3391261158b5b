"""What is typed at the prompt: keys, blocks, pastes, the editor, the history."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mistral_chat.errors import UsageError
from mistral_chat.settings import Paths
from mistral_chat.terminal.pastes import Pastes, is_open_block, unwrap_block
from mistral_chat.terminal.prompt import open_history

from ..pseudo_terminal import (
    ALT_ENTER,
    CTRL_C,
    CTRL_G,
    CTRL_J,
    CTRL_R,
    ENTER,
    ESCAPE,
    PASTE,
    OpenTerminal,
)
from .conftest import write_editor


def test_keys_that_help_to_write(terminal: OpenTerminal) -> None:
    screen = terminal("answer")
    # Ctrl-C clears the line and stays.
    screen.send("not this")
    screen.wait_for("> not this")
    screen.send(CTRL_C)
    screen.ready()
    screen.ask("this is a question", "answer")
    # Tab completes commands, and what follows them.
    screen.send("/und\t")
    screen.wait_for("> /undo")
    screen.send(CTRL_C)
    screen.ready()
    screen.send("/set on_full su\t")
    screen.wait_for("> /set on_full summarize")
    screen.send(CTRL_C)
    screen.ready()
    # Ctrl-R finds what was typed.
    screen.send(CTRL_R + "quest")
    screen.wait_for("> this is a question", times=2)
    screen.send(CTRL_C)
    screen.ready()
    screen.enter("/bye")
    assert screen.ended() == 0


def test_lines_that_are_not_sent_yet(terminal: OpenTerminal) -> None:
    screen = terminal("first", "second", "third", "fourth")
    for key, answer in ((CTRL_J, "first"), (ALT_ENTER, "second")):
        screen.send(f"{answer} line{key}{answer} end")
        screen.wait_for(f"> {answer} line")
        screen.wait_for(f". {answer} end")
        assert answer not in screen.lines()
        screen.ask("", answer)
        screen.take_back(f"{answer} line")
        screen.wait_for(f"{answer} end")
    # A paste never sends.
    screen.send(PASTE.format("one\nof two\n"))
    screen.wait_for(". of two")
    assert "third" not in screen.lines()
    screen.ask("", "third")
    # Three quotes open a block, and what is in it is no command.
    screen.send('"""/one' + ENTER + "two" + ENTER)
    screen.wait_for(". two")
    assert "fourth" not in screen.lines()
    screen.ask('"""', "fourth")
    screen.take_back("/one")


def test_blocks_are_told_from_other_text() -> None:
    assert is_open_block('"""')
    assert is_open_block('""""')
    assert not is_open_block('""""""')
    assert unwrap_block('"""\nfirst\n second\n"""') == "first\n second"
    assert unwrap_block('a """quote"""') == 'a """quote"""'


def test_long_pastes(terminal: OpenTerminal) -> None:
    screen = terminal("answer", FAKE_CONTEXT="1000", MISTRAL_CHAT_ON_FULL="stop")
    screen.send(PASTE.format("\n".join(f"line {number}" for number in range(200))))
    screen.see("line 199")
    assert "answer" not in screen.lines()
    screen.ask("", "answer")
    screen.enter("/undo")
    screen.wait_for("line 198")
    screen.ready()
    # One that is too long for a line has a mark there.
    screen.send("Sum up: " + PASTE.format("word " * 6000))
    screen.see("[paste 1: 30000 characters]")
    screen.send(ENTER)
    screen.see("6002 tokens")
    # What was typed is there again, to be shortened.
    screen.wait(lambda lines: [x for x in lines if x][-2].startswith("> Sum up: [paste 1"))


def test_an_editor(terminal: OpenTerminal, tmp_path: Path) -> None:
    editor = write_editor(tmp_path, "exit 3")
    screen = terminal("one", "two", "three", EDITOR=editor, VISUAL="")
    screen.ask("Hello", "one")
    screen.enter("/edit")
    screen.see("ended with code 3")
    screen.ready()
    Path(editor).unlink()
    screen.enter("/edit")
    screen.see("cannot be started")
    screen.ready()
    screen.take_back("Hello")
    nothing = "There is nothing to take back yet."
    screen.ask("/undo", nothing)
    # It edits the last question,
    write_editor(tmp_path, 'printf "Hello again" > "$1"')
    screen.ask("Hello", "two")
    screen.ask("/edit", "three")
    screen.take_back("Hello again")
    screen.ask("/undo", nothing)
    # and by Ctrl-G the line.
    write_editor(tmp_path, 'printf "edited" > "$1"')
    screen.send("Hello" + CTRL_G)
    screen.wait_for("> edited")


def test_vi_mode(terminal: OpenTerminal) -> None:
    screen = terminal("one", arguments=["--vi"])
    screen.send("hello word" + ESCAPE)
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
