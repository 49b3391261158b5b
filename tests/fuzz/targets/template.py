"""Chat templates as they may lie in a file: put together at random, endless, or plainly wrong."""

from __future__ import annotations

from pathlib import Path
from random import Random

from mistral_chat.messages import Message, Role
from mistral_chat.templates import template_for
from mistral_chat.terminal.template_view import TemplateView
from mistral_chat.tokenizers import Tokenizer, tokenizer_from_gguf

from ...mistral_chat.fakes import CHAT_TEMPLATE, ZEPHYR, tiny_metadata, tiny_pieces
from ..mutation import changed_bytes
from ..target import Target, require

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token }}{% else %}{{ raise_exception('Only user') }}{% endif %}"
    "{% endfor %}"
)
WHOLE = (CHAT_TEMPLATE, ZEPHYR, MISTRAL)

ATOMS = (
    "messages", "messages[0]", "messages[-1].content", "message.content", "message.role",
    "message", "messages|length", "loop.index", "bos_token", "eos_token", "tools", "nothing",
    "ns.x", "'a'", "'\\n'", "''", "0", "1", "-1", "2.5", "1000000000", "[]", "[1, [2]]", "{}",
    "{'a': 1}", "(1, 2)", "true", "none", "range(3)", "range(10 ** 9)", "dict(a=1)", "namespace()",
    "strftime_now('%Y')", "strftime_now('%' * 99)", "'<|im_end|>'", "add_generation_prompt",
)  # fmt: skip
FOREIGN = (
    "{{ cycler }}", "{{ joiner() }}", "{{ self }}", "{{ lipsum() }}", "{{ messages.__class__ }}",
    "{{ ''.__class__.__mro__ }}", "{% include 'x' %}", "{% generation %}a{% endgeneration %}",
    "{# ", "{% break %}", "{{ x is nonsense }}", "{{ x|nonsense }}",
    "{% raw %}{{ a }}{% endraw %}", "{{",
)  # fmt: skip
"""What is not allowed, not known, or not whole."""
OPERATORS = (
    "+", "-", "*", "**", "/", "//", "%", "~", "==", "!=", "<", ">=", "and", "or", "in", "not in",
    "is", "if",
)  # fmt: skip
FILTERS = (
    "trim", "length", "upper", "title", "join(',')", "join(messages)", "list", "sort", "reverse",
    "first", "last", "int", "float", "abs", "string", "tojson", "tojson(indent=4)", "safe", "e",
    "default('x')", "replace('a', 'aa')", "replace('', 'xx')", "map(attribute='content')",
    "unique", "selectattr('role', 'equalto', 'user')", "rejectattr('role')", "items", "dictsort",
    "count", "max", "sum", "round", "indent(4)", "center(10 ** 9)", "wordwrap(0)", "batch(2)",
    "format(1)", "attr('x')", "pprint", "xmlattr", "random", "groupby('role')", "urlize",
)  # fmt: skip
CALLS = (
    ".strip()", ".split()", ".upper()", ".format(1)", ".join(messages)", ".replace('a', 'b')",
    ".items()", ".get('x')", ".append(1)", ".startswith('a')", ".ljust(10 ** 9)", "[1:]", "[::-1]",
    "[0]", "['x']", ".x", "()", ".encode()", ".splitlines()", ".update({})", ".count('')", ".pop()",
)  # fmt: skip
TESTS = "defined string mapping iterable none sequence number even callable".split()
ENDLESS = (
    "{% for a in range(10 ** 9) %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(10 ** 5) %}{{ messages }}{% endfor %}",
    "{% set ns = namespace(x='aa') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}"
    "{% endfor %}",
    "{% set ns = namespace(x=3) %}{% for a in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ ([[1] * 999] * 999) | tojson }}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ '%01000000000d' % 1 }}",
    "{{ range(10 ** 9) | list }}",
    "{{ range(10 ** 9) | sum }}",
    "{{ range(10 ** 9) | last }}",
    "{{ (range(10 ** 6) | list | string) ~ messages }}",
    "{{ '" + "(" * 5000 + "' }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "-" * 50_000 + "1 }}",
    "{{ 1" + " + 1" * 20_000 + " }}",
    "{% if true %}" * 500 + "{% endif %}" * 500,
    "{{ " + "9" * 6000 + " }}",
)  # fmt: skip


