"""Categories, their files, and what probabilities lead to."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_chat.errors import JudgingError, UsageError
from mistral_chat.guardrail.categories import PRESETS, load_taxonomy, parse_taxonomy, to_toml
from mistral_chat.guardrail.prompt import (
    Action,
    Category,
    Taxonomy,
    Verdict,
    decide,
    shown,
    system_prompt,
    worst,
)

ALLOW, WARN, REFUSE = Action
TAXONOMY = Taxonomy(
    "test",
    (
        Category("jokes", "what makes one laugh", ALLOW, 0.5),
        Category("advice", "of no expert", WARN, 0.4),
        Category("fraud", "cheating", REFUSE, 0.6),
        Category("theft", "stealing", REFUSE, 0.6),
    ),
)


def chances(*values: float) -> dict[str, float]:
    return dict(zip(TAXONOMY.labels, values, strict=True))


@pytest.mark.parametrize(
    ("values", "category", "action"),
    [
        ((0.9, 0.1, 0, 0, 0), "acceptable", ALLOW),
        ((0.4, 0.6, 0, 0, 0), "jokes", ALLOW),
        ((0.6, 0, 0.4, 0, 0), "advice", WARN),  # exactly its threshold
        ((0.61, 0, 0.39, 0, 0), "acceptable", ALLOW),
        ((0.1, 0.1, 0.15, 0.65, 0), "fraud", REFUSE),  # the severest; advice has 0.43
        ((0.02, 0, 0.96, 0.02, 0), "advice", WARN),  # nothing is refused for what little is left
        ((0.1, 0, 0, 0.4, 0.5), "theft", REFUSE),  # of the severest the likeliest
        # Fraud and theft weigh 0.27, with advice 0.57: enough against acceptable and jokes.
        ((0.2, 0.2, 0.2, 0.2, 0.2), "advice", WARN),
        ((0.3, 0.45, 0.05, 0.1, 0.1), "jokes", ALLOW),
        ((0, 0, 0, 0, 1), "theft", REFUSE),
        ((0, 1, 0, 0, 0), "jokes", ALLOW),
    ],
)
def test_decisions(values: tuple[float, ...], category: str, action: Action) -> None:
    verdict = decide(TAXONOMY, chances(*values), [1, 2])
    assert (verdict.category, verdict.action, verdict.ids) == (category, action, (1, 2))
    assert verdict.refused is (action is REFUSE)


def test_like_categories_do_not_help_each_other_to_pass() -> None:
    # Neither is above 0.5, but both are twice as likely as acceptable.
    verdict = decide(TAXONOMY, chances(0.2, 0, 0, 0.4, 0.4))
    assert verdict.refused
    assert verdict.probability == pytest.approx(0.8)


def labelled(taxonomy: Taxonomy, *values: float) -> dict[str, float]:
    return dict(zip(taxonomy.labels, values, strict=True))


def test_probability_that_is_spread_out_does_not_pass() -> None:
    # No category is nearly as likely as acceptable, but all together are seven times as likely.
    mistral = load_taxonomy("mistral")
    values = labelled(mistral, 0.12, *[0.88 / 13] * 13)
    assert decide(mistral, values).refused
    strict = Taxonomy("t", tuple(Category(each.name, "d") for each in mistral.categories))
    verdict = decide(strict, values)
    assert (verdict.action, verdict.probability) == (REFUSE, pytest.approx(0.88))
    assert verdict.threshold == pytest.approx(0.5)
    paper = load_taxonomy("paper")
    assert decide(paper, labelled(paper, 0.4, 0.3, 0.3, 0)).refused
    assert not decide(paper, labelled(paper, 0.51, 0.3, 0.19, 0)).refused


def test_a_warning_is_not_a_refusal_for_the_little_that_is_left() -> None:
    taxonomy = Taxonomy("t", (Category("advice", "a", WARN), Category("fraud", "f", REFUSE)))
    verdict = decide(taxonomy, labelled(taxonomy, 0.2, 0.5, 0.3))
    assert (verdict.category, verdict.action) == ("advice", WARN)
    assert (verdict.probability, verdict.threshold) == (pytest.approx(0.8), 0.5)


@pytest.mark.parametrize(
    ("categories", "values", "category", "action", "threshold"),
    [
        # One category at 0 stops everything, whatever its probability.
        ([("a", REFUSE, 0.0), ("b", REFUSE, 0.5)], (1.0, 0.0, 0.0), "a", REFUSE, 0.0),
        ([("a", WARN, 0.0), ("b", REFUSE, 0.5)], (0.9, 0.0, 0.1), "a", WARN, 0.0),
        ([("a", REFUSE, 0.0), ("b", REFUSE, 0.0)], (0.5, 0.1, 0.4), "b", REFUSE, 0.0),
        # One at 1 adds nothing, and applies only where no milder label has any probability.
        ([("a", REFUSE, 1.0), ("b", REFUSE, 0.5)], (0.2, 0.7, 0.1), "acceptable", ALLOW, None),
        ([("a", REFUSE, 1.0), ("b", REFUSE, 0.5)], (0.0, 1.0, 0.0), "a", REFUSE, 1.0),
        ([("a", WARN, 1.0), ("b", REFUSE, 1.0)], (0.0, 0.5, 0.5), "a", WARN, 1.0),
        # Named is what weighs most, not what is likeliest.
        ([("a", REFUSE, 0.2), ("b", REFUSE, 0.8)], (0.3, 0.3, 0.4), "a", REFUSE, 0.35),
        ([("a", REFUSE, 0.5), ("b", REFUSE, 0.5)], (0.2, 0.4, 0.4), "a", REFUSE, 0.5),
        # Of two thresholds the effective one lies between: 1 / (1 + (0.2 * 4 + 0.6 * 0.25) / 0.8).
        ([("a", REFUSE, 0.2), ("b", REFUSE, 0.8)], (0.2, 0.2, 0.6), "a", REFUSE, 0.8 / 1.75),
        # A milder action that applies only because of what a severer category has.
        ([("a", ALLOW, 1.0), ("b", REFUSE, 0.5)], (0.3, 0.3, 0.4), "b", ALLOW, 0.7 / 1.1),
    ],
)
def test_thresholds_at_the_ends_and_between(
    categories: list[Any], values: tuple[float, ...], category: str, action: Action, threshold: Any
) -> None:
    rows = tuple(Category(name, "d", kind, limit) for name, kind, limit in categories)
    taxonomy = Taxonomy("t", rows)
    verdict = decide(taxonomy, labelled(taxonomy, *values))
    assert (verdict.category, verdict.action) == (category, action)
    assert verdict.threshold == (None if threshold is None else pytest.approx(threshold, abs=0.01))


@given(st.floats(0.001, 1), st.floats(0, 1))
def test_one_category_alone_applies_from_its_threshold_on(threshold: float, chance: float) -> None:
    taxonomy = Taxonomy("t", (Category("fraud", "f", REFUSE, threshold),))
    verdict = decide(taxonomy, labelled(taxonomy, 1 - chance, chance))
    if abs(chance - threshold) > 1e-9:
        assert verdict.refused is (chance > threshold)
    exact = decide(taxonomy, labelled(taxonomy, 1 - threshold, threshold))
    assert exact.refused  # to the bit
    assert exact.threshold == pytest.approx(threshold)


def rule(taxonomy: Taxonomy, chances: dict[str, float]) -> tuple[Action | None, Fraction]:
    """The action by the rule as it is written down, exactly; and how near to a tie any one is."""
    found: Action | None = None
    nearest = Fraction(1)
    for action in Action:
        severe = [each for each in taxonomy.categories if each.action.severity >= action.severity]
        names = [each.name for each in severe]
        milder = sum(Fraction(value) for name, value in chances.items() if name not in names)
        evidence = Fraction(0)
        for each in severe:
            threshold = Fraction(each.threshold)
            evidence += Fraction(chances[each.name]) * (1 - threshold) / (threshold or 1)
        always = any(each.threshold == 0 for each in severe)
        if always or (evidence >= milder and any(chances[name] > 0 for name in names)):
            found = action  # the severest is the last
        nearest = min(nearest, 1 if always else abs(evidence - milder))
    return found, nearest


THRESHOLDS = st.one_of(st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.floats(0.001, 1))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Taxonomy, dict[str, float]]:
    """A taxonomy of several actions and thresholds, and probabilities of its labels."""
    rows = draw(st.lists(st.tuples(st.sampled_from(Action), THRESHOLDS), min_size=1, max_size=5))
    taxonomy = Taxonomy(
        "t", tuple(Category(f"c{place}", "d", *row) for place, row in enumerate(rows))
    )
    shares = st.one_of(st.just(0), st.integers(0, 1000))
    values = draw(st.lists(shares, min_size=len(rows) + 1, max_size=len(rows) + 1).filter(any))
    return taxonomy, labelled(taxonomy, *(value / sum(values) for value in values))


@given(cases())
def test_the_rule_is_what_is_written_down(case: tuple[Taxonomy, dict[str, float]]) -> None:
    taxonomy, values = case
    verdict = decide(taxonomy, values)
    wanted, nearest = rule(taxonomy, values)
    found = None if verdict.threshold is None else verdict.action
    if nearest > 1e-12:  # at a tie, rounding may let floats fall to either side
        assert found is wanted
    if verdict.threshold is not None:
        severity = verdict.action.severity
        names = [each.name for each in taxonomy.categories if each.action.severity >= severity]
        assert verdict.category in names
        assert verdict.probability == pytest.approx(sum(values[name] for name in names))
        assert verdict.probability >= verdict.threshold


@given(cases(), st.floats(0.01, 1))
def test_with_equal_thresholds_the_probability_alone_decides(
    case: tuple[Taxonomy, dict[str, float]], threshold: float
) -> None:
    taxonomy, values = case
    rows = tuple(Category(c.name, "d", REFUSE, threshold) for c in taxonomy.categories)
    verdict = decide(Taxonomy("t", rows), values)
    chance = 1 - values["acceptable"]
    if abs(chance - threshold) > 1e-9:
        assert verdict.refused is (chance > threshold)
    if verdict.refused:
        assert verdict.threshold == pytest.approx(threshold)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
def test_what_is_no_probability_is_not_judged(value: float) -> None:
    with pytest.raises(JudgingError, match="nothing was judged"):
        decide(TAXONOMY, chances(0.5, 0.5, value, 0, 0))


@pytest.mark.parametrize(
    ("threshold", "text"),
    [(0.5, "0.5"), (1.0, "1"), (0.0, "0"), (0.99999987, "0.9999999"), (1e-7, "1e-07")],
)
def test_a_threshold_is_shown_in_digits_enough(threshold: float, text: str) -> None:
    assert shown(threshold) == text
    assert shown(math.nextafter(1, 0)) != "1"


def test_a_verdict_says_why() -> None:
    verdict = decide(TAXONOMY, chances(0.1, 0, 0, 0.9, 0))
    assert verdict.reason() == "fraud (probability 0.90, threshold 0.6)"
    passed = decide(TAXONOMY, chances(0.8, 0.2, 0, 0, 0))
    assert passed.reason() == "acceptable (probability 0.80)"
    assert passed.record()["threshold"] is None


def test_a_verdict_says_what_was_not_read() -> None:
    def reason(read: int) -> str:
        return Verdict("fraud", REFUSE, 0.9, 0.5, {}, (), window=2, windows=5, read=read).reason()

    assert (
        reason(2) == "fraud (probability 0.90, threshold 0.5, part 2 of 5; the rest was not read)"
    )
    assert reason(5) == "fraud (probability 0.90, threshold 0.5, part 2 of 5)"


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_a_verdict_reached_its_threshold(values: list[float]) -> None:
    total = sum(values) or 1.0
    verdict = decide(TAXONOMY, chances(*(value / total for value in values)))
    if verdict.threshold is None:
        assert verdict.category == "acceptable"
    else:
        assert verdict.probability >= verdict.threshold


def test_the_worst_of_several() -> None:
    fine = decide(TAXONOMY, chances(0.9, 0.1, 0, 0, 0))
    unsure = decide(TAXONOMY, chances(0.7, 0.3, 0, 0, 0))
    joke = decide(TAXONOMY, chances(0.1, 0.9, 0, 0, 0))
    advice = decide(TAXONOMY, chances(0.3, 0, 0.7, 0, 0))
    fraud, theft = (
        decide(TAXONOMY, chances(0.2, 0, 0, 0.8, 0)),
        decide(TAXONOMY, chances(0.1, 0, 0, 0, 0.9)),
    )
    assert worst([fine, unsure]) is unsure
    assert worst([fine, joke, unsure]) is joke
    assert worst([joke, advice, fine]) is advice
    assert worst([fraud, advice, theft]) is theft


@pytest.mark.parametrize("mode", ["prompt", "moderate", "strict"])
def test_every_mode_but_off_has_the_prompt(mode: str) -> None:
    assert (system_prompt(mode, None) or "").startswith("Always assist with care")
    assert system_prompt("off", None) is None


@pytest.mark.parametrize(("name", "count"), [("paper", 3), ("mistral", 13), ("llama-guard", 14)])
def test_presets(name: str, count: int) -> None:
    taxonomy = load_taxonomy(name)
    assert len(taxonomy.categories) == count
    assert parse_taxonomy(to_toml(taxonomy), name) == taxonomy
    codes = [each.code for each in taxonomy.categories]
    assert codes == ([f"S{number}" for number in range(1, 15)] if count == 14 else [None] * count)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('acceptable = "fine"\n[[category]]\nname = "spam"\n', encoding="utf-8")
    taxonomy = load_taxonomy(str(path))
    assert taxonomy.labels == ("fine", "spam")
    assert taxonomy.categories == (Category("spam", "spam", REFUSE, 0.5),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no category"),
        ("[[category", "not valid TOML"),
        ("category = 3", r"\[\[category\]\]"),
        ("[category]\nname = 'a'", r"\[\[category\]\]"),
        ("[[category]]\ndescription = 'a'", "has no name"),
        ("[[category]]\nname = ' '", "empty name"),
        ("[[category]]\nname = 3", "text of one line"),
        ("[[category]]\nname = 'a\\nb'\n".replace("'", '"'), "text of one line"),
        ("[[category]]\nname = 'a'\n[[category]]\nname = ' A '", "two categories named 'A'"),
        ("[[category]]\nname = 'Acceptable'", "two categories named"),
        ("[[category]]\nname = 'a'\naction = 'ban'", "'ban' is no action; .*allow, warn, refuse"),
        ("[[category]]\nname = 'a'\nthreshold = 1.5", "from 0 to 1"),
        ("[[category]]\nname = 'a'\nthreshold = -0.1", "from 0 to 1"),
        ("[[category]]\nname = 'a'\nthreshold = nan", "from 0 to 1"),
        (
            "[[category]]\nname = 'a'\nthreshold = 2",
            r"bad\.toml, category 1: .* from 0 to 1, not 2",
        ),
        (f"[[category]]\nname = 'a'\nthreshold = {'9' * 400}", r"bad\.toml.* not 9+ \.\.\."),
        (f"[[category]]\nname = 'a'\nthreshold = {'9' * 5000}", r"bad\.toml cannot be read"),
        (f"[[category]]\nname = 'a'\nthreshold = 0x{'f' * 9000}", "number of thousands of digits"),
        ("a = " + "[" * 2000 + "]" * 2000, r"bad\.toml cannot be read"),
        ("[[category]]\nname = 'a'\ncode = ''", "empty code"),
        ("[[category]]\nname = 'a'\nthreshold = true", "a number"),
        ("[[category]]\nname = 'a'\nthreshold = '1'", "a number"),
        ("[[category]]\nname = 'a'\ntreshold = 1", "did you mean 'threshold'"),
        ("categories = 3", "did you mean 'category'"),
        (
            "[[category]]\nname = 'a'\ncode = 'S1'\n[[category]]\nname = 'b'\ncode = 'S1'",
            "code 'S1'",
        ),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=words) as info:
        load_taxonomy(str(path))
    assert "\n" not in str(info.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'mistral'.*Presets are paper"):
        load_taxonomy("mistrall")
    with pytest.raises(UsageError, match="cannot be read"):
        load_taxonomy(str(tmp_path))
    path = tmp_path / "latin.toml"
    path.write_bytes(b"# caf\xe9")
    with pytest.raises(UsageError, match="UTF-8"):
        load_taxonomy(str(path))
    with pytest.raises(UsageError, match="There are no categories"):
        load_taxonomy("a\0b")


NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)


@given(st.lists(st.tuples(NAMES, NAMES, st.sampled_from(Action), st.floats(0, 1)), max_size=5))
def test_what_is_written_is_read_again(rows: list[tuple[str, str, Action, float]]) -> None:
    unique = {name.casefold(): (name, *rest) for name, *rest in rows if name != "acceptable"}
    categories = tuple(Category(*row) for row in unique.values())  # type: ignore[arg-type]
    try:
        taxonomy = Taxonomy("a file", categories)
    except UsageError:
        return
    assert parse_taxonomy(to_toml(taxonomy), "a file") == taxonomy


def test_presets_are_all_named() -> None:
    assert all(load_taxonomy(name).source == name for name in PRESETS)
