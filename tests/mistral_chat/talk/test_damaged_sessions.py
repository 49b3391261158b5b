"""Sessions that something else than this program has changed: nothing is lost in silence."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_chat.errors import UsageError
from mistral_chat.settings import Paths
from mistral_chat.talk.sessions import (
    SessionFile,
    Talk,
    Turn,
    list_sessions,
    read_session,
    read_talk,
    remove_session,
)

from ..conftest import Command
from ..fakes import FakeEngine

HEADER = b'{"format": "mistral-chat session", "version": 1}\n'
TURNS = [
    json.dumps({"event": "turn", "user": f"question {number}", "assistant": "é" * number}).encode()
    for number in range(4)
]
WHOLE = HEADER + b"".join(turn + b"\n" for turn in TURNS)

NO_EVENTS = [
    b"[]",
    b"5",
    b"null",
    b'"turn"',
    b"{}",
    b"hello",
    b"\0" * 40,
    b'{"event": 5}',
    b'{"event": "turn", "user": "a"}',
    b'{"event": "turn", "user": "a", "assistant": 5}',
    b'{"event": "turn", "user": "a", "assistant": "b", "finish_reason": 5}',
    b'{"event": "turn", "user": "a", "assistant": "b", "time": []}',
    b'{"event": "turn", "user": "\\ud800", "assistant": "b"}',
    b'{"event": "turn", "user": "caf\xe9", "assistant": "b"}',
    b'{"event": "system", "text": 5}',
    b'{"event": "system", "text": null}',
    b'{"event": "system"}',
    b'{"event": "evict", "turns": Infinity}',
    b'{"event": "evict", "turns": NaN}',
    b'{"event": "evict", "turns": 1.0}',
    b'{"event": "evict", "turns": true}',
    b'{"event": "evict", "turns": -1}',
    b'{"event": "evict"}',
    b'{"event": "evict", "turns": ' + b"9" * 5000 + b"}",
    b'{"event": "evict", "turns": 1, "summary": 5}',
    b'{"event": "together", "events": 5}',
    b'{"event": "together", "events": [5]}',
    b'{"event": "together", "events": [{"event": "undo"}, {"event": "turn", "user": "a"}]}',
    b'{"event": "together", "events": [{"event": "together", "events": []}]}',
    b"[" * 100_000,
    TURNS[0] + TURNS[1],
]


def users(path: Path) -> list[str]:
    return [turn.user for turn in read_talk(path).turns]


def aside(path: Path, number: int = 1) -> Path:
    return path.with_name(f"{path.stem}.damaged-{number}.jsonl")


@pytest.mark.parametrize("line", NO_EVENTS, ids=range(len(NO_EVENTS)))
def test_a_line_that_is_no_event_is_set_aside_with_all_after_it(
    tmp_path: Path, line: bytes
) -> None:
    path = tmp_path / "s.jsonl"
    before = HEADER + TURNS[0] + b"\n"
    after = line + b"\n" + TURNS[1] + b"\n"
    path.write_bytes(before + after)
    assert read_session(path).damaged == 3
    session = SessionFile.open(path)
    assert session.notice is not None
    assert str(aside(path)) in session.notice
    assert aside(path).read_bytes() == after
    assert stat.S_IMODE(aside(path).stat().st_mode) == 0o600
    assert session.talk.turns == read_talk(path).turns == [Turn("question 0", "")]
    assert (session.talk.system, session.talk.summary, session.talk.evicted) == (None, None, 0)
    session.record("turn", user="new", assistant="n")
    session.close()
    assert users(path) == ["question 0", "new"]
    again = SessionFile.open(path)
    assert again.notice is None
    again.close()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_was_set_aside_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    for number in (1, 2, 3):
        path.write_bytes(HEADER + f"damage {number}\n".encode())
        SessionFile.open(path).close()
    assert [aside(path, each).read_bytes() for each in (1, 2, 3)] == [
        b"damage 1\n", b"damage 2\n", b"damage 3\n",
    ]  # fmt: skip


@given(st.data())
def test_whatever_happens_to_its_bytes_every_one_is_somewhere(data: st.DataObject) -> None:
    """Bytes are overwritten, put in or taken out: turns stay, are set aside, or it is refused."""
    place = data.draw(st.integers(0, len(WHOLE)))
    gone = data.draw(st.integers(0, 60))
    put = data.draw(st.binary(max_size=60) | st.integers(0, 60).map(lambda size: b"\0" * size))
    damaged = WHOLE[:place] + put + WHOLE[place + gone :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.jsonl"
        path.write_bytes(damaged)
        try:
            session = SessionFile.open(path)
        except UsageError:
            assert path.read_bytes() == damaged
            assert len(list(Path(folder).iterdir())) == 1
            return
        kept = path.read_bytes()
        session.record("turn", user="new", assistant="n")
        session.close()
        assert users(path)[-1] == "new"
        assert damaged.startswith(kept)
        rest = damaged[len(kept) :]
        if aside(path).exists():
            assert aside(path).read_bytes() == rest
        elif rest:
            # Only what cannot have been confirmed: there is no end of a line in it.
            assert b"\n" not in rest
        # What was cut off is told, unless it was nothing but zeros.
        assert session.notice is not None or not rest.strip(b"\0")


def test_a_last_line_that_was_broken_off_is_cut_off_and_told(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(WHOLE + TURNS[0][:30])
    assert read_session(path).damaged is None  # somebody may be writing it just now
    session = SessionFile.open(path)
    assert session.notice is not None
    assert "broken off" in session.notice
    assert path.read_bytes() == WHOLE
    session.close()
    path.write_bytes(WHOLE + b"\0" * 4000)  # a length without bytes, after a loss of power
    session = SessionFile.open(path)
    assert (session.notice, path.read_bytes()) == (None, WHOLE)
    assert not aside(path).exists()


def test_a_last_line_whose_end_was_edited_away_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(WHOLE.rstrip(b"\n"))
    SessionFile.open(path).close()
    assert aside(path).read_bytes() == TURNS[-1]


@pytest.mark.parametrize("content", [
    b"hello", b"\xff", b'{"format": "other"', b"\xef\xbb\xbf" + WHOLE, TURNS[0] + b"\n", b"\0\n",
    HEADER.replace(b"1", b'"1"'), HEADER.replace(b"1", b"true"), b"\n" + WHOLE,
])  # fmt: skip
def test_a_file_without_the_first_line_is_refused_and_left(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(content)
    told: list[str] = []
    assert list_sessions(tmp_path, tell=told.append) == []
    assert len(told) == 1
    with pytest.raises(UsageError, match="is not a session"):
        SessionFile.open(path)
    with pytest.raises(UsageError, match="is not a session"):
        remove_session(tmp_path, "s")
    assert [each.name for each in tmp_path.iterdir()] == ["s.jsonl"]
    assert path.read_bytes() == content


def test_a_later_version_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(WHOLE.replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(UsageError, match=r"version 2 of the format .* update mistral-chat"):
        SessionFile.open(path)


@pytest.mark.parametrize("how", ["appended", "cut", "replaced", "removed"])
def test_what_another_program_changed_meanwhile_is_not_written_to(tmp_path: Path, how: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(WHOLE)
    session = SessionFile.open(path)
    if how == "appended":
        path.write_bytes(WHOLE + TURNS[0] + b"\n")
    elif how == "cut":
        path.write_bytes(HEADER)
    elif how == "replaced":
        other = tmp_path / "other"
        other.write_bytes(WHOLE)
        other.replace(path)
    else:
        path.unlink()
    there = path.read_bytes() if path.exists() else None
    with pytest.raises(UsageError, match="Another program has changed or removed"):
        session.record("turn", user="new", assistant="n")
    assert len(session.talk.turns) == 4
    assert (path.read_bytes() if path.exists() else None) == there


def test_a_session_that_another_program_begins_meanwhile_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    session = SessionFile.open(path)
    path.write_bytes(WHOLE)
    with pytest.raises(UsageError, match="Another program has changed"):
        session.record("turn", user="new", assistant="n")
    assert path.read_bytes() == WHOLE


@given(st.text(st.characters()), st.text(st.characters()))
def test_the_talk_is_what_the_file_says(user: str, assistant: str) -> None:
    """Also where a text holds half a surrogate pair, which no file can."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.jsonl"
        session = SessionFile.open(path)
        session.record("turn", user=user, assistant=assistant)
        session.close()
        assert read_talk(path).turns == session.talk.turns


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    session = SessionFile.open(path)
    values: Any = {"user": 1, "assistant": "x"}
    with pytest.raises(ValueError, match="without texts"):
        session.record("turn", **values)
    assert not path.exists()


