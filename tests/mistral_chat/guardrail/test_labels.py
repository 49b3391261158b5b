"""Labels that a moderator compares: their scores, and what the template makes of them."""

from __future__ import annotations

import math

import pytest

from mistral_chat.errors import JudgingError
from mistral_chat.guardrail.moderation import SelfReflection, answer_ids, reflection_messages
from mistral_chat.guardrail.prompt import Category, Taxonomy
from mistral_chat.messages import Message, Role
from mistral_chat.templates import template_for
from mistral_chat.templates.jinja import JinjaTemplate
from mistral_chat.tokenizers import tokenizer_from_gguf

from ..fakes import CHAT_TEMPLATE, ZEPHYR, tiny_pieces
from .scripted import TOKENIZER, Model, reflection


def test_labels_that_begin_alike_share_nothing() -> None:
    categories = Taxonomy("t", (Category("fraud", "f"), Category("fraud by mail", "m")))
    # The long label is the likelier; the short one's score holds it.
    scores = {"acceptable": 0.2, "fraud": 0.7, "fraud by mail": 0.6}
    moderator = SelfReflection(Model(lambda _, label: math.log(scores[label])), categories)
    verdict = moderator.judge("text")
    assert verdict is not None
    assert verdict.category == "fraud by mail"
    assert verdict.probabilities["fraud"] == pytest.approx(0.1 / 0.9)
    assert verdict.probabilities["fraud by mail"] == pytest.approx(0.6 / 0.9)


@pytest.mark.parametrize("score", [-math.inf, -5000.0])
def test_impossible_labels(score: float) -> None:
    _, moderator = reflection(lambda _prompt, _label: score)
    verdict = moderator.judge("text")
    assert verdict is not None
    assert list(verdict.probabilities.values()) == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_scores_that_are_no_numbers(score: float) -> None:
    _, moderator = reflection(lambda _, label: score if label == "acceptable" else -1.0)
    with pytest.raises(JudgingError, match="no numbers, so nothing was judged"):
        moderator.judge("text")
    # Nor where a longer label's share is to be taken out of one: what is left would look like 0.
    categories = Taxonomy("t", (Category("fraud", "f"), Category("fraud by mail", "m")))
    model = Model(lambda _, label: score if label == "fraud" else -1.0)
    with pytest.raises(JudgingError):
        SelfReflection(model, categories).judge("text")


@pytest.mark.parametrize("jinja", [CHAT_TEMPLATE, ZEPHYR], ids=["chatml", "zephyr"])
def test_a_label_is_what_the_template_writes(jinja: str) -> None:
    # In the middle of a text SentencePiece puts no space before a label, alone it does.
    tokenizer = tokenizer_from_gguf(tiny_pieces(jinja))
    template = template_for(tokenizer)
    assert template.name in ("chatml", "zephyr")
    categories = Taxonomy("t", (Category("fraud", "f"), Category("fraud by mail", "m")))
    model = Model(lambda *_: -1.0, tokenizer=tokenizer)
    verdict = SelfReflection(model, categories).judge("text")
    assert verdict is not None
    asked = reflection_messages(categories, "text", Role.USER)
    for label, ids in zip(categories.labels, model.labels, strict=True):
        answered = [*asked, Message(Role.ASSISTANT, label), Message(Role.USER, "?")]
        whole = template.encode(answered)
        assert whole[: len(verdict.ids) + len(ids)] == [*verdict.ids, *ids]
        after = whole[len(verdict.ids) + len(ids)]
        assert after in (tokenizer.control_id("<|im_end|>"), tokenizer.control_id("</s>"))
    assert tokenizer.show(model.labels[1]) == "fraud"


def test_a_template_that_changes_answers() -> None:
    source = (
        "{% for m in messages %}{{ '<|im_start|>' ~ (m.content | upper) ~ '<|im_end|>' }}"
        "{% endfor %}"
    )
    template = JinjaTemplate(TOKENIZER, source)
    assert answer_ids(template, TOKENIZER, "fraud") == TOKENIZER.encode("fraud")
