"""The paper's guardrails: a system prompt, and what a verdict of the moderation leads to.

Mistral 7B (arXiv 2310.06825), section 5. With its system prompt the paper's model declined all of
175 unsafe prompts, at some cost in MT-Bench (6.58 against 6.84); section 5.2 lets the model itself
classify prompts and answers. How it is asked stands in :mod:`mistral_chat.guardrail.moderation`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import reduce
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mistral_chat.errors import JudgingError, UsageError
from mistral_chat.settings import OFF

if TYPE_CHECKING:
    import numpy.typing as npt  # at run time no command is to wait for NumPy here

GUARDRAIL_PROMPT = (
    "Always assist with care, respect, and truth. Respond with utmost utility yet securely. Avoid "
    "harmful, unethical, prejudiced, or negative content. Ensure replies promote fairness and "
    "positivity."
)


def system_prompt(mode: str, own: str | None) -> str | None:
    r"""The system prompt of a talk: the guardrail's text where ``mode`` has one, then the person's.

    It is a system message like any other, so each template places it by its own rule, and nothing
    that is typed as a message can take it away.

    >>> system_prompt("off", "Be brief")
    'Be brief'
    >>> system_prompt("prompt", "Be brief").endswith("positivity.\n\nBe brief")
    True
    """
    texts = [] if mode == OFF else [GUARDRAIL_PROMPT]
    texts += [own] if own else []
    return "\n\n".join(texts) or None


class Action(StrEnum):
    """What is done about a text of a category, the mildest first."""

    ALLOW = "allow"
    WARN = "warn"
    REFUSE = "refuse"

    @property
    def severity(self) -> int:
        """0 for the mildest."""
        return list(Action).index(self)


DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Category:
    """A kind of text that is to be told from acceptable ones.

    ``threshold`` (0 to 1) says how easily it applies, see :func:`weight`. ``code`` is what a
    dedicated classifier calls it, such as ``S1``. Raises UsageError for a threshold out of range.
    """

    name: str
    description: str
    action: Action = Action.REFUSE
    threshold: float = DEFAULT_THRESHOLD
    code: str | None = None

    def __post_init__(self) -> None:
        # Written so that a NaN is refused, too.
        if not 0 <= self.threshold <= 1:
            raise UsageError(
                f"The threshold of {self.name!r} must be from 0 to 1, not {self.threshold}."
            )


ACCEPTABLE = "acceptable"


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """The categories in use; ``source`` is the preset or the file they came from.

    ``acceptable`` is the label of a text that belongs to none. Raises UsageError for no category
    and for labels that differ in nothing but case and spaces.
    """

    source: str
    categories: tuple[Category, ...]
    acceptable: str = ACCEPTABLE

    def __post_init__(self) -> None:
        if not self.categories:
            raise UsageError(f"{self.source} names no category; give it a [[category]].")
        seen: set[str] = set()
        for label in self.labels:
            key = " ".join(label.split()).casefold()
            if not key:
                raise UsageError(f"{self.source}: a category has an empty name; give it one.")
            if key in seen:
                raise UsageError(
                    f"{self.source} has two categories named {label!r}; rename one of them "
                    f"({self.acceptable!r} is the name of all other texts)."
                )
            seen.add(key)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label a text can get, ``acceptable`` first."""
        return (self.acceptable, *(category.name for category in self.categories))


Chance = TypeVar("Chance", float, "npt.NDArray[Any]")
"""A probability, 0 to 1, or those of many texts, float64 [n]."""


def weight(chance: Chance, threshold: float) -> Chance:
    """What a category's probability weighs against that of milder labels: p (1 - t) / t.

    So a category alone outweighs them just where p / (p + theirs) reaches its threshold. At 0.5
    it weighs what it is and at 1 nothing; at 0 more than anything, whatever its probability.

    >>> weight(0.25, 0.5), weight(0.25, 0.2), weight(0.25, 1.0), weight(0.0, 0.0)
    (0.25, 1.0, 0.0, inf)
    """
    # The same in another form, which is exact where a share is its threshold to the bit.
    return chance / threshold - chance if threshold > 0 else chance + math.inf


