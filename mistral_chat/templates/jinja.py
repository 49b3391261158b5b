"""Any other chat template: the Jinja text of the model's own file, run in a sandbox.

A template makes one string of the conversation, in which the control pieces it wrote and those a
person typed would look alike. So before it runs, every character of a message that occurs in any
control piece is replaced by one that occurs nowhere (of Unicode's private planes), one for one.
Whatever control piece the string then holds was written by the template alone; it becomes an id,
and the texts between get their characters back and are encoded, which gives no control id. White
space stays, so ``trim`` and its like work; a template that looks for marks inside a message does
not find them.

A template that writes no system messages, or refuses them, gets their text before the first message
of the user, as Mistral's v1 format has it: what a person asks for does not vanish.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.templates.parts import (
    ChatTemplate,
    Control,
    Part,
    Segment,
    Text,
    check_roles,
    encode_parts,
)
from mistral_chat.tokenizers import Tokenizer
from quant.errors import CheckpointError

LONGEST = 1 << 20
"""Characters that a template may write beside the messages' own."""

_ANSWERS = tuple(re.compile(f"[\"'`‘“]{word}[\"'`’”]") for word in ("safe", "unsafe"))
"""How Llama Guard's templates, and those made after them, name the answers that they ask for."""

_PRIVATE = range(0xF0000, 0x10FFFE)


class _RefusalError(TemplateError):
    """A template called ``raise_exception``."""


class _Generator(CodeGenerator):
    """Compiles ``a ~ b`` to a call of the sandbox, which looks at the length."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # noqa: N802 - Jinja's name
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it, in which nothing grows beyond ``LONGEST``.

    The sandbox of the library keeps a template from the computer's files and Python's insides; it
    does not keep it from ``"a" * 10**10``.
    """

    code_generator_class = _Generator
    intercepted_binops = frozenset(["+", "*", "**", "%"])
    longest = LONGEST

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Texts and lists can be added up to a length; all else is for numbers of modest size."""
        if all(isinstance(side, (int, float)) and abs(side) < 1e9 for side in (left, right)):
            if operator == "**" and abs(right) > 64:
                raise SecurityError("a power of such a number is not allowed")
        elif operator != "+":
            raise SecurityError(f"{operator} is allowed between numbers only")
        elif hasattr(left, "__len__") and hasattr(right, "__len__"):
            self._check(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def joined(self, parts: Sequence[Any]) -> str:
        """The parts as one text."""
        texts = [str(part) for part in parts]
        self._check(sum(map(len, texts)))
        return "".join(texts)

    def replaced(self, text: str, old: str, new: str, count: int = -1) -> str:
        """``text.replace``, the length of the result looked at first."""
        self._check(len(text) + (text.count(old) + 1) * len(new))
        return str(text).replace(old, new, count)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Methods that make a text of any length are not to be had."""
        if isinstance(obj, str) and attr in _GROWING:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:  # noqa: ARG002 - no format is safe here
        """``format`` is a growing method like the others, and gets no wrapper."""
        return

    def call(self, context: Any, called: Any, *arguments: Any, **named: Any) -> Any:
        """Call a function or method, those that may make a long text after a look at its length."""
        owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return self.replaced(owner, *arguments)
        if isinstance(owner, str) and name == "join":
            return self.join(arguments[0], owner)
        return super().call(context, called, *arguments, **named)

    def join(self, values: Sequence[Any], between: str = "", attribute: str | None = None) -> str:
        """The values as texts, with ``between`` between them."""
        items = list(values)
        if attribute is not None:
            items = [self.getattr(item, attribute) for item in items]
        texts = [str(item) for item in items]
        self._check(sum(map(len, texts)) + len(between) * len(texts))
        return between.join(texts)

    def _check(self, length: int) -> None:
        if length > self.longest:
            raise SecurityError("a text grows without end")


_GROWING = frozenset("ljust rjust center zfill expandtabs format format_map".split())
_FILTERS = (
    "abs capitalize count d default dictsort e escape first float int items last length list lower "
    "map max min reject rejectattr reverse round safe select selectattr sort string sum title trim "
    "unique upper"
).split()
"""The filters that chat templates use, of those that cannot make much of little."""


