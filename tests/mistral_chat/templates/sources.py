"""Sources of templates, and how they are run on a tiny vocabulary."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from mistral_chat.messages import Message, Role
from mistral_chat.templates import template_for
from mistral_chat.templates.jinja import JinjaTemplate
from mistral_chat.tokenizers import tokenizer_from_gguf

from ..fakes import tiny_metadata

HEADERS = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' ~ m.role ~ '<|endoftext|>\\n' ~ (m.content | trim) ~ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)


def metadata(jinja: str, **change: Any) -> dict[str, Any]:
    """The metadata of a GGUF file with this template."""
    return {**tiny_metadata(), "tokenizer.chat_template": jinja, **change}


def jinja(source: str) -> JinjaTemplate:
    """The template of such a file."""
    template = template_for(tokenizer_from_gguf(metadata(source)))
    assert isinstance(template, JinjaTemplate)
    return template


def say(*texts: str) -> list[Message]:
    """A talk: a person's question first, then by turns."""
    roles = (Role.USER, Role.ASSISTANT)
    return [Message(roles[place % 2], text) for place, text in enumerate(texts)]


def shown(template: Any, messages: list[Message]) -> str:
    """What a template writes, with the names of its control pieces."""
    return tokenizer_from_gguf(tiny_metadata()).show(template.encode(messages))


PIECES = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|", "im_", "end", "|>", "\n", " ", "a",
          "\U000f0000", "\U000f0001", "{{ bos_token }}", "{% raw %}"]  # fmt: skip
TYPED = st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join))

SILENT = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|im_start|>Q: ' ~ m.content | trim }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>A: ' ~ m.content }}{% endif %}{% endfor %}"
    "{{ '<|im_start|>A:' }}"
)
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('No system.') }}{% endif %}" + (
    SILENT
)
LAST = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content ~ '; ' %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<|im_start|>Q: ' ~ (first if loop.last else '') ~ m.content }}"
    "{% else %}{{ '<|im_start|>A: ' ~ m.content }}{% endif %}{% endfor %}{{ '<|im_start|>A:' }}"
)
"""They write user and assistant only, refuse the system, put it before the last question."""
