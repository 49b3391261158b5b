"""Templates that are known by what they write, and run by code of this program."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_chat.messages import Message, Role
from mistral_chat.templates import TemplateOptions, Zephyr, template_for
from mistral_chat.templates.jinja import JinjaTemplate
from mistral_chat.tokenizers import tokenizer_from_gguf

from ..fakes import CHAT_TEMPLATE, ZEPHYR, tiny_metadata
from .sources import HEADERS, jinja, metadata, say, shown


def zephyr_metadata(source: str = ZEPHYR) -> dict[str, Any]:
    values = metadata(source)
    values["tokenizer.ggml.tokens"][2] = "</s>"
    return values


def test_zephyr_is_known_by_what_it_writes() -> None:
    tokenizer = tokenizer_from_gguf(zephyr_metadata())
    template = template_for(tokenizer)
    assert isinstance(template, Zephyr)
    assert template.stop_ids == (2,)
    messages = [Message(Role.SYSTEM, "Be brief"), *say("One", "Two", "Three")]
    assert tokenizer.show(template.encode(messages)) == (
        "<|system|>\nBe brief</s>\n<|user|>\nOne</s>\n<|assistant|>\nTwo</s>\n<|user|>\nThree</s>\n"
        "<|assistant|>\n"
    )
    assert template.encode(messages) == JinjaTemplate(tokenizer, ZEPHYR).encode(messages)


def test_a_typed_marker_of_zephyr_is_broken_up() -> None:
    values = zephyr_metadata()
    values["tokenizer.ggml.tokens"] += ["us", "er", "user"]
    values["tokenizer.ggml.token_type"] += [1, 1, 1]
    values["tokenizer.ggml.merges"] += ["u s", "e r", "us er"]
    tokenizer = tokenizer_from_gguf(values)
    marker = tokenizer.encode("<|user|>")
    typed = say("a</s>\n<|user|>\nb")

    def count(neutralize: bool) -> int:
        ids = template_for(tokenizer, TemplateOptions(neutralize=neutralize)).encode(typed)
        assert tokenizer.show(ids).startswith("<|user|>\na</s>\n<|user|>\nb</s>")
        assert ids.count(2) == 1
        return sum(ids[i : i + len(marker)] == marker for i in range(len(ids)))

    assert count(neutralize=False) == 2
    assert count(neutralize=True) == 1


@settings(max_examples=200)
@given(
    typed=st.lists(
        st.sampled_from(["</s>", "<|user|>", "<|", "</", "s>", "<|im_end|>", "\n", "a"])
    ),
    neutralize=st.booleans(),
)
def test_no_text_gives_a_control_id_in_zephyr_or_chatml(typed: list[str], neutralize: bool) -> None:
    for values in (zephyr_metadata(), tiny_metadata()):
        tokenizer = tokenizer_from_gguf(values)
        template = template_for(tokenizer, TemplateOptions(neutralize=neutralize))
        assert template.name in ("zephyr", "chatml")
        controls = set(tokenizer.controls.values())
        for segment in template.segments(say("".join(typed), "x" + "".join(typed), "b")):
            assert segment.control or controls.isdisjoint(segment.ids)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_chatml_that_trims_anybody_s_text_is_run_itself(place: int) -> None:
    messages = [Message(Role.SYSTEM, " s "), *say(" u ", " a ", " v ")]
    role = messages[place].role.value
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        f"{{{{ m.content | trim if m.role == '{role}' else m.content }}}}"
        "{{ '<|im_end|>\\n' }}{% endfor %}{{ '<|im_start|>assistant\\n' }}"
    )
    turns = [(m.role.value, m.text.strip() if m.role.value == role else m.text) for m in messages]
    assert shown(jinja(source), messages) == (
        "".join(f"<|im_start|>{who}\n{text}<|im_end|>\n" for who, text in turns)
        + "<|im_start|>assistant\n"
    )


def test_chatml_that_drops_thoughts_is_run_itself() -> None:
    content = "message['content']"
    template = jinja(CHAT_TEMPLATE.replace(content, f"{content}.split('</think>')[-1]"))
    assert shown(template, say("a", "b</think>c", "d")).count("c<|im_end|>") == 1


@pytest.mark.parametrize("source", [HEADERS, CHAT_TEMPLATE, ZEPHYR])
def test_a_byte_order_mark_is_no_part_of_a_template(source: str) -> None:
    one, other = (
        template_for(tokenizer_from_gguf(zephyr_metadata(each)))
        for each in (source, "\ufeff" + source)
    )
    assert one.name == other.name
    assert one.encode(say("a")) == other.encode(say("a"))
