"""Runs a template: Jinja's own parser makes the tree, and this walks it, counting every step.

Jinja would compile the tree to Python, where nothing can be counted: ``{% for %}`` in ``{% for %}``
runs for hours, and a list in a list in a list is as text larger than any memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from jinja2 import Environment, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from mistral_chat.templates.budget import TemplateFaultError
from mistral_chat.templates.evaluator import Evaluator, Scope, name_of
from mistral_chat.templates.functions import FUNCTIONS
from mistral_chat.templates.owned import Owned
from mistral_chat.templates.values import (
    Function,
    Missing,
    Namespace,
    Value,
    equal,
    items_of,
    joined,
    text_of,
    truth,
)


class _Generation(Extension):
    """``{% generation %}``, with which transformers marks what the assistant wrote."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def parse(source: str) -> nodes.Template:
    """The tree of a template, read as transformers does; raises what Jinja's parser raises."""
    extensions: list[type[Extension] | str] = ["jinja2.ext.loopcontrols", _Generation]
    environment = Environment(  # noqa: S701 - it writes no HTML, and is asked for the tree alone
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )
    return environment.parse(source)


class _BreakError(TemplateFaultError):
    """``{% break %}``; what it says is for one that stands in no loop."""


class _ContinueError(TemplateFaultError):
    """``{% continue %}``, the same."""


_Out = list[Owned]


