"""The expressions of a template, each step of them counted.

Only the values of :mod:`~mistral_chat.templates.values` are there, with the methods, filters, tests
and functions that are listed: nothing of Python's own is to be had.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import nodes

from mistral_chat.templates.budget import Budget, TemplateFaultError, checked
from mistral_chat.templates.filters import FILTERS
from mistral_chat.templates.methods import method_of
from mistral_chat.templates.owned import Owned
from mistral_chat.templates.predicates import TESTS
from mistral_chat.templates.values import (
    Function,
    Missing,
    Namespace,
    Value,
    contains,
    equal,
    is_number,
    items_of,
    joined,
    key_of,
    kind_of,
    ordered,
    text_of,
    truth,
)


class Scope:
    """Names, and the scope around them, whose names it sees and does not change."""

    def __init__(self, outer: Scope | None, names: dict[str, Value] | None = None) -> None:
        self.outer = outer
        self.names = {} if names is None else names

    def find(self, name: str) -> Value:
        """The value of a name; Missing where it has none."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return Missing(name)


class Evaluator:
    """Gives the values of expressions, and has a budget for them."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def filtered(self, name: str, value: Value, *given: Value, **named: Value) -> Value:
        """What the filter ``name`` makes of a value; raises TemplateFaultError for no filter."""
        self.budget.spend()
        if name not in FILTERS:
            raise TemplateFaultError(f"the filter {name!r} is not allowed")
        return self._counted(FILTERS[name](self, value, *given, **named))

    def tested(self, name: str, value: Value, *given: Value) -> bool:
        """What the test ``name`` says of a value; raises TemplateFaultError for no test."""
        self.budget.spend()
        if name not in TESTS:
            raise TemplateFaultError(f"the test {name!r} is not allowed")
        return bool(TESTS[name](self, value, *given))

    def item(self, value: Value, key: Value) -> Value:
        """``value[key]``: an item, or what ``value.key`` is; Missing where there is neither."""
        if isinstance(value, Missing):
            raise value.fault()
        if isinstance(value, dict):
            if key_of(self.budget, key) in value:
                return value[key]
        elif isinstance(value, (list, tuple, Owned)) and isinstance(key, int):
            return value[key] if -len(value) <= key < len(value) else Missing(str(key))
        return self._attribute(value, key.text) if isinstance(key, Owned) else Missing(str(key))

    def plus(self, one: Value, other: Value) -> Value:
        """``one + other``, of numbers, texts or lists."""
        if isinstance(one, Owned) and isinstance(other, Owned):
            return joined(self.budget, [one, other])
        if isinstance(one, (list, tuple)) and type(one) is type(other):
            self.budget.spend(len(one) + len(other))
            return operator.add(one, other)
        return self._calculated(operator.add, one, other)

    def value(self, node: nodes.Node, scope: Scope) -> Value:
        """The value of an expression; raises TemplateFaultError for one that is not allowed."""
        self.budget.spend()
        expression = _EXPRESSIONS.get(type(node))
        if expression is None:
            raise TemplateFaultError(f"{name_of(node)!r} is not allowed")
        return expression(self, node, scope)

    def _counted(self, value: Value) -> Value:
        """A value that a filter, method or function made, with its size counted."""
        if isinstance(value, Owned):
            self.budget.letters(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.budget.spend(len(value))
        return checked(value) if is_number(value) else value

    def _data(self, node: nodes.TemplateData, _scope: Scope) -> Owned:
        return Owned.of(node.data)

    def _const(self, node: nodes.Const, _scope: Scope) -> Value:
        value = node.value
        if isinstance(value, str):
            return Owned.of(value)
        return checked(value) if is_number(value) else value

    def _name(self, node: nodes.Name, scope: Scope) -> Value:
        return scope.find(node.name)

    def _list(self, node: nodes.List, scope: Scope) -> list[Value]:
        return [self.value(each, scope) for each in node.items]

    def _tuple(self, node: nodes.Tuple, scope: Scope) -> tuple[Value, ...]:
        return tuple(self.value(each, scope) for each in node.items)

    def _dict(self, node: nodes.Dict, scope: Scope) -> dict[Value, Value]:
        pairs = [(self.value(p.key, scope), self.value(p.value, scope)) for p in node.items]
        return {key_of(self.budget, key): value for key, value in pairs}

    def _choice(self, node: nodes.CondExpr, scope: Scope) -> Value:
        if truth(self.value(node.test, scope)):
            return self.value(node.expr1, scope)
        return Missing("else") if node.expr2 is None else self.value(node.expr2, scope)

    def _and(self, node: nodes.And, scope: Scope) -> Value:
        left = self.value(node.left, scope)
        return self.value(node.right, scope) if truth(left) else left

    def _or(self, node: nodes.Or, scope: Scope) -> Value:
        left = self.value(node.left, scope)
        return left if truth(left) else self.value(node.right, scope)

    def _not(self, node: nodes.Not, scope: Scope) -> bool:
        return not truth(self.value(node.node, scope))

    def _unary(self, node: nodes.UnaryExpr, scope: Scope) -> Value:
        value = self.value(node.node, scope)
        if not is_number(value):
            raise TemplateFaultError(f"{kind_of(value)} has no sign")
        return -value if isinstance(node, nodes.Neg) else +value

    def _concat(self, node: nodes.Concat, scope: Scope) -> Owned:
        texts = [text_of(self.budget, self.value(each, scope)) for each in node.nodes]
        return joined(self.budget, texts)

    def _compare(self, node: nodes.Compare, scope: Scope) -> bool:
        left = self.value(node.expr, scope)
        for each in node.ops:
            right = self.value(each.expr, scope)
            if not self._holds(each.op, left, right):
                return False
            left = right
        return True

    def _holds(self, name: str, left: Value, right: Value) -> bool:
        if name in ("in", "notin"):
            return contains(self.budget, right, left) is (name == "in")
        if name in ("eq", "ne"):
            return equal(self.budget, left, right) is (name == "eq")
        one, other = ordered(self.budget, left), ordered(self.budget, right)
        return bool(_ORDERS[name](one, other))

    def _binary(self, node: nodes.BinExpr, scope: Scope) -> Value:
        one, other = self.value(node.left, scope), self.value(node.right, scope)
        if isinstance(node, nodes.Add):
            return self.plus(one, other)
        if isinstance(node, nodes.Mul):
            return self._times(one, other)
        return self._calculated(_OPERATORS[type(node)], one, other)

    def _times(self, one: Value, other: Value) -> Value:
        few, many = (one, other) if is_number(one) else (other, one)
        if isinstance(many, Owned) and isinstance(few, int):
            self.budget.letters(len(many) * max(0, few))
            return many * few
        if isinstance(many, (list, tuple)) and isinstance(few, int):
            self.budget.spend(len(many) * max(0, few))
            return many * few
        return self._calculated(operator.mul, one, other)

    def _calculated(self, operation: Callable[[Any, Any], Any], one: Value, other: Value) -> Value:
        for side in (one, other):
            if isinstance(side, Missing):
                raise side.fault()
        if not is_number(one) or not is_number(other):
            name = operation.__name__.strip("_")
            raise TemplateFaultError(f"{name!r} of {kind_of(one)} and {kind_of(other)}")
        if operation is operator.pow and isinstance(one, int) and abs(other) > 64 and abs(one) > 1:
            raise TemplateFaultError("a number in it is too large")
        return checked(operation(one, other))

    def _item(self, node: nodes.Getitem, scope: Scope) -> Value:
        value = self.value(node.node, scope)
        if not isinstance(node.arg, nodes.Slice):
            return self.item(value, self.value(node.arg, scope))
        ends = (node.arg.start, node.arg.stop, node.arg.step)
        part = slice(*(None if end is None else self.value(end, scope) for end in ends))
        if isinstance(value, Missing):
            raise value.fault()
        if not isinstance(value, (Owned, list, tuple)):
            raise TemplateFaultError(f"{kind_of(value)} has no parts")
        return self._counted(value[part])

    def _getattr(self, node: nodes.Getattr, scope: Scope) -> Value:
        value = self.value(node.node, scope)
        if isinstance(value, dict):
            # As Jinja has it: a method first, then a key.
            method = method_of(self.budget, value, node.attr)
            return self.item(value, Owned.of(node.attr)) if method is None else method
        if isinstance(value, Missing):
            raise value.fault()
        return self._attribute(value, node.attr)

    def _attribute(self, value: Value, name: str) -> Value:
        if isinstance(value, Namespace):
            return value.names.get(name, Missing(name))
        method = method_of(self.budget, value, name)
        return Missing(name) if method is None else method

    def filter(self, node: nodes.Filter, scope: Scope, inner: Value = None) -> Value:
        """A filter's result; the innermost of a block has no node and takes ``inner``."""
        if node.node is None:
            value = inner
        elif isinstance(node.node, nodes.Filter):
            value = self.filter(node.node, scope, inner)
        else:
            value = self.value(node.node, scope)
        given, named = self._arguments(node, scope)
        return self.filtered(node.name, value, *given, **named)

    def _test(self, node: nodes.Test, scope: Scope) -> bool:
        given, _ = self._arguments(node, scope)
        return self.tested(node.name, self.value(node.node, scope), *given)

    def call(self, node: nodes.Call, scope: Scope, **more: Value) -> Value:
        """What a function gives; ``more`` are arguments beside those written."""
        called = self.value(node.node, scope)
        call = called.call if isinstance(called, (Function, Namespace)) else None
        if isinstance(called, Missing):
            raise called.fault()
        if call is None:
            raise TemplateFaultError(f"{kind_of(called)} cannot be called")
        given, named = self._arguments(node, scope)
        return self._counted(call(*given, **named, **more))

    def _arguments(
        self, node: nodes.Call | nodes.Filter | nodes.Test, scope: Scope
    ) -> tuple[list[Value], dict[str, Value]]:
        given = [self.value(each, scope) for each in node.args]
        if node.dyn_args is not None:
            given += items_of(self.budget, self.value(node.dyn_args, scope))
        named = {str(each.key): self.value(each.value, scope) for each in node.kwargs}
        if node.dyn_kwargs is not None:
            more = self.value(node.dyn_kwargs, scope)
            named |= {text_of(self.budget, key).text: more[key] for key in more}
        return given, named


