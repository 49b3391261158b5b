"""What the prompt draws, on a real terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from ..pseudo_terminal import OpenTerminal, Terminal


def test_the_toolbar_and_the_prompt_of_the_model(terminal: OpenTerminal) -> None:
    screen = terminal("first", NO_COLOR="1")
    assert "fake  context 12 of 100" in screen.toolbar()
    screen.ask("/prompt", "Nothing was asked yet.")
    screen.ask("he", "first")
    assert "tokens/s" in screen.toolbar()
    # Every token is shown.
    screen.enter("/prompt")
    screen.see("<|im_start|>")


def test_markdown_is_drawn_and_stays(terminal: OpenTerminal) -> None:
    answer = (
        "# Title\n\nSome *soft* and **hard** words.\n\n- one\n- two\n\n"
        "```python\nx = 1\n```\n\n| 名 | b |\n|---|---|\n| 漢字 | 🙂 |\n\nEnd <b>here</b>."
    )
    screen = terminal(answer, "plain *text*")
    screen.enter("Draw")
    lines = screen.wait_for("End <b>here</b>.")
    assert "Some soft and hard words." in lines
    assert " • one" in lines
    assert " x = 1" in lines
    assert "```python" not in lines
    # Each block once: nothing that was drawn on the way is left.
    assert sum("Title" in line for line in lines) == 1
    assert sum("漢" in line for line in lines) == 1
    screen.ready()
    screen.ask("/set plain on", "plain = on")
    screen.ask("Again", "plain *text*")


def test_plain_is_the_text_as_it_is(terminal: OpenTerminal) -> None:
    screen = terminal("*as it is*", MISTRAL_CHAT_PLAIN="on")
    screen.ask("Hi", "*as it is*")


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


def test_twenty_columns(terminal: OpenTerminal) -> None:
    screen = terminal("A sentence that is longer than the terminal.", columns=20)
    screen.ask("Hi", "longer than the")
