"""Imports go down the house only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

QUANT = """
errors files config.geometry config.formats config qtensor kernel_cache jit simd tiles
kernels.threads kernels.matmul kernels.pointwise kernels.attention
kernels.program kernels.probes kernels.quantize
quantizers.grids quantizers.rounding quantizers.gptq quantizers.recipe quantizers.rotation
quantizers weights cache cache_file sampling scratch reference cpu devices
cuda cuda.simulated cuda.intrinsics cuda.jit cuda.pointwise cuda.matvec cuda.tensor_cores
cuda.matmul cuda.decode_attention cuda.attention cuda.sampling cuda.transfers cuda.graphs
cuda.memory cuda.program
split backend calibration model divergence
generation scoring
checkpoints.names checkpoints.checkpoint checkpoints.tensors checkpoints.blocks checkpoints.gguf
checkpoints.folders checkpoints.pickles checkpoints.conversion checkpoints.dequantized
checkpoints.rotated checkpoints.native checkpoints.writing checkpoints.comparison checkpoints bench
""".split()

CHAT = """
printable screen errors files locks guardrail settings categories messages
tokenizers.detokenizer tokenizers.fields tokenizers.config tokenizers.vocabulary
tokenizers.sentencepiece tokenizers.tekken tokenizers.description tokenizers.huggingface tokenizers
templates.parts templates.mistral
templates.chatml templates.budget templates.owned templates.values templates.methods
templates.filters templates.predicates templates.functions templates.evaluator
templates.interpreter templates.ledger templates.jinja templates private download repositories hub
models families info texts planning quantizing pulling inputs loops engine labels moderation
thresholds evaluation moderating judging talks session_file
sessions protocol fitting chat markdown render bench warmup commands
template_view keyboard repl oneshot doctor shells
cli.application cli.chat cli.inspect cli.measure cli.models cli.moderate cli.quantize
cli.sessions cli.shell cli __main__
""".split()

SCREEN = {"rich", "typer", "prompt_toolkit", "tokenizers", "sentencepiece"}


def modules(package: str) -> list[str]:
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found.append(".".join(parts))
    return [name for name in found if name not in ("", "kernels")]


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


@pytest.mark.parametrize(("package", "order"), [("quant", QUANT), ("mistral_chat", CHAT)])
def test_every_module_has_its_place(package: str, order: list[str]) -> None:
    assert set(modules(package)) == set(order)


@pytest.mark.parametrize(("package", "order"), [("quant", QUANT), ("mistral_chat", CHAT)])
def test_imports_go_down(package: str, order: list[str]) -> None:
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
    assert "quant.cpu" in imports("quant", "backend")