def name_of(node: nodes.Node) -> str:
    """What a node is, for people."""
    return type(node).__name__.lower()


_ORDERS: Mapping[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
}
_OPERATORS: Mapping[type[nodes.Node], Callable[[Any, Any], Any]] = {
    nodes.Sub: operator.sub,
    nodes.Div: operator.truediv,
    nodes.FloorDiv: operator.floordiv,
    nodes.Mod: operator.mod,
    nodes.Pow: operator.pow,
}
_EXPRESSIONS: Mapping[type[nodes.Node], Callable[..., Value]] = {
    nodes.TemplateData: Evaluator._data,
    nodes.Const: Evaluator._const,
    nodes.Name: Evaluator._name,
    nodes.List: Evaluator._list,
    nodes.Tuple: Evaluator._tuple,
    nodes.Dict: Evaluator._dict,
    nodes.CondExpr: Evaluator._choice,
    nodes.And: Evaluator._and,
    nodes.Or: Evaluator._or,
    nodes.Not: Evaluator._not,
    nodes.Neg: Evaluator._unary,
    nodes.Pos: Evaluator._unary,
    nodes.Concat: Evaluator._concat,
    nodes.Compare: Evaluator._compare,
    **dict.fromkeys((nodes.Add, nodes.Mul, *_OPERATORS), Evaluator._binary),
    nodes.Getitem: Evaluator._item,
    nodes.Getattr: Evaluator._getattr,
    nodes.Filter: Evaluator.filter,
    nodes.Test: Evaluator._test,
    nodes.Call: Evaluator.call,
}
