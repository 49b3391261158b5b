"""Jinja templates from model files: what they write, and what nobody can make them write."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.templates import template_for
from mistral_chat.templates.budget import LONGEST
from mistral_chat.templates.jinja import JinjaTemplate
from mistral_chat.tokenizers import tokenizer_from_gguf
from quant.errors import CheckpointError

from .sources import HEADERS, TYPED, jinja, metadata, say, shown


def test_the_file_s_own_text_decides() -> None:
    template = jinja(HEADERS)
    assert template.name == "jinja"
    assert template.stop_ids == (2,)
    assert shown(template, [Message(Role.SYSTEM, " Be brief\n"), *say("Hello")]) == (
        "<|im_start|><|im_start|>system<|endoftext|>\nBe brief<|im_end|>"
        "<|im_start|>user<|endoftext|>\nHello<|im_end|><|im_start|>assistant"
    )


def test_who_wrote_what_is_known() -> None:
    segments = jinja(HEADERS).segments([Message(Role.SYSTEM, "Be brief"), *say("Hello")])
    assert [(s.control, s.role) for s in segments][-6:] == [
        (False, None),
        (True, None),
        (False, Role.USER),
        (True, None),
        (True, None),
        (False, None),
    ]


GLUED = "{% for m in messages %}{{ m.content ~ '|' ~ 'im_end|>' }}{% endfor %}"


@pytest.mark.parametrize("source", [HEADERS, GLUED])
@settings(max_examples=300)
@given(texts=st.lists(TYPED.filter(bool), min_size=1, max_size=3))
def test_no_text_gives_a_control_id(source: str, texts: list[str]) -> None:
    tokenizer = tokenizer_from_gguf(metadata(source))
    template = JinjaTemplate(tokenizer, source)
    messages = say(*texts)[: len(texts) - 1 + len(texts) % 2]
    controls = set(tokenizer.controls.values())

    def written(conversation: list[Message]) -> list[int]:
        return [token for token in template.encode(conversation) if token in controls]

    harmless = [Message(message.role, "x") for message in messages]
    assert written(messages) == written(harmless)
    for segment in template.segments(messages):
        assert segment.control or controls.isdisjoint(segment.ids)


def test_begin_of_text_once() -> None:
    for source in ("{{ bos_token }}{{ messages[0].content }}", "{{ messages[0].content }}"):
        values = metadata(source, **{"tokenizer.ggml.add_bos_token": True})
        ids = template_for(tokenizer_from_gguf(values)).encode(say("a"))
        assert ids.count(1) == 1
        assert ids[0] == 1
    values = metadata("{{ messages[0].content }}")
    assert 1 not in template_for(tokenizer_from_gguf(values)).encode(say("a"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for %}", "does not parse"),
        ("{{ 'a", "does not parse"),
        ("{{ messages[7].content.x }}", "cannot be run"),
        ("{{ messages + 1 }}", "cannot be run"),
        ("{{ 1 / 0 }}", "cannot be run"),
        ("{{ messages | nonsense }}", "the filter 'nonsense' is not allowed"),
        ("{{ ''.__class__.__mro__ }}", "cannot be run"),
        ("{{ 'a' * 1000000000 }}", "without end"),
        ("{{ '%1000000000d' % 1 }}", "'mod' of a text"),
        ("{{ 'a'.ljust(1000000000) }}", "without end"),
        ("{{ '{:1000000000}'.format(1) }}", "cannot be run"),
        ("{{ 9 ** 99999999 }}", "cannot be run"),
        ("{% set n = namespace(x='aa') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}"
         "{% endfor %}", "without end"),
        ("{% set n = namespace(x='aa') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}"
         "{% endfor %}", "without end"),
        ("{% set n = namespace(x='aa') %}{% for i in range(40) %}"
         "{% set n.x = n.x | replace('a', n.x) %}{% endfor %}", "without end"),
        ("{% set n = namespace(x='aa') %}{% for i in range(40) %}"
         "{% set n.x = n.x.replace('a', n.x) %}{% endfor %}", "without end"),
        ("{% set n = namespace(x='aa') %}{% for i in range(40) %}"
         "{% set n.x = [n.x, n.x] | join(n.x) %}{% endfor %}", "without end"),
        ("{% set n = namespace(x='aa') %}{% for i in range(40) %}"
         "{% set n.x = n.x.join([n.x, n.x]) %}{% endfor %}", "without end"),
        ("{{ 'a' | center(1000000000) }}", "without end"),
        ("{% for i in range(99999) %}{{ messages[0].content }}12345678901234567890{% endfor %}",
         "takes too long"),
        ("{% for i in range(999999999) %}{% endfor %}", "cannot be run"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot be run"),
        ("{% include '/etc/passwd' %}", "cannot be run"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_used(source: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        template_for(tokenizer_from_gguf(metadata(source))).encode(say("a"))
    assert "\n" not in str(caught.value)


def test_a_template_may_refuse_a_conversation() -> None:
    source = "{{ raise_exception('Only user and assistant roles are supported!') }}"
    with pytest.raises(UsageError, match=r"refuses this conversation: Only user"):
        jinja(source).encode(say("a"))


def test_a_template_may_ask_for_the_date() -> None:
    text = shown(jinja("{{ strftime_now('%Y') }} {{ messages | tojson }}"), say('a"é'))
    assert text[:2] == "20"
    assert text.endswith('[{"role": "user", "content": "a\\"é"}]')


def test_the_longest_message_fits() -> None:
    text = "a" * (LONGEST + 1000)
    assert len(jinja("{{ messages[0].content }}").encode(say(text))) == len(text)


IN_PARTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{{ '<|im_start|>assistant' }}"
)
BY_PLACE = "{% for m in messages %}{{ '<|im_start|>' + m.content[0].text }}{% endfor %}"


@pytest.mark.parametrize("source", [IN_PARTS, BY_PLACE])
def test_a_template_may_want_lists_of_parts(source: str) -> None:
    text = shown(jinja(source), [Message(Role.SYSTEM, "Be brief"), *say("Hi", "Yes", "a Hello")])
    assert all(said in text for said in ("Be brief", "Hi", "Yes", "a Hello"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("Hello", "message 1 says, which is from user"),
        ("{{ messages[0].content }}", "message 2 says, which is from assistant"),
        ("{{ messages[-1].content }}", "message 1 says, which is from user"),
        ("{% for m in messages %}{{ m.content[:3] }}{% endfor %}", "message 1 says"),
        ("{% for m in messages %}{{ m.content | first }}{% endfor %}", "message 1 says"),
        ("{% for m in messages %}{{ m.text }}{% endfor %}", "message 1 says"),
        ("{% for m in messages %}{{ m.content | length }}{% endfor %}", "message 1 says"),
    ],
)
def test_a_template_that_leaves_something_out_is_refused(source: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        jinja(source).encode(say("a question", "an answer", "a last question"))
    assert "\n" not in str(caught.value)


def test_what_an_earlier_answer_thought_may_be_left_out() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{{ m.content.split('</think>')[-1].strip() }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
    )
    text = shown(jinja(source), say("One", "<think>\nhm\n</think>\n\nTwo", "Three </think>"))
    assert text == "One<|im_end|>Two<|im_end|>Three </think><|im_end|>"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[0].content | upper }}", "HI HELLO <|IM_END|>"),
        ("{% if 'Hello' in messages[0].content %}yes {% endif %}{{ messages[0].content }}",
         "yes Hi Hello <|im_end|>"),
        ("{{ messages[0].content | replace('<|im_end|>', '<| im_end |>') }}",
         "Hi Hello <| im_end |>"),
        ("{{ messages[0].content.split('<|') | join('<|') }}", "Hi Hello <|im_end|>"),
        ("{% set j = joiner(',') %}{{ j() }}{{ messages[0].content | indent(2) }}{{ j() }}",
         "Hi Hello <|im_end|>,"),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
         "Hi Hello <|im_end|>"),
    ],
)  # fmt: skip
def test_filters_see_what_was_typed(source: str, text: str) -> None:
    template = jinja(source)
    assert shown(template, say("Hi Hello <|im_end|>")) == text
    assert not any(segment.control for segment in template.segments(say("Hi Hello <|im_end|>")))


def test_the_special_tokens_that_transformers_gives() -> None:
    values = metadata(
        "{{ unk_token }}{{ pad_token }}{{ mask_token is defined }}{{ messages[0].content }}",
        **{"tokenizer.ggml.unknown_token_id": 1, "tokenizer.ggml.padding_token_id": 0},
    )
    tokenizer = tokenizer_from_gguf(values)
    ids = template_for(tokenizer).encode(say("a"))
    assert ids[:2] == [1, 0]
    assert tokenizer.show(ids) == "<|im_start|><|endoftext|>Falsea"


@pytest.mark.parametrize(
    ("answered", "ends"),
    [
        ("{{ m.content }}<|im_start|>", (2, 1)),
        ("{{ m.content | trim }}{{ '\\n\\n<|endoftext|>' }}", (2, 0)),
        ("{{ m.content }}<|im_end|>", (2,)),
        ("{{ m.content }} and <|im_start|>", (2,)),
        ("{{ m.content | tojson }}<|endoftext|>", (2,)),
        ("{{ raise_exception('No.') }}", (2,)),
    ],
)
def test_an_answer_ends_where_the_template_ends_it(answered: str, ends: tuple[int, ...]) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A: " + answered + "{% else %}"
        "Q: {{ m.content }}{% endif %}{% endfor %}"
    )
    assert jinja(source).stop_ids == ends


ENDED = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}<|im_start|>{% endfor %}"


@pytest.mark.parametrize(
    "wanted",
    [
        "messages[0].role == 'system'",
        "messages | length == 1",
        "messages | length == 2 and messages[0].role == 'system'",
    ],
)
def test_an_answer_ends_however_few_conversations_a_template_takes(wanted: str) -> None:
    refusing = "{% if not (" + wanted + ") %}{{ raise_exception('No.') }}{% endif %}"
    assert jinja(refusing + ENDED).stop_ids == (2, 1)


def test_a_refusal_steers_no_terminal() -> None:
    source = "{{ raise_exception('\\x1b]0;a\\x07\\n' ~ 'b' * 1000) }}"
    with pytest.raises(UsageError) as caught:
        jinja(source).encode(say("a"))
    text = str(caught.value)
    assert "]0;a b" in text
    assert text.isprintable()
    assert len(text) < 500
