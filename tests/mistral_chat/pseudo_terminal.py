"""A terminal for tests: a pseudo-terminal with a screen that can be looked at."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence

import pexpect
import pyte

from .conftest import FAKE_MAIN

PATIENCE_SECONDS = 30

CTRL_C = "\x03"
CTRL_D = "\x04"
CTRL_J = "\n"
ENTER = "\r"
ALT_ENTER = "\x1b\r"
CTRL_G = "\x07"
CTRL_R = "\x12"
CTRL_U = "\x15"
CTRL_Z = "\x1a"
ESCAPE = "\x1b"
PASTE = "\x1b[200~{}\x1b[201~"


class Terminal:
    """A screen with the command on it, which answers where its cursor is, as terminals do."""

    def __init__(
        self,
        environment: Mapping[str, str],
        arguments: Sequence[str] = (),
        columns: int = 80,
        program: Sequence[str] = FAKE_MAIN,
    ) -> None:
        self._screen = pyte.HistoryScreen(columns, 40, history=2000, ratio=1)
        self._stream = pyte.Stream(self._screen)
        self.raw = ""
        self.process = pexpect.spawn(
            sys.executable,
            [*program, *arguments],
            env=dict(environment),
            dimensions=(40, columns),
            encoding="utf-8",
        )

    def send(self, keys: str) -> None:
        """Press keys."""
        self.process.send(keys)

    def enter(self, line: str) -> None:
        """Type a line and send it."""
        self.send(line + ENTER)

    def ask(self, line: str, answer: str) -> None:
        """Send a line; wait for one more line that is ``answer``, and for the next prompt."""
        times = self.lines().count(answer) + 1
        self.enter(line)
        self.wait_for(answer, times)
        self.ready()

    def take_back(self, *questions: str) -> None:
        """Take questions back, the latest first, and see that they are these."""
        for question in questions:
            self.ask("/undo", f"Taken back: {question}")

    def leave(self) -> None:
        """End the talk by Ctrl-D, and see that all is well."""
        self.send(CTRL_D)
        assert self.ended() == 0

    def resize(self, columns: int) -> None:
        """Make the terminal wider or narrower."""
        self._screen.resize(40, columns)
        self.process.setwinsize(40, columns)

    def lines(self) -> list[str]:
        """The lines above the screen and on it, without the blanks at their ends."""
        above = [
            "".join(row[column].data for column in range(self._screen.columns)).rstrip()
            for row in self._screen.history.top
        ]
        return above + [line.rstrip() for line in self._screen.display]

    def toolbar(self) -> str:
        """The last line of the screen."""
        return [line for line in self.lines() if line][-1]

    def _take(self, text: str) -> None:
        self.raw += text
        while "\x1b[6n" in text:
            before, _, text = text.partition("\x1b[6n")
            self._stream.feed(before)
            cursor = self._screen.cursor
            self.process.send(f"\x1b[{cursor.y + 1};{cursor.x + 1}R")
        self._stream.feed(text)

    def wait(self, happened: Callable[[list[str]], bool]) -> list[str]:
        """Read until the screen is as wanted."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happened(self.lines()):
            if time.monotonic() > deadline:
                raise AssertionError("\n".join(self.lines()))
            try:
                self._take(self.process.read_nonblocking(65536, timeout=0.1))
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                break
        assert happened(self.lines()), "\n".join(self.lines())
        return self.lines()

    def wait_for(self, line: str, times: int = 1) -> list[str]:
        """Read until a line has been there so many times."""
        return self.wait(lambda lines: lines.count(line) >= times)

    def holds(self, text: str, times: int = 1) -> bool:
        """Whether a text is there so many times, however it is broken into lines."""
        # A line may be broken within a word, or where a blank was.
        shown, wanted = ("".join(each.split()) for each in ("".join(self.lines()), text))
        return shown.count(wanted) >= times

    def see(self, text: str, times: int = 1) -> None:
        """Read until a text is there so many times, however it is broken into lines."""
        self.wait(lambda _lines: self.holds(text, times))

    def see_words(self) -> None:
        """Read until an answer that never ends has begun."""
        self.wait(lambda lines: any(line.startswith("word word") for line in lines))

    def ready(self) -> None:
        """Wait until an empty prompt is the last line above the toolbar."""
        self.wait(lambda lines: [line for line in lines if line][-2:-1] == [">"])

    def ended(self) -> int:
        """The exit code, once the command has ended."""
        self.process.expect(pexpect.EOF, timeout=PATIENCE_SECONDS)
        self.raw += self.process.before or ""
        self.process.close()
        return int(self.process.exitstatus)


OpenTerminal = Callable[..., Terminal]
"""Opens the prompt with these answers waiting; see the fixture ``terminal``."""
