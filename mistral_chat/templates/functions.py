"""Functions that chat templates have: Jinja's, and those of transformers.

Each takes the budget first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime

from mistral_chat.templates.budget import Budget, TemplateFaultError, TemplateRefusalError
from mistral_chat.templates.owned import EMPTY, Owned
from mistral_chat.templates.values import (
    Function,
    Namespace,
    Value,
    items_of,
    key_of,
    text_of,
)

LONGEST_RANGE = 100_000
"""Numbers that ``range`` gives at most, as in Jinja's sandbox."""


def _range(budget: Budget, *ends: int) -> list[int]:
    numbers = range(*ends)
    if len(numbers) > LONGEST_RANGE:
        raise TemplateFaultError(f"a range has {LONGEST_RANGE} numbers at most")
    budget.spend(len(numbers))
    return list(numbers)


def _dict(budget: Budget, given: Value = None, /, **named: Value) -> dict[Value, Value]:
    if given is None or isinstance(given, dict):
        pairs = list((given or {}).items())
    else:
        pairs = [(key, value) for key, value in items_of(budget, given)]
    budget.spend(len(pairs))
    made = {key_of(budget, key): value for key, value in pairs}
    return made | {Owned.of(name): value for name, value in named.items()}


def _namespace(budget: Budget, given: Value = None, /, **named: Value) -> Namespace:
    made = _dict(budget, given, **named)
    return Namespace({text_of(budget, key).text: value for key, value in made.items()})


def _cycler(budget: Budget, *items: Value) -> Namespace:
    """An object whose ``next()`` gives the items in turn, over and over."""
    if not items:
        raise TemplateFaultError("a cycler has no items")
    cycler = Namespace({"current": items[0]})
    place = 0

    def move(to: int) -> None:
        nonlocal place
        place = to % len(items)
        cycler.names["current"] = items[place]

    def step() -> Value:
        budget.spend()
        found = items[place]
        move(place + 1)
        return found

    cycler.names["next"] = Function("next", step)
    cycler.names["reset"] = Function("reset", lambda: move(0))
    return cycler


def _joiner(_budget: Budget, sep: Value = None) -> Function:
    """A function that gives nothing the first time, then ``sep``."""
    between = [EMPTY]

    def call() -> Value:
        found = between[0]
        between[0] = Owned.of(", ") if sep is None else sep
        return found

    return Function("joiner", call)


def _raise(budget: Budget, message: Value) -> None:
    raise TemplateRefusalError(text_of(budget, message).text)


_DATE = re.compile(r"(?:[^%]|%[-_0^#EO]?[A-Za-z%])*")


def _strftime(budget: Budget, form: Value) -> Owned:
    text = text_of(budget, form)
    budget.letters(20 * len(text))
    if not _DATE.fullmatch(text.text):  # a width, say, which would make a text of any length
        raise TemplateFaultError(f"{text.text[:40]!r} is no form of a date")
    return text.mapped(budget, datetime.now().astimezone().strftime)


FUNCTIONS: Mapping[str, Callable[..., Value]] = {
    "range": _range,
    "dict": _dict,
    "namespace": _namespace,
    "cycler": _cycler,
    "joiner": _joiner,
    "raise_exception": _raise,
    "strftime_now": _strftime,
}
"""The functions of every template; each takes the budget first."""
