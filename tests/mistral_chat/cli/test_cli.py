"""The command as a process: help, closed pipes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mistral_chat
from mistral_chat.cli import with_default_command
from mistral_chat.engines import opening
from mistral_chat.settings import Paths, all_settings

from ..conftest import FAKE_MAIN, HERE, Command
from ..fakes import FakeEngine

Environment = Callable[..., Mapping[str, str]]
FAKE_COMMAND = [sys.executable, *FAKE_MAIN]


def test_version(command: Command) -> None:
    result = command("--version")
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout == f"mistral-chat {mistral_chat.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["chat", "--help"]])
def test_help_is_help(command: Command, engine: FakeEngine, arguments: list[str]) -> None:
    result = command(*arguments)
    assert (result.code, result.stderr) == (0, "")
    assert "Usage: mistral-chat" in result.stdout
    assert engine.opened == 0


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nsys.argv = ['mistral-chat', '--help']\n"
        "from mistral_chat.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'numba', 'tokenizers', 'gguf', 'prompt_toolkit', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=HERE.parent.parent,
    )
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "full"),
    [
        ([], ["chat"]),
        (["hello"], ["chat", "hello"]),
        (["--temperature", "0", "hello"], ["chat", "--temperature", "0", "hello"]),
        (["models"], ["models"]),
        (["--version"], ["--version"]),
    ],
)
def test_the_default_command_may_be_left_out(arguments: list[str], full: list[str]) -> None:
    assert with_default_command(arguments, ["chat", "models"]) == full


def test_it_runs_as_a_module(fake_environment: Environment) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mistral_chat", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env=fake_environment(),
    )
    assert done.stdout == f"mistral-chat {mistral_chat.__version__}\n"


@pytest.mark.parametrize("answer", ["short", "..."])
def test_a_closed_pipe_is_quiet(fake_environment: Environment, answer: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [*FAKE_COMMAND, "-q", "hi"],
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
        env=fake_environment(answer),
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (0, b"")


def test_ctrl_c_is_130_and_what_was_written_stays(fake_environment: Environment) -> None:
    with subprocess.Popen(
        [*FAKE_COMMAND, "-q", "hi"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=fake_environment("..."),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5) == b"word "
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (130, b"")
    assert output.endswith(b"\n")


def test_ctrl_c_leaves_json_whole(engine: FakeEngine, command: Command) -> None:
    engine.answers.append(...)
    engine.interrupt_after = 2
    result = command("--json", "-q", "hi")
    assert result.code == 130
    record = json.loads(result.stdout)
    assert (record["text"], record["finish_reason"]) == ("word word ", "cancelled")


def test_ctrl_c_while_opening_is_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(opening, "open_engine", interrupted)
    result = command("-q", "hi")
    assert (result.code, result.stdout, result.stderr) == (130, "", "")


def test_closed_stdin_is_no_prompt(fake_environment: Environment) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" "$1" "$2" -q hi <&-', *FAKE_COMMAND],
        capture_output=True,
        text=True,
        check=False,
        env=fake_environment("ok"),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_closed_stdout_is_one_sentence(fake_environment: Environment) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" "$1" "$2" -q hi >&-', *FAKE_COMMAND],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        check=False,
        env=fake_environment("ok"),
    )
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1


NUMBERS = st.one_of(
    st.integers(),
    st.integers().map(lambda each: each * 10**30),
    st.sampled_from([10**9, 2**31, 2**63, 2**64, -1]),
)


@given(number=NUMBERS, data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_number_is_a_traceback(
    command: Command, engine: FakeEngine, number: int, data: st.DataObject
) -> None:
    rows = [row for row in all_settings() if row.kind in (int, float)]
    row = data.draw(st.sampled_from(rows))
    engine.answers.clear()
    engine.answers.append("ok")
    result = command(f"{row.flag}={number}", "-q", "hi")
    assert (result.code, result.stderr.count("\n")) in ((0, 0), (2, 1)), result.stderr


@pytest.mark.parametrize("digits", ["9" * 5000, "1" + "0" * 400, "1e400", "0x10", "--5"])
def test_a_number_that_is_none_is_one_sentence(
    command: Command,
    engine: FakeEngine,
    paths: Paths,
    monkeypatch: pytest.MonkeyPatch,
    digits: str,
) -> None:
    for arguments in (
        ["--threads", digits, "hi"],
        ["--temperature", digits, "hi"],
        ["bench", "--layers", digits, "--geometry", "mistral-7b"],
        ["bench", "--threads", digits],
        ["quantize-weights", "a", "b", "--bits", digits],
        ["quantize-weights", "a", "b", "--threads", digits],
        ["quantize-weights", "a", "b", "--tensor", f"a={digits}"],
        ["pull", "a/b", "--quantize", digits],
        ["perplexity", "a", "--threads", digits],
    ):
        result = command(*arguments)
        assert (result.code, result.stdout) == (2, ""), arguments
        assert result.stderr.count("\n") == 1
        assert len(result.stderr) < 1000
    assert engine.opened == 0
    monkeypatch.setenv("MISTRAL_CHAT_THREADS", digits)
    assert command("hi").code == 2
    monkeypatch.delenv("MISTRAL_CHAT_THREADS")
    paths.config.mkdir(parents=True)
    paths.config_file.write_text(f"gpu_layers = -{digits}")
    assert command("hi").code == 2


def test_too_many_threads_are_refused_in_every_command(command: Command) -> None:
    for arguments in (
        ["hi"], ["bench"], ["perplexity", "m"], ["quantize-weights", "m", "t"], ["pull", "m"],
        ["moderate", "a"], ["config"],
    ):  # fmt: skip
        result = command(*arguments, "--threads", "1000000000")
        assert (result.code, result.stdout) == (2, "")
        assert result.stderr == "--threads: threads must be at most 1024.\n"


def test_text_that_is_not_utf8_is_refused_by_every_command(
    command: Command, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = os.fsdecode(b"caf\xe9")
    for arguments, name in (
        ([broken], "the argument"),
        (["one", broken], "the argument"),
        (["--system", broken, "hi"], "--system"),
        (["-m", broken, "hi"], "--model"),
        (["--session", broken, "hi"], "--session"),
        (["--moderator", broken, "hi"], "--moderator"),
        (["sessions", "search", broken], "the argument"),
        (["sessions", "rename", "a", broken], "the argument"),
        (["sessions", "rm", broken], "the argument"),
        (["moderate", broken], "the argument"),
        (["template", "--version", broken, "-"], "--version"),
        (["info", broken], "the argument"),
        (["pull", broken], "the argument"),
        (["rm", broken], "the argument"),
        (["quantize-weights", "a", "b", "--tensor", broken], "--tensor"),
        (["perplexity", "a", "--against", broken], "--against"),
        (["completions", broken], "the argument"),
    ):
        result = command(*arguments)
        assert (result.code, result.stdout) == (2, ""), arguments
        assert f"{name} is not UTF-8 text (character 3)" in result.stderr or name in result.stderr
        assert "not UTF-8 text (character 3); write it in UTF-8.\n" in result.stderr
        assert result.stderr.count("\n") == 1
    assert engine.opened == 0
    monkeypatch.setenv("MISTRAL_CHAT_SYSTEM", broken)
    result = command("hi")
    assert (result.code, result.stderr) == (
        2,
        "MISTRAL_CHAT_SYSTEM: system is not UTF-8 text (character 3); write it in UTF-8.\n",
    )


def test_the_name_of_a_file_may_be_any_bytes(
    command: Command, engine: FakeEngine, tmp_path: Path
) -> None:
    file = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    file.write_text("its text")
    engine.answers.append("ok")
    assert command("-q", "-f", str(file), "hi").code == 0
    assert engine.asked[0][0].text == "its text\n\nhi"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "There is not enough memory for that"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (RuntimeError("can't start new thread"), "starts no more threads"),
    ],
)
def test_what_runs_out_is_one_sentence(
    command: Command, engine: FakeEngine, error: Exception, said: str
) -> None:
    engine.answers.append(error)
    result = command("-q", "hi")
    assert (result.code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert said in result.stderr


def test_more_memory_than_there_is_is_one_sentence(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "open_engine", lambda *_: np.empty(1 << 60, np.uint8))
    result = command("-q", "hi")
    assert (result.code, result.stderr.count("\n")) == (1, 1)
    assert "There is not enough memory" in result.stderr


@pytest.mark.parametrize("size", ["9" * 5000, "1000000000", "-3", "x", ""])
def test_a_size_that_no_terminal_has_is_no_size(
    command: Command, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    monkeypatch.setenv("COLUMNS", size)
    monkeypatch.setenv("LINES", size)
    assert command("doctor").code == 0


def test_a_full_disk_under_stdout_is_one_sentence(fake_environment: Environment) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*FAKE_COMMAND, "-q", "hi"],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            env=fake_environment("ok"),
        )
    assert (done.returncode, done.stderr) == (
        1,
        b"The disk is full; free some space and try again.\n",
    )


@pytest.mark.parametrize(("question", "code", "said"), [("hi", 0, b"ok\n"), ("", 2, b"")])
def test_a_full_disk_under_stderr_changes_nothing(
    fake_environment: Environment, question: str, code: int, said: bytes
) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*FAKE_COMMAND, question],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=full,
            check=False,
            env=fake_environment("ok"),
        )
    assert (done.returncode, done.stdout) == (code, said)
