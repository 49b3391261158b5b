"""How well a moderator does on labelled examples, and which thresholds would suit it better.

As in the Mistral 7B paper (section 5.2), *acceptable* is the positive class: precision is the share
of texts found acceptable that are, recall the share of acceptable texts that were found so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

import numpy as np
import numpy.typing as npt

from mistral_chat.errors import UsageError
from mistral_chat.guardrail.moderation import Moderator, Said
from mistral_chat.guardrail.prompt import ACCEPTABLE, Taxonomy, Verdict, worst
from mistral_chat.guardrail.thresholds import Bools, Chances, calibrated, passes, with_thresholds
from mistral_chat.models.texts import MOST_BYTES
from mistral_chat.settings import nearest
from mistral_chat.system.files import longer_than, without_mark

UNACCEPTABLE = "unacceptable"
"""A label for a text that is not acceptable, whatever its category."""

FOLDS = 5
SHIPPED = "examples"
"""The name of the example set that ships."""


@dataclass(frozen=True, slots=True)
class Example:
    """A text, and what a person says it is."""

    text: str
    label: str


def shipped_examples() -> bytes:
    """The example set that ships: acceptable texts, and such of the paper's categories."""
    data = resources.files("mistral_chat") / "data" / "moderation_examples.jsonl"
    return data.read_bytes()


def read_examples(data: bytes, place: str, taxonomy: Taxonomy) -> list[Example]:
    """Examples from lines of JSON with ``text`` and ``label``.

    A label is one of the taxonomy, or ``unacceptable``; in the set that ships, with the place
    ``examples``, a category that the taxonomy does not have counts as that. Raises UsageError that
    names ``place`` and the line, also where there are not both acceptable and other examples.
    """
    known = (*taxonomy.labels, UNACCEPTABLE)
    examples = []
    for number, values in json_lines(data, place):
        text, label = values.get("text"), values.get("label")
        if not isinstance(text, str) or not isinstance(label, str):
            raise UsageError(f'{place}, line {number}: give it a "text" and a "label".')
        if not text.strip():
            raise UsageError(f"{place}, line {number}: the text is empty; leave the line out.")
        if place == SHIPPED:
            label = taxonomy.acceptable if label == ACCEPTABLE else label
            label = label if label in known else UNACCEPTABLE
        if label not in known:
            hint = nearest(label, dict.fromkeys(known))
            raise UsageError(
                f"{place}, line {number}: {label!r} is no label of {taxonomy.source}{hint} "
                f"{UNACCEPTABLE!r} fits any that is not {taxonomy.acceptable!r}."
            )
        examples.append(Example(text, label))
    count = sum(example.label == taxonomy.acceptable for example in examples)
    if not 0 < count < len(examples):
        raise UsageError(
            f"{place} has {count} acceptable of {len(examples)} examples; precision and recall "
            "need some that are and some that are not."
        )
    return examples


def json_lines(data: bytes, place: str) -> list[tuple[int, dict[str, object]]]:
    """The objects of lines of JSON with their numbers; empty lines are passed over.

    Raises UsageError that names ``place`` and the line.
    """
    rows = []
    for number, line in enumerate(without_mark(data, place).split(b"\n"), 1):
        if not line.strip():
            continue
        if len(line) > MOST_BYTES:
            raise longer_than(MOST_BYTES)(f"{place}, line {number}")
        try:
            values = json.loads(line.decode("utf-8"))
            # Half of a surrogate pair, which JSON can write, is no text.
            json.dumps(values, ensure_ascii=False).encode("utf-8")
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{place}, line {number} is not JSON in UTF-8: {error}.") from error
        if not isinstance(values, dict):
            raise UsageError(f"{place}, line {number} is not a JSON object with a text.")
        rows.append((number, values))
    return rows


