"""What the prompt draws, on a real terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import pytest

from ..pseudo_terminal import CTRL_C, ENTER, Terminal


def test_the_toolbar_tells_model_context_and_speed(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("first")
    assert "fake  context 12 of 100" in screen.toolbar()
    screen.send("Hello" + ENTER)
    screen.wait_for("first")
    screen.ready()
    assert "tokens/s" in screen.toolbar()


def test_markdown_is_drawn_and_stays(terminal: Callable[..., Terminal]) -> None:
    answer = (
        "# Title\n\nSome *soft* and **hard** words.\n\n- one\n- two\n\n"
        "```python\nx = 1\n```\n\n| 名 | b |\n|---|---|\n| 漢字 | 🙂 |\n\nEnd <b>here</b>."
    )
    screen = terminal(answer, "plain *text*")
    screen.send("Draw" + ENTER)
    lines = screen.wait_for("End <b>here</b>.")
    assert "Some soft and hard words." in lines
    assert " • one" in lines
    assert " x = 1" in lines
    assert "```python" not in lines
    # Each block once: nothing that was drawn on the way is left.
    assert sum("Title" in line for line in lines) == 1
    assert sum("漢" in line for line in lines) == 1
    screen.ready()
    screen.send("/set plain on" + ENTER)
    screen.wait_for("plain = on")
    screen.ready()
    screen.send("Again" + ENTER)
    screen.wait_for("plain *text*")


def test_plain_is_the_text_as_it_is(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("*as it is*", MISTRAL_CHAT_PLAIN="on")
    screen.send("Hi" + ENTER)
    screen.wait_for("*as it is*")


@pytest.mark.parametrize("more", [{"TERM": "dumb"}, {"MISTRAL_CHAT_PLAIN": "on"}])
def test_one_answer_without_an_escape_code(
    fake_environment: Callable[..., Mapping[str, str]], more: dict[str, str]
) -> None:
    environment = fake_environment("*as it is*\n\n- one\n", **more)
    screen = Terminal(environment, ["Hi"])
    assert screen.ended() == 0
    assert "*as it is*\r\n\r\n- one\r\n" in screen.raw
    assert "\x1b" not in screen.raw


def test_one_answer_is_drawn_on_a_terminal(
    fake_environment: Callable[..., Mapping[str, str]],
) -> None:
    screen = Terminal(fake_environment("*soft*\n\n- one\n"), ["-q", "Hi"])
    assert screen.ended() == 0
    assert "*soft*" not in screen.raw
    assert "\x1b" in screen.raw


def test_twenty_columns(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("A sentence that is longer than the terminal.", columns=20)
    screen.send("Hi" + ENTER)
    screen.wait_for("longer than the")
    screen.ready()


def test_a_terminal_that_is_resized(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("...", "after")
    screen.send("Talk" + ENTER)
    screen.wait(lambda lines: any(line.startswith("word word") for line in lines))
    screen.resize(50)
    time.sleep(0.3)
    screen.send(CTRL_C)
    screen.ready()
    screen.send("More" + ENTER)
    screen.wait_for("after")


def test_the_prompt_shows_every_token(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("first", NO_COLOR="1")
    screen.send("/prompt" + ENTER)
    screen.wait_for("Nothing was asked yet.")
    screen.ready()
    screen.send("he" + ENTER)
    screen.wait_for("first")
    screen.ready()
    screen.send("/prompt" + ENTER)
    screen.wait(lambda lines: any("<|im_start|>" in line for line in lines))


def test_copying_goes_through_the_terminal(terminal: Callable[..., Terminal]) -> None:
    screen = terminal("Zm9v")
    screen.send("one" + ENTER)
    screen.wait_for("Zm9v")
    screen.ready()
    screen.send("/copy" + ENTER)
    screen.wait_for("The last answer was copied.")
    assert "\x1b]52;c;Wm05dg==" in screen.raw
