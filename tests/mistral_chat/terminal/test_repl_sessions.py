"""Talks at the prompt that are kept, or are not."""

from __future__ import annotations

import signal
import stat
from collections.abc import Callable

from mistral_chat.settings import Paths
from mistral_chat.talk.sessions import read_talk

from ..pseudo_terminal import CTRL_D, ENTER, Terminal


def test_a_session_goes_on_after_a_restart(terminal: Callable[..., Terminal], paths: Paths) -> None:
    screen = terminal("first")
    screen.send("one" + ENTER)
    screen.wait_for("first")
    screen.ready()
    screen.send("/save work" + ENTER)
    screen.wait_for("The session is named work.")
    screen.ready()
    screen.send(CTRL_D)
    assert screen.ended() == 0
    assert "Kept as work, with 3 MB of cache" in screen.raw
    screen = terminal("second", arguments=["--continue"])
    screen.wait_for("Going on with work, 1 turns.")
    screen.send("two" + ENTER)
    screen.wait_for("second")
    screen.ready()
    screen.send("/fork other" + ENTER)
    screen.wait(lambda lines: any("goes on as other" in line for line in lines))
    screen.ready()
    assert screen.toolbar().endswith("other")
    screen.send("/undo" + ENTER)
    screen.wait_for("Taken back: two")
    screen.ready()
    screen.send("/load work" + ENTER)
    screen.wait_for("work, 2 turns.")
    assert stat.S_IMODE((paths.sessions / "work.jsonl").stat().st_mode) == 0o600


def test_a_turn_that_cannot_be_kept_is_shown_and_its_line_comes_back(
    terminal: Callable[..., Terminal], paths: Paths
) -> None:
    screen = terminal("first", "second", "third", arguments=["--session", "work"])
    screen.send("one" + ENTER)
    screen.wait_for("first")
    screen.ready()
    path = paths.sessions / "work.jsonl"
    path.write_bytes(path.read_bytes() + b"of another program\n")
    screen.send("two" + ENTER)
    screen.wait_for("second")
    screen.wait(lambda lines: any("This turn is not kept" in line for line in lines))
    screen.wait_for("> two")
    screen.send("\x15/fork other" + ENTER)
    screen.wait(lambda lines: any("goes on as other" in line for line in lines))
    screen.ready()
    screen.send("three" + ENTER)
    screen.wait_for("third")
    screen.ready()
    kept = read_talk(paths.sessions / "other.jsonl").turns
    assert [turn.user for turn in kept] == ["one", "three"]
    screen.send(CTRL_D)
    assert screen.ended() == 0
    screen = terminal("fourth", arguments=["--session", "work"])
    assert "work.damaged-1.jsonl" in "".join(screen.raw.split())


def test_a_killed_talk_goes_on(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("first", "...")
    screen.send("one" + ENTER)
    screen.wait_for("first")
    screen.ready()
    screen.send("two" + ENTER)
    screen.wait(lambda lines: any(line.startswith("word word") for line in lines))
    screen.process.kill(signal.SIGKILL)
    screen = terminal("second", arguments=["-c"])
    screen.wait(lambda lines: any("1 turns" in line for line in lines))


def test_private_leaves_nothing(terminal: Callable[..., Terminal], paths: Paths) -> None:
    screen = terminal("first", arguments=["--private"])
    screen.send("one" + ENTER)
    screen.wait_for("first")
    screen.ready()
    screen.send(CTRL_D)
    assert screen.ended() == 0
    assert not paths.state.exists()