@dataclass(frozen=True, slots=True)
class Rates:
    """Counts with acceptable as positive; a rate of nothing is 0.

    >>> rates = Rates(8, 2, 2, 8)
    >>> rates.precision, rates.recall, rates.f1
    (0.8, 0.8, 0.8)
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @classmethod
    def of(cls, acceptable: Bools, found: Bools) -> Rates:
        """Counted from what texts are, and what they were found to be."""
        return cls(
            int((acceptable & found).sum()),
            int((~acceptable & found).sum()),
            int((acceptable & ~found).sum()),
            int((~acceptable & ~found).sum()),
        )

    @property
    def precision(self) -> float:
        """Share of the texts found acceptable that are."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of the acceptable texts that were found so."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of both."""
        return _ratio(
            2 * self.true_positives,
            2 * self.true_positives + self.false_positives + self.false_negatives,
        )

    def record(self) -> dict[str, float]:
        """The three rates."""
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class Evaluation:
    """Examples with the verdicts of a model on each window of each of them."""

    model: str
    taxonomy: Taxonomy
    examples: Sequence[Example]
    verdicts: Sequence[Sequence[Verdict]]

    @cached_property
    def acceptable(self) -> Bools:
        """Which examples are acceptable, bool [n]."""
        wanted = self.taxonomy.acceptable
        return np.array([example.label == wanted for example in self.examples])

    @cached_property
    def chances(self) -> Chances:
        """The probabilities of all labels, of every window."""
        return Chances.of(self.taxonomy, self.verdicts)

    @property
    def rates(self) -> Rates:
        """With the thresholds as they are."""
        return Rates.of(self.acceptable, passes(self.taxonomy, self.chances))

    @property
    def confusion(self) -> dict[str, dict[str, int]]:
        """How many texts of each label (that occurs) were found to be what."""
        occurring = {example.label for example in self.examples}
        rows = [each for each in (*self.taxonomy.labels, UNACCEPTABLE) if each in occurring]
        table = {row: dict.fromkeys(self.taxonomy.labels, 0) for row in rows}
        for example, verdicts in zip(self.examples, self.verdicts, strict=True):
            table[example.label][worst(verdicts).category] += 1
        return table

    def curve(self, points: int = 21) -> list[tuple[float, Rates]]:
        """The rates where all categories had the same threshold, from 0 to 1."""
        width = len(self.taxonomy.categories)
        curve = []
        for threshold in np.linspace(0, 1, points):
            taxonomy = with_thresholds(self.taxonomy, np.full(width, threshold))
            curve.append(
                (float(threshold), Rates.of(self.acceptable, passes(taxonomy, self.chances)))
            )
        return curve

    def calibrated(self) -> Taxonomy:
        """The categories with thresholds of the best F1 on all examples."""
        return calibrated(self.taxonomy, self.chances, self.acceptable, self._present())

    def cross_validated(self) -> Rates | None:
        """What calibrated thresholds come to on examples that they were not chosen by.

        Each of five parts is judged with thresholds from the other four; None where there are too
        few examples for that.
        """
        if min(self.acceptable.sum(), (~self.acceptable).sum()) < FOLDS:
            return None
        fold = self._folds()
        found = np.zeros(len(self.examples), bool)
        for number in range(FOLDS):
            others, held_out = fold != number, fold == number
            chosen = calibrated(
                self.taxonomy,
                self.chances.chosen(others),
                self.acceptable[others],
                self._present(others),
            )
            found[held_out] = passes(chosen, self.chances.chosen(held_out))
        return Rates.of(self.acceptable, found)

    def _folds(self) -> npt.NDArray[np.int64]:
        """Which part each example belongs to: those of a label are dealt out in turn."""
        seen: dict[str, int] = {}
        parts = []
        for example in self.examples:
            parts.append(seen.get(example.label, 0) % FOLDS)
            seen[example.label] = seen.get(example.label, 0) + 1
        return np.array(parts)

    def _present(self, chosen: Bools | None = None) -> list[int]:
        """The categories of which there are examples; others keep their thresholds."""
        picked = np.ones(len(self.examples), bool) if chosen is None else chosen
        labels = {e.label for e, taken in zip(self.examples, picked, strict=True) if taken}
        if UNACCEPTABLE in labels:
            return list(range(len(self.taxonomy.categories)))
        names = [category.name for category in self.taxonomy.categories]
        return [place for place, name in enumerate(names) if name in labels]

    def record(self) -> dict[str, object]:
        """All of it as JSON prints it."""
        validated = self.cross_validated()
        return {
            "model": self.model,
            "categories": self.taxonomy.source,
            "examples": len(self.examples),
            "acceptable": int(self.acceptable.sum()),
            **self.rates.record(),
            "confusion": self.confusion,
            "calibrated": {
                "thresholds": {each.name: each.threshold for each in self.calibrated().categories},
                "cross_validated": None if validated is None else validated.record(),
            },
            "curve": [{"threshold": each, **rates.record()} for each, rates in self.curve()],
        }


def evaluate(
    moderator: Moderator,
    examples: Sequence[Example],
    progress: Callable[[int, int], None] | None = None,
    cancel: Callable[[], bool] | None = None,
    at_once: int = 1,
) -> Evaluation | None:
    """The verdicts of a moderator on examples, up to ``at_once`` of which are read together; None
    where ``cancel`` said yes.

    Every window of a text is judged, also after one that is refused: with other thresholds it
    would not be. ``progress(done, total)`` is called after each example.
    """
    verdicts: list[list[Verdict]] = []
    texts = (Said(example.text) for example in examples)
    for found in moderator.verdicts(texts, at_once, cancel):
        if found is None:
            return None
        verdicts.append(found)
        if progress is not None:
            progress(len(verdicts), len(examples))
    return Evaluation(moderator.name, moderator.taxonomy, examples, verdicts)
