"""Files that a person names: what is read of them, and what is not waited for."""

from __future__ import annotations

import codecs
import functools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_chat.errors import ExitCode, TextTooLongError, UsageError, exit_code
from mistral_chat.guardrail import evaluation
from mistral_chat.messages import read_conversation
from mistral_chat.models import texts
from mistral_chat.settings import Paths, resolve
from mistral_chat.system import files
from mistral_chat.system.files import decode, expanded, read_file, read_stream, read_text
from mistral_chat.talk import inputs
from mistral_chat.tokenizers import Tokenizer
from quant.errors import ContextFullError

from ..conftest import FAKE_MAIN, Command
from ..fakes import FakeEngine
from ..terminal.test_oneshot import asked

FAKE_COMMAND = [sys.executable, *FAKE_MAIN]
ENCODINGS = ("utf-8-sig", "utf-16", "utf-32")


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A pipe with a name, into which nobody writes."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Path]:
    """A socket with a name."""
    with socket.socket(socket.AF_UNIX) as one:
        path = tmp_path / "socket"
        one.bind(str(path))
        yield path


@given(st.text())
def test_a_mark_is_not_part_of_a_text(text: str) -> None:
    for mark, encoding in (
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ):
        data = mark + text.encode(encoding)
        ambiguous = encoding == "utf-16-le" and text.startswith("\0")
        if not ambiguous and not (mark == b"" and text.startswith("\ufeff")):
            assert decode(data, "here") == text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"caf\xe9", "here is not UTF-8 text (byte 3); convert it first, for example with iconv."),
        (b"\xef\xbb\xbf\xff", "here is not UTF-8 text (byte 3)"),
        (b"\xff\xfea", "here is not UTF-16 text (byte 2)"),
        (b"\xff\xfe\x00\x00a", "here is not UTF-32 text (byte 4)"),
    ],
)
def test_what_is_no_text_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(UsageError) as told:
        decode(data, "here")
    assert str(told.value).startswith(said)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_mark_never_reaches_the_model(
    engine: FakeEngine, command: Command, tmp_path: Path, encoding: str
) -> None:
    engine.answers.append("ok")
    file = tmp_path / "notes.txt"
    file.write_bytes("é file".encode(encoding))
    assert command("-f", str(file), "Why?", stdin="é pipe".encode(encoding)).code == 0
    assert asked(engine) == "é file\n\né pipe\n\nWhy?"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_mark_is_no_part_of_settings_conversations_and_examples(
    paths: Paths, command: Command, engine: FakeEngine, encoding: str
) -> None:
    paths.config.mkdir(parents=True)
    paths.config_file.write_bytes('system = "é"'.encode(encoding))
    assert resolve({}, {}, paths).system == "é"
    (message,) = read_conversation('[{"role": "user", "content": "é"}]'.encode(encoding))
    assert message.text == "é"
    lines = '{"text": "é"}\n{"text": "a"}\n'.encode(encoding)
    result = command("moderate", "--jsonl", "-q", stdin=lines)
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["é", "a"]


def test_the_home_of_nobody_is_refused_wherever_a_path_is_taken(
    command: Command, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="no_such_user is none here; write the path without"):
        expanded("~no_such_user/x")
    for arguments in (
        ["info", "~no_such_user/m.gguf"],
        ["plan", "~no_such_user/m.gguf"],
        ["pull", "~no_such_user/m.gguf"],
        ["perplexity", "~no_such_user/m.gguf"],
        ["quantize-weights", "~no_such_user/m.gguf", "x"],
        ["template", "-m", "~no_such_user", "-"],
        ["--categories", "~no_such_user/x", "hi"],
        ["-f", "~no_such_user/x", "hi"],
        ["template", "--tokenizer", "~no_such_user", "-"],
    ):
        result = command(*arguments, stdin=b"[]")
        assert result.code != 0
        assert result.stderr.count("\n") == 1, result.stderr
    monkeypatch.setenv("MISTRAL_CHAT_HOME", "~no_such_user")
    assert command("hi").code == ExitCode.USAGE


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(
    pipe: Path, listening: Path, command: Command, engine: FakeEngine, paths: Paths
) -> None:
    for path in (pipe, listening, Path("/dev/zero")):
        for arguments in (
            ["-f", str(path), "hi"],
            ["template", str(path)],
            ["template", "--tokenizer", str(path), "-"],
            ["perplexity", "m.gguf", str(path)],
            ["info", str(path)],
            ["plan", str(path)],
            ["perplexity", str(path)],
            ["--categories", str(path), "hi"],
            ["moderate", "-f", str(path)],
            ["moderate", "--evaluate", str(path)],
        ):
            result = command(*arguments, stdin=b"[]")
            assert result.code == ExitCode.USAGE, arguments
            assert result.stderr.count("\n") == 1, result.stderr
    paths.config.mkdir(parents=True)
    os.mkfifo(paths.config_file)
    result = command("hi")
    assert (result.code, result.stderr.count("\n")) == (ExitCode.USAGE, 1)
    assert str(paths.config_file) in result.stderr


