"""What launches are told of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """What a run works on: ``tokens`` ids at ``position``, logits for ``head_tokens`` of them.

    Their keys and values are those of ``sequence``.
    """

    tokens: int
    position: int
    head_first: int
    head_tokens: int
    sequence: int

    def rows(self, head: bool) -> tuple[int, int]:
        """First token and number of tokens that a step works on."""
        return (self.head_first, self.head_tokens) if head else (0, self.tokens)
