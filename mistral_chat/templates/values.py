"""The values of a template: what they are as texts, when they are equal, what is in them.

They are None, numbers, :class:`Owned` texts, lists, tuples, dictionaries, and the few kinds below.
None of them is ever changed but a :class:`Namespace`, so a list may hold another many times over;
whatever walks through one counts its steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mistral_chat.templates.budget import Budget, TemplateFaultError
from mistral_chat.templates.owned import EMPTY, Owned

Value = Any
"""None, bool, int, float, Owned, list, tuple, dict, or a class of this module."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What a name stands for that nothing was set to: writes nothing and holds nothing."""

    name: str

    def fault(self) -> TemplateFaultError:
        """That something was asked of it."""
        return TemplateFaultError(f"{self.name!r} is undefined")


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """What a template can call: a function, a method of a value, a macro."""

    name: str
    call: Callable[..., Value]


class ContentPart(dict[Any, Any]):
    """A part of what a message says. A template looks its text up; the part itself is no text."""


@dataclass(slots=True, eq=False)
class Namespace:
    """Names that a template can set from within a loop, or those of an object such as ``loop``."""

    names: dict[str, Value] = field(default_factory=dict)
    call: Callable[..., Value] | None = None


def is_number(value: Value) -> bool:
    """Whether it can be counted with; True and False can."""
    return isinstance(value, (int, float))


def truth(value: Value) -> bool:
    """Whether a value counts as true."""
    return False if isinstance(value, Missing) else bool(value)


def items_of(budget: Budget, value: Value) -> Sequence[Value]:
    """What a loop over a value goes through; raises TemplateFaultError for what has no items."""
    if isinstance(value, Missing):
        return []
    if isinstance(value, Owned):
        budget.spend(len(value))
        return [value[place] for place in range(len(value))]
    if isinstance(value, (list, tuple, dict)):
        budget.spend(len(value))
        return list(value) if isinstance(value, dict) else value
    raise TemplateFaultError(f"{kind_of(value)} is no list")


def kind_of(value: Value) -> str:
    """What a value is, for people."""
    if isinstance(value, Missing):
        return f"{value.name!r}, which is undefined,"
    names = {"NoneType": "none", "bool": "true or false", "Owned": "a text", "dict": "a mapping"}
    return names.get(type(value).__name__, f"a {type(value).__name__.lower()}")


def text_of(budget: Budget, value: Value) -> Owned:
    """A value as a template writes it; raises TemplateFaultError for a function."""
    if isinstance(value, Owned):
        return value
    if isinstance(value, Missing):
        return EMPTY
    budget.spend()
    if value is None or is_number(value):
        return Owned.of(str(value))
    return _shown(budget, value)


def _shown(budget: Budget, value: Value) -> Owned:
    """A value inside another, as Python shows it: texts stand in quotes."""
    budget.spend()
    if isinstance(value, Owned):
        budget.letters(len(value))
        return value.mapped(budget, repr)
    if isinstance(value, ContentPart):
        raise TemplateFaultError("a list of parts stands where a text is due")
    if isinstance(value, list):
        return _between(budget, "[", [_shown(budget, each) for each in value], "]")
    if isinstance(value, tuple):
        end = ",)" if len(value) == 1 else ")"
        return _between(budget, "(", [_shown(budget, each) for each in value], end)
    if isinstance(value, dict):
        colon = Owned.of(": ")
        pairs = [_shown(budget, key) + colon + _shown(budget, value[key]) for key in value]
        return _between(budget, "{", pairs, "}")
    if isinstance(value, Missing):
        return Owned.of("Undefined")
    if value is None or is_number(value):
        return Owned.of(repr(value))
    raise TemplateFaultError(f"{kind_of(value)} cannot be written")


def joined(budget: Budget, parts: Sequence[Owned], between: Owned = EMPTY) -> Owned:
    """The parts as one text; raises TemplateLimitError before it is too long."""
    budget.letters(sum(map(len, parts)) + len(between) * len(parts))
    return between.join(parts)


def _between(
    budget: Budget, begin: str, parts: Sequence[Owned], end: str, comma: str = ", "
) -> Owned:
    inner = joined(budget, parts, Owned.of(comma))
    return Owned.of(begin) + inner + Owned.of(end)


