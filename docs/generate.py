"""Writes the parts of the documentation that the code already says.

    python docs/generate.py            # writes them; a test checks that nothing would change

``reference.md`` is the help of every command; the tables of settings, of slash commands and of the
rooms of the house stand between two markers in their pages.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tomllib
from pathlib import Path
from unittest import mock

from mistral_chat.cli import PROGRAM, main
from mistral_chat.settings import all_settings
from mistral_chat.terminal.commands import COMMANDS

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- generated: docs/generate.py -->\n", "<!-- end of what is generated -->\n"
GROUPS = {"sessions": ("search", "rename", "rm", "export")}


def pages() -> dict[Path, str]:
    """What each page should hold."""
    return {
        HERE / "reference.md": reference(),
        HERE / "architecture.md": between(HERE / "architecture.md", rooms_table()),
        HERE / "settings.md": between(HERE / "settings.md", settings_table()),
        HERE / "repl.md": between(HERE / "repl.md", slash_table()),
    }


def help_of(*words: str) -> str:
    """What ``mistral-chat WORDS --help`` prints on a terminal of 80 columns."""
    output = io.StringIO()
    arguments = [PROGRAM, *words, "--help"]
    environment = {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
    with (
        mock.patch.object(sys, "argv", arguments),
        mock.patch.dict(os.environ, environment),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        main()
    return "\n".join(line.rstrip() for line in output.getvalue().strip().splitlines())


def reference() -> str:
    """The help of all commands."""
    top = help_of()
    listed = top.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    names = [line.split()[0] for line in listed if line.startswith("  ") and line[2] != " "]
    words = [(), *((name,) for name in names)]
    words += [(group, name) for group, inner in GROUPS.items() for name in inner]
    parts = ["# Command reference\n", "Generated from the code by `docs/generate.py`.\n"]
    for each in words:
        title = " ".join([PROGRAM, *each])
        parts.append(f"## {title}\n\n```text\n{help_of(*each)}\n```\n")
    return "\n".join(parts)


def settings_table() -> str:
    """A row for each setting: its key, flag, variable, default and meaning."""
    lines = ["| key | flag | variable | default | |", "|---|---|---|---|---|"]
    for row in all_settings():
        default = row.default
        if isinstance(default, bool):
            default = "on" if default else "off"
        flag = f"{row.flag}, --no-{row.flag[2:]}" if row.kind is bool else row.flag
        choices = f" One of {', '.join(row.choices)}." if row.choices else ""
        live = " `/set` changes it." if row.live else ""
        shown = "" if default is None else f"`{default}`"
        cells = [f"`{row.name}`", f"`{flag}`", f"`{row.environment}`", shown]
        lines.append(f"| {' | '.join(cells)} | {row.help}{choices}{live} |")
    return "\n".join(lines) + "\n"


def slash_table() -> str:
    """A row for each slash command."""
    lines = ["| command | |", "|---|---|"]
    lines += [f"| `{f'/{row.name} {row.arguments}'.rstrip()}` | {row.help} |" for row in COMMANDS]
    return "\n".join(lines) + "\n"


def rooms_table() -> str:
    """A row for each room of both packages, from the cellar to the roof."""
    house = tomllib.loads((HERE / "house.toml").read_text(encoding="utf-8"))
    tables = []
    for package, rooms in house.items():
        lines = [f"| `{package}/` | |", "|---|---|"]
        for name, room in rooms.items():
            shown = f"{name}/" if "modules" in room else f"{name}.py"
            lines.append(f"| `{shown}` | {room['says']} |")
        tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


def between(page: Path, table: str) -> str:
    """A page with ``table`` between its markers."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table}{END}{after}"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
