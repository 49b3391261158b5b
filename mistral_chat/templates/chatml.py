"""Messages to token ids.

A conversation is never rendered to one string and tokenized: control ids are placed as ids, and
what a person or a model wrote goes through ``encode``, which gives none. So a typed
``<|im_end|>`` stays text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.tokenizers import Tokenizer
from quant.errors import UnsupportedError


class ChatTemplate(Protocol):
    """How one family of models writes a conversation."""

    @property
    def name(self) -> str:
        """Its short name, such as ``chatml``."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end an answer; they are no part of its text."""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the conversation up to where the model's answer begins.

        Raises UsageError where the roles do not alternate.
        """


def check_roles(messages: Sequence[Message]) -> None:
    """Raise UsageError unless roles are: system (optional), user, assistant, user, ... user."""
    turns = list(messages)
    if turns and turns[0].role is Role.SYSTEM:
        turns = turns[1:]
    for place, message in enumerate(turns):
        expected = Role.ASSISTANT if place % 2 else Role.USER
        if message.role is not expected:
            raise UsageError(
                f"Message {place + 1} of the conversation is from {message.role.value}, but must "
                f"be from {expected.value}: user and assistant alternate, beginning with user."
            )
    if len(turns) % 2 == 0:
        raise UsageError("The conversation must end with a message from user, to be answered.")


class ChatML:
    r"""``<|im_start|>role\ncontent<|im_end|>\n`` for each message (OpenAI's ChatML, in SmolLM2).

    Role, newline and content are encoded together, because that is the text between two control
    ids on which these models were trained.
    """

    name = "chatml"

    def __init__(self, tokenizer: Tokenizer, default_system: str | None) -> None:
        self._tokenizer = tokenizer
        self.default_system = default_system
        self._start = _control(tokenizer, "<|im_start|>")
        self._end = _control(tokenizer, "<|im_end|>")
        # A model may also end its whole text instead of its turn.
        ends = (self._end, tokenizer.eos_id, tokenizer.control_id("<|endoftext|>"))
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in ends if i is not None))

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> ChatML:
        """Built with the default system text that the model's Jinja template spells out."""
        return cls(tokenizer, default_system_text(tokenizer.chat_template or ""))

    def encode(self, messages: Sequence[Message]) -> list[int]:
        r"""Ids of the conversation, ending in ``<|im_start|>assistant\n``; raises UsageError."""
        check_roles(messages)
        turns = list(messages)
        if turns[0].role is not Role.SYSTEM and self.default_system is not None:
            turns.insert(0, Message(Role.SYSTEM, self.default_system))
        ids: list[int] = []
        for message in turns:
            ids.append(self._start)
            ids.extend(self._tokenizer.encode(f"{message.role.value}\n{message.text}"))
            ids.append(self._end)
            ids.extend(self._tokenizer.encode("\n"))
        ids.append(self._start)
        ids.extend(self._tokenizer.encode(f"{Role.ASSISTANT.value}\n"))
        return ids


def _control(tokenizer: Tokenizer, piece: str) -> int:
    token = tokenizer.control_id(piece)
    if token is None:
        raise UnsupportedError(
            f"The model's chat template uses {piece}, which its vocabulary does not have; "
            "choose another file of this model."
        )
    return token


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


# What to look for in a file's Jinja text, and the template that writes the same ids.
_TEMPLATES: tuple[tuple[str, Callable[[Tokenizer], ChatTemplate]], ...] = (
    ("<|im_start|>", ChatML.from_tokenizer),
)


def template_for(tokenizer: Tokenizer) -> ChatTemplate:
    """The template a model was made for, told from its own Jinja text and never from a name.

    Raises UnsupportedError where the file has no chat template, or one that is not known.
    """
    jinja = tokenizer.chat_template
    if jinja is None:
        raise UnsupportedError(
            "This model has no chat template, so it is not made for chat; choose an instruct model."
        )
    for mark, build in _TEMPLATES:
        if mark in jinja:
            return build(tokenizer)
    raise UnsupportedError(
        "This model's chat template is not known yet; choose a model that uses ChatML."
    )