def equal(budget: Budget, one: Value, other: Value) -> bool:
    """Whether two values are equal, all that is in them included."""
    budget.spend()
    if isinstance(one, Owned) and isinstance(other, Owned):
        if len(one) == len(other):
            budget.look(len(one))
        return one.text == other.text
    if isinstance(one, (list, tuple)) and type(one) is type(other):
        return len(one) == len(other) and all(
            equal(budget, *pair) for pair in zip(one, other, strict=True)
        )
    if isinstance(one, dict) and isinstance(other, dict):
        budget.spend(len(one))
        return one.keys() == other.keys() and all(
            equal(budget, one[key], other[key]) for key in one
        )
    if isinstance(one, Missing) and isinstance(other, Missing):
        return True
    if is_number(one) and is_number(other):
        return bool(one == other)
    return one is other


def contains(budget: Budget, value: Value, item: Value) -> bool:
    """Whether ``item in value``; raises TemplateFaultError for what holds nothing."""
    if isinstance(value, Owned):
        if not isinstance(item, Owned):
            raise TemplateFaultError(f"{kind_of(item)} cannot be looked for in a text")
        budget.search(value.text, item.text)
        return item.text in value.text
    if isinstance(value, dict):
        return key_of(budget, item) in value
    return any(equal(budget, each, item) for each in items_of(budget, value))


def key_of(budget: Budget, value: Value) -> Value:
    """A value as a key of a mapping; raises TemplateFaultError for one that can be none."""
    budget.look(len(value) if isinstance(value, Owned) else 0)
    if value is None or is_number(value) or isinstance(value, Owned):
        return value
    raise TemplateFaultError(f"{kind_of(value)} can be no key")


def ordered(budget: Budget, value: Value) -> Value:
    """What a value is compared by; raises TemplateFaultError for one that has no order."""
    if isinstance(value, Owned):
        budget.look(len(value))
        return value.text
    if is_number(value):
        return value
    if isinstance(value, Missing):
        raise value.fault()
    raise TemplateFaultError(f"{kind_of(value)} is neither more nor less than anything")


@dataclass(frozen=True, slots=True)
class Json:
    """JSON as transformers' ``tojson`` writes it, the owners of texts kept.

    ``indent`` is what a level is set in by, None for all in one line.
    """

    budget: Budget
    ascii: bool = False
    indent: str | None = None
    comma: str = ", "
    colon: str = ": "
    sort: bool = False

    def text(self, value: Value, depth: int = 1) -> Owned:
        """The text; raises TemplateFaultError for what JSON does not have."""
        self.budget.spend()
        if isinstance(value, Owned):
            self.budget.letters(len(value))
            return self._string(value)
        if isinstance(value, ContentPart):
            raise TemplateFaultError("a list of parts stands where a text is due")
        if value is None or is_number(value):
            return Owned.of(json.dumps(value))
        if isinstance(value, (list, tuple)):
            return self._nested("[", [self.text(each, depth + 1) for each in value], "]", depth)
        if isinstance(value, dict):
            keys = sorted(value, key=partial(ordered, self.budget)) if self.sort else list(value)
            colon = Owned.of(self.colon)
            pairs = [self._key(key) + colon + self.text(value[key], depth + 1) for key in keys]
            return self._nested("{", pairs, "}", depth)
        raise TemplateFaultError(f"{kind_of(value)} cannot be written as JSON")

    def _key(self, key: Value) -> Owned:
        if isinstance(key, Owned):
            return self._string(key)
        return Owned.of(f'"{json.dumps(key)}"')

    def _string(self, value: Owned) -> Owned:
        quote = Owned.of('"')
        inner = value.mapped(
            self.budget, lambda text: json.dumps(text, ensure_ascii=self.ascii)[1:-1]
        )
        return quote + inner + quote

    def _nested(self, begin: str, parts: Sequence[Owned], end: str, depth: int) -> Owned:
        if self.indent is None or not parts:
            return _between(self.budget, begin, parts, end, self.comma)
        self.budget.letters(len(self.indent) * depth * (len(parts) + 1))
        line = "\n" + self.indent * depth
        last = "\n" + self.indent * (depth - 1)
        return _between(self.budget, begin + line, parts, last + end, self.comma + line)
