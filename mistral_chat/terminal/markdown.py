"""An answer drawn as Markdown while it streams."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TextIO

from markdown_it import MarkdownIt
from rich.markdown import Markdown
from rich.segment import Segment, Segments

from mistral_chat.printable import without_controls
from mistral_chat.system.screen import Screen


class MarkdownWriter:
    """Writes an answer as Markdown while it streams.

    Blocks that are finished (a paragraph, a list, a table, a code block) are printed once and stay.
    Only the last one, to which the next token may belong, is drawn again; of one that is taller
    than the terminal the end is shown until it is finished. Drawing takes a small share of the time
    at most, however fast the tokens come: the next one waits for ``REST`` times what the last took.
    """

    REST = 30

    def __init__(
        self, stream: TextIO, theme: str = "auto", clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._console = Screen(file=stream, force_terminal=True, highlight=False)
        self._stream = stream
        # Without HTML: tags that an answer writes are text like any other, not to be left out.
        parser = MarkdownIt().enable("strikethrough").enable("table")
        self._parser = parser.disable(["html_block", "html_inline"])
        self._code = _code_theme(theme)
        self._clock = clock
        self._text = ""  # of the blocks that are not finished
        self._drawn: list[int] = []  # widths of the lines on the screen that will be drawn again
        self._next = 0.0

    def write(self, text: str) -> None:
        """Take a piece, and draw if it is time to."""
        self._text += without_controls(text)
        now = self._clock()
        if now < self._next:
            return
        self._draw()
        after = self._clock()
        self._next = after + self.REST * (after - now)

    def end(self) -> None:
        """Print what is left for good."""
        self._show([], self._lines(self._text))
        self._text = ""

    def _draw(self) -> None:
        *whole, last = self._blocks(self._text)
        finished = self._lines("".join(whole))
        if finished:
            finished.append([])
        self._text = last
        self._show(self._lines(last), finished)

    def _blocks(self, text: str) -> list[str]:
        """The text of each block; together they are the whole."""
        # As the parser counts lines: other characters that end one are text to it.
        lines = text.split("\n")
        tokens = self._parser.parse(text)
        starts = [token.map[0] for token in tokens if token.level == 0 and token.map]
        starts = sorted({0, *starts[1:]})
        ends = [*starts[1:], len(lines)]
        blocks = ["\n".join(lines[a:b]) for a, b in zip(starts, ends, strict=True)]
        return [block + "\n" for block in blocks[:-1]] + blocks[-1:]

    def _lines(self, text: str) -> list[list[Segment]]:
        """Each block drawn by itself, with an empty line between two."""
        drawn = [lines for block in self._blocks(text) if (lines := self._block_lines(block))]
        return [line for lines in drawn for line in ([], *lines)][1:]

    def _block_lines(self, text: str) -> list[list[Segment]]:
        markdown = Markdown("", code_theme=self._code, hyperlinks=False)
        markdown.parsed = self._parser.parse(text)
        # Once more: Markdown has names for characters, such as those that turn a text around.
        lines = [
            [Segment(without_controls(part.text), part.style) for part in line]
            for line in self._console.render_lines(markdown, pad=False)
        ]
        blank = [not "".join(part.text for part in line).strip() for line in lines]
        first = blank.index(False) if False in blank else len(lines)
        last = len(blank) - (blank[::-1].index(False) if False in blank else 0)
        return lines[first:last]

    def _show(self, open_lines: list[list[Segment]], finished: list[list[Segment]]) -> None:
        """Take away what was drawn, print ``finished`` for good, and draw the open lines."""
        width, height = self._console.size
        # A terminal that became narrower has broken the lines that were drawn.
        rows = sum(max(1, -(-length // max(1, width))) for length in self._drawn)
        erase = f"\x1b[{rows}A\r\x1b[J" if rows else ""
        shown = open_lines[-max(1, height - 2) :] if open_lines else []
        self._drawn = [Segment.get_line_length(line) for line in shown]
        parts = [part for line in [*finished, *shown] for part in (*line, Segment.line())]
        with self._console.capture() as capture:
            self._console.print(Segments(parts), end="", crop=False, soft_wrap=True)
        self._stream.write(erase + capture.get())
        self._stream.flush()


def _code_theme(theme: str) -> str:
    """The colours of code: those of the terminal's own palette, for its background."""
    if theme == "auto":
        # Some terminals say "foreground;background"; 7 and 15 are light.
        ground = os.environ.get("COLORFGBG", "").rpartition(";")[2]
        theme = "light" if ground in ("7", "15") else "dark"
    return f"ansi_{theme}"
