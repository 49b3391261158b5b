"""The rule of :func:`~mistral_chat.guardrail.prompt.balance` over many texts, and what fits them.

A text is judged in windows, and found acceptable where no action applies to any of them. The
probabilities of all windows are rows of one array, those of a text side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mistral_chat.guardrail.prompt import Action, Taxonomy, Verdict, balance

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

ROUNDS = 3


@dataclass(frozen=True)
class Chances:
    """Probabilities of all labels, float64 [windows, labels], for one text after the other.

    ``starts`` is where each text begins, int64 [texts]; each has a window at least.
    """

    rows: Floats
    starts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, taxonomy: Taxonomy, texts: Sequence[Sequence[Verdict]]) -> Chances:
        """Those of verdicts on each window of each text."""
        windows = [verdict for text in texts for verdict in text]
        rows = [[each.probabilities[label] for label in taxonomy.labels] for each in windows]
        lengths = [len(text) for text in texts]
        return cls(np.array(rows), np.cumsum([0, *lengths[:-1]]))

    def chosen(self, texts: Bools) -> Chances:
        """Of some texts only, bool [texts]."""
        lengths = np.diff(self.starts, append=len(self.rows))
        kept = lengths[texts]
        return Chances(self.rows[np.repeat(texts, lengths)], np.cumsum([0, *kept[:-1]]))


def with_thresholds(taxonomy: Taxonomy, thresholds: Sequence[float] | Floats) -> Taxonomy:
    """The taxonomy with other thresholds, one for each category."""
    pairs = zip(taxonomy.categories, thresholds, strict=True)
    changed = (replace(each, threshold=float(threshold)) for each, threshold in pairs)
    return replace(taxonomy, categories=tuple(changed))


def applies(taxonomy: Taxonomy, chances: Chances, action: Action) -> Bools:
    """To which texts an action or a severer one applies, bool [texts]: to any of their windows.

    A severer action never applies without the milder ones: less speaks for it, and more against it.
    """
    with np.errstate(over="ignore"):  # a threshold of 1e-320 is almost 0, and weighs accordingly
        found = balance(taxonomy, list(chances.rows.T), action).applies
    texts: Bools = np.logical_or.reduceat(found, chances.starts)
    return texts


def passes(taxonomy: Taxonomy, chances: Chances) -> Bools:
    """Which texts are found acceptable, bool [texts]."""
    return ~applies(taxonomy, chances, Action.ALLOW)


def flips(taxonomy: Taxonomy, chances: Chances, place: int) -> Floats:
    """The threshold of a category up to which each text is not found acceptable, float64 [texts].

    The other thresholds stay. It is 0 for a text that only a threshold of 0 would stop, and 1 for
    one that is not found acceptable whatever the threshold.

    Example: acceptable at 0.2, two categories at 0.3 and 0.5, the second with a threshold of 0.9.
    What weighs 0.5 * 0.1 / 0.9 = 0.056 leaves 0.144 for the first one, which weighs that much at a
    threshold of 0.3 / (0.3 + 0.144) = 0.675.
    """
    thresholds = [each.threshold for each in taxonomy.categories]
    thresholds[place] = 1.0  # it adds nothing then
    with np.errstate(over="ignore"):
        others = balance(with_thresholds(taxonomy, thresholds), list(chances.rows.T), Action.ALLOW)
    own = chances.rows[:, 1 + place]
    left = np.maximum(others.milder - others.weight, 0.0)
    found = np.where(others.applies, 1.0, own / np.where(own > 0, own + left, 1.0))
    texts: Floats = np.maximum.reduceat(found, chances.starts)
    return texts


def calibrated(
    taxonomy: Taxonomy, chances: Chances, acceptable: Bools, places: Sequence[int]
) -> Taxonomy:
    """The thresholds of the best F1, found category by category in a few rounds.

    ``acceptable`` says of each text what it is, bool [texts]; only the categories at ``places``
    change. Candidates lie halfway between the thresholds at which neighbouring texts flip; of
    equally good ones that nearest to what it was is taken, so what makes no difference stays.
    """
    best = taxonomy
    for _ in range(ROUNDS):
        for place in places:
            before = taxonomy.categories[place].threshold
            edges = flips(best, chances, place)
            seen = np.unique(edges)
            candidates = np.array([before, *(seen[1:] + seen[:-1]) / 2, 0.0, 1.0])
            # A text passes where the threshold is above its edge.
            positives = np.searchsorted(np.sort(edges[acceptable]), candidates)
            found = np.searchsorted(np.sort(edges), candidates)
            f1 = 2 * positives / (found + acceptable.sum())
            nearest = np.lexsort((np.abs(candidates - before), -f1))[0]
            thresholds = [each.threshold for each in best.categories]
            thresholds[place] = float(candidates[nearest])
            best = with_thresholds(best, thresholds)
    return best
