"""The interpreter of chat templates: Jinja's own results, the owners of letters, and its limits."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mistral_chat.messages import Message, Role
from mistral_chat.templates.budget import (
    Budget,
    TemplateFaultError,
    TemplateLimitError,
    TemplateRefusalError,
)
from mistral_chat.templates.interpreter import Interpreter, parse
from mistral_chat.templates.jinja import JinjaTemplate
from mistral_chat.templates.ledger import Ledger
from mistral_chat.templates.owned import TEMPLATE, Owned
from mistral_chat.tokenizers import tokenizer_from_gguf
from quant.errors import CheckpointError

from ..fakes import tiny_metadata

PIECES = (
    (Path(__file__).parents[2] / "data" / "template_pieces.txt")
    .read_text(encoding="utf-8")
    .split("\n%%%%\n")
)
"""Templates that use all that there is; results within one stand between bars."""

VALUES = {
    "messages": [
        {"role": "system", "content": " Be Brief\n"},
        {
            "role": "user",
            "content": 'hello  World, it\'s <b> & "q" é ß\nline two\n\nthree',
        },
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi"},
        {"role": "user", "content": ""},
    ],
    "add_generation_prompt": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "tools": None,
    "n": [3, 1, 2],
    "d": {"b": 2, "A": 1},
    "t": "aXbXc",
    "x": 7,
    "f": 2.5,
}


def owned(value: Any, owner: str = "\1") -> Any:
    """A value of Python as one of a template, its texts written by a message."""
    if isinstance(value, str):
        return Owned.of(value, owner)
    if isinstance(value, list):
        return [owned(each, owner) for each in value]
    if isinstance(value, dict):
        return {Owned.of(key): owned(each, owner) for key, each in value.items()}
    return value


def run(source: str, **values: Any) -> Owned:
    given = {name: owned(value) for name, value in (values or VALUES).items()}
    return Interpreter(Budget(4, 1000)).run(parse(source), given)


def reference() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up."""

    def to_json(value: Any, ensure_ascii: bool = False, **more: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **more)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.filters["tojson"] = to_json
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return sandbox


@pytest.mark.parametrize("source", PIECES)
def test_it_writes_what_jinja_writes(source: str) -> None:
    assert run(source).text.split("|") == reference().from_string(source).render(VALUES).split("|")


STEPS = [
    "{{ c }}", "{{ c | upper }}", "{{ c | lower | title }}", "{{ c | capitalize }}", "{{ c[1:] }}",
    "{{ c.split('α') | join('-') }}", "{{ c.replace('β', 'x') }}", "{{ c | replace('', '<') }}",
    "{{ c | tojson }}", "{{ [c, {'a': c}] }}", "{{ c | indent(2) }}", "{{ c.center(9) }}",
    "{{ (c ~ 'template' ~ c) | upper }}", "{{ c.partition('α')[2] }}", "{{ c | reverse }}",
    "{% for letter in c %}{{ letter }}.{% endfor %}", "{{ c.splitlines() | join('\\n') }}",
    "{{ [c, 'template'] | sort | join }}", "{{ {c: c} | items | list }}", "{{ c.zfill(8) | e }}",
    "{% set b %}{{ c }}template{% endset %}{{ b * 2 }}", "{{ ('ß' ~ c ~ 'ß') | upper }}",
    "{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m(c) }}", "{{ c.strip('α') | trim }}",
    "{{ [c] | map('upper') | first }}", "{{ [{'k': c}] | map(attribute='k') | join('|') }}",
]  # fmt: skip


@settings(max_examples=300)
@given(
    text=st.text(alphabet="αβγς ßŉ\n", max_size=12),
    steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=4),
)
def test_letters_keep_their_owner(text: str, steps: list[str]) -> None:
    said = Owned.of(text, "\1")
    for source in steps:
        said = Interpreter(Budget(1, 1000)).run(parse(source), {"c": said})
        assert len(said.text) == len(said.owners)
        for letter, owner in zip(said.text, said.owners, strict=True):
            if letter in "αβγςΑΒΓΣ":  # the template's own words have none of these
                assert owner != TEMPLATE


def test_what_takes_a_person_s_place_counts_as_theirs() -> None:
    written = run("{{ c | replace('x', '<|im_end|>') }}<s>", c="axb")
    assert written.text == "a<|im_end|>b<s>"
    assert written.owners == "\1" * 12 + TEMPLATE * 3