class JinjaTemplate(ChatTemplate):
    """The template in a model's file.

    Raises CheckpointError for Jinja text that does not parse.
    """

    name = "jinja"

    def __init__(self, tokenizer: Tokenizer, source: str, stop_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        ends = stop_ids or (tokenizer.eos_id,)
        self.stop_ids = tuple(i for i in ends if i is not None)
        sandbox = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        sandbox.filters = {name: sandbox.filters[name] for name in _FILTERS} | {
            "join": sandbox.join,
            "replace": sandbox.replaced,
            "tojson": _to_json,
        }
        sandbox.globals = {
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now().astimezone().strftime(form),
            "namespace": sandbox.globals["namespace"],
            "range": sandbox.globals["range"],
            "dict": sandbox.globals["dict"],
        }
        self._sandbox = sandbox
        try:
            self._template = sandbox.from_string(source)
            literal = _literal_text(sandbox.parse(source))
        except (TemplateSyntaxError, RecursionError, SyntaxError) as error:
            raise CheckpointError(
                f"The model's chat template does not parse ({error}); choose another file of this "
                "model."
            ) from error
        self.judges = all(answer.search(literal) for answer in _ANSWERS)
        self._pieces = re.compile(
            "|".join(map(re.escape, sorted(tokenizer.controls, key=len, reverse=True))) or r"(?!)"
        )

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """The parts and their ids, BOS once; raises UsageError where the template refuses."""
        check_roles(messages)
        return self._segments(messages)

    def transcript(self, messages: Sequence[Message]) -> list[Segment]:
        """The parts and their ids, for a template that judges."""
        return self._segments(messages) if self.judges else super().transcript(messages)

    def _segments(self, messages: Sequence[Message]) -> list[Segment]:
        parts = self.parts(messages)
        bos = self._tokenizer.bos_id
        if bos is not None and self._tokenizer.adds_bos:
            begin = Control(self._tokenizer.show([bos]))
            parts = parts if parts[:1] == [begin] else [begin, *parts]
        return encode_parts(self._tokenizer, parts)

    def parts(self, messages: Sequence[Message]) -> list[Part]:
        """What the template writes: control pieces that are its own, and texts.

        Raises UsageError where the template refuses the conversation, CheckpointError where it
        cannot be run.
        """
        if not self._writes_system(messages):
            messages = system_with_user(messages)
        mask = Mask.of(self._tokenizer.controls, [message.text for message in messages])
        hidden = [replace(message, text=mask.hide(message.text)) for message in messages]
        rendered = self._render(hidden)
        contents = [(message.role, message.text) for message in hidden]
        parts: list[Part] = []
        end = 0
        for match in self._pieces.finditer(rendered):
            parts += _text(rendered[end : match.start()], contents, mask)
            parts += [Control(match.group())]
            end = match.end()
        return parts + _text(rendered[end:], contents, mask)

    def _writes_system(self, messages: Sequence[Message]) -> bool:
        """Whether the template writes all system messages that there are.

        It is run on the same conversation with characters in their place that nothing else holds:
        their own text could stand in another message, too.
        """
        if all(message.role is not Role.SYSTEM for message in messages):
            return True
        free = _unused({ord(letter) for message in messages for letter in message.text})
        marks = [next(free) if message.role is Role.SYSTEM else "" for message in messages]
        pairs = zip(messages, marks, strict=True)
        marked = [replace(message, text=mark or message.text) for message, mark in pairs]
        try:
            rendered = self._render(marked)
        except UsageError:  # it refuses the role, or it refuses the conversation once more
            return False
        return all(mark in rendered for mark in marks)

    def _render(self, messages: Sequence[Message]) -> str:
        self._sandbox.longest = LONGEST + sum(2 * len(message.text) for message in messages)

        def piece(token: int | None) -> str:
            return "" if token is None else self._tokenizer.show([token])

        values = {
            "messages": [{"role": each.role.value, "content": each.text} for each in messages],
            "add_generation_prompt": True,
            "bos_token": piece(self._tokenizer.bos_id),
            "eos_token": piece(self._tokenizer.eos_id),
            "tools": None,
        }
        written: list[str] = []
        length = 0
        try:
            for text in self._template.generate(values):
                length += len(text)
                if length > self._sandbox.longest:
                    raise CheckpointError(
                        "The model's chat template writes without end; choose another file of "
                        "this model."
                    )
                written.append(text)
        except _RefusalError as error:
            raise UsageError(
                f"The model's chat template refuses this conversation: {error}"
            ) from error
        # A template is a program from elsewhere: what it does wrong comes as any exception.
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The model's chat template cannot be run ({error}); choose another file of this "
                "model."
            ) from error
        except (AttributeError, RecursionError, MemoryError) as error:
            raise CheckpointError(
                f"The model's chat template cannot be run ({type(error).__name__}); choose another "
                "file of this model."
            ) from error
        return "".join(written)


