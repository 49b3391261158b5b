"""Messages to ids, on a tiny vocabulary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.templates import default_system_text, template_for
from mistral_chat.tokenizers.huggingface import HuggingFaceTokenizer
from quant.errors import UnsupportedError

from ..fakes import encode_with_controls, tiny_metadata

TOKENIZER = HuggingFaceTokenizer.from_gguf(tiny_metadata())
TEMPLATE = template_for(TOKENIZER)


def say(*texts: str) -> list[Message]:
    """Messages of user and assistant in turn."""
    roles = (Role.USER, Role.ASSISTANT)
    return [Message(roles[place % 2], text) for place, text in enumerate(texts)]


def test_a_conversation_is_what_the_jinja_text_renders() -> None:
    rendered = (
        "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\n Bye <|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = TEMPLATE.encode(say("Hello", "Hi!", " Bye "))
    assert ids == encode_with_controls(TOKENIZER, rendered)


@pytest.mark.parametrize("text", ["Be brief", ""])
def test_a_system_message_replaces_the_default(text: str) -> None:
    ids = TEMPLATE.encode([Message(Role.SYSTEM, text), *say("Hello")])
    rendered = (
        f"<|im_start|>system\n{text}<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ids == encode_with_controls(TOKENIZER, rendered)


@given(st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "\n", "a"])).map("".join))
def test_typed_markers_stay_text(text: str) -> None:
    ids = TEMPLATE.encode(say(text))
    assert ids.count(1) == 3
    assert ids.count(2) == 2


def test_the_ends_of_turn_and_text_stop() -> None:
    assert TEMPLATE.stop_ids == (2, 0)
    assert TEMPLATE.name == "chatml"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [Message(Role.SYSTEM, "a")],
        say("a", "b"),
        [Message(Role.ASSISTANT, "a")],
        [*say("a", "b"), Message(Role.SYSTEM, "b"), Message(Role.USER, "c")],
        [*say("a", "", "b")],
    ],
)
def test_roles_out_of_order(messages: list[Message]) -> None:
    with pytest.raises(UsageError):
        TEMPLATE.encode(messages)


@pytest.mark.parametrize(
    ("jinja", "text"),
    [
        ("{{ '<|im_start|>system\nYou are it<|im_end|>\n' }}", "You are it"),
        ("{{ '<|im_start|>system\\nYou\\'re it\\nyes<|im_end|>' }}", "You're it\nyes"),
        ("{{ '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>' }}", None),
        ("{{ '<|im_start|>' + role }}", None),
    ],
)
def test_the_default_system_text_is_read_from_the_file(jinja: str, text: str | None) -> None:
    assert default_system_text(jinja) == text


def test_a_model_without_a_template_is_refused() -> None:
    metadata = {**tiny_metadata(), "tokenizer.chat_template": None}
    with pytest.raises(UnsupportedError, match="no chat template"):
        template_for(HuggingFaceTokenizer.from_gguf(metadata))


def test_without_the_markers_it_is_not_chatml() -> None:
    metadata = tiny_metadata()
    metadata["tokenizer.ggml.tokens"][1] = "<start>"
    assert template_for(HuggingFaceTokenizer.from_gguf(metadata)).name == "jinja"
