"""Compiled kernels on disk: used, never stale, never a reason to fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
from quant.jit import entry, is_compiled, cache_folder
import quant.kernels.matmul
@entry
def twice(x):
    return 2 * x
before = is_compiled(twice, 21)
print(before, twice(21), cache_folder())
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def run(program: Path, cache: Path, **environment: str) -> tuple[str, str, str, str]:
    result = subprocess.run(
        [sys.executable, str(program)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "MISTRAL_CHAT_KERNEL_CACHE": str(cache),
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return (*result.stdout.split(), result.stderr)  # type: ignore[return-value]


def test_a_second_start_does_not_compile(program: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert run(program, cache) == ("False", "42", str(cache), "")
    assert run(program, cache) == ("True", "42", str(cache), "")
    kept = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    run(program, cache)
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == kept


def test_a_damaged_cache_compiles_anew(program: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run(program, cache)
    for path in cache.glob("*.nbc"):
        path.write_bytes(path.read_bytes()[:100])
    cached, result, _, stderr = run(program, cache)
    assert (cached, result) == ("True", "42")
    assert "compiling anew" in stderr
    assert run(program, cache)[3] == ""


def test_a_cache_that_cannot_be_written_falls_back(program: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    home = tmp_path / "home"
    _, result, folder, stderr = run(program, blocked / "cache", MISTRAL_CHAT_HOME=str(home))
    assert (result, folder, stderr) == ("42", str(home / "cache" / "kernels"), "")
    _, result, folder, stderr = run(
        program, blocked / "cache", MISTRAL_CHAT_HOME=str(blocked / "home")
    )
    assert (result, stderr) == ("42", "")
    assert "mistral-chat-kernels-" in folder
    assert not Path(folder).exists()  # private, and gone with the process


def test_an_edit_anywhere_changes_the_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    from quant import jit

    stamp = jit.source_stamp.__wrapped__
    before = stamp()
    real = Path.read_bytes
    monkeypatch.setattr(
        Path,
        "read_bytes",
        lambda path: real(path) + (b"#" if path.name == "pointwise.py" else b""),
    )
    assert stamp() != before


def test_an_instruction_set_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    from quant import jit
    from quant.errors import ConfigError

    choose = jit.instruction_set.__wrapped__
    monkeypatch.setenv("MISTRAL_CHAT_ISA", "portable")
    assert choose() == "portable"
    monkeypatch.setenv("MISTRAL_CHAT_ISA", "abacus")
    with pytest.raises(ConfigError, match="MISTRAL_CHAT_ISA=abacus"):
        choose()


def test_the_portable_kernels_give_the_same_bits() -> None:
    code = (
        "import hashlib; from tests.engine.models import random_model; "
        "from quant.qtensor import QuantSpec\n"
        "for bits in (4, 8):\n"
        " m = random_model(spec=QuantSpec(bits, 32))\n"
        " print(hashlib.sha256(m.session().feed(range(40), every=True).tobytes()).hexdigest())"
    )
    root = Path(__file__).resolve().parents[2]
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={**os.environ, "MISTRAL_CHAT_ISA": name},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in ("portable", "")
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].split()) == 2