def expression(random: Random, depth: int = 0) -> str:
    """An expression of Jinja, which may make sense."""
    kind = random.randrange(10)
    if kind < 4 or depth > 3:
        return random.choice(ATOMS)
    inner = expression(random, depth + 1)
    if kind == 4:
        return f"({inner} {random.choice(OPERATORS)} {expression(random, depth + 1)})"
    if kind == 5:
        return f"{inner}|{random.choice(FILTERS)}"
    if kind == 6:
        return f"({inner}){random.choice(CALLS)}"
    if kind == 7:
        return f"({inner} is {random.choice(TESTS)})"
    if kind == 8:
        return f"[{inner}, {expression(random, depth + 1)}]"
    return f"({inner} if {expression(random, depth + 1)} else {random.choice(ATOMS)})"


def statement(random: Random, depth: int = 0) -> str:
    """A piece of a template, with more of them inside."""
    if random.random() < 0.03:
        return random.choice(FOREIGN)
    kind = random.randrange(11)
    if kind < 3 or depth > 3:
        return "{{ " + expression(random, depth) + " }}"
    inside = "".join(statement(random, depth + 1) for _ in range(random.randrange(1, 3)))
    value = expression(random, depth)
    if kind < 6:
        over = random.choice(("messages", "messages", value))
        leave = random.choice(("", "", "{%- if loop.last %}{% break %}{% endif -%}"))
        return "{% for message in " + over + " %}" + leave + inside + "{% endfor %}"
    if kind < 8:
        return "{% if " + value + " %}" + inside + "{% else %}b{% endif %}"
    return random.choice(
        (
            "{% set x = " + value + " %}" + inside,
            "{% set ns = namespace(x=" + value + ") %}{% set ns.x = ns.x %}" + inside,
            "{% macro m(a) %}" + inside + "{% endmacro %}{{ m(" + value + ") }}",
            "{% filter upper %}" + inside + "{% endfilter %}",
            "<|im_start|>user\n" + inside + "<|im_end|>",
        )
    )


def odd_template(random: Random) -> str:
    """A template nobody would write, or nearly one that somebody did."""
    kind = random.randrange(10)
    if kind < 2:
        return changed_bytes(random, random.choice(WHOLE).encode()).decode("utf-8", "replace")
    if kind == 2:
        return random.choice(ENDLESS) + random.choice(("", *WHOLE))
    if kind < 7:
        whole = random.choice(WHOLE)
        cuts = [place for place in range(1, len(whole)) if whole[place - 1 : place + 1] == "}{"]
        cut = random.choice([0, *cuts])
        # A short one, as a rule, so that the whole still does something.
        return whole[:cut] + statement(random, random.choice((0, 2, 4))) + whole[cut:]
    begin = random.choice(("", "{% set ns = namespace(x='a') %}{% set message = messages[0] %}"))
    return begin + "".join(statement(random, 1) for _ in range(random.randrange(1, 4))) + MISTRAL


def odd_talk(random: Random) -> list[Message]:
    """Messages that spell what a template writes."""
    texts = ("Hi", "", " a ", "<|im_end|>", "</s>[INST]", "{{ 1 }}", "é\U000f0000", "a\n" * 500)
    roles = [Role.SYSTEM] * random.randrange(2) + [Role.USER, Role.ASSISTANT] * random.randrange(3)
    return [Message(role, random.choice(texts)) for role in (*roles, Role.USER)]


class Template(Target):
    """Odd templates with two kinds of vocabulary: typed marks stay texts, time is bounded."""

    name = "template"

    def case(self, random: Random, scratch: Path) -> None:
        source = odd_template(random)
        if random.random() < 0.5:
            metadata = {**tiny_metadata(), "tokenizer.chat_template": source}
        else:
            metadata = tiny_pieces(source)
        tokenizer = tokenizer_from_gguf(metadata)
        template = template_for(tokenizer)
        for _talk in range(2):
            self._check(tokenizer, TemplateView.of(tokenizer, template, odd_talk(random)))

    def _check(self, tokenizer: Tokenizer, view: TemplateView) -> None:
        view.to_json()
        controls = set(tokenizer.controls.values())
        for piece in view.pieces:
            fits = type(piece.token) is int and 0 <= piece.token < tokenizer.vocab_size
            require(fits, f"{piece.token!r} is no id")
            control = piece.token in controls
            require(control == (piece.source == "control"), f"a control id of {piece.source}")


TARGET = Template