def test_a_queue_that_calls_itself_a_file_is_not_waited_for(
    tmp_path: Path, command: Command, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_yet(*_: object) -> bytes:
        raise BlockingIOError

    path = tmp_path / "kmsg"
    path.touch()
    monkeypatch.setattr(os, "pread", nothing_yet)  # as /proc/kmsg answers
    for arguments in (
        ["-f", str(path), "hi"],
        ["template", "--tokenizer", str(path), "-"],
        ["info", str(path)],
        ["plan", str(path)],
        ["--categories", str(path), "hi"],
    ):
        result = command(*arguments, stdin=b"[]")
        assert result.code != 0, arguments
        assert result.stderr.count("\n") == 1, result.stderr
        assert str(path) in result.stderr


def test_a_pipe_in_a_models_folder_is_not_waited_for(tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    os.mkfifo(folder / "config.json")
    result = command("info", str(folder))
    assert result.code == ExitCode.USAGE
    assert f"{folder / 'config.json'} is a pipe" in result.stderr


def test_a_pipe_that_somebody_writes_to_is_read(pipe: Path) -> None:
    text = "word " * 100_000
    writer = threading.Thread(target=lambda: pipe.write_text(text))
    keeper = os.open(pipe, os.O_RDWR)  # so that the writer can begin before the reader
    writer.start()
    reader = threading.Thread(target=lambda: (writer.join(), os.close(keeper)))
    reader.start()
    assert read_text(pipe) == text
    reader.join()


@pytest.mark.parametrize(
    "line",
    [
        'exec "$0" "$1" "$2" -q -f <(sleep 0.2; echo \'of a process\') hi < /dev/null',
        'echo \'of a process\' | "$0" "$1" "$2" -q -f /dev/stdin hi',
        'echo \'of a process\' | "$0" "$1" "$2" -q -f - hi',
        '"$0" "$1" "$2" -q -f /dev/stdin hi <<< \'of a process\'',
        '"$0" "$1" "$2" -q -f /dev/null -f - hi <<< \'of a process\'',
    ],
)
def test_pipes_of_the_shell_are_files(
    fake_environment: Callable[..., Mapping[str, str]], line: str
) -> None:
    done = subprocess.run(
        ["bash", "-c", line, *FAKE_COMMAND],
        capture_output=True,
        text=True,
        check=False,
        env=fake_environment("ok"),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    """The vocabulary of the stand-in for an engine."""
    return FakeEngine().tokenizer


def test_no_more_is_read_than_may_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 100)
    assert read_file(file, 100) == b"x" * 100
    with pytest.raises(UsageError, match="more than is read at once; give a part of it"):
        read_file(file, 99)

    class Endless:
        taken = 0

        def read(self, size: int) -> bytes:
            self.taken += size
            return b"y" * size

    endless: Any = Endless()
    with pytest.raises(UsageError):
        read_stream(endless, "here", 10_000_000)
    assert endless.taken < 12_000_000


def test_a_text_far_longer_than_the_context_is_refused_unread(
    command: Command, engine: FakeEngine, tmp_path: Path
) -> None:
    long = b"word " * 300_000
    file = tmp_path / "long.txt"
    file.write_bytes(long)
    for arguments, stdin in (([], long), (["-f", str(file)], b""), (["-"], long)):
        result = command("--context", "100", *arguments, "Sum up.", stdin=stdin)
        assert (result.code, result.stdout) == (ExitCode.CONTEXT_FULL, "")
        assert result.stderr == (
            "The text needs at least 101 tokens, but only 100 are left in the context; shorten "
            "it, or ask for a longer context.\n"
        )
    assert engine.opened == 0


def test_a_long_text_is_counted_by_its_bytes_before_its_tokens_are_made(
    command: Command, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "LONG_TEXT", 1000)

    def count(messages: object) -> int:
        raise AssertionError("its tokens were made")

    monkeypatch.setattr(engine, "count_tokens", count)
    result = command("-q", stdin=b"h" * 10_000)
    assert result.code == ExitCode.CONTEXT_FULL
    # No piece of that vocabulary has more bytes than the first control piece or "he".
    longest = max(map(len, map(engine.tokenizer.token_bytes, range(engine.tokenizer.vocab_size))))
    assert f"at least {-(-10_000 // longest)} tokens, but only 100" in result.stderr


@given(st.text(min_size=1))
def test_a_text_never_has_fewer_tokens_than_its_bytes_tell(text: str) -> None:
    tokenizer = tiny_tokenizer()
    before, inputs.LONG_TEXT = inputs.LONG_TEXT, 0
    try:
        assert inputs.least_tokens(tokenizer, text) <= len(tokenizer.encode(text))
    finally:
        inputs.LONG_TEXT = before


def test_a_context_that_holds_more_than_is_read_says_so() -> None:
    most, refused = inputs.most_bytes(100)
    assert (most, exit_code(refused("here"))) == (409_600, ExitCode.CONTEXT_FULL)
    assert isinstance(refused("here"), ContextFullError)
    most, refused = inputs.most_bytes(1 << 30)
    assert most == files.MOST_BYTES
    assert not isinstance(refused("here"), TextTooLongError)


def test_texts_to_measure_with_are_bounded(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(texts, "MOST_BYTES", 10)
    monkeypatch.setattr(evaluation, "MOST_BYTES", 10)
    file = tmp_path / "text"
    file.write_bytes(b"x" * 11)
    for arguments in (
        ["perplexity", "m.gguf", str(file)],
        ["quantize-weights", "m.gguf", "target", "--calibrate", str(file)],
        ["moderate", "-f", str(file)],
        ["template", str(file)],
    ):
        result = command(*arguments)
        assert result.code == ExitCode.USAGE
        assert f"{file} holds more than" in result.stderr
    result = command("moderate", "--jsonl", stdin=b'{}\n{"text": "' + b"x" * 10 + b'"}')
    assert (result.code, "line 2 holds more than" in result.stderr) == (ExitCode.USAGE, True)


def test_settings_are_no_place_for_megabytes(paths: Paths, command: Command) -> None:
    paths.config.mkdir(parents=True)
    paths.config_file.write_text("#" * 1_000_001)
    result = command("hi")
    assert result.code == ExitCode.USAGE
    assert f"{paths.config_file} holds more than 1 MB" in result.stderr
