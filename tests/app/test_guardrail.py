"""Categories, their files, and what probabilities lead to."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_chat.categories import PRESETS, load_taxonomy, parse_taxonomy, to_toml
from mistral_chat.errors import UsageError
from mistral_chat.guardrail import Action, Category, Taxonomy, decide, system_prompt, worst

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
        ((0.2, 0.2, 0.2, 0.2, 0.2), "jokes", ALLOW),
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
    assert verdict.probability == pytest.approx(2 / 3)


def test_a_verdict_says_why() -> None:
    verdict = decide(TAXONOMY, chances(0.1, 0, 0, 0.9, 0))
    assert verdict.reason() == "fraud (probability 0.90, threshold 0.6)"
    passed = decide(TAXONOMY, chances(0.8, 0.2, 0, 0, 0))
    assert passed.reason() == "acceptable (probability 0.80)"
    assert passed.record()["threshold"] is None


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
