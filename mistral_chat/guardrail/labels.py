"""Scores of labels, which are logarithms, to probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mistral_chat.errors import JudgingError


def checked(scores: Sequence[float]) -> Sequence[float]:
    """The scores, if each is that of a probability; minus infinity is one of 0.

    Raises JudgingError for a NaN or an infinity, which a damaged model gives.
    """
    # Written so that a NaN is refused, too.
    if not all(score < math.inf for score in scores):
        raise JudgingError
    return scores


def total(scores: Sequence[float]) -> float:
    """The logarithm of the sum of probabilities given as logarithms.

    >>> round(math.exp(total([math.log(0.2), math.log(0.3), -math.inf])), 2)
    0.5
    """
    top = max(scores)
    if top == -math.inf:
        return top
    return top + math.log(sum(math.exp(each - top) for each in scores))


def shares(scores: Sequence[float]) -> list[float]:
    """Probabilities that add up to 1, in the ratio of those given as logarithms.

    >>> [round(share, 2) for share in shares([math.log(0.02), math.log(0.06)])]
    [0.25, 0.75]
    """
    whole = total(scores)
    if whole == -math.inf:
        return [1 / len(scores)] * len(scores)
    return [math.exp(each - whole) for each in scores]


def mass(scores: Sequence[float]) -> float:
    """The sum of the probabilities of answers that exclude each other, 0 to 1.

    >>> round(mass([math.log(0.02), math.log(0.06)]), 2)
    0.08
    """
    # Rounding may carry the sum a little beyond 1.
    return math.exp(min(0.0, total(scores)))


def disjoint(scores: Sequence[float], ids: Sequence[Sequence[int]]) -> list[float]:
    """The scores, without what belongs to longer continuations in those that begin them.

    After "fraud" an answer may go on to "fraud and forgery", so the probability of the short label
    holds that of the long one; it is taken out.

    >>> both = disjoint([math.log(0.5), math.log(0.2)], [[7], [7, 8]])
    >>> [round(math.exp(each), 2) for each in both]
    [0.3, 0.2]
    """
    own = list(scores)
    # The longest first: what is taken out of a label is then without its own longer ones.
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]), reverse=True)
    for place in order:
        short = list(ids[place])
        longer = [
            own[other]
            for other in order
            if len(ids[other]) > len(short) and list(ids[other][: len(short)]) == short
        ]
        if longer:
            rest = 1 - math.exp(total(longer) - scores[place])
            own[place] = scores[place] + math.log(rest) if rest > 0 else -math.inf
    return own
