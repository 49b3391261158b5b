"""What is drawn, and where."""

from __future__ import annotations

import io

import pytest

from mistral_chat.engines.events import PrefillProgress
from mistral_chat.terminal.render import AnswerWriter, Milestones, Notes


class TerminalStream(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_newlines_at_the_end_become_one() -> None:
    stream = io.StringIO()
    writer = AnswerWriter(stream)
    for piece in ("\none\n", "\n", "two\n\n", ""):
        writer.write(piece)
    writer.end()
    assert stream.getvalue() == "\none\n\ntwo\n"


@pytest.mark.parametrize(
    ("stream", "written"),
    [(TerminalStream(), "a[31mb\tc\n"), (io.StringIO(), "a\x1b[31mb\tc\x9b\n")],
)
def test_an_answer_cannot_steer_the_terminal(stream: io.StringIO, written: str) -> None:
    writer = AnswerWriter(stream)
    writer.write("a\x1b[31mb\tc\x9b")
    writer.end()
    assert stream.getvalue() == written


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> TerminalStream:
    """Make standard error a terminal, from inside a test: pytest sets its own before each one."""
    stream = TerminalStream()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    return stream


def draw_both(notes: Notes) -> None:
    """Draw both bars, half way."""
    with notes.progress() as progress:
        progress("Fetching", 1, 2)
    with notes.prefill() as (draw, hide):
        draw(PrefillProgress(1, 2))
        hide()


def test_bars_move_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = on_a_terminal(monkeypatch)
    draw_both(Notes())
    assert "Fetching" in stderr.getvalue()
    assert "Reading" in stderr.getvalue()
    assert "\x1b[2K" in stderr.getvalue()


def test_nothing_to_show_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = on_a_terminal(monkeypatch)
    notes = Notes()
    with notes.progress(), notes.prefill() as (draw, _):
        draw(PrefillProgress(2, 2))
    assert stderr.getvalue() == ""


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = on_a_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    draw_both(Notes())
    assert stderr.getvalue() == "Fetching ...\n"


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = on_a_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    Notes().warn("careful")
    assert "\x1b[33m" not in stderr.getvalue()
    monkeypatch.delenv("NO_COLOR")
    Notes().warn("careful")
    assert "\x1b[33m" in stderr.getvalue()


def test_quiet_says_only_what_should_not_be_missed(capsys: pytest.CaptureFixture[str]) -> None:
    notes = Notes(quiet=True)
    draw_both(notes)
    notes.say("banner")
    notes.warn("careful [not markup]")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "careful [not markup]\n")


def test_a_log_tells_how_long_it_will_take() -> None:
    said: list[str] = []
    now = 0.0
    milestones = Milestones(said.append, lambda: now)
    for done in range(101):
        milestones.tell("Quantizing", done, 100)
        now += 10
    assert said[:3] == [
        "Quantizing ...",
        "Quantizing: 3%, 16 min left",
        "Quantizing: 6%, 16 min left",
    ]
    assert said[-1] == "Quantizing: 99%, 10 s left"
    assert len(said) == 34
