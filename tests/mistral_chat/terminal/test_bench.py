"""``bench``: the numbers that come out have the right shape and belong together."""

from __future__ import annotations

import json

import pytest

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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--geometry", "gpt-5"), "There is no geometry 'gpt-5'"),
        ((*TINY, "--bits", "5"), "4 or 8 bits"),
        ((*TINY, "--prefill", "9000"), "1 to 8192"),
    ],
)
def test_what_cannot_be_measured(
    command: Command, arguments: tuple[str, ...], sentence: str
) -> None:
    result = command("bench", *arguments, "-q")
    assert (result.code, result.stdout) == (1, "")
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
