"""The paper's guardrails: a system prompt, and what a verdict of the moderation leads to.

Mistral 7B (arXiv 2310.06825), section 5. With its system prompt the paper's model declined all of
175 unsafe prompts, at some cost in MT-Bench (6.58 against 6.84); section 5.2 lets the model itself
classify prompts and answers. How it is asked stands in :mod:`mistral_chat.moderation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from mistral_chat.errors import UsageError

OFF, PROMPT, MODERATE, STRICT = "off", "prompt", "moderate", "strict"
MODES = (OFF, PROMPT, MODERATE, STRICT)
"""Each does what the one before it does, and more: ``prompt`` places the system prompt,
``moderate`` classifies questions and answers, ``strict`` shows no answer before it is classified.
"""

MODERATING = (MODERATE, STRICT)

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

    It applies where its share, see :meth:`Taxonomy.share`, is at least ``threshold`` (0 to 1).
    ``code`` is what a dedicated classifier calls it, such as ``S1``. Raises UsageError for a
    threshold out of range.
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

    def share(self, category: Category, probabilities: Mapping[str, float]) -> float:
        """A category's probability against that of all labels whose action is milder.

        That is p / (p + theirs), 0 to 1; acceptable is milder than any. So categories that resemble
        each other, and share a text's probability, do not help it to pass, and what is surely worth
        a warning alone is not refused for the little that is left. Where all categories have the
        same action, 0.5 asks whether the model would rather answer with this one or with
        acceptable.

        >>> fraud, advice = Category("fraud", ""), Category("advice", "", Action.WARN)
        >>> taxonomy = Taxonomy("an example", (fraud, advice))
        >>> chances = {"acceptable": 0.2, "fraud": 0.3, "advice": 0.5}
        >>> taxonomy.share(fraud, chances), round(taxonomy.share(advice, chances), 2)
        (0.3, 0.71)
        """
        own = probabilities[category.name]
        milder = probabilities[self.acceptable] + sum(
            probabilities[each.name]
            for each in self.categories
            if each.action.severity < category.action.severity
        )
        return own / (own + milder) if own > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a text was found to be.

    ``category`` is a category's name, and ``probability`` its share (:meth:`Taxonomy.share`), which
    reached ``threshold``; or the label for acceptable texts, with its own probability and a
    threshold of None. ``probabilities`` is the distribution over all labels, ``ids`` the tokens
    that were judged, the classification prompt around them included. Of a text longer than a window
    (``windows`` > 1) it is the verdict on its worst one, ``window``, counted from 1.
    """

    category: str
    action: Action
    probability: float
    threshold: float | None
    probabilities: Mapping[str, float]
    ids: tuple[int, ...]
    window: int = 1
    windows: int = 1

    @property
    def refused(self) -> bool:
        """Whether the text is not to pass."""
        return self.action is Action.REFUSE

    def reason(self) -> str:
        """Category, probability and threshold in words.

        >>> Verdict("fraud", Action.REFUSE, 0.93, 0.5, {"fraud": 0.93}, ()).reason()
        'fraud (probability 0.93, threshold 0.5)'
        """
        threshold = "" if self.threshold is None else f", threshold {self.threshold:g}"
        place = f", part {self.window} of {self.windows}" if self.windows > 1 else ""
        return f"{self.category} (probability {self.probability:.2f}{threshold}{place})"

    def record(self) -> dict[str, object]:
        """The verdict as JSON prints it."""
        return {
            "category": self.category,
            "action": self.action.value,
            "probability": self.probability,
            "threshold": self.threshold,
            "probabilities": dict(self.probabilities),
            "window": self.window,
            "windows": self.windows,
            "ids": list(self.ids),
        }


def decide(
    taxonomy: Taxonomy, probabilities: Mapping[str, float], ids: Iterable[int] = ()
) -> Verdict:
    """The verdict for the probabilities of all labels.

    Of the categories whose shares reach their thresholds the one with the severest action counts,
    and of those the likeliest.

    >>> taxonomy = Taxonomy("an example", (
    ...     Category("advice", "medical or legal", Action.WARN),
    ...     Category("fraud", "cheating people", Action.REFUSE),
    ... ))
    >>> decide(taxonomy, {"acceptable": 0.2, "advice": 0.3, "fraud": 0.5}).category
    'fraud'
    >>> decide(taxonomy, {"acceptable": 0.2, "advice": 0.5, "fraud": 0.3}).category
    'advice'
    """
    shares = {each.name: taxonomy.share(each, probabilities) for each in taxonomy.categories}
    reached = [each for each in taxonomy.categories if shares[each.name] >= each.threshold]
    rest = dict(probabilities), tuple(ids)
    if not reached:
        chance = probabilities[taxonomy.acceptable]
        return Verdict(taxonomy.acceptable, Action.ALLOW, chance, None, *rest)
    chosen = max(reached, key=lambda each: (each.action.severity, shares[each.name]))
    return Verdict(chosen.name, chosen.action, shares[chosen.name], chosen.threshold, *rest)


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