@dataclass(frozen=True, slots=True)
class Balance(Generic[Chance]):
    """What speaks for an action, and what against it; of many texts float64 [n] each.

    ``chance`` is the probability of all categories with that action or a severer one, ``weight``
    what they weigh together, ``milder`` the probability of all other labels.
    """

    chance: Chance
    weight: Chance
    milder: Chance

    @property
    def applies(self) -> Any:
        """Whether the action is called for, bool or bool [n]."""
        return (self.weight >= self.milder) & (self.chance + self.weight > 0)


def balance(taxonomy: Taxonomy, chances: Sequence[Chance], action: Action) -> Balance[Chance]:
    """The balance of an action, for the ``chances`` of all labels in the taxonomy's order.

    Everything that decides is here. Categories with an action, and those with a severer one, speak
    for it together: it applies where their weights come to at least the probability of all milder
    labels, of which acceptable is the mildest. So probability that is spread over several
    categories does not help a text to pass, and what is surely worth a warning alone is not
    refused for the little that is left.

    >>> taxonomy = Taxonomy("an example", (
    ...     Category("fraud", "cheating people"),
    ...     Category("theft", "stealing"),
    ...     Category("advice", "medical or legal", Action.WARN),
    ... ))
    >>> balance(taxonomy, [0.25, 0.25, 0.25, 0.25], Action.REFUSE)
    Balance(chance=0.5, weight=0.5, milder=0.5)
    >>> balance(taxonomy, [0.25, 0.125, 0.125, 0.5], Action.REFUSE).applies
    False
    >>> balance(taxonomy, [0.25, 0.125, 0.125, 0.5], Action.WARN)
    Balance(chance=0.75, weight=0.75, milder=0.25)
    """
    pairs = list(zip(taxonomy.categories, chances[1:], strict=True))
    severe = [pair for pair in pairs if pair[0].action.severity >= action.severity]
    mild = [chance for each, chance in pairs if each.action.severity < action.severity]
    nothing = chances[0] * 0.0
    # Added one by one, so that floats and arrays give the same bits; sum() adds floats otherwise.
    return Balance(
        reduce(operator.add, (chance for _, chance in severe), nothing),
        reduce(operator.add, (weight(chance, each.threshold) for each, chance in severe), nothing),
        reduce(operator.add, mild, chances[0]),
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a text was found to be.

    ``category`` names the one that weighs most, ``probability`` is that of all categories with this
    action or a severer one, and ``threshold`` what it had to reach: that of the categories where
    they have one in common, else between theirs. Or ``category`` is the label for acceptable texts,
    with its own probability and a threshold of None.

    ``probabilities`` is the distribution over all labels, and ``mass`` (0 to 1) what they had
    together of everything that the model could have answered. ``ids`` are the tokens that were
    judged, the classification prompt around them included. Of a text longer than a window
    (``windows`` > 1) it is the verdict on its worst one, ``window``, counted from 1, among the
    first ``read``.
    """

    category: str
    action: Action
    probability: float
    threshold: float | None
    probabilities: Mapping[str, float]
    ids: tuple[int, ...]
    mass: float = 1.0
    window: int = 1
    windows: int = 1
    read: int = 1

    @property
    def refused(self) -> bool:
        """Whether the text is not to pass."""
        return self.action is Action.REFUSE

    def reason(self) -> str:
        """Category, probability and threshold in words.

        >>> Verdict("fraud", Action.REFUSE, 0.93, 0.5, {"fraud": 0.93}, ()).reason()
        'fraud (probability 0.93, threshold 0.5)'
        """
        threshold = "" if self.threshold is None else f", threshold {shown(self.threshold)}"
        place = f", part {self.window} of {self.windows}" if self.windows > 1 else ""
        rest = "; the rest was not read" if self.read < self.windows else ""
        return f"{self.category} (probability {self.probability:.2f}{threshold}{place}{rest})"

    def record(self) -> dict[str, object]:
        """The verdict as JSON prints it."""
        return {
            "category": self.category,
            "action": self.action.value,
            "probability": self.probability,
            "threshold": self.threshold,
            "probabilities": dict(self.probabilities),
            "mass": self.mass,
            "window": self.window,
            "windows": self.windows,
            "read": self.read,
            "ids": list(self.ids),
        }


def shown(threshold: float) -> str:
    """A threshold in as few digits, four at least, as do not make 1 of what is below it.

    >>> shown(0.5), shown(0.123456), shown(0.999987), shown(1.0)
    ('0.5', '0.1235', '0.99999', '1')
    """
    digits = (f"{threshold:.{count}g}" for count in range(4, 18))
    return next(text for text in digits if float(text) < 1 or threshold == 1)


def decide(
    taxonomy: Taxonomy,
    probabilities: Mapping[str, float],
    ids: Iterable[int] = (),
    mass: float = 1.0,
) -> Verdict:
    """The verdict for the probabilities of all labels.

    The severest action whose :func:`balance` applies counts. It does just where the verdict's
    probability reaches its threshold, which is 1 / (1 + o) for the mean o of (1 - t) / t over the
    categories that speak for the action, weighted by their probabilities. Named is the category of
    that action that weighs most or, where those weigh nothing, the likeliest severer one that
    does. Raises JudgingError for a probability that is no number.

    >>> taxonomy = Taxonomy("an example", (
    ...     Category("advice", "medical or legal", Action.WARN),
    ...     Category("fraud", "cheating people"),
    ...     Category("theft", "stealing"),
    ... ))
    >>> def found(*chances):
    ...     verdict = decide(taxonomy, dict(zip(taxonomy.labels, chances)))
    ...     return verdict.action.value, verdict.category, round(verdict.probability, 2)
    >>> found(0.4, 0.0, 0.25, 0.35)  # either alone is less likely than acceptable
    ('refuse', 'theft', 0.6)
    >>> found(0.2, 0.5, 0.2, 0.1)
    ('warn', 'advice', 0.8)
    >>> found(0.6, 0.1, 0.2, 0.1)
    ('allow', 'acceptable', 0.6)
    """
    chances = [probabilities[label] for label in taxonomy.labels]
    if not all(0 <= chance < math.inf for chance in chances):
        raise JudgingError
    rest = dict(probabilities), tuple(ids), mass
    for action in reversed(Action):
        found = balance(taxonomy, chances, action)
        if found.applies:
            total = found.chance + found.milder
            return Verdict(
                _heaviest(taxonomy, chances[1:], action).name,
                action,
                found.chance / total if total else 0.0,
                found.chance / (found.chance + found.weight),
                *rest,
            )
    return Verdict(taxonomy.acceptable, Action.ALLOW, chances[0], None, *rest)


def _heaviest(taxonomy: Taxonomy, chances: Sequence[float], action: Action) -> Category:
    """The category that a verdict names; of equal ones the first."""

    def rank(pair: tuple[Category, float]) -> tuple[bool, bool, float, float]:
        category, chance = pair
        heavy, own = weight(chance, category.threshold), category.action is action
        # Among those of the same weight (all at a threshold of 0, say) the likeliest.
        return heavy > 0, own, heavy if own else chance, chance

    pairs = zip(taxonomy.categories, chances, strict=True)
    severe = [pair for pair in pairs if pair[0].action.severity >= action.severity]
    return max(severe, key=rank)[0]


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The severest of several verdicts; of equal ones that which was surest of its category."""
    return max(
        verdicts,
        key=lambda each: (
            each.action.severity,
            each.threshold is not None,
            # Acceptable in all windows: the least surely so is told.
            each.probability if each.threshold is not None else -each.probability,
        ),
    )
