"""What a line asks, in each of its forms, and what is refused by name."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_chat.batch.lines import Lines
from mistral_chat.batch.requests import Named, named, read_request
from mistral_chat.errors import UsageError
from mistral_chat.guardrail.prompt import GUARDRAIL_PROMPT
from mistral_chat.messages import Message, Role
from mistral_chat.settings import Settings
from mistral_chat.system.files import longer_than

HI = Message(Role.USER, "Hi")


def read(value: Any, **settings: Any) -> Any:
    return read_request(json.dumps(value).encode(), Settings(**settings))


def openai(**body: Any) -> dict[str, Any]:
    return {"custom_id": "a", "body": {"messages": [{"role": "user", "content": "Hi"}], **body}}


def test_each_form_asks_the_same() -> None:
    forms = ["Hi", {"prompt": "Hi"}, {"messages": [{"role": "user", "content": "Hi"}]}, openai()]
    asked = [read(form, seed=3).asked for form in forms]
    assert all(each == asked[0] for each in asked)
    assert asked[0].messages == [HI]
    assert asked[0].sampling.seed == 3


def test_options_of_a_line() -> None:
    request = read(
        {"prompt": "Hi", "temperature": 0, "top_k": 3, "seed": 9, "max_tokens": 7, "id": [1]},
        temperature=0.5,
        min_p=0.1,
    )
    sampling = request.asked.sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed, sampling.min_p) == (0, 3, 9, 0.1)
    assert request.asked.max_tokens == 7
    assert request.named == Named([1])
    request = read(openai(max_completion_tokens=5, temperature=None, stream=False, n=1, model="x"))
    assert request.asked.max_tokens == 5
    assert request.named == Named("a", openai=True)


def test_the_system_prompt_is_the_lines_own_after_the_guardrails() -> None:
    line = {"messages": [{"role": "system", "content": "Own"}, {"role": "user", "content": "Hi"}]}
    for form in (line, {"prompt": "Hi", "system": "Own"}):
        messages = read(form, system="Of all", guardrail="prompt").asked.messages
        assert messages == [Message(Role.SYSTEM, f"{GUARDRAIL_PROMPT}\n\nOwn"), HI]
    assert read("Hi", system="Of all").asked.messages[0].text == "Of all"
    parts = {"role": "user", "content": [{"type": "text", "text": each} for each in ("H", "i")]}
    body = openai(messages=[{"role": "developer", "content": "Own"}, parts])
    assert read(body).asked.messages == [Message(Role.SYSTEM, "Own"), HI]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "not JSON"),
        (b'"\xff"', "not JSON in UTF-8"),
        (b'"\\ud800"', "surrogates"),
        (b"[" * 100_000, "not JSON"),
        (b"3", "a text or a JSON object, not 3"),
        (b"[]", "not []"),
        (b'""', "prompt is empty"),
        (b"{}", '"prompt", or "messages"'),
        (b'{"prompt": "a", "messages": []}', '"prompt", or "messages"'),
        (b'{"prompt": 3}', '"prompt" of a line is a text'),
        (b'{"prompt": "a", "system": 3}', '"system" of a line is a text'),
        (b'{"prompt": "a", "temprature": 1}', "did you mean 'temperature'?"),
        (b'{"prompt": "a", "temperature": "hot"}', "temperature must be a number"),
        (b'{"prompt": "a", "temperature": -1}', "temperature must be at least 0"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature must be at least 0"),
        (b'{"prompt": "a", "max_tokens": 1.5}', "max_tokens must be a whole number"),
        (b'{"messages": {}}', "is a list"),
        (b'{"messages": [{"role": "robot", "content": ""}]}', "from 'robot'"),
        (b'{"messages": [{"role": "user", "content": [1]}]}', "is not a text"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "must be the user's"),
        (b'{"messages": [{"role": "system", "content": "a"}]}', "must be the user's"),
        (b'{"body": {}}', '"custom_id"'),
        (b'{"custom_id": "a", "body": 3}', '"body" of a line is a JSON object'),
        (b'{"custom_id": "a", "body": {}}', "is a list"),
        (b'{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', "'/v1/embeddings'"),
    ],
)
def test_what_cannot_be_asked_is_told(line: bytes, said: str) -> None:
    with pytest.raises(UsageError) as told:
        read_request(line, Settings())
    assert said in str(told.value)
    named(line)


@pytest.mark.parametrize(
    "body",
    [
        {"stop": ["x"]}, {"n": 2}, {"stream": True}, {"logprobs": True}, {"tools": [{}]},
        {"frequency_penalty": 0.5}, {"logit_bias": {"1": 2}}, {"response_format": {"type": "json"}},
        {"reasoning_effort": "high"},
    ],
)  # fmt: skip
def test_what_would_change_the_answer_is_refused_by_name(body: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(body))):
        read(openai(**body))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
keys = st.sampled_from(["prompt", "messages", "system", "id", "seed", "body", "custom_id", "url"])


@given(st.dictionaries(keys, json_values) | json_values)
def test_any_json_is_a_request_or_one_sentence(value: object) -> None:
    line = json.dumps(value).encode()
    named(line)
    with contextlib.suppress(UsageError):
        assert read_request(line, Settings()).asked.messages[-1].role is Role.USER


@given(
    st.lists(st.binary(max_size=12).filter(lambda line: b"\n" not in line), max_size=8),
    st.integers(1, 12),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
)
def test_lines_are_counted_and_numbered(
    lines: list[bytes], most: int, newline: bytes, ends: bool
) -> None:
    data = newline.join(lines) + (newline if ends else b"")
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff", b"\xef\xbb\xbf")):
        return
    there = [(n, each.rstrip(b"\r\n")) for n, each in enumerate(data.split(b"\n"), 1)]
    there = [(n, each) for n, each in there if each.strip()]
    if not there:
        with pytest.raises(UsageError, match="is empty"):
            Lines.read(io.BytesIO(data), "standard input")
        return
    read = Lines.read(io.BytesIO(data), "standard input")
    assert read.count == len(there)
    got = list(read.numbered(1000, longer_than(1000)))
    assert got == there
    for (number, whole), (short_number, short) in zip(
        there, read.numbered(most, longer_than(most)), strict=False
    ):
        if number == short_number and isinstance(short, bytes):
            assert short == whole


def test_a_file_with_another_mark_or_a_long_line(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_bytes('"Grüße"\n'.encode("utf-16"))
    with contextlib.closing(Lines.open(file)) as lines:
        assert list(lines.numbered(99, longer_than(99))) == [(1, '"Grüße"'.encode())]
    file.write_bytes(b'\xef\xbb\xbf"one"\n' + b"x" * 5_000_000 + b'\n"three"')
    with contextlib.closing(Lines.open(file)) as lines:
        one, two, three = lines.numbered(99, longer_than(99))
    assert (one, three) == ((1, b'"one"'), (3, b'"three"'))
    assert two[0] == 2
    assert isinstance(two[1], UsageError)
    with pytest.raises(UsageError, match="cannot be read"):
        Lines.open(tmp_path / "none")
