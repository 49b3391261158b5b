"""Mistral's own chat formats, to the ids of its reference encoder (the package mistral-common).

E(x) is the text x encoded without BOS, every message by itself::

    v1       <s> E("[INST] user [/INST]") E(assistant) </s> ...
    v2, v3   <s> [INST] E(user) [/INST] E(assistant) </s> ...
    v7       <s> [SYSTEM_PROMPT] E(system) [/SYSTEM_PROMPT] [INST] E(user) [/INST] ...

Tekken vocabularies use v3 and v7 too; E puts no space before a text there. Before v7 the system
prompt is put before a user's text with an empty line between: in v1 before the first, from v2 on
before the last, so that it moves with every turn and what was cached after it no longer fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from itertools import groupby

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
from quant.errors import UnsupportedError

BEGIN, END = "<s>", "</s>"
PLAIN_MARKERS = ("[INST]", "[/INST]")
"""The markers of v1, which are plain text in its vocabulary."""

VERSIONS = ("v1", "v2", "v3", "v7", "v11", "v13")
"""Versions of the format; without tools, v11 and v13 are v7."""


class SystemPosition(StrEnum):
    """Which of the user's messages the system prompt is put before."""

    FIRST = "first"
    LAST = "last"


class MistralTemplate(ChatTemplate):
    """One version of the format.

    ``position`` moves the system prompt away from where the reference puts it; v7 and later, whose
    system messages stand for themselves, have no use for it. ``neutralize`` breaks up the markers
    of v1 where a person typed them, so that they do not open or close a turn; the reference does
    not. Raises UnsupportedError for an unknown version, or one that the vocabulary cannot write.

    With the vocabulary of v3, a question "Hi" is ``[1, 3, 16127, 4]``.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        version: str,
        position: SystemPosition | None = None,
        neutralize: bool = True,
    ) -> None:
        if version not in VERSIONS:
            raise UnsupportedError(
                f"The chat format {version!r} of this model's tokenizer is not known; known are "
                f"{', '.join(VERSIONS)}."
            )
        self.name = f"{version}-tekken" if tokenizer.kind == "Tekken" else version
        self._tokenizer = tokenizer
        self._version = version
        self._position = position or (
            SystemPosition.FIRST if version == "v1" else SystemPosition.LAST
        )
        self._markers = PLAIN_MARKERS if neutralize and version == "v1" else ()
        self._apart = version not in ("v1", "v2", "v3")  # system messages stand for themselves
        for piece in self._controls():
            control_id(tokenizer, piece)
        self.stop_ids = (control_id(tokenizer, END),)

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """The conversation's parts and their ids; raises UsageError for roles out of order."""
        check_roles(messages)
        return encode_parts(self._tokenizer, self.parts(messages), self._markers)

    def _controls(self) -> list[str]:
        controls = [BEGIN, END]
        if self._version != "v1":
            controls += ["[INST]", "[/INST]"]
        if self._apart:
            controls += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
        return controls

    def parts(self, messages: Sequence[Message]) -> list[Part]:
        """What the format writes, with BOS."""
        turns = merged(messages, keep_system=self._apart)
        users = [place for place, turn in enumerate(turns) if turn.role is Role.USER]
        chosen = users[0 if self._position is SystemPosition.FIRST else -1]
        system = None
        if not self._apart:
            system = "\n\n".join(
                message.text for message in messages if message.role is Role.SYSTEM and message.text
            )
        parts: list[Part] = [Control(BEGIN)]
        for place, turn in enumerate(turns):
            if turn.role is Role.SYSTEM:
                parts += self._between("[SYSTEM_PROMPT]", turn.text, "[/SYSTEM_PROMPT]", turn.role)
            elif turn.role is Role.USER:
                text = f"{system}\n\n{turn.text}" if system and place == chosen else turn.text
                parts += self._between("[INST]", text, "[/INST]", turn.role)
            else:
                # v1 is alone in keeping the spaces at the end of an answer.
                text = turn.text if self._version == "v1" else turn.text.rstrip(" ")
                parts += [Text(text, turn.role), Control(END)]
        return parts

    def _between(self, begin: str, text: str, end: str, role: Role) -> list[Part]:
        if self._version == "v1":
            return [written(f"{begin} ", text, f" {end}", role)]
        return [Control(begin), Text(text, role), Control(end)]


def merged(messages: Sequence[Message], keep_system: bool) -> list[Message]:
    r"""Messages in a row from user or assistant joined by an empty line, empty ones left out.

    System messages are never joined; without ``keep_system`` they are dropped, and a conversation
    that then begins with an answer gets an empty question before it. All as in the reference.

    >>> hello = [Message(Role.USER, "Hello"), Message(Role.USER, "there")]
    >>> [turn.text for turn in merged(hello, keep_system=True)]
    ['Hello\n\nthere']
    """
    turns: list[Message] = []
    for role, group in groupby(messages, key=lambda message: message.role):
        if role is not Role.SYSTEM:
            texts = [message.text for message in group if message.text]
            turns.append(Message(role, "\n\n".join(texts)))
        elif keep_system:
            turns.extend(group)
    if not keep_system and turns[0].role is not Role.USER:
        turns.insert(0, Message(Role.USER, ""))
    return turns