def test_events_that_belong_together_are_taken_in_together() -> None:
    talk = Talk([Turn("a", "1")])
    turn = {"event": "turn", "user": "a", "assistant": "2"}
    talk.apply({"event": "together", "events": [{"event": "undo"}, turn]})
    assert talk.turns == [Turn("a", "2")]
    with pytest.raises(ValueError, match="without texts"):
        talk.apply({"event": "together", "events": [{"event": "undo"}, {**turn, "user": None}]})
    assert talk.turns == [Turn("a", "2")]


def test_the_commands_tell_of_it(command: Command, paths: Paths, engine: FakeEngine) -> None:
    paths.sessions.mkdir(parents=True)
    path = paths.sessions / "s.jsonl"
    lines = WHOLE.split(b"\n")
    lines[2] = lines[2][:20] + b"\0" + lines[2][21:]
    path.write_bytes(b"\n".join(lines))
    (paths.sessions / "other.jsonl").write_text("notes of mine\n")
    listed = command("sessions")
    assert listed.code == 0
    assert listed.stdout.startswith("s\t")
    assert "'s' is damaged at line 3" in listed.stderr
    assert "other.jsonl is not a session" in listed.stderr
    assert json.loads(command("sessions", "--json").stdout)[0]["damaged"] == 3
    exported = command("sessions", "export", "s")
    assert (exported.code, exported.stdout.count("## User")) == (1, 1)
    assert "damaged at line 3" in exported.stderr
    engine.answers += ["answer", "answer"]
    asked = command("--session", "s", "-q", "new")
    assert (asked.code, asked.stdout) == (0, "answer\n")
    assert str(aside(path)) in asked.stderr
    assert users(path) == ["question 0", "new"]
    assert b"question 3" in aside(path).read_bytes()
    exported = command("sessions", "export", "s")
    assert (exported.code, exported.stderr) == (0, "")
    assert "'s'" not in command("sessions").stderr
    assert command("sessions", "rename", "s", "t").code == 0
    assert aside(paths.sessions / "t.jsonl").exists()
    assert command("sessions", "rm", "t").code == 0
    assert [each.name for each in paths.sessions.iterdir()] == ["other.jsonl"]


def test_renaming_a_damaged_session_tells_of_it(command: Command, paths: Paths) -> None:
    paths.sessions.mkdir(parents=True)
    (paths.sessions / "s.jsonl").write_bytes(HEADER + TURNS[0] + b"\nx\n")
    assert "damaged at line 3" in command("sessions", "rename", "s", "t").stderr
    assert users(paths.sessions / "t.jsonl") == ["question 0"]


def test_what_cannot_be_set_aside_is_left_and_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(HEADER + TURNS[0] + b"\nx\n")

    def full(_descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="cannot be opened: The disk is full"):
        SessionFile.open(path)
    assert path.read_bytes() == HEADER + TURNS[0] + b"\nx\n"
    assert [each.name for each in tmp_path.iterdir()] == ["s.jsonl"]
