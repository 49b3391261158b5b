"""Messages to token ids.

A conversation is never rendered to one string and tokenized: control ids are placed as ids, and
what a person or a model wrote goes through ``encode``, which gives none. So a typed ``</s>`` or
``<|im_end|>`` stays text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.templates.chatml import ChatML, Zephyr, default_system_text
from mistral_chat.templates.mistral import MistralTemplate, SystemPosition
from mistral_chat.templates.parts import ChatTemplate, Part, Segment, as_text
from mistral_chat.tokenizers import Tokenizer
from quant.errors import UnsupportedError

__all__ = [
    "ChatML",
    "ChatTemplate",
    "MistralTemplate",
    "Segment",
    "SystemPosition",
    "TemplateOptions",
    "Zephyr",
    "template_for",
]


@dataclass(frozen=True)
class TemplateOptions:
    """What a person may choose: see :class:`MistralTemplate`."""

    position: SystemPosition | None = None
    neutralize: bool = True


def template_for(
    tokenizer: Tokenizer,
    options: TemplateOptions = TemplateOptions(),
    version: str | None = None,
) -> ChatTemplate:
    """The template a model was made for, told from its own files and never from a name.

    A vocabulary of Mistral's own has its format by its version, unless the model's Jinja text
    writes no ``[INST]``: then it is a relative, trained otherwise. ChatML and Zephyr are taken
    where the Jinja text writes the same, and it is run itself where neither fits. ``version`` asks
    for a format of Mistral's instead. Raises UnsupportedError where there is no template, and
    CheckpointError for one that does not parse.
    """
    jinja = tokenizer.chat_template
    own = version or tokenizer.mistral_version
    if own is not None and (version or jinja is None or "[INST]" in jinja):
        return MistralTemplate(tokenizer, own, options.position, options.neutralize)
    if jinja is None:
        raise UnsupportedError(
            "This model has no chat template, so it is not made for chat; choose an instruct model."
        )

    from mistral_chat.templates.jinja import JinjaTemplate  # Mistral's own formats need no Jinja

    general = JinjaTemplate(tokenizer, jinja)
    if _has(tokenizer, "<|im_start|>", "<|im_end|>"):
        chatml = ChatML(tokenizer, default_system_text(jinja))
        if _same_text(general.parts, chatml.parts):
            return chatml
    if _has(tokenizer, "</s>"):
        zephyr = Zephyr(tokenizer, options.neutralize)
        if _same_text(general.parts, zephyr.parts):
            return zephyr
    return general


def _has(tokenizer: Tokenizer, *pieces: str) -> bool:
    return all(tokenizer.control_id(piece) is not None for piece in pieces)


_QUESTION = Message(Role.USER, "Hello")
_PROBES = (
    (_QUESTION,),
    (Message(Role.SYSTEM, "Be brief"), _QUESTION),
    (_QUESTION, Message(Role.ASSISTANT, " Hi "), _QUESTION),
)
"""Conversations by which templates are compared; the spaces tell one that trims."""

_Parts = Callable[[Sequence[Message]], list[Part]]


def _same_text(one: _Parts, other: _Parts) -> bool:
    try:
        return all(as_text(one(probe)) == as_text(other(probe)) for probe in _PROBES)
    except UsageError:  # one of them takes no system prompt, say
        return False
