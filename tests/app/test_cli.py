"""The command as a process: help, closed pipes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import mistral_chat
from mistral_chat.cli import with_default_command
from mistral_chat.engine import ChatEngine

from .conftest import HERE, Command
from .fakes import FakeEngine

Environment = Callable[..., Mapping[str, str]]
FAKE_MAIN = [sys.executable, str(HERE / "fake_main.py")]


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
        [*FAKE_MAIN, "-q", "hi"],
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
        [*FAKE_MAIN, "-q", "hi"],
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

    monkeypatch.setattr(ChatEngine, "open", interrupted)
    result = command("-q", "hi")
    assert (result.code, result.stdout, result.stderr) == (130, "", "")


def test_closed_stdin_is_no_prompt(fake_environment: Environment) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" "$1" -q hi <&-', *FAKE_MAIN],
        capture_output=True,
        text=True,
        check=False,
        env=fake_environment("ok"),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_closed_stdout_is_one_sentence(fake_environment: Environment) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" "$1" -q hi >&-', *FAKE_MAIN],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        check=False,
        env=fake_environment("ok"),
    )
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1


def test_a_full_disk_under_stdout_is_one_sentence(fake_environment: Environment) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*FAKE_MAIN, "-q", "hi"],
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
