"""The prompt, on a real terminal."""

from __future__ import annotations

import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import pexpect
import pyte
import pytest

from mistral_chat.repl import is_open_block, unwrap_block
from mistral_chat.settings import Paths

from .conftest import HERE

CTRL_C = "\x03"
CTRL_D = "\x04"
CTRL_J = "\n"
ENTER = "\r"
ALT_ENTER = "\x1b\r"
PASTE = "\x1b[200~{}\x1b[201~"
PATIENCE_SECONDS = 30


class Terminal:
    """A screen of 80 by 40 with the command on it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._screen = pyte.Screen(80, 40)
        self._stream = pyte.Stream(self._screen)
        self.process = pexpect.spawn(
            sys.executable,
            [str(HERE / "fake_main.py")],
            env=dict(environment),
            dimensions=(40, 80),
            encoding="utf-8",
        )

    def send(self, keys: str) -> None:
        """Press keys."""
        self.process.send(keys)

    def lines(self) -> list[str]:
        """The screen's lines, without the blanks at their ends."""
        return [line.rstrip() for line in self._screen.display]

    def wait(self, happened: Callable[[list[str]], bool]) -> list[str]:
        """Read until the screen is as wanted."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happened(self.lines()):
            if time.monotonic() > deadline:
                raise AssertionError("\n".join(self.lines()))
            try:
                self._stream.feed(self.process.read_nonblocking(65536, timeout=0.1))
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                break
        assert happened(self.lines()), "\n".join(self.lines())
        return self.lines()

    def wait_for(self, line: str, times: int = 1) -> list[str]:
        """Read until a line has been there so many times."""
        return self.wait(lambda lines: lines.count(line) >= times)

    def ready(self) -> None:
        """Wait until the prompt is the last line."""
        self.wait(lambda lines: [line for line in lines if line][-1:] == [">"])

    def ended(self) -> int:
        """The exit code, once the command has ended."""
        self.process.expect(pexpect.EOF, timeout=PATIENCE_SECONDS)
        self.process.close()
        return int(self.process.exitstatus)


@pytest.fixture
def terminal(
    fake_environment: Callable[..., Mapping[str, str]],
) -> Iterator[Callable[..., Terminal]]:
    """Opens the prompt with these answers waiting."""
    opened: list[Terminal] = []

    def open_terminal(*answers: str) -> Terminal:
        opened.append(Terminal(fake_environment(*answers)))
        opened[-1].ready()
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.process.close(force=True)


def test_a_talk_and_its_end(terminal: Callable[..., Terminal], paths: Paths) -> None:
    screen = terminal("first\nanswer", "second")
    screen.send("Hello" + ENTER)
    screen.wait_for("answer")
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
