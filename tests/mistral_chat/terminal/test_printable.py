"""What is shown never steers the terminal it is shown on."""

from __future__ import annotations

import ast
import io
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from mistral_chat.errors import ChatError, sentence
from mistral_chat.printable import DIRECTIONS, one_line, printable, printable_json, without_controls
from mistral_chat.system.screen import Screen
from mistral_chat.terminal.markdown import MarkdownWriter
from mistral_chat.terminal.render import AnswerWriter, Notes
from quant.errors import CheckpointError

from ..conftest import Command
from ..fakes import FakeEngine
from .test_render import TerminalStream, on_a_terminal

ROOT = Path(__file__).resolve().parents[3] / "mistral_chat"

CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4K\x07"
HOSTILE = f"{CLIPBOARD}\x1b[2J\x9b2J\x1b]0;owned\x07\r\x08\u202egnp\u2066.exe"

steering = [
    *map(chr, (*range(0x20), *range(0x7F, 0xA0), *DIRECTIONS, 0x2028, 0x2029)),
    "\r\n", CLIPBOARD,
]  # fmt: skip
texts = st.lists(st.one_of(st.text(), st.sampled_from(steering))).map("".join)


def steers(text: str, kept: str = "\n\t") -> bool:
    """Whether a terminal would do something else with a text than show it."""
    return any(
        unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") or ord(each) in DIRECTIONS
        for each in text
        if each not in kept
    )


@given(texts)
def test_a_printable_text_steers_nothing(text: str) -> None:
    shown = printable(text)
    assert not steers(shown)
    assert printable(shown) == shown
    assert not steers(one_line(text), kept="")
    assert not steers(without_controls(text))


@given(st.text().filter(lambda text: not steers(text)))
def test_what_steers_nothing_stays_as_it_is(text: str) -> None:
    assert printable(text) == printable_json(text) == without_controls(text) == text


@given(st.recursive(texts, lambda each: st.lists(each) | st.dictionaries(texts, each)))
def test_json_keeps_its_value(value: object) -> None:
    written = printable_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(written) == value
    assert not steers(written)


@given(texts)
def test_an_error_is_one_line_that_steers_nothing(text: str) -> None:
    for error in (
        CheckpointError(text),
        ChatError(text),
        OSError(2, "No such file or directory", text),
        OSError(28, "No space left on device", text.encode("utf-8", "surrogatepass")),
        OSError(text),
    ):
        assert not steers(sentence(error), kept="")


@given(texts)
def test_a_screen_shows_every_text_without_obeying_it(text: str) -> None:
    stream = io.StringIO()
    screen = Screen(file=stream, width=100_000)
    table = Table.grid()
    table.add_row(text, Text(text))
    for shown in (text, Text(text), table):
        screen.print(shown)
    assert not steers(stream.getvalue())


@given(st.lists(texts))
def test_an_answer_on_a_terminal_steers_nothing(pieces: list[str]) -> None:
    stream = TerminalStream()
    writer = AnswerWriter(stream)
    for piece in pieces:
        writer.write(piece)
    writer.end()
    assert not steers(stream.getvalue())


@pytest.mark.parametrize(
    "answer", [HOSTILE, f"`{HOSTILE}`", f"```\n{HOSTILE}\n```", "&#x202e;&#x1b;&#155;&rlm;"]
)
def test_an_answer_drawn_as_markdown_holds_only_the_colours_of_its_own(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = TerminalStream()
    writer = MarkdownWriter(stream)
    writer.write(answer)
    writer.end()
    drawn = stream.getvalue()
    assert "\x07" not in drawn
    assert "\x1b]" not in drawn
    assert "\x9b" not in drawn
    assert "\u202e" not in drawn


def test_notes_and_bars_steer_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = on_a_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    notes = Notes()
    notes.say(HOSTILE)
    notes.warn(HOSTILE)
    with notes.progress() as progress:
        progress(HOSTILE, 1, 2)
    written = stderr.getvalue()
    assert "owned" in written
    assert "\x1b]" not in written
    assert "\x07" not in written
    assert "\x1b[2J" not in written
    assert not any(chr(each) in written for each in (0x9B, *DIRECTIONS))


def test_a_name_is_shown_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    Notes().say("a [red]name[/red] :bomb:")
    assert capsys.readouterr().err == "a [red]name[/red] :bomb:\n"


def test_a_value_that_is_refused_steers_nothing(command: Command) -> None:
    for flag in ("--kv", "--context", "--temperature"):
        result = command(flag, HOSTILE, "hi")
        assert (result.code, result.stdout) == (2, "")
        assert not steers(result.stderr)


def test_a_refusal_of_a_name_steers_nothing(command: Command, engine: FakeEngine) -> None:
    for arguments in (
        ["info", HOSTILE],
        ["--" + HOSTILE],
        ["-f", HOSTILE, "hi"],
        ["sessions", "export", HOSTILE],
        ["moderate", "--evaluate", HOSTILE],
    ):
        result = command(*arguments)
        assert result.code != 0
        assert "owned" in result.stderr
        assert not steers(result.stderr)
        assert result.stderr.count("\n") == 1


def test_a_fault_of_the_program_steers_nothing_either(command: Command, engine: FakeEngine) -> None:
    engine.answers.append(KeyError(HOSTILE))
    result = command("-q", "hi")
    assert result.code == 1
    assert "KeyError" in result.stderr
    assert not steers(result.stderr)


def test_an_answer_in_a_pipe_keeps_its_bytes(command: Command, engine: FakeEngine) -> None:
    engine.answers += [HOSTILE.replace("\n", ""), HOSTILE]
    assert command("-q", "hi").stdout == HOSTILE + "\n"
    assert json.loads(command("-q", "--json", "hi").stdout)["text"] == HOSTILE


WRITES = {
    # Records go through printable_json; what goes to files is not shown.
    "batch/results.py": {"file.write", "self._file.write", "self._stream.write"},
    "cli/__init__.py": {"super().write"},  # of the stream itself
    "cli/application.py": {"typer.echo"},
    "terminal/markdown.py": {"self._stream.write"},
    "terminal/oneshot.py": {"stdout.write", "writer.write"},
    "terminal/render.py": {"self._stream.write"},
    "terminal/repl.py": {"self._stdout.write", "writer.write"},
    "system/screen.py": {"rich.console.Console"},
    "terminal/template_view.py": {"stream.write"},
}
"""All that writes to a terminal, looked at one by one; everything else goes through these."""


def writes(path: Path) -> set[str]:
    """The calls and imports of a module by which a text could reach the terminal."""
    text = path.read_text(encoding="utf-8")
    has_stream = any(word in text for word in ("TextIO", "sys.stdout", "sys.stderr"))
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
            found |= {f"rich.console.{each.name}" for each in node.names if each.name == "Console"}
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("print", "typer.echo", "typer.secho", "click.echo"):
                found.add(name)
            if has_stream and name.endswith((".write", ".writelines")):
                found.add(name)
    return found


def test_everything_that_writes_to_a_terminal_is_known() -> None:
    found = {
        str(path.relative_to(ROOT)): calls
        for path in sorted(ROOT.rglob("*.py"))
        if (calls := writes(path))
    }
    assert found == WRITES


def test_the_check_sees_what_writes(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "from rich.console import Console\nprint(1)\ntyper.echo('a')\nsys.stdout.write('b')\n"
    )
    assert writes(module) == {"rich.console.Console", "print", "typer.echo", "sys.stdout.write"}
