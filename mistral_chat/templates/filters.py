"""Filters of Jinja that chat templates have, and transformers' ``tojson``.

Each takes first what runs the template (:class:`Machine`), then the value. They do what Jinja's do,
to the letter; what is not here is refused by name where a template comes to it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mistral_chat.templates.budget import (
    Budget,
    TemplateFaultError,
    checked,
)
from mistral_chat.templates.methods import TEXT_METHODS, method_of, padded, replaced
from mistral_chat.templates.owned import EMPTY, Owned
from mistral_chat.templates.values import (
    Json,
    Missing,
    Namespace,
    Value,
    is_number,
    items_of,
    joined,
    key_of,
    kind_of,
    ordered,
    text_of,
    truth,
)

MOST_DIGITS = 30
"""Digits to which a number is rounded at most."""


class Machine(Protocol):
    """What filters need of the interpreter."""

    budget: Budget

    def filtered(self, name: str, value: Value, *given: Value, **named: Value) -> Value:
        """What the filter ``name`` makes of a value."""

    def tested(self, name: str, value: Value, *given: Value) -> bool:
        """What the test ``name`` says of a value."""

    def item(self, value: Value, key: Value) -> Value:
        """``value[key]``."""

    def plus(self, one: Value, other: Value) -> Value:
        """``one + other``."""


def _of_method(name: str) -> Callable[..., Value]:
    """A filter that does what a method of texts does."""

    def filtered(machine: Machine, value: Value, *given: Value) -> Value:
        return TEXT_METHODS[name](machine.budget, text_of(machine.budget, value), *given)

    return filtered


def _title(machine: Machine, value: Value) -> Owned:
    text = text_of(machine.budget, value)
    machine.budget.letters(3 * len(text))
    words = re.compile(r"([-\s({\[<]+)")
    return text.mapped(
        machine.budget,
        lambda part: "".join(each[:1].upper() + each[1:].lower() for each in words.split(part)),
    )


def _replace(
    machine: Machine, value: Value, old: Value, new: Value, count: int | None = None
) -> Owned:
    text, part, other = (text_of(machine.budget, each) for each in (value, old, new))
    return replaced(machine.budget, text, part, other, -1 if count is None else count)


def _length(machine: Machine, value: Value) -> int:
    if isinstance(value, (Owned, list, tuple, dict)):
        return len(value)
    return len(items_of(machine.budget, value))


def _first(machine: Machine, value: Value) -> Value:
    items = items_of(machine.budget, value)
    return items[0] if items else Missing("the first item of nothing")


def _last(machine: Machine, value: Value) -> Value:
    items = items_of(machine.budget, value)
    return items[-1] if items else Missing("the last item of nothing")


def _parts(machine: Machine, value: Value, between: str) -> list[Owned]:
    """A text cut at a letter."""
    text = text_of(machine.budget, value)
    machine.budget.look(len(text))
    machine.budget.spend(text.text.count(between))
    return text.split(between)


def _attribute(machine: Machine, name: Value) -> Callable[[Value], Value]:
    """A function that looks up ``a.b.0`` in a value, or does nothing for None."""
    if name is None:
        return lambda value: value
    if is_number(name):
        return lambda value: machine.item(value, name)
    parts = _parts(machine, name, ".")
    keys = [checked(int(part.text)) if part.text.isdecimal() else part for part in parts]

    def found(value: Value) -> Value:
        for key in keys:
            value = machine.item(value, key)
        return value

    return found


def _join(machine: Machine, value: Value, d: Value = EMPTY, attribute: Value = None) -> Owned:
    find = _attribute(machine, attribute)
    items = [find(each) for each in items_of(machine.budget, value)]
    texts = [text_of(machine.budget, each) for each in items]
    return joined(machine.budget, texts, text_of(machine.budget, d))


def _default(
    _machine: Machine, value: Value, default_value: Value = EMPTY, boolean: Value = False
) -> Value:
    gone = isinstance(value, Missing) or (truth(boolean) and not truth(value))
    return default_value if gone else value


def _int(machine: Machine, value: Value, default: Value = 0, base: int = 10) -> Value:
    given = value.text if isinstance(value, Owned) else value
    machine.budget.look(len(given) if isinstance(given, str) else 0)
    try:
        return int(given, base) if isinstance(given, str) else int(given)
    except (TypeError, ValueError):
        try:
            return int(float(given))
        except (TypeError, ValueError, OverflowError):
            return default


def _float(machine: Machine, value: Value, default: Value = 0.0) -> Value:
    machine.budget.look(len(value) if isinstance(value, Owned) else 0)
    try:
        return float(value.text if isinstance(value, Owned) else value)
    except (TypeError, ValueError):
        return default


def _round(machine: Machine, value: Value, precision: int = 0, method: Value = None) -> Value:
    if abs(precision) > MOST_DIGITS:
        raise TemplateFaultError(f"numbers are rounded to {MOST_DIGITS} digits at most")
    name = "common" if method is None else text_of(machine.budget, method).text
    if name == "common":
        return round(value, precision)
    if name not in ("ceil", "floor"):
        raise TemplateFaultError(f"numbers are not rounded by {name!r}")
    change = math.ceil if name == "ceil" else math.floor
    return float(change(value * 10**precision) / (10**precision))


def _reverse(machine: Machine, value: Value) -> Value:
    return value[::-1] if isinstance(value, Owned) else [*items_of(machine.budget, value)][::-1]


def _sum(machine: Machine, value: Value, attribute: Value = None, start: Value = 0) -> Value:
    find = _attribute(machine, attribute)
    for each in items_of(machine.budget, value):
        start = machine.plus(start, find(each))
    return start


def _key(machine: Machine, attribute: Value, case_sensitive: bool) -> Callable[[Value], Value]:
    """What values are compared by: an attribute, or several with commas between."""
    names: list[Value] = [None]
    if isinstance(attribute, Owned):
        names = [each.strip() for each in _parts(machine, attribute, ",")]
    finds = [_attribute(machine, name) for name in names]

    def key(value: Value) -> Value:
        found = [ordered(machine.budget, find(value)) for find in finds]
        if not case_sensitive:
            found = [each.lower() if isinstance(each, str) else each for each in found]
        return found

    return key


def _sorted(machine: Machine, items: Sequence[Value], reverse: bool, key: Any) -> list[Value]:
    """The items in order; each is looked at as many times as sorting needs."""
    keys = [key(each) for each in items]
    letters = sum(len(part) for each in keys for part in each if isinstance(part, str))
    machine.budget.spend(len(items).bit_length() * (len(items) + letters // 16))
    order = sorted(range(len(items)), key=keys.__getitem__, reverse=reverse)
    return [items[place] for place in order]


def _sort(
    machine: Machine,
    value: Value,
    reverse: bool = False,
    case_sensitive: bool = False,
    attribute: Value = None,
) -> list[Value]:
    key = _key(machine, attribute, case_sensitive)
    return _sorted(machine, items_of(machine.budget, value), bool(reverse), key)


def _dictsort(
    machine: Machine,
    value: Value,
    case_sensitive: bool = False,
    by: Value = None,
    reverse: bool = False,
) -> list[Value]:
    pairs = _items(machine, value)
    place = 0 if by is None else {"key": 0, "value": 1}[text_of(machine.budget, by).text]
    key = _key(machine, None, case_sensitive)
    return _sorted(machine, pairs, bool(reverse), lambda pair: key(pair[place]))


def _unique(
    machine: Machine, value: Value, case_sensitive: bool = False, attribute: Value = None
) -> list[Value]:
    find = _attribute(machine, attribute)
    seen, found = set(), []
    for each in items_of(machine.budget, value):
        key = key_of(machine.budget, find(each))
        if isinstance(key, Owned):
            key = key.text if case_sensitive else key.text.lower()
        if key not in seen:
            seen.add(key)
            found.append(each)
    return found


def _extreme(choose: Any) -> Callable[..., Value]:
    def extreme(
        machine: Machine, value: Value, case_sensitive: bool = False, attribute: Value = None
    ) -> Value:
        items = items_of(machine.budget, value)
        if not items:
            return Missing("an item of nothing")
        return choose(items, key=_key(machine, attribute, case_sensitive))

    return extreme


def _items(machine: Machine, value: Value) -> list[Value]:
    if isinstance(value, Missing):
        return []
    if not isinstance(value, dict):
        raise TemplateFaultError(f"{kind_of(value)} is no mapping")
    machine.budget.spend(len(value))
    return list(value.items())


def _batch(machine: Machine, value: Value, linecount: int, fill_with: Value = None) -> list[Value]:
    items = items_of(machine.budget, value)
    rows = [list(items[start : start + linecount]) for start in range(0, len(items), linecount)]
    if rows and fill_with is not None:
        machine.budget.spend(linecount)
        rows[-1] += [fill_with] * (linecount - len(rows[-1]))
    return rows


def _slice(machine: Machine, value: Value, slices: int, fill_with: Value = None) -> list[Value]:
    items = items_of(machine.budget, value)
    machine.budget.spend(max(0, slices))
    size, more = divmod(len(items), slices)
    columns: list[Value] = []
    start = 0
    for place in range(slices):
        end = start + size + (place < more)
        column = list(items[start:end])
        if fill_with is not None and more and place >= more:
            column.append(fill_with)
        columns.append(column)
        start = end
    return columns


def _indent(
    machine: Machine, value: Value, width: Value = 4, first: bool = False, blank: bool = False
) -> Owned:
    budget = machine.budget
    text = text_of(budget, value)
    if is_number(width):
        budget.letters(max(0, width))
    margin = Owned.of(" " * width) if is_number(width) else text_of(budget, width)
    lines = text.cut((text.text + "\n").splitlines()) if text else [EMPTY]
    budget.spend(len(lines))
    lines[1:] = [margin + line if line or blank else line for line in lines[1:]]
    budget.letters(len(text) + len(margin) * (len(lines) + 1))
    if truth(first):
        lines[0] = margin + lines[0]
    return joined(budget, lines, Owned.of("\n"))


def _wordcount(machine: Machine, value: Value) -> int:
    text = text_of(machine.budget, value)
    machine.budget.spend(len(text) // 8)
    return sum(1 for _ in re.finditer(r"\w+", text.text))


def _escape(machine: Machine, value: Value) -> Owned:
    text = text_of(machine.budget, value)
    for letter, name in {"&": "amp", "<": "lt", ">": "gt", "'": "#39", '"': "#34"}.items():
        text = replaced(machine.budget, text, Owned.of(letter), Owned.of(f"&{name};"))
    return text


def _center(machine: Machine, value: Value, width: int = 80) -> Owned:
    return padded(machine.budget, text_of(machine.budget, value), width, None, "both")


def _attr(machine: Machine, value: Value, name: Value) -> Value:
    if isinstance(value, Namespace) and text_of(machine.budget, name).text in value.names:
        return value.names[text_of(machine.budget, name).text]
    method = method_of(machine.budget, value, text_of(machine.budget, name).text)
    return Missing(text_of(machine.budget, name).text) if method is None else method


def _map(machine: Machine, value: Value, *given: Value, **named: Value) -> list[Value]:
    items = items_of(machine.budget, value)
    if not given:
        find = _attribute(machine, named.pop("attribute"))
        default = named.pop("default", None)
        found = [find(each) for each in items]
        gone = [each if not isinstance(each, Missing) else default for each in found]
        return found if default is None else gone
    name, *more = given
    filter_name = text_of(machine.budget, name).text
    return [machine.filtered(filter_name, each, *more, **named) for each in items]


def _chosen(keep: bool, by_attribute: bool) -> Callable[..., list[Value]]:
    """Items for which a test says yes, or no; without one, those that count as true."""

    def chosen(machine: Machine, value: Value, *given: Value) -> list[Value]:
        attribute, more = (given[0], given[1:]) if by_attribute else (None, given)
        find = _attribute(machine, attribute)
        items = items_of(machine.budget, value)
        if not more:
            return [each for each in items if truth(find(each)) is keep]
        test, *rest = more
        name = text_of(machine.budget, test).text
        return [each for each in items if machine.tested(name, find(each), *rest) is keep]

    return chosen


def _tojson(
    machine: Machine,
    value: Value,
    ensure_ascii: bool = False,
    indent: Value = None,
    separators: Value = None,
    sort_keys: bool = False,
) -> Owned:
    budget = machine.budget
    comma, colon = (", ", ": ") if indent is None else (",", ": ")
    if separators is not None:
        comma, colon = (text_of(budget, each).text for each in separators)
    margin = indent
    if is_number(indent):
        budget.letters(max(0, indent))
        margin = " " * indent
    elif indent is not None:
        margin = text_of(budget, indent).text
    return Json(budget, bool(ensure_ascii), margin, comma, colon, bool(sort_keys)).text(value)


_SAME = {"upper": "upper", "lower": "lower", "trim": "strip", "capitalize": "capitalize"}
FILTERS: Mapping[str, Callable[..., Value]] = {
    **{name: _of_method(method) for name, method in _SAME.items()},
    "abs": lambda _machine, value: abs(value),
    "attr": _attr,
    "batch": _batch,
    "center": _center,
    "count": _length,
    "d": _default,
    "default": _default,
    "dictsort": _dictsort,
    "e": _escape,
    "escape": _escape,
    "first": _first,
    "float": _float,
    "indent": _indent,
    "int": _int,
    "items": _items,
    "join": _join,
    "last": _last,
    "length": _length,
    "list": lambda machine, value: list(items_of(machine.budget, value)),
    "map": _map,
    "max": _extreme(max),
    "min": _extreme(min),
    "reject": _chosen(keep=False, by_attribute=False),
    "rejectattr": _chosen(keep=False, by_attribute=True),
    "replace": _replace,
    "reverse": _reverse,
    "round": _round,
    "safe": lambda machine, value: text_of(machine.budget, value),
    "select": _chosen(keep=True, by_attribute=False),
    "selectattr": _chosen(keep=True, by_attribute=True),
    "slice": _slice,
    "sort": _sort,
    "string": lambda machine, value: text_of(machine.budget, value),
    "sum": _sum,
    "title": _title,
    "tojson": _tojson,
    "unique": _unique,
    "wordcount": _wordcount,
}
