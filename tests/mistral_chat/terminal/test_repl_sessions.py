"""Talks at the prompt that are kept, or are not."""

from __future__ import annotations

import signal
import stat

from mistral_chat.settings import Paths
from mistral_chat.talk.sessions import read_talk

from ..pseudo_terminal import CTRL_U, OpenTerminal


def test_a_session_goes_on_after_a_restart(terminal: OpenTerminal, paths: Paths) -> None:
    screen = terminal("first")
    screen.ask("one", "first")
    screen.ask("/save work", "The session is named work.")
    screen.leave()
    assert "Kept as work, with 3 MB of cache" in screen.raw
    screen = terminal("second", arguments=["--continue"])
    screen.wait_for("Going on with work, 1 turns.")
    screen.ask("two", "second")
    screen.enter("/fork other")
    screen.see("goes on as other")
    screen.ready()
    assert screen.toolbar().endswith("other")
    screen.take_back("two")
    screen.ask("/load work", "work, 2 turns.")
    assert stat.S_IMODE((paths.sessions / "work.jsonl").stat().st_mode) == 0o600


def test_a_turn_that_cannot_be_kept_is_shown_and_its_line_comes_back(
    terminal: OpenTerminal, paths: Paths
) -> None:
    screen = terminal("first", "second", "third", arguments=["--session", "work"])
    screen.ask("one", "first")
    path = paths.sessions / "work.jsonl"
    path.write_bytes(path.read_bytes() + b"of another program\n")
    screen.enter("two")
    screen.wait_for("second")
    screen.see("This turn is not kept")
    screen.wait_for("> two")
    screen.enter(CTRL_U + "/fork other")
    screen.see("goes on as other")
    screen.ready()
    screen.ask("three", "third")
    kept = read_talk(paths.sessions / "other.jsonl").turns
    assert [turn.user for turn in kept] == ["one", "three"]
    screen.leave()
    screen = terminal("fourth", arguments=["--session", "work"])
    assert "work.damaged-1.jsonl" in "".join(screen.raw.split())


def test_a_killed_talk_goes_on(terminal: OpenTerminal) -> None:
    screen = terminal("first", "...")
    screen.ask("one", "first")
    screen.enter("two")
    screen.see_words()
    screen.process.kill(signal.SIGKILL)
    screen = terminal("second", arguments=["-c"])
    screen.see("1 turns")


def test_private_leaves_nothing(terminal: OpenTerminal, paths: Paths) -> None:
    screen = terminal("first", arguments=["--private"])
    screen.ask("one", "first")
    screen.leave()
    assert not paths.state.exists()
