"""The rule over many texts against the rule for one, and thresholds that are searched for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_chat.guardrail.categories import parse_taxonomy, to_toml
from mistral_chat.guardrail.prompt import Action, Category, Taxonomy, Verdict, decide, worst
from mistral_chat.guardrail.thresholds import (
    Chances,
    applies,
    calibrated,
    flips,
    passes,
    with_thresholds,
)

ONE = Taxonomy("one", (Category("fraud", "f"),))
TWO = Taxonomy("two", (Category("fraud", "f"), Category("theft", "t")))

THRESHOLDS = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1))
"""Floats are of all sizes: 5e-324 too, with which weights grow beyond any float."""


def verdicts(taxonomy: Taxonomy, *rows: tuple[float, ...]) -> list[Verdict]:
    return [decide(taxonomy, dict(zip(taxonomy.labels, row, strict=True))) for row in rows]


def chances(taxonomy: Taxonomy, *texts: list[tuple[float, ...]]) -> Chances:
    return Chances.of(taxonomy, [verdicts(taxonomy, *rows) for rows in texts])


@st.composite
def cases(draw: st.DrawFn) -> tuple[Taxonomy, list[list[Verdict]]]:
    """A taxonomy of several actions, and texts of one to three windows."""
    rows = draw(st.lists(st.tuples(st.sampled_from(Action), THRESHOLDS), min_size=1, max_size=5))
    taxonomy = Taxonomy(
        "t", tuple(Category(f"c{place}", "d", *row) for place, row in enumerate(rows))
    )
    share = st.one_of(st.just(0), st.integers(0, 1000))
    window = st.lists(share, min_size=len(rows) + 1, max_size=len(rows) + 1).filter(any)
    texts = draw(st.lists(st.lists(window, min_size=1, max_size=3), min_size=1, max_size=5))
    return taxonomy, [
        verdicts(taxonomy, *(tuple(each / sum(row) for each in row) for row in text))
        for text in texts
    ]


@given(cases())
def test_many_texts_are_judged_as_one_is(case: tuple[Taxonomy, list[list[Verdict]]]) -> None:
    taxonomy, texts = case
    found = Chances.of(taxonomy, texts)
    one_by_one = [worst(text) for text in texts]
    assert passes(taxonomy, found).tolist() == [each.threshold is None for each in one_by_one]
    for action in Action:
        wanted = [
            each.threshold is not None and each.action.severity >= action.severity
            for each in one_by_one
        ]
        assert applies(taxonomy, found, action).tolist() == wanted


@given(cases(), st.data())
def test_a_text_flips_at_its_threshold(
    case: tuple[Taxonomy, list[list[Verdict]]], data: st.DataObject
) -> None:
    taxonomy, texts = case
    found = Chances.of(taxonomy, texts)
    place = data.draw(st.integers(0, len(taxonomy.categories) - 1))
    edges = flips(taxonomy, found, place)
    limits = [each.threshold for each in taxonomy.categories]
    # Just below the edge a text is stopped, just above it is not; and anywhere else as well.
    for edge in [*edges, data.draw(st.floats(0.001, 0.999))]:
        for limit in (edge * (1 - 1e-6), edge + (1 - edge) * 1e-6):
            limits[place] = float(limit)
            clear = np.abs(edges - limit) > 1e-9
            passing = passes(with_thresholds(taxonomy, limits), found)
            np.testing.assert_array_equal(passing[clear], (edges < limit)[clear])


def test_the_example_of_a_flip() -> None:
    taxonomy = with_thresholds(TWO, [0.5, 0.9])
    edge = flips(taxonomy, chances(taxonomy, [(0.2, 0.3, 0.5)]), 0)
    assert edge == pytest.approx([0.3 / (0.3 + 0.2 - 0.5 / 9)])


def test_the_worst_window_of_a_text_counts() -> None:
    found = chances(ONE, [(0.9, 0.1), (0.4, 0.6)], [(0.8, 0.2)], [(0.7, 0.3), (0.9, 0.1)])
    assert passes(ONE, found).tolist() == [False, True, True]
    assert flips(ONE, found, 0) == pytest.approx([0.6, 0.2, 0.3])
    some = found.chosen(np.array([True, False, True]))
    assert flips(ONE, some, 0) == pytest.approx([0.6, 0.3])


def best_f1(taxonomy: Taxonomy, found: Chances, acceptable: np.ndarray) -> float:
    passing = passes(taxonomy, found)
    return float(2 * (passing & acceptable).sum() / (passing.sum() + acceptable.sum()))


def test_one_threshold_is_the_best_there_is() -> None:
    random = np.random.default_rng(5)
    for _ in range(20):
        rows = [[(1 - chance, chance)] for chance in random.random(30).round(2)]
        acceptable = random.random(30) < 0.5
        acceptable[0] = True
        found = chances(ONE, *rows)
        best = calibrated(ONE, found, acceptable, [0])
        tried = [best_f1(with_thresholds(ONE, [t / 1000]), found, acceptable) for t in range(1001)]
        assert best_f1(best, found, acceptable) == max(tried)


def test_thresholds_near_one_are_kept_apart_and_written_whole() -> None:
    # Every text looks like fraud, what is acceptable a little less so: all happens beyond 0.9999.
    rows = [[(2e-6 + place * 1e-8, 1 - 2e-6 - place * 1e-8)] for place in range(20)]
    rows += [[(1e-6 + place * 1e-8, 1 - 1e-6 - place * 1e-8)] for place in range(20)]
    acceptable = np.array([True] * 20 + [False] * 20)
    found = chances(ONE, *rows)
    best = calibrated(ONE, found, acceptable, [0])
    assert best_f1(best, found, acceptable) == 1
    assert 0.9999 < best.categories[0].threshold < 1
    read = parse_taxonomy(to_toml(best), "one")
    assert passes(read, found).tolist() == acceptable.tolist()


def test_two_thresholds_do_what_one_cannot() -> None:
    # Much theft is acceptable here, and little fraud is.
    rows = [[(0.3, 0.1, 0.6)]] * 5 + [[(0.8, 0.1, 0.1)]] * 5 + [[(0.5, 0.4, 0.1)]] * 5
    acceptable = np.array([True] * 10 + [False] * 5)
    found = chances(TWO, *rows)
    assert best_f1(TWO, found, acceptable) < 1
    assert best_f1(calibrated(TWO, found, acceptable, [0, 1]), found, acceptable) == 1


def test_what_makes_no_difference_stays() -> None:
    found = chances(ONE, [(0.9, 0.1)], [(0.2, 0.8)])
    start = with_thresholds(ONE, [0.37])
    assert calibrated(start, found, np.array([True, False]), [0]) == start
    assert calibrated(start, found, np.array([True, False]), []) == start


def test_other_actions_speak_for_a_warning_too() -> None:
    taxonomy = replace(TWO, categories=(TWO.categories[0], Category("advice", "a", Action.WARN)))
    found = chances(taxonomy, [(0.45, 0.3, 0.25)], [(0.6, 0.3, 0.1)])
    assert applies(taxonomy, found, Action.REFUSE).tolist() == [False, False]
    assert applies(taxonomy, found, Action.WARN).tolist() == [True, False]
