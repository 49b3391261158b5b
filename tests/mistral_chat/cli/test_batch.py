"""``mistral-chat batch``: results in order, what fails, and what is killed and gone on with."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mistral_chat.batch import results
from mistral_chat.errors import ExitCode, JudgingError
from mistral_chat.guardrail.moderation import SelfReflection

from ..conftest import FAKE_MAIN, Command
from ..fakes import FakeEngine

LINES = b"""\
"one"
{"prompt": "two", "id": "second"}

not JSON
{"prompt": "it fails"}
{"custom_id": "c", "body": {"messages": [{"role": "user", "content": "five"}]}}
{"custom_id": "d", "body": {"messages": [{"role": "user", "content": "too long"}]}}
"last"
"""


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_results_come_in_the_order_of_the_lines(engine: FakeEngine, command: Command) -> None:
    result = command("batch", "--at-once", "3", "--seed", "4", stdin=LINES)
    assert result.code == ExitCode.FAILED
    got = records(result.stdout)
    assert [each.get("line") or each["id"] for each in got] == [
        1, 2, 4, 5, "batch_req_6", "batch_req_7", 8,
    ]  # fmt: skip
    assert got[0] == {
        "line": 1,
        "text": "echo one",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 2},
        "seed": 4,
    }
    assert got[1]["id"] == "second"
    assert "not JSON" in got[2]["error"]
    assert "not finite" in got[3]["error"]
    assert got[4]["custom_id"] == "c"
    body = got[4]["response"]["body"]
    assert body["choices"][0]["message"]["content"] == "echo five"
    assert body["usage"]["total_tokens"] == 3
    assert got[5]["response"]["status_code"] == 400
    assert "200" in got[5]["response"]["body"]["error"]["message"]
    assert "3 of 7 lines could not be answered" in result.stderr
    assert "tokens/s" in result.stderr


def test_unordered_results_come_as_they_are_done(engine: FakeEngine, command: Command) -> None:
    result = command("batch", "--unordered", "--at-once", "3", "-q", stdin=b'"a"\n"b"\n"c"')
    assert [each["line"] for each in records(result.stdout)] == [3, 2, 1]
    assert (result.code, result.stderr) == (0, "")


def test_a_file_is_written_whole(engine: FakeEngine, command: Command, tmp_path: Path) -> None:
    file, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_bytes(LINES)
    result = command("batch", str(file), "--output", str(output))
    assert (result.code, result.stdout) == (ExitCode.FAILED, "")
    assert len(records(output.read_text("utf-8"))) == 7
    assert records(output.read_text("utf-8"))[0]["text"] == "echo one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    result = command("batch", str(file), "-o", str(output), "--resume")
    assert result.code == ExitCode.USAGE
    assert "is there already" in result.stderr


def test_what_was_interrupted_is_gone_on_with(
    engine: FakeEngine, command: Command, tmp_path: Path
) -> None:
    file, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(f'"question {n}"\n' for n in range(20)), "utf-8")
    engine.interrupt_after = 8
    arguments = ("batch", str(file), "-o", str(output), "--at-once", "2", "--seed", "1")
    result = command(*arguments)
    assert result.code == ExitCode.INTERRUPTED
    assert "4 of 20 are done; go on with --resume." in result.stderr
    assert not output.exists()
    engine.interrupt_after, asked = None, len(engine.asked)
    assert "--resume" in command(*arguments).stderr
    for changed, said in ((["--seed", "2"], "settings"), (["--model", "other"], "settings")):
        assert said in command(*arguments, *changed, "--resume").stderr
    result = command(*arguments, "--resume")
    assert result.code == 0
    assert len(engine.asked) - asked == 16
    got = records(output.read_text("utf-8"))
    assert [each["text"] for each in got] == [f"echo question {n}" for n in range(20)]


def test_a_part_of_another_input_is_refused(
    engine: FakeEngine, command: Command, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"
    engine.interrupt_after = 3
    arguments = ("batch", "-o", str(output), "--at-once", "1")
    assert command(*arguments, stdin=b'"a"\n"b"\n"c"\n"d"').code == ExitCode.INTERRUPTED
    engine.interrupt_after = None
    result = command(*arguments, "--resume", stdin=b'"a"\n"b"\n"c"\n"e"')
    assert result.code == ExitCode.USAGE
    assert "belongs to another input" in result.stderr
    part = tmp_path / "out.jsonl.part"
    whole = part.read_bytes()
    part.write_bytes(whole.replace(b'"line"', b'"lime"'))
    lines = b'"a"\n"b"\n"c"\n"d"'
    assert "damaged" in command(*arguments, "--resume", stdin=lines).stderr
    part.write_bytes(b"something else\n")
    assert "damaged" in command(*arguments, "--resume", stdin=b'"a"').stderr
    part.write_bytes(whole[:-9])  # half a line at the end is what a kill leaves
    assert command(*arguments, "--resume", stdin=lines).code == 0
    assert [each["line"] for each in records(output.read_text("utf-8"))] == [1, 2, 3, 4]


def test_a_disk_that_fills_loses_nothing(
    engine: FakeEngine, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.jsonl"
    plain = results.Kept._append
    left = 2

    def append(self: Any, value: Any, line: int) -> None:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        left -= 1
        plain(self, value, line)

    monkeypatch.setattr(results.Kept, "_append", append)
    lines = b'"a"\n"b"\n"c"\n"d"'
    result = command("batch", "-o", str(output), stdin=lines)
    assert result.code == ExitCode.FAILED
    assert "The disk is full" in result.stderr
    assert "2 of 4 are done; go on with --resume." in result.stderr
    assert "Traceback" not in result.stderr
    left = 100
    assert command("batch", "-o", str(output), "--resume", stdin=lines).code == 0
    assert len(records(output.read_text("utf-8"))) == 4
    assert len(engine.asked) == 4 + 2


def test_ctrl_c_prints_what_is_finished(engine: FakeEngine, command: Command) -> None:
    engine.interrupt_after = 5
    result = command("batch", "--at-once", "2", stdin=b"".join(b'"%d"\n' % n for n in range(9)))
    assert result.code == ExitCode.INTERRUPTED
    # The latest are answered first here, so the first line is still open.
    assert [each["line"] for each in records(result.stdout)] == [4]


def test_the_guardrail_judges_lines_and_answers(engine: FakeEngine, command: Command) -> None:
    engine.rules = {"bomb": 1}
    lines = b'"a bomb"\n"peace"\n{"custom_id": "x", "body": {"messages": [{"role": "user",'
    lines += b'"content": "a bomb"}]}}'
    result = command("batch", "--guardrail", "moderate", stdin=lines)
    assert result.code == ExitCode.REFUSED
    refused, passed, other = records(result.stdout)
    assert (refused["finish_reason"], refused["text"]) == ("refused", "")
    assert [each["action"] for each in passed["verdicts"]] == ["allow", "allow"]
    assert other["response"]["body"]["choices"][0]["finish_reason"] == "content_filter"
    assert len(engine.asked) == 1


def test_an_answer_that_cannot_be_judged_is_that_lines_fault(
    engine: FakeEngine, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = SelfReflection.judge

    def judge(self: Any, text: str, *more: Any, **named: Any) -> Any:
        if text == "echo b":
            raise JudgingError
        return plain(self, text, *more, **named)

    monkeypatch.setattr(SelfReflection, "judge", judge)
    result = command("batch", "--guardrail", "moderate", stdin=b'"a"\n"b"\n"c"')
    assert result.code == ExitCode.FAILED
    a, b, c = records(result.stdout)
    assert "nothing was judged" in b["error"]
    assert (a["text"], c["text"]) == ("echo a", "echo c")


def test_bad_options(engine: FakeEngine, command: Command, tmp_path: Path) -> None:
    for arguments, said in (
        (["--resume"], "--output"),
        ([str(tmp_path / "none")], "cannot be read"),
        (["--at-once", "0"], "greater than or equal to 1"),
        (["-o", str(tmp_path / "no" / "out")], "No such file"),
    ):
        result = command("batch", *arguments, stdin=b'"a"')
        assert result.code != 0
        assert said in result.stderr
        assert "Traceback" not in result.stderr
    result = command("batch", stdin=b" \n\n")
    assert (result.code, "is empty" in result.stderr) == (ExitCode.USAGE, True)


def test_more_than_memory_bears(
    engine: FakeEngine, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mistral_chat.models.planning.available_memory", lambda: 0)
    result = command("batch", "--at-once", "7", stdin=b'"a"')
    assert result.code == ExitCode.FAILED
    assert "not 7" in result.stderr
    assert command("batch", "--at-once", "7", "--ignore-memory", stdin=b'"a"').code == 0
    assert command("batch", stdin=b'"a"').code == 0


def test_nothing_is_lost_to_a_kill(
    fake_environment: Callable[..., Mapping[str, str]], tmp_path: Path
) -> None:
    file, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(f'"question {n}"\n' for n in range(60)), "utf-8")
    command = [sys.executable, *FAKE_MAIN, "batch", str(file), "-o", str(output), "--resume"]
    part = tmp_path / "out.jsonl.part"

    def done() -> int:
        return max(0, part.read_bytes().count(b"\n") - 1) if part.exists() else 0

    for wanted in (3, 10, 24, 41):
        process = subprocess.Popen(
            command, env=fake_environment(FAKE_DELAY="0.02"), stderr=subprocess.DEVNULL
        )
        with process:
            while done() < wanted and process.poll() is None:
                time.sleep(0.01)
            before = done()
            process.kill()
        assert done() >= before >= wanted
        assert not output.exists()
    told = subprocess.run(command, env=fake_environment(), capture_output=True, check=True)
    assert int(told.stderr.split(b" lines in ")[0].split()[-1]) <= 60 - 41
    got = records(output.read_text("utf-8"))
    assert [each["text"] for each in got] == [f"echo question {n}" for n in range(60)]
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out.jsonl"]
