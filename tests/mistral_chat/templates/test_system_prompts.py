"""What becomes of a system prompt, and of the guardrail in it."""

from __future__ import annotations

import pytest

from mistral_chat.guardrail.categories import load_taxonomy
from mistral_chat.guardrail.moderation import reflection_messages
from mistral_chat.guardrail.prompt import GUARDRAIL_PROMPT
from mistral_chat.messages import Message, Role
from mistral_chat.templates import template_for
from mistral_chat.terminal.template_view import TemplateView
from mistral_chat.tokenizers import tokenizer_from_gguf

from ..fakes import CHAT_TEMPLATE
from .sources import HEADERS, LAST, REFUSING, SILENT, jinja, metadata, say, shown


@pytest.mark.parametrize("source", [SILENT, REFUSING], ids=["silent", "refusing"])
def test_a_system_prompt_does_not_vanish(source: str) -> None:
    template = jinja(source)
    system = Message(Role.SYSTEM, "Be brief")
    assert shown(template, [system, *say("One", "Two", "Three")]) == (
        "<|im_start|>Q: Be brief\n\nOne<|im_start|>A: Two<|im_start|>Q: Three<|im_start|>A:"
    )
    # That a person typed the same text does not count as its being there.
    assert shown(template, [system, *say("Be brief")]) == (
        "<|im_start|>Q: Be brief\n\nBe brief<|im_start|>A:"
    )
    assert shown(template, [system, Message(Role.SYSTEM, "Be kind"), *say("One")]) == (
        "<|im_start|>Q: Be brief\n\nBe kind\n\nOne<|im_start|>A:"
    )
    assert shown(template, [Message(Role.SYSTEM, ""), *say("One")]) == shown(template, say("One"))
    task, asked = reflection_messages(load_taxonomy("paper"), "a text", Role.USER)
    assert f"Q: {task.text}\n\n{asked.text}<|im_start|>A:" in shown(template, [task, asked])


def test_a_system_prompt_that_is_written_is_left_alone() -> None:
    system = Message(Role.SYSTEM, "Be brief")
    assert shown(jinja(LAST), [system, *say("One", "Two", "Three")]) == (
        "<|im_start|>Q: One<|im_start|>A: Two<|im_start|>Q: Be brief; Three<|im_start|>A:"
    )


@pytest.mark.parametrize(
    ("source", "turn"),
    [(SILENT, 0), (REFUSING, 0), (LAST, 1), (HEADERS, 0), (CHAT_TEMPLATE, 0)],
    ids=["silent", "refusing", "last", "headers", "chatml"],
)
def test_the_guardrail_is_marked_wherever_it_stands(source: str, turn: int) -> None:
    tokenizer = tokenizer_from_gguf(metadata(source))
    template = template_for(tokenizer)
    system = Message(Role.SYSTEM, f"{GUARDRAIL_PROMPT}\n\nBe brief")
    # A person typed it, too, at the beginning of each message.
    typed = say(f"{GUARDRAIL_PROMPT} One", "Two", f"{GUARDRAIL_PROMPT} Three")
    view = TemplateView.of(tokenizer, template, [system, *typed], GUARDRAIL_PROMPT)
    marked = [place for place, piece in enumerate(view.pieces) if piece.source == "guardrail"]
    assert marked == list(range(marked[0], marked[-1] + 1))
    text = tokenizer.show([view.pieces[place].token for place in marked])
    assert text == GUARDRAIL_PROMPT
    before = tokenizer.show([piece.token for piece in view.pieces[: marked[0]]])
    after = tokenizer.show([piece.token for piece in view.pieces[marked[-1] + 1 :]])
    assert after.startswith(("\n\nBe brief",))
    assert before.count(GUARDRAIL_PROMPT) == turn
    assert after.count(GUARDRAIL_PROMPT) == 2 - turn
    plain = TemplateView.of(tokenizer, template, typed, GUARDRAIL_PROMPT)
    assert "guardrail" not in {piece.source for piece in plain.pieces}


@pytest.mark.parametrize(
    ("source", "before"),
    [
        (SILENT, f"<|im_start|>Q: {GUARDRAIL_PROMPT}\n\n"),
        (LAST, f"<|im_start|>Q: {GUARDRAIL_PROMPT}; "),
        (CHAT_TEMPLATE, f"<|im_start|>system\n{GUARDRAIL_PROMPT}<|im_end|>\n<|im_start|>user\n"),
    ],
)
def test_what_stands_before_a_question(source: str, before: str) -> None:
    tokenizer = tokenizer_from_gguf(metadata(source))
    messages = [Message(Role.SYSTEM, GUARDRAIL_PROMPT)]
    view = TemplateView.before_question(
        tokenizer, template_for(tokenizer), messages, GUARDRAIL_PROMPT
    )
    assert view.text == before
    assert "guardrail" in {piece.source for piece in view.pieces}
