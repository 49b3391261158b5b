"""``mistral-chat plan``: sizes told beforehand are those that come about."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import gguf
import mistral_common
import pytest

import quant
from mistral_chat.models import planning
from mistral_chat.models.planning import (
    AT_ONCE,
    MOST_COUNTED,
    available_memory,
    cache_bytes,
    chat_bytes,
    plan,
    scratch_bytes,
    sequences_that_fit,
    tensor_bytes,
)
from quant.batch import Batch
from quant.bench import GEOMETRIES
from quant.cache import RollingCache
from quant.checkpoints import DEFAULT_SPEC
from quant.qtensor import QuantSpec

from ...quant.models import TINY, random_model, write_gguf, write_huggingface
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


@pytest.mark.parametrize(("sequences", "context"), [(1, 256), (3, 100), (70, 64)])
def test_many_texts_take_what_is_told(sequences: int, context: int) -> None:
    model = random_model(WINDOWED)
    options = quant.SessionOptions(max_context=context, backend="numpy")
    batch = Batch(model.config, model.weights, {}, options, sequences)
    caches = sum(cache.nbytes for cache in batch.caches)
    assert caches == sequences * cache_bytes(WINDOWED, context, "f16")
    scratch = batch._scratch
    buffers = sum(getattr(scratch, field.name).nbytes for field in fields(scratch))
    # Of a short context a pass has a few rows more than are counted.
    told = scratch_bytes(WINDOWED, batch.rows, sequences)
    assert told == buffers
    assert chat_bytes(WINDOWED, 5, context, "f16", sequences) == (
        planning.PROGRAM + 5 + told + caches
    )


def test_as_many_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    mistral = GEOMETRIES["mistral-7b"]

    def fitting(free: int | None, kind: str = "f16", most: int = AT_ONCE) -> int:
        monkeypatch.setattr(planning, "available_memory", lambda: free)
        return sequences_that_fit(mistral, 4_100_000_000, 4096, kind, most)

    assert fitting(8_000_000_000) == 6
    assert fitting(8_000_000_000, "int8") == 12
    assert fitting(8_000_000_000, most=2) == 2
    assert fitting(64_000_000_000) == AT_ONCE
    assert fitting(None) == AT_ONCE
    assert fitting(1_000_000_000) == 1  # one is tried all the same
    for count in (1, 2, 5):
        needed = chat_bytes(mistral, 4_100_000_000, 4096, "f16", count)
        assert fitting(needed) == count
        assert fitting(needed - 1) == max(1, count - 1)


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
    assert "texts at once:" not in shown.stdout
    missing = command("plan", "nothing")
    assert (missing.code, missing.stdout) == (5, "")


def test_the_plan_of_many(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_huggingface(tmp_path, WINDOWED)
    asked = ("plan", str(tmp_path), "--context", "128")
    one = json.loads(command(*asked, "--json").stdout)
    many = json.loads(command(*asked, "--json", "--at-once", "5").stdout)
    assert (one["at_once"], many["at_once"]) == (1, 5)
    assert many["cache"] == {kind: 5 * size for kind, size in one["cache"].items()}
    assert many["weights"] == one["weights"]
    assert many["scratch"] == one["scratch"]  # they share the passes
    free = many["chat"]["f16"]
    monkeypatch.setattr(planning, "available_memory", lambda: free)
    told = json.loads(command(*asked, "--json").stdout)["fitting"]
    assert told["f16"] == 5
    assert told["int8"] > 5
    shown = command(*asked, "--at-once", "5").stdout
    assert "128 tokens of context, 5 texts at once:" in shown
    assert f"fit at once: 5 with f16, {told['int8']} with int8." in shown
    monkeypatch.setattr(planning, "available_memory", lambda: 10)
    assert json.loads(command(*asked, "--json").stdout)["fitting"] == {"f16": 0, "int8": 0}
    monkeypatch.setattr(planning, "available_memory", lambda: 1 << 40)
    assert f"fit at once: {MOST_COUNTED} or more with f16" in command(*asked).stdout
    monkeypatch.setattr(planning, "available_memory", lambda: None)
    assert json.loads(command(*asked, "--json").stdout)["fitting"] is None
    assert "fit at once" not in command(*asked).stdout
    for wrong in ("0", "2000", "x"):
        assert command(*asked, "--at-once", wrong).code == 2


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