class Interpreter(Evaluator):
    """One run of a template with a budget of its own."""

    def run(self, tree: nodes.Template, values: Mapping[str, Value]) -> Owned:
        """What the template writes.

        Raises TemplateFaultError, TemplateLimitError, TemplateRefusalError, and whatever Python
        raises where numbers or arguments do not fit.
        """
        functions = {
            name: Function(name, partial(call, self.budget)) for name, call in FUNCTIONS.items()
        }
        scope = Scope(None, {**functions, **values})
        return self._written(tree.body, scope)

    def _written(self, body: Sequence[nodes.Node], scope: Scope) -> Owned:
        """What statements write."""
        out: _Out = []
        self._body(body, scope, out)
        return joined(self.budget, out)

    def _body(self, body: Sequence[nodes.Node], scope: Scope, out: _Out) -> None:
        for node in body:
            self.budget.spend()
            statement = _STATEMENTS.get(type(node))
            if statement is None:
                raise TemplateFaultError(f"{name_of(node)!r} is not allowed")
            statement(self, node, scope, out)

    def _output(self, node: nodes.Output, scope: Scope, out: _Out) -> None:
        for each in node.nodes:
            text = text_of(self.budget, self.value(each, scope))
            self.budget.letters(len(text))
            out.append(text)

    def _if(self, node: nodes.If, scope: Scope, out: _Out) -> None:
        for branch in (node, *node.elif_):
            if truth(self.value(branch.test, scope)):
                self._body(branch.body, scope, out)
                return
        self._body(node.else_, scope, out)

    def _for(self, node: nodes.For, scope: Scope, out: _Out) -> None:
        self._loop(node, self.value(node.iter, scope), scope, out, 0)

    def _loop(self, node: nodes.For, value: Value, scope: Scope, out: _Out, depth: int) -> None:
        items = items_of(self.budget, value)
        if node.test is not None:
            items = [each for each in items if self._passes(node, each, scope)]
        loop = Namespace()
        if node.recursive:
            loop.call = partial(self._again, node, scope, depth + 1)
        changed: list[Value] = []
        for place, each in enumerate(items):
            self.budget.spend()
            loop.names = self._position(items, place, depth, changed)
            inner = Scope(scope, {"loop": loop})
            self._assign(node.target, each, inner)
            try:
                self._body(node.body, inner, out)
            except _ContinueError:
                continue
            except _BreakError:
                break
        if not items:
            self._body(node.else_, Scope(scope), out)

    def _passes(self, node: nodes.For, item: Value, scope: Scope) -> bool:
        inner = Scope(scope)
        self._assign(node.target, item, inner)
        return node.test is None or truth(self.value(node.test, inner))

    def _again(self, node: nodes.For, scope: Scope, depth: int, value: Value) -> Owned:
        out: _Out = []
        self._loop(node, value, scope, out, depth)
        return joined(self.budget, out)

    def _position(
        self, items: Sequence[Value], place: int, depth: int, before: list[Value]
    ) -> dict[str, Value]:
        """The names of ``loop``; ``before`` holds what ``loop.changed`` was last asked of."""
        count = len(items)

        def changed(*values: Value) -> bool:
            same = bool(before) and equal(self.budget, before[0], values)
            before[:] = [values]
            return not same

        return {
            "index": place + 1,
            "index0": place,
            "revindex": count - place,
            "revindex0": count - place - 1,
            "first": place == 0,
            "last": place == count - 1,
            "length": count,
            "depth": depth + 1,
            "depth0": depth,
            "previtem": items[place - 1] if place else Missing("loop.previtem"),
            "nextitem": items[place + 1] if place + 1 < count else Missing("loop.nextitem"),
            "cycle": Function("cycle", lambda *given: given[place % len(given)]),
            "changed": Function("changed", changed),
        }

    def _set(self, node: nodes.Assign, scope: Scope, _out: _Out) -> None:
        self._assign(node.target, self.value(node.node, scope), scope)

    def _set_block(self, node: nodes.AssignBlock, scope: Scope, _out: _Out) -> None:
        value: Value = self._written(node.body, Scope(scope))
        if node.filter is not None:
            value = self.filter(node.filter, scope, value)
        self._assign(node.target, value, scope)

    def _assign(self, target: nodes.Node, value: Value, scope: Scope) -> None:
        if isinstance(target, nodes.Name):
            scope.names[target.name] = value
        elif isinstance(target, nodes.NSRef):
            space = scope.find(target.name)
            if not isinstance(space, Namespace):
                raise TemplateFaultError(f"{target.name!r} is no namespace")
            space.names[target.attr] = value
        elif isinstance(target, nodes.Tuple):
            items = items_of(self.budget, value)
            if len(items) != len(target.items):
                raise TemplateFaultError(f"{len(target.items)} names are set to {len(items)} items")
            for each, item in zip(target.items, items, strict=True):
                self._assign(each, item, scope)

    def _with(self, node: nodes.With, scope: Scope, out: _Out) -> None:
        inner = Scope(scope)
        for target, value in zip(node.targets, node.values, strict=True):
            self._assign(target, self.value(value, scope), inner)
        self._body(node.body, inner, out)

    def _scope(self, node: nodes.Scope, scope: Scope, out: _Out) -> None:
        self._body(node.body, Scope(scope), out)

    def _filter_block(self, node: nodes.FilterBlock, scope: Scope, out: _Out) -> None:
        body = self._written(node.body, Scope(scope))
        out.append(text_of(self.budget, self.filter(node.filter, scope, body)))

    def _macro(self, node: nodes.Macro, scope: Scope, _out: _Out) -> None:
        scope.names[node.name] = self._callable(node.name, node, scope)

    def _call_block(self, node: nodes.CallBlock, scope: Scope, out: _Out) -> None:
        caller = self._callable("caller", node, scope)
        out.append(text_of(self.budget, self.call(node.call, scope, caller=caller)))

    def _callable(self, name: str, node: nodes.Macro | nodes.CallBlock, scope: Scope) -> Function:
        """A macro, which writes its body in the scope it stands in, with its arguments."""
        names = [each.name for each in node.args]
        defaults = dict(zip(names[len(names) - len(node.defaults) :], node.defaults, strict=True))

        def call(*given: Value, **named: Value) -> Owned:
            inner = Scope(scope, {"caller": named.pop("caller", Missing("caller"))})
            inner.names.update(zip(names, given, strict=False))
            inner.names["varargs"] = given[len(names) :]
            for each in names[len(given) :]:
                if each in named:
                    inner.names[each] = named.pop(each)
                elif each in defaults:
                    inner.names[each] = self.value(defaults[each], inner)
                else:
                    inner.names[each] = Missing(each)
            inner.names["kwargs"] = {Owned.of(key): value for key, value in named.items()}
            return self._written(node.body, inner)

        return Function(name, call)

    def _break(self, _node: nodes.Break, _scope: Scope, _out: _Out) -> None:
        raise _BreakError("a break stands in no loop")

    def _continue(self, _node: nodes.Continue, _scope: Scope, _out: _Out) -> None:
        raise _ContinueError("a continue stands in no loop")


_STATEMENTS: Mapping[type[nodes.Node], Callable[..., None]] = {
    nodes.Output: Interpreter._output,
    nodes.If: Interpreter._if,
    nodes.For: Interpreter._for,
    nodes.Assign: Interpreter._set,
    nodes.AssignBlock: Interpreter._set_block,
    nodes.With: Interpreter._with,
    nodes.Scope: Interpreter._scope,
    nodes.FilterBlock: Interpreter._filter_block,
    nodes.Macro: Interpreter._macro,
    nodes.CallBlock: Interpreter._call_block,
    nodes.Break: Interpreter._break,
    nodes.Continue: Interpreter._continue,
}
