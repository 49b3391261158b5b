"""Methods that a template may call on texts, lists and mappings: those that change nothing.

Each takes the budget and the value first. Where one can make much of little, what it will make is
counted before it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mistral_chat.templates.budget import Budget, TemplateFaultError
from mistral_chat.templates.owned import Owned
from mistral_chat.templates.values import (
    Function,
    Value,
    equal,
    items_of,
    joined,
    key_of,
    kind_of,
    text_of,
)


def method_of(budget: Budget, value: Value, name: str) -> Function | None:
    """A method of a value by its name; None where it has no such thing.

    Raises TemplateFaultError for one that Python has and a template may not call.
    """
    for kind, methods in _METHODS.items():
        if isinstance(value, kind):
            if name in methods:
                return Function(name, partial(methods[name], budget, value))
            native = str if kind is Owned else kind
            if hasattr(native, name):
                raise TemplateFaultError(f"{name!r} of {kind_of(value)} is not allowed")
    return None


def as_text(value: Value) -> str:
    """The letters of a text; raises TemplateFaultError for anything else."""
    if not isinstance(value, Owned):
        raise TemplateFaultError(f"{kind_of(value)} stands where a text is due")
    return value.text


def replaced(budget: Budget, value: Owned, old: Value, new: Value, count: int = -1) -> Owned:
    """``str.replace``, the length of what it makes looked at first."""
    if not isinstance(new, Owned):
        raise TemplateFaultError(f"{kind_of(new)} stands where a text is due")
    budget.search(value.text, as_text(old))
    places = value.text.count(as_text(old))
    budget.letters(len(value) + places * len(new))
    budget.spend(places * (1 + len(new) // 8))  # each letter is given an owner
    return value.replace(as_text(old), new, count)


def padded(budget: Budget, value: Owned, width: int, fill: Value, share: str) -> Owned:
    """A text made ``width`` long by letters at its left, its right or both, as ``str.center``."""
    letter = Owned.of(" ") if fill is None else fill
    missing = max(0, width - len(value))
    budget.letters(len(value) + missing)
    if len(as_text(letter)) != 1:
        raise TemplateFaultError("a text is filled up with a single letter")
    # As CPython has it: of an odd number, the left gets more where the width is odd, too.
    left = {"left": missing, "right": 0}.get(share, missing // 2 + (missing & width & 1))
    return letter * left + value + letter * (missing - left)


def _strip(left: bool, right: bool) -> Callable[..., Owned]:
    def strip(budget: Budget, value: Owned, letters: Value = None) -> Owned:
        some = None if letters is None else as_text(letters)
        budget.search(value.text, (some or "")[: len(value)])
        return value.strip(some, left, right)

    return strip


def _split(right: bool) -> Callable[..., list[Owned]]:
    def split(budget: Budget, value: Owned, sep: Value = None, maxsplit: int = -1) -> list[Owned]:
        between = None if sep is None else as_text(sep)
        budget.search(value.text, between or "")
        budget.spend(len(value.text.split()) if between is None else value.text.count(between))
        return value.split(between, maxsplit, right)

    return split


def _splitlines(budget: Budget, value: Owned, keepends: bool = False) -> list[Owned]:
    budget.look(len(value))
    lines = value.text.splitlines(keepends)
    budget.spend(len(lines))
    return value.cut(lines)


def _partition(right: bool) -> Callable[..., tuple[Owned, ...]]:
    def partition(budget: Budget, value: Owned, sep: Value) -> tuple[Owned, ...]:
        budget.search(value.text, as_text(sep))
        method = value.text.rpartition if right else value.text.partition
        before, between, _ = method(as_text(sep))
        cut = len(before), len(before) + len(between)
        return value[: cut[0]], value[cut[0] : cut[1]], value[cut[1] :]

    return partition


def _changed(change: Callable[[str], str]) -> Callable[..., Owned]:
    def changed(budget: Budget, value: Owned) -> Owned:
        budget.letters(3 * len(value))  # one letter becomes three at most
        return value.mapped(budget, change)

    return changed


def _asked(question: Callable[[str], bool]) -> Callable[..., bool]:
    def asked(budget: Budget, value: Owned) -> bool:
        budget.look(len(value))
        return question(value.text)

    return asked


def _found(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that looks for one text, or for one of several, from a place on or up to one."""

    def found(
        budget: Budget, value: Owned, part: Value, start: int | None = None, end: int | None = None
    ) -> Any:
        for each in part if isinstance(part, tuple) else [part]:
            budget.search(value.text, as_text(each))
            budget.spend()
        if isinstance(part, tuple):
            return method(value.text, tuple(as_text(each) for each in part), start, end)
        return method(value.text, as_text(part), start, end)

    return found


