"""``warmup``: what is compiled, what is said, and that a second time finds it done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import quant
from mistral_chat.models import warmup
from quant.errors import ConfigError
from quant.kernels.kernel_cache import cache_folder

from ..conftest import HERE, Command


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Which kernels are compiled; compiling only notes it."""
    compiled = {"f16": False, "int8": False}
    monkeypatch.setattr(quant, "kernels_compiled", lambda kv: compiled[kv])
    monkeypatch.setattr(quant, "compile_kernels", lambda kv: compiled.update({kv: True}))
    return compiled


def test_it_compiles_for_every_cache(command: Command, kinds: dict[str, bool]) -> None:
    result = command("warmup")
    assert (result.code, result.stdout) == (0, "")
    assert kinds == {"f16": True, "int8": True}
    first, second = result.stderr.splitlines()
    assert first == "Compiling the kernels ..."
    assert second.startswith("Compiled the kernels for f16 in 0.0 s and int8 in 0.0 s.")
    assert second.endswith(f"kept in {cache_folder()}")


def test_nothing_is_left_to_compile(command: Command, kinds: dict[str, bool]) -> None:
    kinds.update(f16=True, int8=True)
    result = command("warmup")
    assert (result.code, result.stdout) == (0, "")
    assert (
        result.stderr == f"Every kernel was compiled already. They are kept in {cache_folder()}\n"
    )


def test_json_tells_what_had_to_be_compiled(command: Command, kinds: dict[str, bool]) -> None:
    kinds["f16"] = True
    result = command("warmup", "--json", "-q")
    assert (result.code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["folder"] == str(cache_folder())
    assert [(row["kv"], row["compiled"]) for row in report["kernels"]] == [
        ("f16", False),
        ("int8", True),
    ]
    assert all(isinstance(row["seconds"], float) for row in report["kernels"])


def test_one_kind_alone(command: Command, kinds: dict[str, bool]) -> None:
    assert command("warmup", "--kv", "int8", "-q").code == 0
    assert kinds == {"f16": False, "int8": True}


def test_a_kind_that_is_none(command: Command, kinds: dict[str, bool]) -> None:
    result = command("warmup", "--kv", "int3")
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr == "--kv: kv must be f16 or int8, not 'int3'.\n"


def test_an_error_is_one_sentence(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(kv: str) -> bool:
        raise ConfigError("No such instruction set.")

    monkeypatch.setattr(quant, "kernels_compiled", fail)
    result = command("warmup")
    assert (result.code, result.stdout, result.stderr) == (1, "", "No such instruction set.\n")


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_compiled(
    command: Command, kinds: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "kept_folder", lambda: None)
    monkeypatch.setattr(warmup, "possible_folders", lambda: [Path("/only/read")])
    result = command("warmup", "--json")
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr == (
        "Compiled kernels cannot be kept, since /only/read cannot be written; set "
        "MISTRAL_CHAT_KERNEL_CACHE to a folder that can.\n"
    )
    assert kinds == {"f16": False, "int8": False}


def test_kernels_are_kept_for_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"

    def warm_up() -> tuple[bool, str]:
        done = subprocess.run(
            [sys.executable, "-m", "mistral_chat", "warmup", "--kv", "f16", "--json"],
            env={**os.environ, "MISTRAL_CHAT_KERNEL_CACHE": str(folder)},
            cwd=HERE.parent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        report = json.loads(done.stdout)
        assert report["folder"] == str(folder)
        return report["kernels"][0]["compiled"], done.stderr

    compiled, stderr = warm_up()
    assert compiled
    assert stderr.startswith("Compiling the kernels ...\n")
    compiled, stderr = warm_up()
    assert not compiled
    assert stderr.startswith("Every kernel was compiled already.")
    assert not (tmp_path / "home").exists()  # no model was fetched
