"""Precision, recall and calibrated thresholds, on verdicts that are known."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from rich.console import Console

from mistral_chat.errors import UsageError
from mistral_chat.guardrail.categories import load_taxonomy, parse_taxonomy, to_toml
from mistral_chat.guardrail.evaluation import (
    FOLDS,
    Evaluation,
    Example,
    Rates,
    evaluate,
    read_examples,
    shipped_examples,
)
from mistral_chat.guardrail.moderation import open_moderator
from mistral_chat.guardrail.prompt import Action, Category, Taxonomy, decide, shown
from mistral_chat.guardrail.report import evaluation_report
from mistral_chat.guardrail.thresholds import passes, with_thresholds

from .scripted import Model, by_word

TAXONOMY = Taxonomy("test", (Category("fraud", "f"), Category("advice", "a", Action.WARN)))
PAPER = load_taxonomy("paper")


def evaluation(rows: list[tuple[str, float, float]], taxonomy: Taxonomy = TAXONOMY) -> Evaluation:
    """Examples with a label, and the probabilities of fraud and advice that were found."""
    verdicts = [
        [decide(taxonomy, {"acceptable": 1 - fraud - advice, "fraud": fraud, "advice": advice})]
        for _, fraud, advice in rows
    ]
    examples = [Example(f"text {place}", label) for place, (label, *_) in enumerate(rows)]
    return Evaluation("model", taxonomy, examples, verdicts)


def test_rates_with_acceptable_as_positive() -> None:
    rates = Rates.of(np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool))
    assert rates == Rates(2, 1, 1, 1)
    assert rates.precision == rates.recall == rates.f1 == pytest.approx(2 / 3)
    assert Rates(0, 0, 0, 5).record() == {"precision": 0, "recall": 0, "f1": 0}


def test_an_evaluation_counts() -> None:
    found = evaluation(
        [
            ("acceptable", 0.1, 0.1),
            ("acceptable", 0.6, 0.1),  # found to be fraud
            ("fraud", 0.7, 0.0),
            ("fraud", 0.1, 0.8),  # found to be advice
            ("advice", 0.1, 0.1),  # missed
            ("unacceptable", 0.0, 0.9),
        ]
    )
    assert found.rates == Rates(1, 1, 1, 3)
    assert found.confusion == {
        "acceptable": {"acceptable": 1, "fraud": 1, "advice": 0},
        "fraud": {"acceptable": 0, "fraud": 1, "advice": 1},
        "advice": {"acceptable": 1, "fraud": 0, "advice": 0},
        "unacceptable": {"acceptable": 0, "fraud": 0, "advice": 1},
    }
    assert json.loads(json.dumps(found.record()))["precision"] == 0.5


def test_the_curve_goes_from_none_to_all() -> None:
    curve = evaluation([("acceptable", 0.2, 0), ("fraud", 0.8, 0)]).curve()
    assert curve[0][1].recall == 0
    assert curve[-1][1].recall == 1
    assert {rates.f1 for threshold, rates in curve if 0.25 < threshold < 0.75} == {1.0}


def test_thresholds_are_calibrated() -> None:
    # Everything looks like fraud, what is fraud more so: 0.5 refuses all.
    rows = [("acceptable", 0.6 + place / 100, 0.0) for place in range(10)]
    rows += [("fraud", 0.8 + place / 100, 0.0) for place in range(10)]
    found = evaluation(rows)
    assert found.rates.recall == 0
    calibrated = found.calibrated()
    assert 0.69 < calibrated.categories[0].threshold < 0.8
    assert calibrated.categories[1].threshold == 0.5  # there is no example of advice
    assert evaluation(rows, calibrated).rates.f1 == 1
    validated = found.cross_validated()
    assert validated is not None
    assert validated.f1 == 1


def test_cross_validation_does_not_flatter() -> None:
    # Labels that have nothing to do with the probabilities: held-out texts show it.
    random = np.random.default_rng(3)
    rows = [
        (label, float(chance), 0.0)
        for label, chance in zip(["acceptable", "fraud"] * 40, random.random(80), strict=True)
    ]
    found = evaluation(rows)
    validated, fitted = found.cross_validated(), evaluation(rows, found.calibrated()).rates
    assert validated is not None
    assert validated.f1 < fitted.f1
    assert sum(vars_of(validated)) == 80


def vars_of(rates: Rates) -> list[int]:
    return [
        rates.true_positives, rates.false_positives, rates.false_negatives, rates.true_negatives,
    ]  # fmt: skip


def test_too_few_to_cross_validate() -> None:
    rows = [("acceptable", 0.1, 0.0)] * FOLDS + [("fraud", 0.9, 0.0)] * (FOLDS - 1)
    assert evaluation(rows).cross_validated() is None
    assert evaluation([*rows, ("fraud", 0.8, 0.0)]).cross_validated() is not None


def test_a_model_is_evaluated() -> None:
    moderator = open_moderator(Model(by_word(bomb="illegal activities")), None)
    examples = [Example("a bomb", "illegal activities"), Example("a kitten", "acceptable")]
    seen: list[tuple[int, int]] = []
    found = evaluate(moderator, examples, lambda *place: seen.append(place))
    assert found is not None
    assert found.rates.f1 == 1
    assert seen == [(1, 2), (2, 2)]
    assert evaluate(moderator, examples, cancel=lambda: True) is None


def test_every_window_is_evaluated() -> None:
    # Bomb before vermin: with a threshold that lets bombs pass, vermin must still be seen.
    model = Model(
        by_word(bomb="illegal activities", vermin="hateful, harassing or violent content")
    )
    moderator = open_moderator(model, None)
    long = "bomb " + "word " * 800 + "vermin"
    examples = [Example(long, "unacceptable"), Example("a bomb", "acceptable")]
    found = evaluate(moderator, examples)
    assert found is not None
    assert len(found.verdicts[0]) > 3
    assert [each.category for each in found.verdicts[0] if each.refused] == [
        "illegal activities", "hateful, harassing or violent content",
    ]  # fmt: skip
    lenient = with_thresholds(found.taxonomy, [1.0, 0.6, 1.0])
    assert passes(lenient, found.chances).tolist() == [False, True]
    assert found.confusion["unacceptable"]["acceptable"] == 0
    assert evaluate(moderator, examples, cancel=cancel_at(3)) is None


def cancel_at(count: int) -> Callable[[], bool]:
    answers = iter([False] * count + [True] * 99)
    return lambda: next(answers)


def test_calibrated_thresholds_are_written_as_they_are() -> None:
    rows = [("acceptable", 1 - 3e-6, 0.0)] * 5 + [("fraud", 1 - 1e-6, 0.0)] * 5
    found = evaluation(rows)
    calibrated = found.calibrated()
    assert 0.9999 < calibrated.categories[0].threshold < 1
    read = parse_taxonomy(to_toml(calibrated), "test")
    assert read == calibrated
    assert evaluation(rows, read).rates == Rates(5, 0, 0, 5)
    console = Console(file=io.StringIO(), width=100)
    console.print(evaluation_report(found))
    text = console.file.getvalue()
    assert shown(calibrated.categories[0].threshold) in text
    assert not re.search(r"fraud +│ 0.5 +│ 1 ", text)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (b"", "0 acceptable of 0"),
        (b'{"text": "a", "label": "acceptable"}', "1 acceptable of 1"),
        (b'{"text": "a", "label": "unacceptable"}', "0 acceptable of 1"),
        (b"\n\nnot json", "line 3 is not JSON"),
        (b'"a"', "line 1 is not a JSON object"),
        (b"\xff", "not JSON in UTF-8"),
        (b'{"text": "\\ud800", "label": "acceptable"}', "not JSON in UTF-8"),
        (b'{"text": "a"}', 'a "text" and a "label"'),
        (b'{"text": 3, "label": "acceptable"}', 'a "text" and a "label"'),
        (b'{"text": " ", "label": "acceptable"}', "line 1: the text is empty"),
        (b'{"text": "a", "label": "illegal"}', "'illegal' is no label of paper"),
        (b'{"text": "a", "label": "acceptible"}', "did you mean 'acceptable'"),
    ],
)
def test_bad_examples(lines: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_examples(lines, "a file", PAPER)


def test_the_shipped_examples_fit_any_categories() -> None:
    own = Taxonomy("mine", (Category("unqualified advice", "u"),), "fine")
    for taxonomy in (load_taxonomy("llama-guard"), own):
        examples = read_examples(shipped_examples(), "examples", taxonomy)
        counts = Counter(example.label for example in examples)
        assert counts[taxonomy.acceptable] == 60
        assert counts["unacceptable"] == 72 - counts["unqualified advice"]
    assert counts["unqualified advice"] == 24  # what both have keeps its name
    # In a person's own file a label that the taxonomy does not have is a mistake.
    with pytest.raises(UsageError, match=r"no label of llama-guard.*'unacceptable' fits"):
        read_examples(shipped_examples(), "mine.jsonl", load_taxonomy("llama-guard"))


def test_the_shipped_examples() -> None:
    examples = read_examples(shipped_examples(), "examples", PAPER)
    counts = {label: sum(example.label == label for example in examples) for label in PAPER.labels}
    assert counts["acceptable"] == 60
    assert len(set(examples)) == len(examples)
    assert min(counts.values()) >= 20
    assert any(example.text == "How do I kill a Linux process?" for example in examples)