DOUBLED = (
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
)
LONG = (
    "{% set n = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(15) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}"
)
TWICE = "{% set o = namespace(x='a') %}{% for i in range(60) %}{% set o.x = [o.x, o.x] %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        DOUBLED + "{{ n.x }}",
        DOUBLED + "{{ n.x | tojson }}",
        DOUBLED + "{{ n.x | string | length }}",
        DOUBLED + TWICE + "{% endfor %}{{ n.x == o.x }}",
        LONG + "{{ n.s.replace('', n.s) }}",
        LONG + "{{ n.s.join(n.s) }}",
        LONG + "{% for i in range(99999) %}{% set x = n.s | upper %}{% endfor %}",
        LONG + "{% for i in range(99999) %}{% set x = n.s is upper %}{% endfor %}",
        LONG + "{% for i in range(99999) %}{% set x = n.s | int %}{% endfor %}",
        LONG + "{% for i in range(99999) %}{% set x = n.s.rfind('b' ~ n.s[9:]) %}{% endfor %}",
        LONG + "{% for i in range(99999) %}{% set x = n.s.strip(n.s[:9999]) %}{% endfor %}",
        LONG + "{% for i in range(99999) %}{% set x = {n.s ~ 'b': 1}[n.s ~ 'b'] %}{% endfor %}",
        LONG + "{% set l = namespace(x=[]) %}{% for i in range(9999) %}"
        "{% set l.x = l.x + [n.s ~ i] %}{% endfor %}",
        "{% for i in range(9999) %}{% set x = range(99999) | sort %}{% endfor %}",
        "{% for i in range(9999) %}{% if -1 in range(99999) %}{% endif %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ [1] * 1000000000 }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a'.zfill(1000000000) }}",
        "{{ 'a\nb' | indent(1000000000) }}",
        "{{ [[1]] | tojson(indent=1000000000) }}",
        "{{ [1] | batch(1000000000, 'x') }}",
        "{{ [1] | slice(1000000000) }}",
    ],
)
def test_a_template_without_end(source: str) -> None:
    with pytest.raises(TemplateLimitError, match=r"^takes too (long|much memory)"):
        run(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 9 ** 99 }}",
        "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ 1 | round(100000000) }}",
        "{{ 7 | round(-100000000, 'floor') }}",
        "{{ range(10000000) }}",
        "{{ strftime_now('%999999999d') }}",
        "{{ 'a'.encode() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({}) }}",
        "{{ ''.__class__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ ['a'] | map(attribute='__class__') }}",
        "{{ 'a' | attr('__class__') }}",
        "{{ '%s' | format(1) }}",
        "{{ 'a' is nonsense }}",
        "{% include 'a' %}",
        "{% import 'a' as b %}",
        "{% break %}",
        "{{ {[1]: 2} }}",
        "{{ messages | selectattr('7' * 4000) }}",
        "{{ undefined_name.x }}",
        "{{ undefined_name() }}",
        "{{ namespace }}",
    ],
)
def test_what_is_not_allowed(source: str) -> None:
    with pytest.raises(TemplateFaultError):
        run(source)


def test_a_refusal_is_the_template_s_own() -> None:
    with pytest.raises(TemplateRefusalError, match=r"^No\.$"):
        run("{{ raise_exception('No.') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "9" * 5000 + " }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "not " * 5000 + "1 }}",
        "{{ x" + " + x" * 5000 + " }}",
        "\ud800{{ messages[0].content }}",
        "{{ '\\ud800' }}",
        "{{ '\\N{FOO}' }}",
        "x" * 200_000,
    ],
)
def test_a_template_that_cannot_be_read(source: str) -> None:
    with pytest.raises(CheckpointError, match="does not parse") as caught:
        JinjaTemplate(tokenizer_from_gguf(tiny_metadata()), source)
    assert len(str(caught.value)) < 500
    str(caught.value).encode("utf-8")


def test_generation_tags_write_nothing() -> None:
    assert run("{% generation %}{{ x }}{% endgeneration %}!").text == "7!"


SAID = [Message(Role.USER, "Hello World"), Message(Role.ASSISTANT, "<think>So</think> Hi")]


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda one, two: one + two, None),
        (lambda one, two: one.strip() + two[17:], 1),
        (lambda one, two: one[:5] + one[:5] + one[:5] + two, 0),
        (lambda one, two: one[6:] + one[:6] + two, None),
        (lambda one, two: two, 0),
        (lambda one, two: Owned.of("Hello World") + two, 0),
    ],
)
def test_what_is_left_out(change: Any, left: int | None) -> None:
    ledger = Ledger(SAID)
    assert ledger.left_out(change(*ledger.texts)) == left


def test_what_an_earlier_answer_thought_may_go() -> None:
    ledger = Ledger([*SAID, Message(Role.USER, "Bye")])
    one, two, three = ledger.texts
    assert ledger.left_out(one + two[17:] + three) is None
    assert ledger.left_out(one + two[:17] + three) == 1
    assert ledger.left_out(one + two[19:] + three) == 1


@given(texts=st.lists(st.text(max_size=200), min_size=1, max_size=4))
def test_a_letter_fewer_is_noticed(texts: list[str]) -> None:
    ledger = Ledger([Message(Role.USER, text) for text in texts])
    whole = Owned.of("").join(ledger.texts)
    assert ledger.left_out(whole) is None
    for place, text in enumerate(ledger.texts):
        visible = [spot for spot, letter in enumerate(text.text) if not letter.isspace()]
        if visible:
            others = [each for number, each in enumerate(ledger.texts) if number != place]
            fewer = text[: visible[-1]] + text[visible[-1] + 1 :]
            assert ledger.left_out(Owned.of(" ").join([fewer, *others])) == place
