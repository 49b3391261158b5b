"""Markdown while it streams."""

from __future__ import annotations

import io
import re

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_chat.terminal.markdown import MarkdownWriter

TEXT = """# Title

Some *soft* words with `code`, <b>html</b> and **hard** ones, long enough to be wrapped.

1. one
2. two
   - inner

> quoted

```python
def f(x):
    return x + 1

y = 2
```

| 名前 | b |
|---|---|
| 漢字 | 🙂 |
| a | b |

Last with a [link](http://example.com/x).
"""


class TerminalStream(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Each look at it takes a while."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def screen_of(text: str, columns: int = 60, lines: int = 200) -> list[str]:
    screen = pyte.Screen(columns, lines)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))
    return [line.rstrip() for line in screen.display]


def drawn(text: str, pieces: list[str], monkeypatch: pytest.MonkeyPatch, step: float = 0.0) -> str:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "40")
    stream = TerminalStream()
    writer = MarkdownWriter(stream, "dark", Clock(step))
    assert "".join(pieces) == text
    for piece in pieces:
        writer.write(piece)
    writer.end()
    return stream.getvalue()


def test_the_end_is_the_same_however_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = screen_of(drawn(TEXT, [TEXT], monkeypatch))
    by_letter = screen_of(drawn(TEXT, list(TEXT), monkeypatch))
    by_word = screen_of(drawn(TEXT, re.findall(r"\S+|\s+", TEXT), monkeypatch, 0.1))
    assert whole == by_letter == by_word
    for line in ("Some soft words with code, <b>html</b> and hard ones, long", " 1 one", " y = 2"):
        assert line in by_letter
    assert any("link (http://example.com/x)" in line for line in by_letter)


def test_wide_letters_align(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = screen_of(drawn(TEXT, list(TEXT), monkeypatch))
    (head,) = (line for line in lines if "b" in line and "名" in line)
    (row,) = (line for line in lines if "漢" in line)
    assert head.index("b") == row.index("🙂")


def test_finished_blocks_are_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = drawn(TEXT, list(TEXT), monkeypatch)
    # What is printed for good is never erased: the sequences that go up never go above it.
    assert max(map(int, re.findall(r"\x1b\[(\d+)A", stream))) <= 8


def test_a_block_taller_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "```\n" + "".join(f"line {number}\n" for number in range(100)) + "```\n"
    stream = drawn(code, code.splitlines(keepends=True), monkeypatch)
    assert max(map(int, re.findall(r"\x1b\[(\d+)A", stream))) <= 38
    lines = [line.strip() for line in screen_of(stream) if line]
    assert lines == [f"line {number}" for number in range(100)]


def test_drawing_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    stream = TerminalStream()
    clock = Clock(1.0)  # a drawing takes a second of this clock, and each token one
    writer = MarkdownWriter(stream, "dark", clock)
    draws = 0
    before = 0
    for _ in range(3000):
        writer.write("word ")
        draws += stream.tell() > before
        before = stream.tell()
    assert draws <= 3000 / writer.REST + 1


@given(st.text(max_size=300))
def test_any_text_can_be_drawn(text: str) -> None:
    stream = TerminalStream()
    writer = MarkdownWriter(stream, "light")
    for letter in text:
        writer.write(letter)
    writer.end()


def test_an_answer_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = drawn("a\x1b]0;x\x07b `\x1b[5m`", ["a\x1b]0;x\x07b `\x1b[5m`"], monkeypatch)
    assert "\x1b]" not in stream
    assert "\x1b[5m" not in stream