def _without(end: bool) -> Callable[..., Owned]:
    def without(budget: Budget, value: Owned, part: Value) -> Owned:
        budget.look(len(value))
        text, fix = value.text, as_text(part)
        if not fix or not (text.endswith(fix) if end else text.startswith(fix)):
            return value
        return value[: -len(fix)] if end else value[len(fix) :]

    return without


def _padded(share: str) -> Callable[..., Owned]:
    def pad(budget: Budget, value: Owned, width: int, fill: Value = None) -> Owned:
        return padded(budget, value, width, fill, share)

    return pad


def _filled(budget: Budget, value: Owned, width: int) -> Owned:
    sign = 1 if value.text[:1] in ("+", "-") and value else 0
    digits = padded(budget, value[sign:], width - sign, Owned.of("0"), "left")
    return value[:sign] + digits


def _join(budget: Budget, value: Owned, parts: Value) -> Owned:
    items = items_of(budget, parts)
    for each in items:
        as_text(each)
    return joined(budget, items, value)


def _get(budget: Budget, value: dict[Value, Value], key: Value, default: Value = None) -> Value:
    return value.get(key_of(budget, key), default)


def _pairs(budget: Budget, value: dict[Value, Value]) -> list[tuple[Value, Value]]:
    budget.spend(len(value))
    return list(value.items())


def _keys(budget: Budget, value: dict[Value, Value]) -> list[Value]:
    budget.spend(len(value))
    return list(value)


def _values(budget: Budget, value: dict[Value, Value]) -> list[Value]:
    budget.spend(len(value))
    return list(value.values())


def _count(budget: Budget, value: list[Value], item: Value) -> int:
    return sum(equal(budget, each, item) for each in items_of(budget, value))


def _index(budget: Budget, value: list[Value], item: Value) -> int:
    for place, each in enumerate(items_of(budget, value)):
        if equal(budget, each, item):
            return place
    raise TemplateFaultError(f"{text_of(budget, item).text[:40]!r} is not in the list")


def _same(_budget: Budget, value: Value) -> Value:
    return value


TEXT_METHODS: Mapping[str, Callable[..., Value]] = {
    "strip": _strip(left=True, right=True),
    "lstrip": _strip(left=True, right=False),
    "rstrip": _strip(left=False, right=True),
    "split": _split(right=False),
    "rsplit": _split(right=True),
    "splitlines": _splitlines,
    "partition": _partition(right=False),
    "rpartition": _partition(right=True),
    "startswith": _found(str.startswith),
    "endswith": _found(str.endswith),
    "find": _found(str.find),
    "rfind": _found(str.rfind),
    "index": _found(str.index),
    "rindex": _found(str.rindex),
    "count": _found(str.count),
    "replace": replaced,
    "join": _join,
    "removeprefix": _without(end=False),
    "removesuffix": _without(end=True),
    "center": _padded("both"),
    "ljust": _padded("right"),
    "rjust": _padded("left"),
    "zfill": _filled,
    **{
        method.__name__: _changed(method)
        for method in (str.upper, str.lower, str.title, str.capitalize, str.casefold, str.swapcase)
    },
    **{
        method.__name__: _asked(method)
        for method in (
            str.isalnum, str.isalpha, str.isascii, str.isdecimal, str.isdigit, str.islower,
            str.isnumeric, str.isspace, str.istitle, str.isupper,
        )
    },
}  # fmt: skip
_LIST: Mapping[str, Callable[..., Value]] = {"count": _count, "index": _index, "copy": _same}
_METHODS: Mapping[type, Mapping[str, Callable[..., Value]]] = {
    Owned: TEXT_METHODS,
    list: _LIST,
    tuple: {"count": _count, "index": _index},
    dict: {"get": _get, "items": _pairs, "keys": _keys, "values": _values, "copy": _same},
}
