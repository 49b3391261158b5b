"""``bench``: the numbers that come out have the right shape and belong together."""

from __future__ import annotations

import json

import pytest

from mistral_chat.models import planning

from ..conftest import Command

TINY = ("--geometry", "smollm2-135m", "--layers", "1", "--rounds", "1", "--prefill", "9")


def test_json(command: Command) -> None:
    result = command("bench", *TINY, "--depth", "3", "--json", "-q", "--threads", "2")
    assert (result.code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["model"] == "random smollm2-135m"
    assert report["read_gigabytes_per_second"] > 0
    assert report["dot_gigamacs_per_second"] > 0
    rows = report["results"]
    assert [(row["test"], row["precision"]) for row in rows] == [
        ("prefill", "exact"),
        ("prefill", "fast"),
        ("decode", "exact"),
    ]
    assert [(row["tokens"], row["depth"]) for row in rows] == [(9, 0), (9, 0), (0, 3)]
    decode = rows[2]
    assert (decode["bits"], decode["threads"], decode["kv"]) == (4, 2, "f16")
    # A decoded token reads every weight once.
    read = decode["gigabytes_per_second"] / decode["tokens_per_second"] * 1e9
    assert read == pytest.approx(report["weight_bytes"])


def test_table(command: Command) -> None:
    result = command("bench", *TINY, "--depth", "0", "--bits", "8", "-q")
    assert result.code == 0
    for words in ("prefill 9", "decode at 0", "exact", "fast", "GB/s"):
        assert words in result.stdout


AT_ONCE = ("--geometry", "smollm2-135m", "--layers", "1", "--rounds", "1", "--threads", "2")


def test_sequences_at_once_in_json(command: Command) -> None:
    more = ("--at-once", "4", "--at-once", "2", "--at-once", "4", "--depth", "0", "--depth", "70")
    result = command("bench", *AT_ONCE, *more, "--json", "-q")
    assert (result.code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["results"] == []
    rows = report["at_once"]
    assert [(row["precision"], row["depth"], row["sequences"]) for row in rows] == [
        *[("exact", depth, count) for depth in (0, 70) for count in (1, 2, 4)],
        *[("fast", depth, count) for depth in (0, 70) for count in (2, 4)],
    ]
    for row in rows:
        assert (row["tokens"], row["bits"], row["kv"], row["threads"]) == (1, 4, "f16", 2)
        speed = 1e3 * row["sequences"] / row["milliseconds"]
        assert row["tokens_per_second"] == pytest.approx(speed)
        for name in ("times_one", "roofline_share", "read_gigabytes_per_second"):
            assert row[name] > 0


def test_sequences_at_once_in_a_table(command: Command) -> None:
    result = command("bench", *AT_ONCE, "--at-once", "3", "--depth", "5", "-q")
    assert (result.code, result.stderr) == (0, "")
    for words in ("at once", "ms a pass", "times one", "exact", "fast", "2 threads", "of what"):
        assert words in result.stdout
    assert "prefill" not in result.stdout
    both = command("bench", *AT_ONCE, "--at-once", "3", "--depth", "5", "--prefill", "9", "-q")
    assert "prefill 9" in both.stdout
    assert "at once" in both.stdout


def test_sequences_at_once_that_cannot_be(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count in ("0", "257", "-1"):
        result = command("bench", *AT_ONCE, "--at-once", count)
        assert (result.code, result.stdout) == (2, "")
    monkeypatch.setattr(planning, "available_memory", lambda: 10**6)
    result = command("bench", *AT_ONCE, "--at-once", "256", "--depth", "8000", "-q")
    assert (result.code, result.stdout) == (1, "")
    assert "256 sequences with 8016 tokens each take 1.6 GB" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--geometry", "gpt-5"), "There is no geometry 'gpt-5'"),
        ((*TINY, "--bits", "5"), "4 or 8 bits"),
        ((*TINY, "--prefill", "9000"), "1 to 8192"),
        ((*AT_ONCE, "--at-once", "2", "--depth", "8190"), "1 to 8192"),
    ],
)
def test_what_cannot_be_measured(
    command: Command, arguments: tuple[str, ...], sentence: str
) -> None:
    result = command("bench", *arguments, "-q")
    assert (result.code, result.stdout) == (1, "")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
