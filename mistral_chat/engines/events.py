"""What an engine tells while it answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """How many of the prompt's new tokens have been read."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens; ``cached_tokens`` of the prompt's were still in the cache."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, and how many tokens they were spent on."""

    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer.

    ``finish_reason`` is ``stop`` (the model was done), ``length`` (max_tokens), ``context`` (the
    context is full), ``loop`` (it repeated itself without end), ``cancelled``, or ``refused`` (by
    the moderation; where that was the question, no token was drawn and ``seed`` may be None).
    """

    text: str
    finish_reason: str
    usage: Usage
    timings: Timings
    seed: int | None

    @property
    def truncated(self) -> bool:
        """Whether the model had more to say than there was room for."""
        return self.finish_reason in ("length", "context")


@dataclass(frozen=True, slots=True)
class StartsOver:
    """The rolling buffer no longer holds what the prompt begins with: all of it is read again."""


Event = StartsOver | TextDelta | Finished
