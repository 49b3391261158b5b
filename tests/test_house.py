"""Imports go down the house only, and the house is as docs/house.toml says."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = tomllib.loads((ROOT / "docs" / "house.toml").read_text(encoding="utf-8"))
PACKAGES = list(HOUSE)


def order_of(package: str) -> list[str]:
    """Modules from the cellar to the roof; a room's own ``__init__`` goes by the room's name."""
    order = []
    for room, entry in HOUSE[package].items():
        inner = entry.get("modules", ".").split()
        order += [room if name == "." else f"{room}.{name}" for name in inner]
    return order


SCREEN = {"rich", "typer", "prompt_toolkit", "tokenizers", "sentencepiece"}


def modules(package: str) -> list[str]:
    """Every module; an ``__init__`` that holds nothing but words is none."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
            if all(isinstance(node, ast.Expr) for node in ast.parse(path.read_text("utf-8")).body):
                continue
        found.append(".".join(parts))
    return [name for name in found if name]


def imports(package: str, module: str) -> set[str]:
    """Absolute names of what a module imports, those inside functions included."""
    base = ROOT / package / Path(*module.split("."))
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    here = [package, *module.split(".")]
    folder = here if base.is_dir() else here[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) - node.level + 1] if node.level else []
            name = ".".join([*start, *((node.module or "").split(".") if node.module else [])])
            for alias in node.names:
                whole = f"{name}.{alias.name}"
                inner = ROOT / Path(*whole.split("."))
                found.add(whole if inner.is_dir() or inner.with_suffix(".py").exists() else name)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_its_place(package: str) -> None:
    assert sorted(modules(package)) == sorted(order_of(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_down(package: str) -> None:
    order = order_of(package)
    upward = []
    for module in order:
        for name in imports(package, module):
            if not name.startswith(f"{package}."):
                continue
            inner = name.removeprefix(f"{package}.")
            # backend chooses a device; it opens the one asked for and no other.
            if inner in order and order.index(inner) >= order.index(module):
                upward.append(f"{module} imports {inner}")
    assert upward == []


def test_the_engine_knows_no_text_and_no_screen() -> None:
    for module in modules("quant"):
        names = {name.split(".")[0] for name in imports("quant", module)}
        assert not names & (SCREEN | {"mistral_chat"}), module


def test_the_check_sees_an_import_that_goes_up(tmp_path: Path) -> None:
    assert "quant.errors" in imports("quant", "config.geometry")
    assert "quant.kernels.matmul" in imports("quant", "kernels.program")
    assert "quant.backends.cpu" in imports("quant", "backends.protocol")


LONGEST_FILE, LONGEST_FUNCTION = 450, 60

LONG = {
    # A kernel keeps its state in registers, and is read from its first line to its last.
    "quant/backends/cuda/attention.py",
    "quant/backends/cuda/decode_attention.py",
    "quant/backends/cuda/matmul.py",
    "quant/backends/cuda/matvec.py",
    "quant/backends/cuda/pointwise.py",
    "quant/backends/cuda/sampling.py",
    "quant/backends/cuda/tensor_cores.py",
    "quant/kernels/matmul.py",
    # What is prepared once and what is launched each time belong to one step.
    "quant/backends/cuda/program.py",
    # A server's handler is a class within the function that knows what it serves.
    "tests/mistral_chat/hub_server.py",
    # One description of a vocabulary, drawn field by field.
    "tests/mistral_chat/tokenizers/test_odd_vocabularies.py",
}
"""Files with a function that is longer, and why."""


def test_files_and_functions_are_short() -> None:
    long = set()
    for folder in ("quant", "mistral_chat", "tests", "benchmarks", "docs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            place = path.relative_to(ROOT).as_posix()
            assert text.count("\n") <= LONGEST_FILE, place
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    lines = (node.end_lineno or 0) - node.lineno + 1
                    long |= {place} if lines > LONGEST_FUNCTION else set()
    assert long == LONG


def test_the_tests_lie_in_the_same_rooms() -> None:
    for package, rooms in HOUSE.items():
        inner = {path.name for path in (ROOT / "tests" / package).iterdir() if path.is_dir()}
        assert inner - {"__pycache__"} <= set(rooms), package
