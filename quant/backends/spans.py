"""What a pass works on: rows of several sequences side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cache import TILE


@dataclass(frozen=True, slots=True)
class Span:
    """One sequence's part of a pass.

    Its ``tokens`` are the rows from ``row`` on; the first is at ``position``. ``sequence`` says
    whose ring they belong to. Logits of its last ``wanted`` tokens are wanted, which are the rows
    from ``head_row`` on among those that only serve the logits. What of it is kept aside lies in
    the chunk's slots from ``aside`` on, a multiple of 64. What is not ``kept`` never goes to the
    ring: it branches off from the sequence and is forgotten after the pass.

    Example: a pass of a prompt's 5 tokens for sequence 0, of which the last one's logits are
    wanted, and of one token for sequence 1, which is at position 9::

        Span(row=0, tokens=5, position=0, sequence=0, aside=0, wanted=1, head_row=0)
        Span(row=5, tokens=1, position=9, sequence=1, aside=64, wanted=1, head_row=1)
    """

    row: int
    tokens: int
    position: int
    sequence: int = 0
    aside: int = 0
    wanted: int = 0
    head_row: int = 0
    kept: int = 1

    def rows(self, head: bool) -> tuple[int, int, int]:
        """First token, number of tokens and first row of the output, of a step that serves the
        logits alone (``head``) or of any other.
        """
        if head:
            return self.tokens - self.wanted, self.wanted, self.head_row
        return 0, self.tokens, self.row


def lay_out(parts: Sequence[tuple[int, int, int, int, bool]]) -> list[Span]:
    """Spans one behind the other; parts are (sequence, tokens, position, wanted, kept).

    >>> lay_out([(0, 5, 0, 1, True), (1, 1, 9, 1, True)])[1]
    Span(row=5, tokens=1, position=9, sequence=1, aside=64, wanted=1, head_row=1, kept=1)
    """
    spans = []
    row = aside = head_row = 0
    for sequence, tokens, position, wanted, kept in parts:
        spans.append(Span(row, tokens, position, sequence, aside, wanted, head_row, int(kept)))
        row += tokens
        aside += slots_aside(position, tokens)
        head_row += wanted
    return spans


def slots_aside(position: int, tokens: int) -> int:
    """Slots in which ``tokens`` from ``position`` on are kept aside: the tiles they lie in."""
    return -(-(position % TILE + tokens) // TILE) * TILE


def aside_slots(rows: int, spans: int) -> int:
    """Slots that :func:`lay_out` may need for so many rows in so many spans."""
    return rows + spans * (2 * TILE - 2)


def head_rows(spans: Sequence[Span]) -> list[int]:
    """The rows whose logits are wanted."""
    return [
        span.row + token
        for span in spans
        for token in range(span.tokens)[span.tokens - span.wanted :]
    ]
