"""Records the picture of the README: a real talk with the default model, on a real terminal.

python docs/record_session.py      # writes docs/session.svg; needs the packages of the tests
"""

from __future__ import annotations

import io
import itertools
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

COLUMNS, LINES = 84, 26
TALK = (
    "/set temperature 0\r",
    "What is the capital of France?\r",
    "Show me how to add two numbers in Python, in three lines.\r",
    "/context\r",
)
HERE = Path(__file__).resolve().parent


def main() -> None:
    """Talk, and draw what is on the screen in the end."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.Stream(screen)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TERM": "xterm-256color", "XDG_STATE_HOME": folder}
        process = pexpect.spawn(
            sys.executable,
            ["-m", "mistral_chat", "--session", "paris"],
            env=environment,
            dimensions=(LINES, COLUMNS),
            encoding="utf-8",
        )

        def settle() -> None:
            """Until an empty prompt has been there for a while."""
            quiet = time.monotonic()
            while time.monotonic() - quiet < 1.5:
                try:
                    data = process.read_nonblocking(65536, timeout=0.1)
                except pexpect.TIMEOUT:
                    continue
                quiet = time.monotonic()
                if "\x1b[6n" in data:
                    stream.feed(data.partition("\x1b[6n")[0])
                    process.send(f"\x1b[{screen.cursor.y + 1};{screen.cursor.x + 1}R")
                    data = data.partition("\x1b[6n")[2]
                stream.feed(data)

        settle()
        for line in TALK:
            process.send(line)
            settle()
        process.close(force=True)
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for row in range(LINES):
        cells = [screen.buffer[row][column] for column in range(COLUMNS)]
        line = Text()
        for style, run in itertools.groupby(cells, _style):
            line.append("".join(cell.data for cell in run), style)
        console.print(line, no_wrap=True)
    drawing = console.export_svg(title="mistral-chat")
    # Fonts of the reader's own, not of somebody's server.
    drawing = re.sub(r"@font-face \{.*?\}\n?", "", drawing, flags=re.DOTALL)
    (HERE / "session.svg").write_text(drawing, encoding="utf-8")


def _style(cell: pyte.screens.Char) -> Style:
    return Style(
        color=_colour(cell.fg), bgcolor=_colour(cell.bg), bold=cell.bold, italic=cell.italics,
        reverse=cell.reverse,
    )  # fmt: skip


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    names = {"brown": "yellow", "brightbrown": "bright_yellow"}
    if len(name) == 6 and all(letter in "0123456789abcdef" for letter in name):
        return f"#{name}"
    return names.get(name, name.replace("bright", "bright_"))


if __name__ == "__main__":
    main()
