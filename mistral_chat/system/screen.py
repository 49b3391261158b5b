"""The one kind of console that draws: it shows characters that steer a terminal, and obeys none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment
from rich.text import Text

from mistral_chat.printable import printable

_DIGITS = 4
"""Digits of a terminal's size; Rich would draw for any that the environment names."""


class Screen(Console):
    """A Rich console whose texts are printable, whether they are given as text or drawn.

    Texts are no markup: what a file calls a tensor must not colour the screen either.
    """

    def __init__(self, **more: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "_environ": _environment(), **more})
        self.push_render_hook(_Neutral())

    def render_str(self, text: str, **more: Any) -> Text:
        """A text to be drawn; made printable before its width is measured."""
        return super().render_str(printable(text), **more)


def _environment() -> dict[str, str]:
    """The variables that Rich reads, without a size that no terminal has."""
    sizes = {name: os.environ.get(name, "") for name in ("COLUMNS", "LINES")}
    return {
        name: value for name, value in os.environ.items() if len(sizes.get(name, "")) <= _DIGITS
    }


class _Neutral(RenderHook):
    """Makes printable what was not given as text, such as a Text of Rich's own."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Drawn(each) for each in renderables]


class _Drawn:
    """Something drawn, of which the moves of the cursor stay and every text is printable."""

    def __init__(self, drawn: ConsoleRenderable) -> None:
        self._drawn = drawn

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from neutral(list(console.render(self._drawn, options)))


def neutral(segments: Sequence[Segment]) -> list[Segment]:
    """Segments of the same looks with printable texts; those that move the cursor stay."""
    return [
        each if each.control else Segment(printable(each.text), each.style) for each in segments
    ]
