"""A line of a batch: what it asks, in any of the forms that people have.

================================  ==================================================================
``"A question"``                  a text
``{"prompt": "A question"}``      the same, with options beside it
``{"messages": [...]}``           a conversation: objects with ``role`` and ``content``
``{"custom_id": ..., "body": …}`` OpenAI's batch format, for ``/v1/chat/completions``
================================  ==================================================================

Beside a prompt or messages may stand ``system``, an ``id`` that comes back with the result, and the
options of sampling: ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``repetition_penalty``,
``seed``, ``max_tokens``. What is not known, or known and not to be had, is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mistral_chat.engines.many import Asked
from mistral_chat.engines.options import sampling_of
from mistral_chat.errors import UsageError
from mistral_chat.guardrail.prompt import system_prompt
from mistral_chat.messages import Message, Role, message_of
from mistral_chat.settings import Settings, brief, nearest, setting

OPTIONS = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "max_tokens",
)  # fmt: skip
"""Settings that a line may have its own of."""

OPENAI_URL = "/v1/chat/completions"

_OPENAI_NAMES = {"max_completion_tokens": "max_tokens"}

_OPENAI_UNSAID: dict[str, tuple[object, ...]] = {
    "stream": (False,),
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "stop": ([],),
    "tools": ([],),
    "response_format": ({"type": "text"},),
}
"""Parameters that would change the answer, and the values with which they do not."""

_OPENAI_WITHOUT_EFFECT = ("model", "user", "metadata", "store", "service_tier")


@dataclass(frozen=True, slots=True)
class Named:
    """A line's own id, and whether it is in OpenAI's format."""

    name: object = None
    openai: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """What a line asks."""

    asked: Asked
    named: Named = Named()

    @property
    def question(self) -> str:
        """What was asked last."""
        return self.asked.messages[-1].text


def named(line: bytes) -> Named:
    """What a line calls itself, as far as it can be told, whatever it asks."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return Named()
    if not isinstance(value, dict):
        return Named()
    if "body" in value and isinstance(value.get("custom_id"), str):
        return Named(value["custom_id"], openai=True)
    return Named(value.get("id"))


def read_request(line: bytes, settings: Settings) -> Request:
    """The request of a line; ``settings`` say what it leaves open.

    Raises UsageError for a line that asks nothing that can be answered.
    """
    try:
        value = json.loads(line.decode("utf-8"))
        # Half of a surrogate pair, which JSON can write, is no text.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The line is not JSON in UTF-8: {error}.") from error
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise UsageError(f"A line is a text or a JSON object, not {brief(value)}.")
    if "body" in value:
        return _openai(value, settings)
    known = ("prompt", "messages", "system", "id", *OPTIONS)
    for key in value:
        if key not in known:
            hint = nearest(key, dict.fromkeys(known))
            raise UsageError(f"There is no option {brief(key)} for a line{hint}")
    if ("prompt" in value) == ("messages" in value):
        raise UsageError('Give a line a "prompt", or "messages".')
    if "messages" in value:
        messages = _messages(value["messages"])
    else:
        messages = [Message(Role.USER, _text(value["prompt"], "prompt"))]
    system = value.get("system")
    own = None if system is None else _text(system, "system")
    return Request(_asked(messages, own, value, settings), Named(value.get("id")))


def _asked(
    messages: list[Message], system: str | None, values: Mapping[str, Any], settings: Settings
) -> Asked:
    if messages[0].role is Role.SYSTEM:
        if system is not None:
            raise UsageError('Give a line a "system" or a system message, not both.')
        system, messages = messages[0].text, messages[1:]
    if not messages or messages[-1].role is not Role.USER:
        raise UsageError("The last message of a line must be the user's.")
    if not messages[-1].text.strip():
        raise UsageError("The prompt is empty.")
    # The guardrail's words come first, whoever wrote the rest.
    whole = system_prompt(settings.guardrail, settings.system if system is None else system)
    if whole is not None:
        messages = [Message(Role.SYSTEM, whole), *messages]
    own = {
        name: setting(name).check(values[name], name)
        for name in OPTIONS
        if values.get(name) is not None
    }
    chosen = replace(settings, **own)
    return Asked(messages, sampling_of(chosen), chosen.max_tokens, settings.loop_detector)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f'The "{name}" of a line is a text, not {brief(value)}.')
    return value


def _messages(value: object) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise UsageError('"messages" is a list of objects with "role" and "content".')
    return [message_of(place, each) for place, each in enumerate(value, 1)]


def _openai(value: Mapping[str, Any], settings: Settings) -> Request:
    """A line of OpenAI's batch format."""
    name, body = value.get("custom_id"), value["body"]
    url = value.get("url", OPENAI_URL)
    if not isinstance(name, str):
        raise UsageError('A line with a "body" has a "custom_id", a text.')
    if url != OPENAI_URL or value.get("method", "POST") != "POST":
        raise UsageError(f"Requests are POST to {OPENAI_URL}, not {brief(url)}.")
    if not isinstance(body, dict):
        raise UsageError('The "body" of a line is a JSON object.')
    options: dict[str, Any] = {}
    for key, given in body.items():
        option = _OPENAI_NAMES.get(key, key)
        if option in OPTIONS:
            options[option] = given
        elif key in _OPENAI_UNSAID:
            if given is not None and given not in _OPENAI_UNSAID[key]:
                raise UsageError(f'"{key}": {brief(given)} is not supported; leave it out.')
        elif key not in ("messages", *_OPENAI_WITHOUT_EFFECT):
            raise UsageError(f"The parameter {brief(key)} is not supported; leave it out.")
    messages = _messages([_plain(each) for each in _list(body.get("messages"))])
    return Request(_asked(messages, None, options, settings), Named(name, openai=True))


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else []


def _plain(message: object) -> object:
    """A message as OpenAI has it in ours: parts of text joined, ``developer`` as ``system``."""
    if not isinstance(message, dict):
        return message
    plain = dict(message)
    if plain.get("role") == "developer":
        plain["role"] = Role.SYSTEM.value
    content = plain.get("content")
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text"
        for part in content
    ):
        texts = [part["text"] for part in content]
        if all(isinstance(text, str) for text in texts):
            plain["content"] = "".join(texts)
    return plain
