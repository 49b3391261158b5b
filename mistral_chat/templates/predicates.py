"""Tests of Jinja that chat templates have, such as ``is defined``; they say yes or no.

Each takes first what runs the template, then the value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mistral_chat.templates.filters import FILTERS, Machine
from mistral_chat.templates.owned import Owned
from mistral_chat.templates.values import (
    Function,
    Missing,
    Namespace,
    Value,
    contains,
    equal,
    is_number,
    ordered,
    text_of,
)


def _same(machine: Machine, one: Value, other: Value) -> bool:
    if isinstance(one, Owned) or is_number(one):
        return type(one) is type(other) and equal(machine.budget, one, other)
    return one is other


def _compared(how: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    return lambda machine, one, other: how(
        ordered(machine.budget, one), ordered(machine.budget, other)
    )


def _equal(machine: Machine, one: Value, other: Value) -> bool:
    return equal(machine.budget, one, other)


def _within(machine: Machine, value: Value, place: Value) -> bool:
    return contains(machine.budget, place, value)


def _looked_at(machine: Machine, value: Value) -> str:
    text = text_of(machine.budget, value).text
    machine.budget.look(len(text))
    return text


def _is_whole(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_LISTS = (list, tuple, dict, Owned, Missing)
_ORDERS: Mapping[str, Callable[[Any, Any], bool]] = {
    "lt": lambda one, other: one < other,
    "le": lambda one, other: one <= other,
    "gt": lambda one, other: one > other,
    "ge": lambda one, other: one >= other,
}
_NAMES = {
    "<": "lt", "lessthan": "lt", "<=": "le", ">": "gt", "greaterthan": "gt", ">=": "ge",
}  # fmt: skip
TESTS: Mapping[str, Callable[..., bool]] = {
    **{name: _compared(how) for name, how in _ORDERS.items()},
    **{name: _compared(_ORDERS[known]) for name, known in _NAMES.items()},
    **dict.fromkeys(("eq", "equalto", "=="), _equal),
    **dict.fromkeys(("ne", "!="), lambda machine, *two: not _equal(machine, *two)),
    "boolean": lambda _machine, value: isinstance(value, bool),
    "callable": lambda _machine, value: (
        isinstance(value, Function) or (isinstance(value, Namespace) and value.call is not None)
    ),
    "defined": lambda _machine, value: not isinstance(value, Missing),
    "divisibleby": lambda _machine, value, number: value % number == 0,
    "even": lambda _machine, value: value % 2 == 0,
    "false": lambda _machine, value: value is False,
    "filter": lambda machine, value: text_of(machine.budget, value).text in FILTERS,
    "float": lambda _machine, value: isinstance(value, float),
    "in": _within,
    "integer": lambda _machine, value: _is_whole(value),
    "iterable": lambda _machine, value: isinstance(value, _LISTS),
    "lower": lambda machine, value: _looked_at(machine, value).islower(),
    "mapping": lambda _machine, value: isinstance(value, dict),
    "none": lambda _machine, value: value is None,
    "number": lambda _machine, value: is_number(value),
    "odd": lambda _machine, value: value % 2 == 1,
    "sameas": _same,
    "sequence": lambda _machine, value: isinstance(value, _LISTS),
    "string": lambda _machine, value: isinstance(value, Owned),
    "test": lambda machine, value: text_of(machine.budget, value).text in TESTS,
    "true": lambda _machine, value: value is True,
    "undefined": lambda _machine, value: isinstance(value, Missing),
    "upper": lambda machine, value: _looked_at(machine, value).isupper(),
}
