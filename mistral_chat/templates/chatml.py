"""ChatML and Zephyr: what the fine-tuned relatives of Mistral 7B were trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mistral_chat.messages import Message, Role
from mistral_chat.templates.parts import (
    ChatTemplate,
    Control,
    Part,
    Segment,
    Text,
    check_roles,
    control_id,
    encode_parts,
    written,
)
from mistral_chat.tokenizers import Tokenizer


class ChatML(ChatTemplate):
    r"""``<|im_start|>role\ncontent<|im_end|>\n`` for each message (OpenAI's ChatML).

    Role, newline and content are encoded together, because that is the text between two control
    ids on which these models were trained. ``default_system`` is the system prompt that the model's
    own template adds where the conversation begins with none.
    """

    name = "chatml"

    def __init__(self, tokenizer: Tokenizer, default_system: str | None) -> None:
        self._tokenizer = tokenizer
        self.default_system = default_system
        end = control_id(tokenizer, "<|im_end|>")
        control_id(tokenizer, "<|im_start|>")
        # A model may also end its whole text instead of its turn.
        ends = (end, tokenizer.eos_id, tokenizer.control_id("<|endoftext|>"))
        self.stop_ids = tuple(dict.fromkeys(i for i in ends if i is not None))

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        r"""The parts, ending in ``<|im_start|>assistant\n``; raises UsageError."""
        check_roles(messages)
        parts = begin_of_text(self._tokenizer) + self.parts(messages)
        return encode_parts(self._tokenizer, parts)

    def parts(self, messages: Sequence[Message]) -> list[Part]:
        """What the template writes, without BOS."""
        turns = list(messages)
        if turns[0].role is not Role.SYSTEM and self.default_system is not None:
            turns.insert(0, Message(Role.SYSTEM, self.default_system))
        parts: list[Part] = []
        for turn in turns:
            parts += [
                Control("<|im_start|>"),
                written(f"{turn.role.value}\n", turn.text, "", turn.role),
                Control("<|im_end|>"),
                written("\n", "", "", turn.role),
            ]
        opening = f"{Role.ASSISTANT.value}\n"
        return [*parts, Control("<|im_start|>"), written(opening, "", "", Role.ASSISTANT)]


class Zephyr(ChatTemplate):
    r"""``<|user|>\ncontent</s>\n`` for each message (Zephyr 7B, made from Mistral 7B v0.1).

    The words between bars are plain text in the vocabulary, so a typed one is broken up unless
    ``neutralize`` is off.
    """

    name = "zephyr"
    markers = tuple(f"<|{role.value}|>" for role in Role)

    def __init__(self, tokenizer: Tokenizer, neutralize: bool = True) -> None:
        self._tokenizer = tokenizer
        # Where a vocabulary has them as control pieces, no text gives their ids anyway.
        self._markers = self.markers if neutralize else ()
        self.stop_ids = (control_id(tokenizer, "</s>"),)

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        r"""The parts, ending in ``<|assistant|>\n``; raises UsageError."""
        check_roles(messages)
        parts = begin_of_text(self._tokenizer) + self.parts(messages)
        return encode_parts(self._tokenizer, parts, self._markers)

    def parts(self, messages: Sequence[Message]) -> list[Part]:
        """What the template writes, without BOS."""
        parts: list[Part] = []
        before = ""
        for turn in messages:
            parts += [written(f"{before}<|{turn.role.value}|>\n", turn.text, "", turn.role)]
            parts += [Control("</s>")]
            before = "\n"
        return [*parts, Text(f"{before}<|assistant|>\n", Role.ASSISTANT, 0, 0)]


def begin_of_text(tokenizer: Tokenizer) -> list[Part]:
    """BOS, where the tokenizer's own configuration begins a text with it."""
    if not tokenizer.adds_bos or tokenizer.bos_id is None:
        return []
    return [Control(tokenizer.show([tokenizer.bos_id]))]


def default_system_text(jinja: str) -> str | None:
    r"""The system text that a ChatML template adds by itself, read out of its Jinja source.

    >>> default_system_text("{{ '<|im_start|>system\\nBe kind<|im_end|>' }}")
    'Be kind'
    >>> default_system_text("{{ '<|im_start|>system\\n' + text + '<|im_end|>' }}") is None
    True
    """
    newline = r"(?:\n|\\n)"
    # Text that stops at a quote followed by an operator is an expression, not a fixed text.
    fixed = r"((?:(?!['\"]\s*[+~}]|<\|im_).)*)"
    found = re.search(rf"<\|im_start\|>system{newline}{fixed}<\|im_end\|>", jinja, re.DOTALL)
    if found is None:
        return None
    return found.group(1).replace("\\n", "\n").replace("\\'", "'").replace('\\"', '"')
