"""One message of a conversation, and conversations in JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

from mistral_chat.errors import UsageError
from mistral_chat.system.files import without_mark


class Role(StrEnum):
    """Who speaks; the values are the words that chat templates use."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Message:
    """What one role said.

    >>> Message(Role.USER, "Hello").role.value
    'user'
    """

    role: Role
    text: str


def read_conversation(data: bytes) -> list[Message]:
    """A conversation in JSON: a list of objects with ``role`` and ``content``, both texts.

    Raises UsageError that names what is wrong, and in which message.

    >>> read_conversation(b'[{"role": "user", "content": "Hi"}]')
    [Message(role=<Role.USER: 'user'>, text='Hi')]
    """
    try:
        values = json.loads(without_mark(data, "The conversation").decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The conversation is not JSON in UTF-8: {error}.") from error
    if not isinstance(values, list):
        raise UsageError(
            "The conversation must be a JSON list of messages such as "
            '{"role": "user", "content": "Hi"}.'
        )
    return [message_of(place, value) for place, value in enumerate(values, 1)]


def message_of(place: int, value: object) -> Message:
    """The message at that place, from JSON; raises UsageError that names what is wrong."""
    if not isinstance(value, dict) or value.keys() != {"role", "content"}:
        raise UsageError(
            f'Message {place} of the conversation must be an object with "role" and "content", '
            "and nothing else."
        )
    role, content = value["role"], value["content"]
    roles = [each.value for each in Role]
    if role not in roles:
        raise UsageError(
            f"Message {place} of the conversation is from {role!r}; roles are {', '.join(roles)}."
        )
    if not isinstance(content, str):
        raise UsageError(f"The content of message {place} of the conversation is not a text.")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"The content of message {place} of the conversation is not valid Unicode: half of a "
            "surrogate pair stands alone in it."
        ) from error
    return Message(Role(role), content)
