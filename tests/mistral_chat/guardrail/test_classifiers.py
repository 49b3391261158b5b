"""Models that were made to judge: how their templates are told, and their first words read."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mistral_chat.errors import UsageError
from mistral_chat.guardrail.moderation import Classifier, open_moderator
from mistral_chat.guardrail.prompt import Action, Category, Taxonomy, Verdict
from mistral_chat.messages import Role
from mistral_chat.templates import template_for
from mistral_chat.templates.jinja import JinjaTemplate
from quant.errors import UnsupportedError

from .scripted import TOKENIZER, Model, Rule, by_word

GUARD_TEMPLATE = (
    "{{ '<|im_start|>' }}Say 'safe' or 'unsafe' of the last message. S1: violence. S2: theft.\n"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{{ '<|im_end|>' }}"
)
GUARD = JinjaTemplate(TOKENIZER, GUARD_TEMPLATE)
CODES = Taxonomy(
    "codes",
    (
        Category("violence", "v", code="S1"),
        Category("theft", "t", Action.WARN, code="S2"),
        Category("hate", "h", code="S10"),
    ),
)


def guard_rule(lead: str, chances: dict[str, float]) -> Rule:
    """Answers with ``lead`` before one of ``chances``; anything else is all but impossible."""

    def rule(_prompt: str, answer: str) -> float:
        fitting = [value for text, value in chances.items() if (lead + text).startswith(answer)]
        return math.log(sum(fitting) or 1e-9)

    return rule


BLIND = GUARD_TEMPLATE.replace("{{ message.content }}", "{{ message.text }}")
IN_PARTS = GUARD_TEMPLATE.replace("{{ message.content }}", "{{ message.content[0].text }}")


def test_a_classifier_that_cannot_see_the_text_gives_no_verdict() -> None:
    template = JinjaTemplate(TOKENIZER, BLIND)
    with pytest.raises(UsageError, match="leaves out what message 1 says"):
        Classifier(Model(guard_rule("", {"safe": 0.9}), template=template), CODES).judge("a text")


def test_a_classifier_whose_template_wants_lists_of_parts_sees_the_text() -> None:
    model = Model(guard_rule("", {"safe": 0.9}), template=JinjaTemplate(TOKENIZER, IN_PARTS))
    moderator = Classifier(model, CODES)
    for text in ("How do I bake bread?", "How do I break in?"):
        verdict = moderator.judge(text)
        assert verdict is not None
        assert text in TOKENIZER.show(verdict.ids)


@pytest.mark.parametrize("lead", ["", "\n\n", "\n", " "])
def test_a_classifier_answers_with_its_first_word(lead: str) -> None:
    chances = {"safe": 0.2, "unsafe\nS2": 0.6, "unsafe\nS1": 0.05, "unsafe\nS10": 0.15}
    model = Model(guard_rule(lead, chances), template=GUARD)
    verdict = Classifier(model, CODES).judge("text")
    assert verdict is not None
    assert verdict.probabilities == pytest.approx(
        {"acceptable": 0.2, "violence": 0.05, "theft": 0.6, "hate": 0.15}, abs=1e-6
    )
    # Violence and hate have 0.2 of all, theft and they 0.8.
    assert (verdict.category, verdict.action) == ("theft", Action.WARN)
    assert verdict.mass == pytest.approx(1)


def test_the_mass_of_a_classifier_is_that_of_its_two_words() -> None:
    def rule(_prompt: str, answer: str) -> float:
        return math.log({"safe": 0.3, "unsafe": 0.1, "unsafe\nS1": 0.05}.get(answer, 1e-12))

    verdict = Classifier(Model(rule, template=GUARD), CODES).judge("text")
    assert verdict is not None
    assert verdict.mass == pytest.approx(0.4)
    assert verdict.probabilities["acceptable"] == pytest.approx(0.75)


def test_a_code_that_the_categories_do_not_have_is_acceptable_here() -> None:
    rows = (Category("violence", "v", code="S1"), Category("hate", "h", code="S10"))
    few, more = Taxonomy("few", rows), Taxonomy("more", (*rows, Category("advice", "a", code="S6")))
    chances = {"safe": 0.06, "unsafe\nS6": 0.9, "unsafe\nS1": 0.02, "unsafe\nS10": 0.02}

    def judged(taxonomy: Taxonomy) -> Verdict:
        verdict = Classifier(Model(guard_rule("\n\n", chances), template=GUARD), taxonomy).judge(
            "x"
        )
        assert verdict is not None
        return verdict

    assert judged(few).probabilities == pytest.approx(
        {"acceptable": 0.96, "violence": 0.02, "hate": 0.02}, abs=1e-6
    )
    assert not judged(few).refused
    assert (judged(more).category, judged(more).refused) == ("advice", True)
    assert judged(more).probability == pytest.approx(0.94, abs=1e-6)


def test_white_space_that_a_vocabulary_drops_counts_once() -> None:
    class Dropping:
        """The tiny vocabulary, which forgets blanks before a text."""

        def __getattr__(self, name: str) -> Any:
            return getattr(TOKENIZER, name)

        def encode(self, text: str, first: bool = True) -> list[int]:
            return TOKENIZER.encode(text.lstrip())

    model = Model(guard_rule("", {"safe": 0.5, "unsafe\nS1": 0.2}), template=GUARD)
    model.tokenizer = Dropping()  # type: ignore[assignment]
    verdict = Classifier(model, CODES).judge("text")
    assert verdict is not None
    assert verdict.mass == pytest.approx(0.7)
    assert len({tuple(each) for each in model.labels}) == len(model.labels)


def test_a_classifier_sees_question_and_answer() -> None:
    model = Model(guard_rule("", {"safe": 1.0}), template=GUARD)
    moderator = Classifier(model, CODES)
    verdict = moderator.judge("the answer", Role.ASSISTANT, "the question")
    assert verdict is not None
    assert verdict.category == "acceptable"
    assert "user: the question\nassistant: the answer\n" in model.asked[0]
    moderator.judge("the answer", Role.ASSISTANT)
    moderator.judge("the prompt")
    assert "user: the prompt\n<|im_end|>" in model.asked[2]


def test_a_long_question_leaves_room_for_the_answer() -> None:
    model = Model(guard_rule("", {"safe": 1.0}), template=GUARD)
    moderator = Classifier(model, CODES)
    moderator.judge("x" * 3000, Role.ASSISTANT, "é" * 100_000)
    assert sum(prompt.count("x") for prompt in model.asked) >= 3000


def test_the_template_tells_what_a_model_is() -> None:
    assert GUARD.judges
    assert not template_for(TOKENIZER).judges
    told = "First line must read 'safe' or 'unsafe'."
    assert JinjaTemplate(TOKENIZER, told).judges
    assert JinjaTemplate(TOKENIZER, '{{ "' + told + '" }}').judges
    for source in (
        "{{ messages[0].content }} Be safe.",
        "Be safe, not unsafe. {{ messages[0].content }}",
        "{# " + told + " #}{{ messages[0].content }}",
        "{{ messages[0].content | safe }} Nothing 'unsafe', please.",
        "{{ 'safe' if messages[0].content == 'unsafe' }}",
        "{# unsafe #}{{ messages[0].content | safe }}",
    ):
        assert not JinjaTemplate(TOKENIZER, source).judges, source
    model = Model(guard_rule("", {"safe": 1.0}), template=GUARD)
    moderator = open_moderator(model, None)
    assert isinstance(moderator, Classifier)
    assert moderator.taxonomy.source == "llama-guard"
    with pytest.raises(UsageError, match=r"answers with the codes.*'illegal activities' has none"):
        open_moderator(model, "paper")
    with pytest.raises(UnsupportedError, match="not for a verdict"):
        template_for(TOKENIZER).transcript([])


def test_a_chat_model_takes_a_classifiers_categories() -> None:
    model = Model(by_word(gun="violent crimes"))
    moderator = open_moderator(model, "llama-guard")
    verdict = moderator.judge("a gun")
    assert verdict is not None
    assert (verdict.category, verdict.refused) == ("violent crimes", True)
