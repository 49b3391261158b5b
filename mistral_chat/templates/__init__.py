"""Messages to token ids.

A conversation is never rendered to one string and tokenized: control ids are placed as ids, and
what a person or a model wrote goes through ``encode``, which gives none. So a typed ``</s>`` or
``<|im_end|>`` stays text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.templates.chatml import ChatML, Zephyr, default_system_text
from mistral_chat.templates.mistral import BEGIN, PLAIN_MARKERS, MistralTemplate, SystemPosition
from mistral_chat.templates.parts import ChatTemplate, Part, Segment, as_text
from mistral_chat.tokenizers import Tokenizer
from quant.errors import UnsupportedError

if TYPE_CHECKING:
    from mistral_chat.templates.jinja import JinjaTemplate

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
    writes something else: then it is a relative, trained otherwise. ChatML and Zephyr are taken
    where the Jinja text writes the same, and it is run itself where none fits. ``version`` asks
    for a format of Mistral's instead. Raises UnsupportedError where there is no template, and
    CheckpointError for one that does not parse.
    """
    jinja = tokenizer.chat_template
    own = version or tokenizer.mistral_version
    if own is not None and (version or jinja is None):
        return MistralTemplate(tokenizer, own, options.position, options.neutralize)
    if jinja is None:
        raise UnsupportedError(
            "This model has no chat template, so it is not made for chat; choose an instruct model."
        )

    from mistral_chat.templates.jinja import JinjaTemplate  # Mistral's own formats need no Jinja

    plain = tokenizer.mistral_version == "v1" and options.neutralize
    general = JinjaTemplate(tokenizer, jinja, PLAIN_MARKERS if plain else ())
    if own is not None and _is_mistral_s(general, tokenizer, own):
        return MistralTemplate(tokenizer, own, options.position, options.neutralize)
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


_SYSTEM = Message(Role.SYSTEM, "Be brief")
_QUESTION = Message(Role.USER, "Hello")
_ANSWER = Message(Role.ASSISTANT, " Hi ")
_THOUGHT = Message(Role.ASSISTANT, "<think>\nSo\n</think>\n\nHi")
_SPACED = tuple(Message(role, " Hello\n") for role in (Role.SYSTEM, Role.USER))
_PROBES = (
    (_QUESTION,),
    (_SYSTEM, _QUESTION),
    _SPACED,
    (_QUESTION, _ANSWER, _QUESTION),
    (_QUESTION, _THOUGHT, _QUESTION),
)
"""Conversations by which templates are compared; the spaces tell one that trims anybody's text."""

_Parts = Callable[[Sequence[Message]], list[Part]]


def _same_text(one: _Parts, other: _Parts) -> bool:
    try:
        return all(as_text(one(probe)) == as_text(other(probe)) for probe in _PROBES)
    except UsageError:  # one of them takes no system prompt, say
        return False


_SHORT = Message(Role.ASSISTANT, "Hi")
_MARK = re.compile(r" ?(</?s>|\[/?[A-Z_]+\]) ?")


def _is_mistral_s(general: JinjaTemplate, tokenizer: Tokenizer, version: str) -> bool:
    """Whether a model's Jinja text writes what one of Mistral's own formats has.

    Mistral's texts differ from each other, and from the reference encoder, in single spaces beside
    marks, and in which question has the system prompt; some take none.
    """
    probes = [[_QUESTION], [_QUESTION, _SHORT, _QUESTION]]
    if general.writes_system():
        probes += [[_SYSTEM, *probe] for probe in probes]
    for position in SystemPosition:
        template = MistralTemplate(tokenizer, version, position)
        try:
            if all(_bare(general.parts(probe)) == _bare(template.parts(probe)) for probe in probes):
                return True
        except UsageError:
            return False
    return False


def _bare(parts: Sequence[Part]) -> str:
    """What is written, without BOS and without a space beside a mark."""
    return _MARK.sub(r"\1", as_text(parts)).removeprefix(BEGIN)
