"""What a talk asks of an engine: messages in, typed events out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import quant
from mistral_chat.engines.events import Event, PrefillProgress
from mistral_chat.guardrail.moderation import Scorer
from mistral_chat.messages import Message
from mistral_chat.templates import ChatTemplate
from mistral_chat.tokenizers import Tokenizer


class Engine(Protocol):
    """What a chat needs from an engine; see ChatEngine."""

    name: str
    model: quant.Model
    template: ChatTemplate
    tokenizer: Tokenizer
    recommended: Mapping[str, object]
    complaints: Sequence[str]

    @property
    def session(self) -> quant.Session:
        """The session that has read the last prompt."""

    def reply(
        self,
        messages: Sequence[Message],
        sampling: quant.Sampling,
        max_tokens: int | None = None,
        cancel: Callable[[], bool] | None = None,
        progress: Callable[[PrefillProgress], None] | None = None,
        stop_loops: bool = True,
    ) -> Iterator[Event]:
        """Answer a conversation."""

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """How many tokens a conversation is."""

    def save_cache(self, path: Path, messages: Sequence[Message]) -> int:
        """Write what was read of a conversation to a file; its bytes."""

    def restore_cache(self, path: Path) -> None:
        """Take up what an earlier process had read."""

    def scorer(self, context: int) -> Scorer:
        """A scorer for ``context`` tokens, or for as many as the model can have."""