@dataclass(frozen=True)
class Mask:
    """Characters of control pieces, and those that stand for them while a template runs."""

    hidden: Mapping[int, str]
    shown: Mapping[int, str]

    @classmethod
    def of(cls, controls: Mapping[str, int], texts: Sequence[str]) -> Mask:
        """A mask for ``controls`` whose stand-ins occur in none of ``texts`` nor in a piece.

        >>> mask = Mask.of({"<s>": 1}, ["a <s>"])
        >>> "<s>" in mask.hide("a <s>"), mask.show(mask.hide("a <s>"))
        (False, 'a <s>')
        """
        used = {ord(letter) for text in (*texts, *controls) for letter in text}
        letters = sorted({letter for piece in controls for letter in piece if not letter.isspace()})
        free = _unused(used)
        pairs = [(letter, next(free)) for letter in letters]
        return cls(
            {ord(letter): private for letter, private in pairs},
            {ord(private): letter for letter, private in pairs},
        )

    def hide(self, text: str) -> str:
        """``text`` without a character of any control piece."""
        return text.translate(self.hidden)

    def show(self, text: str) -> str:
        """The inverse of :meth:`hide`."""
        return text.translate(self.shown)


def _text(text: str, contents: list[tuple[Role, str]], mask: Mask) -> list[Part]:
    """The part for a text; of ``contents``, which are in order, those it holds are taken out."""
    role = None
    while contents and contents[0][1].strip() in text:
        role = contents.pop(0)[0]
    return [Text(mask.show(text), role)] if text else []


def system_with_user(messages: Sequence[Message]) -> list[Message]:
    r"""The conversation with its system messages put before the first one from the user.

    >>> system_with_user([Message(Role.SYSTEM, "Be brief"), Message(Role.USER, "Hi")])[0].text
    'Be brief\n\nHi'
    """
    system = [message.text for message in messages if message.role is Role.SYSTEM and message.text]
    others = [message for message in messages if message.role is not Role.SYSTEM]
    first = next((place for place, each in enumerate(others) if each.role is Role.USER), None)
    if first is not None:
        others[first] = Message(Role.USER, "\n\n".join([*system, others[first].text]))
    return others


def _literal_text(tree: nodes.Template) -> str:
    """What a template holds to be written: its text and the strings in it, without comments."""
    texts = [each.data for each in tree.find_all(nodes.TemplateData)]
    strings = [each.value for each in tree.find_all(nodes.Const) if isinstance(each.value, str)]
    return "\n".join([*texts, *strings])


def _unused(used: set[int]) -> Iterator[str]:
    """Characters of the private planes that are not among those ``used``."""
    for code in _PRIVATE:
        if code not in used:
            yield chr(code)
    raise UsageError("The conversation uses all of Unicode's private characters; take some out.")


def _raise_exception(message: object) -> None:
    raise _RefusalError(" ".join(str(message).split()))


def _to_json(value: Any, indent: int | None = None, **_more: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent if indent in (2, 4) else None)
