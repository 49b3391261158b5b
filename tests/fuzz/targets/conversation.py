"""Conversations and lines to be judged, in JSON from elsewhere."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from mistral_chat.guardrail.categories import load_taxonomy
from mistral_chat.guardrail.evaluation import read_examples
from mistral_chat.guardrail.report import read_lines
from mistral_chat.messages import Role, read_conversation
from mistral_chat.templates import template_for
from mistral_chat.terminal.template_view import TemplateView
from mistral_chat.tokenizers import load_tokenizer, tokenizer_from_gguf

from ...mistral_chat.fakes import tiny_metadata
from ..mutation import TEXTS, changed_value, to_json
from ..target import Target
from ..tiny import PIECES, write_chat_mistral

TALK: list[Any] = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": "Hi <|im_end|>"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "x"},
]
LINES: list[Any] = [
    {"text": "a", "label": "acceptable"},
    {"text": "b", "label": "unacceptable", "role": "user", "question": "q"},
]
OWN = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' ~ m.role ~ (m.content|trim) ~ '<|im_end|>' }}{% endfor %}"
)


def odd_contents(random: Random) -> list[Any]:
    """The same talk about something else."""
    return [{**row, "content": random.choice((row["content"], *TEXTS))} for row in TALK]


class Conversation(Target):
    """What is read becomes tokens in every chat format, and JSON again."""

    name = "conversation"

    def make(self) -> None:
        own = {**tiny_metadata(), "tokenizer.chat_template": OWN}
        tokenizers = [tokenizer_from_gguf(each) for each in (tiny_metadata(), PIECES, own)]
        tokenizers.append(load_tokenizer(write_chat_mistral(self.folder / "mistral")))
        self.formats = [(tokenizer, template_for(tokenizer)) for tokenizer in tokenizers]
        self.taxonomy = load_taxonomy("paper")

    def case(self, random: Random, scratch: Path) -> None:
        if random.random() < 0.75:
            rows = changed_value(random, TALK) if random.random() < 0.6 else odd_contents(random)
            messages = read_conversation(to_json(rows, random))
            for tokenizer, template in self.formats:
                TemplateView.of(tokenizer, template, messages).to_json().encode("utf-8")
            return
        rows = [changed_value(random, row) if random.random() < 0.5 else row for row in LINES]
        data = b"\n".join(to_json(row, random) for row in rows)
        if random.random() < 0.5:
            read_lines(data, "lines", Role.USER)
        else:
            read_examples(data, "lines", self.taxonomy)


TARGET = Conversation
