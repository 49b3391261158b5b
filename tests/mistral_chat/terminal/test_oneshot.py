"""One question, one answer, through the command."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from mistral_chat.messages import Message, Role
from quant.errors import ContextFullError

from ..conftest import Command
from ..fakes import FakeEngine


def asked(engine: FakeEngine) -> str:
    """The one question that was asked."""
    ((message,),) = engine.asked
    assert message.role is Role.USER
    return message.text


def test_a_prompt_is_answered_on_stdout_alone(engine: FakeEngine, command: Command) -> None:
    engine.answers.append("Paris\nis it.")
    result = command("-q", "Where?")
    assert (result.code, result.stdout, result.stderr) == (0, "Paris\nis it.\n", "")
    assert asked(engine) == "Where?"


def test_timings_go_to_stderr(engine: FakeEngine, command: Command) -> None:
    engine.answers.append("Paris")
    result = command("Where?")
    assert result.stdout == "Paris\n"
    assert "tokens/s" in result.stderr
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("flags", [[], ["--no-stream"]])
@pytest.mark.parametrize("answer", ["Paris", "Paris\n", "Paris\n\n\n"])
def test_the_answer_ends_in_one_newline(
    engine: FakeEngine, command: Command, answer: str, flags: list[str]
) -> None:
    engine.answers.append(answer)
    assert command(*flags, "Where?").stdout == "Paris\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (["two", "words"], b"", "two words"),
        ([], b"piped\n", "piped"),
        (["-"], b"piped\n", "piped"),
        (["What is it?"], b"piped\n", "piped\n\nWhat is it?"),
        (["-", "What is it?"], "é\n".encode(), "é\n\nWhat is it?"),
        (["models?"], b"", "models?"),
        (["chat", "models"], b"", "models"),
    ],
)
def test_words_and_stdin_make_the_prompt(
    engine: FakeEngine, command: Command, arguments: list[str], stdin: bytes, prompt: str
) -> None:
    engine.answers.append("ok")
    assert command(*arguments, stdin=stdin).code == 0
    assert asked(engine) == prompt


def test_files_come_first_and_repeat(engine: FakeEngine, command: Command, tmp_path: Path) -> None:
    engine.answers.append("ok")
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"file {name}\n", encoding="utf-8")
    flags = ["-f", str(tmp_path / "a"), "-f", str(tmp_path / "b")]
    command(*flags, "Compare.", stdin=b"piped")
    assert asked(engine) == "file a\n\nfile b\n\npiped\n\nCompare."


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        ([], b"", "prompt is empty"),
        ([""], b"", "prompt is empty"),
        (["  \n "], b" \n", "prompt is empty"),
        ([], b"caf\xe9", "standard input is not UTF-8"),
        (["caf\udce9"], b"", "not UTF-8"),
        (["-f", "/no/such/file", "hi"], b"", "/no/such/file cannot be read"),
        (["--top-p", "3", "hi"], b"", "top_p"),
        (["--kv", "f8", "hi"], b"", "f16 or int8"),
        (["--temperature", "hot", "hi"], b"", "--temperature"),
        (["--nonsense", "hi"], b"", "--nonsense"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    engine: FakeEngine, command: Command, arguments: list[str], stdin: bytes, said: str
) -> None:
    result = command(*arguments, stdin=stdin)
    assert (result.code, result.stdout) == (2, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert engine.opened == 0


def test_json_is_one_object_with_everything(engine: FakeEngine, command: Command) -> None:
    engine.answers.append("Zürich\nis it.\n")
    result = command("--json", "-q", "Where?")
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout) == {
        "text": "Zürich\nis it.\n",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 3, "cached_tokens": 1, "completion_tokens": 2},
        "timings": {
            "prefill_tokens": 2,
            "prefill_seconds": 0.5,
            "decode_tokens": 2,
            "decode_seconds": 1.0,
        },
        "seed": 7,
        "model": {"name": "fake", "digest": "d" * 64},
        "template": "chatml",
        "truncated": False,
        "guardrail": {"mode": "off", "verdicts": []},
    }


def test_a_cut_answer_says_so(engine: FakeEngine, command: Command) -> None:
    engine.answers.append(...)
    record = json.loads(command("--json", "--max-tokens", "2", "Go on").stdout)
    assert (record["finish_reason"], record["truncated"]) == ("length", True)
    assert record["text"] == "word word "


def test_settings_reach_the_engine(engine: FakeEngine, command: Command) -> None:
    engine.answers.append("ok")
    command("--temperature", "0", "--seed", "5", "--system", "Be brief", "hi")
    assert engine.samplings[0].temperature == 0
    assert engine.samplings[0].seed == 5
    assert engine.asked == [[Message(Role.SYSTEM, "Be brief"), Message(Role.USER, "hi")]]


def test_a_prompt_that_does_not_fit_is_code_4(engine: FakeEngine, command: Command) -> None:
    engine.answers.append(ContextFullError(9000, 4096))
    result = command("-q", "very long")
    assert (result.code, result.stdout) == (4, "")
    assert "9000" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_full_disk_is_one_sentence(
    command: Command, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.answers.append(OSError(errno.ENOSPC, "No space left on device"))
    result: Any = command("-q", "hi")
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr == "The disk is full; free some space and try again.\n"


def test_jsonl_is_an_object_for_each_piece(engine: FakeEngine, command: Command) -> None:
    engine.answers.append("one\ntwo")
    result = command("--jsonl", "-q", "Hi")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert rows[:2] == [{"type": "delta", "text": "one\n"}, {"type": "delta", "text": "two"}]
    assert (rows[2]["type"], rows[2]["text"], rows[2]["finish_reason"]) == (
        "finished",
        "one\ntwo",
        "stop",
    )
    assert result.stderr == ""


def test_a_loop_is_told_beside_the_answer(engine: FakeEngine, command: Command) -> None:
    engine.answers.append("again (loop)")
    result = command("-q", "Hi")
    assert result.stdout == "again (loop)\n"
    assert "began to repeat itself" in result.stderr
