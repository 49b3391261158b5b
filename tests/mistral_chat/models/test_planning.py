"""``mistral-chat plan``: sizes told beforehand are those that come about."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import mistral_common
import pytest

import quant
from mistral_chat.models import planning
from mistral_chat.models.planning import (
    available_memory,
    cache_bytes,
    plan,
    scratch_bytes,
    tensor_bytes,
)
from quant.bench import GEOMETRIES
from quant.cache import RollingCache
from quant.checkpoints import DEFAULT_SPEC
from quant.qtensor import QuantSpec

from ...quant.models import TINY, write_gguf, write_huggingface
from ..conftest import Command

V3 = Path(mistral_common.__file__).parent / "data/mistral_instruct_tokenizer_240323.model.v3"
WINDOWED = replace(TINY, windows=(None, 70), hidden_size=128)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "BF16"])
def test_weights_are_as_large_as_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.gguf"
    config = replace(TINY, hidden_size=128)
    write_gguf(path, config, kind=gguf.GGMLQuantizationType[kind])
    model = quant.load(path, DEFAULT_SPEC)
    assert plan(path, 100).weights == model.weight_bytes


@pytest.mark.parametrize("kind", ["f16", "int8"])
@pytest.mark.parametrize("context", [1, 64, 65, 256])
def test_the_cache_is_as_large_as_told(kind: str, context: int) -> None:
    assert (
        cache_bytes(WINDOWED, context, kind) == RollingCache(WINDOWED, context, None, kind).nbytes
    )


def test_the_paper_s_cache() -> None:
    config = replace(GEOMETRIES["mistral-7b"], windows=(4096,) * 32)
    assert cache_bytes(config, 32768, "f16") == 512 << 20
    assert cache_bytes(replace(config, windows=(None,) * 32), 32768, "f16") == 4 << 30


def test_parts_of_a_tensor() -> None:
    assert tensor_bytes((64,), None, DEFAULT_SPEC) == 256
    assert tensor_bytes((32, 64), None, QuantSpec(4, 64)) == 32 * 32 + 32 * 4
    assert tensor_bytes((32, 64), QuantSpec(8, 32, True), QuantSpec(4, 64)) == 32 * 64 + 32 * 2 * 2
    assert scratch_bytes(TINY, 256) > 256 * TINY.hidden_size * 4


def test_the_command(tmp_path: Path, command: Command) -> None:
    write_huggingface(tmp_path, WINDOWED)
    result = command("plan", str(tmp_path), "--context", "128", "--json")
    assert (result.code, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    assert told["context"] == 128
    assert set(told["quantizing"]) == {"rtn", "mse", "gptq"}
    assert told["quantizing"]["rtn"] < told["quantizing"]["mse"]
    parts = told["weights"] + told["cache"]["int8"] + told["scratch"]
    assert told["chat"]["int8"] > parts
    assert told["chat"]["int8"] < told["chat"]["f16"]
    shown = command("plan", str(tmp_path))
    for line in ("weights", "cache, f16", "chatting with int8", "quantizing by gptq"):
        assert line in shown.stdout
    missing = command("plan", "nothing")
    assert (missing.code, missing.stdout) == (5, "")


def test_this_computer_has_memory() -> None:
    memory = available_memory()
    assert memory is None or memory > 1 << 20


def test_what_cannot_fit_is_refused_with_numbers(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "available_memory", lambda: 200_000_000)
    folder = tmp_path / "m"
    write_huggingface(folder, replace(TINY, vocab_size=32768, max_position_embeddings=1024))
    (folder / "tokenizer.model.v3").write_bytes(V3.read_bytes())
    for arguments in (("-m", str(folder), "Hi"), ("perplexity", str(folder))):
        result = command(*arguments, "-q")
        assert (result.code, result.stdout) == (1, "")
        assert "needs 0.3 GB of memory" in result.stderr
        assert "only 0.2 GB are free" in result.stderr
    asked = ("quantize-weights", str(folder), str(tmp_path / "small"), "-q")
    result = command(*asked)
    assert (result.code, result.stdout) == (1, "")
    assert "by gptq needs" in result.stderr
    assert "--ignore-memory" in result.stderr
    assert command("-m", str(folder), "-q", "-n", "1", "--ignore-memory", "Hi").code == 0
    assert command(*asked, "--ignore-memory", "--no-check").code == 0


def test_a_container_has_less(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 250\n")
    assert planning._free_of_container(tmp_path) == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert planning._free_of_container(tmp_path) is None
    assert planning._free_of_container(tmp_path / "none") is None
