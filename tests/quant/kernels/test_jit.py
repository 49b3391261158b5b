"""Compiled kernels on disk: used, never stale, never a reason to fail."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from quant.kernels import dot, simd
from quant.kernels.jit import available_instruction_sets
from quant.kernels.kernel_cache import CompiledFiles

PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
from quant.kernels.jit import entry, is_compiled
from quant.kernels.kernel_cache import cache_folder
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
            "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
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


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda content: content[:100],
    "empty": lambda content: b"",
    "one bit": lambda content: content[:-7] + bytes([content[-7] ^ 4]) + content[-6:],
    "zeros": lambda content: bytes(len(content)),
    "another pickle": lambda content: pickle.dumps(["not", "an", "index"]),
    "without its digest": lambda content: content[32:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_damaged_cache_costs_a_compilation(
    program: Path, tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]
) -> None:
    cache = tmp_path / "cache"
    run(program, cache)
    for path in cache.glob(f"*.{suffix}"):
        path.write_bytes(damage(path.read_bytes()))
    _, result, _, stderr = run(program, cache)
    assert result == "42"
    assert "could not be read" in stderr
    assert run(program, cache) == ("True", "42", str(cache), "")


def test_a_file_that_holds_something_else_is_not_taken(tmp_path: Path) -> None:
    one = CompiledFiles(tmp_path, "kernel", "stamp")
    one.save("f(int)", "compiled for int")
    one.save("f(float)", "compiled for float")
    # As when two processes have written at the same time.
    names = [one.index()[key] for key in ("f(int)", "f(float)")]
    (tmp_path / names[0]).write_bytes((tmp_path / names[1]).read_bytes())
    assert one.load("f(int)") is None
    assert one.load("f(float)") == "compiled for float"
    one.save("f(int)", "compiled for int")
    assert one.load("f(int)") == "compiled for int"
    assert CompiledFiles(tmp_path, "kernel", "another").load("f(int)") is None


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    old, new = tmp_path / "kernel.nbc.abc.tmp", tmp_path / "kernel.nbc.def.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    CompiledFiles(tmp_path, "kernel", "stamp").save("key", 1)
    assert not old.exists()
    assert new.exists()  # somebody may be writing it


CLOSURES = """
import sys
from quant.kernels.jit import entry, kernel
def times(factor):
    @kernel
    def product(x):
        return factor * x
    return product
twice, thrice = times(2), times(3)
@entry
def even(x):
    for _ in range(1):
        x = twice(x)
    return x
@entry
def odd(x):
    for _ in range(1):
        x = thrice(x)
    return x
print(*[globals()[name](7) for name in sys.argv[1:]])
"""


def test_kernels_of_several_processes_live_together(tmp_path: Path) -> None:
    program = tmp_path / "closures.py"
    program.write_text(CLOSURES)
    cache = tmp_path / "cache"

    def results(*names: str) -> str:
        result = subprocess.run(
            [sys.executable, str(program), *names],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
                "MISTRAL_CHAT_KERNEL_CACHE": str(cache),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return result.stdout.strip()

    assert results("even") == "14"
    assert results("odd") == "21"
    assert len(list(cache.glob("*.nbc"))) == 2
    assert results("even", "odd") == "14 21"
    assert results("odd", "even") == "21 14"
    symbols = [re.findall(rb"productB\d+v\d+", path.read_bytes()) for path in cache.glob("*.nbc")]
    assert all(symbols)
    assert not set(symbols[0]) & set(symbols[1])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_folder_that_others_can_write_is_not_used(program: Path, tmp_path: Path) -> None:
    shared, home = tmp_path / "shared", tmp_path / "home"
    shared.mkdir()
    shared.chmod(0o777)
    _, result, folder, stderr = run(program, shared, MISTRAL_CHAT_HOME=str(home))
    assert (result, folder) == ("42", str(home / "cache" / "kernels"))
    assert "others can write" in stderr


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
    from quant.kernels import jit

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
    from quant.errors import ConfigError
    from quant.kernels import jit

    choose = jit.instruction_set.__wrapped__
    monkeypatch.setenv("MISTRAL_CHAT_ISA", "portable")
    assert choose() == "portable"
    monkeypatch.setenv("MISTRAL_CHAT_ISA", "abacus")
    with pytest.raises(ConfigError, match="MISTRAL_CHAT_ISA=abacus"):
        choose()


HASHES = """
import hashlib
from tests.quant.models import random_model
from quant.qtensor import QuantSpec
for spec in (QuantSpec(4, 32), QuantSpec(8, 32), QuantSpec(4, 64, True), QuantSpec(8, 64, True)):
    for prefill in ("exact", "fast"):
        session = random_model(spec=spec).session(prefill=prefill, window=40)
        logits = session.feed(range(90), every=True).tobytes() + session.feed([5]).tobytes()
        print(hashlib.sha256(logits).hexdigest())
"""


def hashes(instruction_set: str) -> list[str]:
    """Digests of what tiny models compute with an instruction set, in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", HASHES],
        cwd=Path(__file__).resolve().parents[3],
        env={**os.environ, "MISTRAL_CHAT_ISA": instruction_set},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.split()


@pytest.fixture(scope="module")
def own_hashes() -> list[str]:
    return hashes("")


@pytest.mark.parametrize("name", available_instruction_sets())
def test_every_instruction_set_gives_the_same_bits(name: str, own_hashes: list[str]) -> None:
    assert len(own_hashes) == 8
    assert hashes(name) == own_hashes


def assembly(monkeypatch: pytest.MonkeyPatch, name: str, bits: int, triple: str, cpu: str) -> str:
    """What the dot product of 64 codes becomes for a processor that need not be this one."""
    monkeypatch.setattr(dot, "instruction_set", lambda: name)
    module = ir.Module()
    module.triple = triple
    kinds = [vector.llvm.as_pointer() for vector in (simd.i32x16, simd.i8x64, simd.i8x64)]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "dot")
    builder = ir.IRBuilder(function.append_basic_block())
    total, codes, signed = (builder.load(argument) for argument in function.args)
    builder.store(dot.emit_dot(builder, total, codes, signed, bits), function.args[0])
    builder.ret_void()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    return str(machine.emit_assembly(llvm.parse_assembly(str(module))))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("name", "triple", "cpu", "instruction", "count"),
    [
        ("neon", "aarch64-unknown-linux-gnu", "neoverse-n1", "sdot", 4),
        ("avx512vnni", "x86_64-unknown-linux-gnu", "icelake-server", "vpdpbusd", 1),
        ("avxvnni", "x86_64-unknown-linux-gnu", "alderlake", "vpdpbusd", 2),
        ("avx2", "x86_64-unknown-linux-gnu", "haswell", "vpmaddubsw", 2),
    ],
)
def test_the_dot_product_is_the_instruction_it_should_be(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    triple: str,
    cpu: str,
    instruction: str,
    count: int,
    bits: int,
) -> None:
    code = assembly(monkeypatch, name, bits, triple, cpu)
    assert len(re.findall(rf"\b{instruction}\b", code)) == count, code
    assert len(code.splitlines()) < 60  # nothing was taken apart into single lanes
