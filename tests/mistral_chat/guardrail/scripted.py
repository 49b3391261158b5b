"""A scripted model, and moderators on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from mistral_chat.guardrail.categories import load_taxonomy
from mistral_chat.guardrail.moderation import Moderator, open_moderator, reflection_messages
from mistral_chat.messages import Role
from mistral_chat.templates import template_for
from mistral_chat.tokenizers import Tokenizer, tokenizer_from_gguf

from ..fakes import OneByOne, tiny_metadata

TOKENIZER = tokenizer_from_gguf(tiny_metadata())
PAPER = load_taxonomy("paper")

Rule = Callable[[str, str], float]
"""The log-probability of an answer after a prompt, both as texts."""


class Model(OneByOne):
    """A loaded model that scores by a rule."""

    def __init__(
        self,
        rule: Rule,
        context: int = 10_000,
        template: Any = None,
        tokenizer: Tokenizer = TOKENIZER,
    ) -> None:
        self.name, self.tokenizer = "scripted", tokenizer
        self.template = template or template_for(tokenizer)
        self.rule, self.context = rule, context
        self.asked: list[str] = []
        self.labels: list[list[int]] = []
        self.wanted = 0
        self.max_context = context

    def scorer(self, context: int) -> Model:
        self.wanted = context
        self.max_context = min(context, self.context)
        return self

    def score(
        self, ids: Sequence[int], continuations: Sequence[Sequence[int]], cancel: Any = None
    ) -> list[float] | None:
        assert len(ids) + max(map(len, continuations)) <= self.max_context
        if cancel is not None and cancel():
            return None
        prompt = self.tokenizer.show(ids)
        self.asked.append(prompt)
        self.labels = [list(label) for label in continuations]
        return [self.rule(prompt, self.tokenizer.show(label)) for label in continuations]


def text_of(prompt: str) -> str:
    """The text between the lines of a classification prompt."""
    fence = next(line for line in reversed(prompt.split("\n")) if line.startswith("===== "))
    return prompt.split(f"\n{fence}\n")[1]


def by_word(**labels: str) -> Rule:
    """Likely is the label of the first of these words that the text holds, else acceptable."""

    def rule(prompt: str, label: str) -> float:
        wanted = next((found for word, found in labels.items() if word in text_of(prompt)), None)
        return math.log(0.9 if label == (wanted or "acceptable") else 0.01)

    return rule


ILLEGAL = by_word(bomb="illegal activities")

OVERHEAD = len(template_for(TOKENIZER).encode(reflection_messages(PAPER, "", Role.ASSISTANT)))


def reflection(rule: Rule = ILLEGAL, context: int = 10_000) -> tuple[Model, Moderator]:
    """A chat model that judges by the paper's categories, and its moderator."""
    model = Model(rule, context)
    return model, open_moderator(model, None)
