"""One message of a conversation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
