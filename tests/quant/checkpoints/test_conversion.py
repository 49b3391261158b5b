"""Quantizing a checkpoint: by recipe, calibrated, interrupted at any moment, compared."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import quant
from quant.checkpoints import Calibration, compare, open_checkpoint
from quant.checkpoints.names import tensor_names
from quant.checkpoints.native import NativeCheckpoint
from quant.checkpoints.rotated import Rotated
from quant.checkpoints.writing import JOURNAL
from quant.errors import CheckpointError, SpecError, StorageError
from quant.qtensor import QuantSpec
from quant.quantizers.divergence import Divergence
from quant.quantizers.recipe import Recipe
from quant.quantizers.rotation import random_rotation
from quant.weights import MATRICES, Layer, Weights

from ..models import TINY, write_gguf, write_huggingface
from ..oracle import forward

ROOT = Path(__file__).resolve().parents[3]
CONFIG = replace(TINY, num_hidden_layers=3, windows=(None, 8, None))
TEXTS = np.random.default_rng(2).integers(0, TINY.vocab_size, (6, 40)).tolist()
CALIBRATION = Calibration(TEXTS)
HELD_OUT = Calibration(np.random.default_rng(3).integers(0, TINY.vocab_size, (3, 40)).tolist())


def recipe(method: str, **more: Any) -> Recipe:
    return Recipe(QuantSpec(4, 32), QuantSpec(8, 32), method, **more)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_huggingface(tmp_path / "hf", CONFIG, dtype="BF16")
    return tmp_path / "hf"


@pytest.mark.parametrize("method", ["rtn", "mse", "gptq"])
def test_each_method_makes_a_model(source: Path, tmp_path: Path, method: str) -> None:
    target = tmp_path / "native"
    seen: list[tuple[int, int]] = []
    layers: list[tuple[int, int]] = []
    receipt = quant.quantize(
        source,
        target,
        progress=lambda *at: seen.append(at),
        recipe=recipe(method),
        calibration=CALIBRATION,
        check=HELD_OUT,
        checking=lambda *at: layers.append(at),
    )
    names = tensor_names(CONFIG)
    assert seen == [(i + 1, len(names)) for i in range(len(names))]
    assert layers == [(1, 3), (2, 3), (3, 3)]
    checkpoint = NativeCheckpoint(target)
    assert checkpoint.receipt == receipt
    assert receipt["method"] == method
    assert receipt["recipe"]["spec"]["bits"] == 4
    assert checkpoint.describe("head")[1] == QuantSpec(8, 32)
    assert checkpoint.describe("layers.2.down")[1] == QuantSpec(4, 32)
    assert set(receipt["relative_errors"]) == {name for name in names if "norm" not in name}
    assert receipt["check"]["tokens"] == 120
    assert 0 < receipt["check"]["kl_mean"] < 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "native"]
    logits = quant.load(target).session().feed([1, 2, 3])
    assert np.isfinite(logits).all()


def test_calibration_pays(source: Path, tmp_path: Path) -> None:
    kl = {}
    for method in ("rtn", "gptq"):
        receipt = quant.quantize(
            source,
            tmp_path / method,
            recipe=recipe(method),
            calibration=CALIBRATION,
            check=HELD_OUT,
        )
        kl[method] = receipt["check"]["kl_mean"]
    assert kl["gptq"] < kl["rtn"]


def test_rules_for_some_tensors(source: Path, tmp_path: Path) -> None:
    rules = (("layers.1.*", QuantSpec(8, 64)),)
    quant.quantize(source, tmp_path / "native", recipe=recipe("rtn", rules=rules))
    checkpoint = NativeCheckpoint(tmp_path / "native")
    assert checkpoint.describe("layers.1.up")[1] == QuantSpec(8, 64)
    assert checkpoint.describe("layers.0.up")[1] == QuantSpec(4, 32)


def test_gptq_without_a_text(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="needs a text"):
        quant.quantize(source, tmp_path / "native", recipe=recipe("gptq"))
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_an_import_loses_nothing(tmp_path: Path, kind: str) -> None:
    write_gguf(tmp_path / "m.gguf", kind=gguf.GGMLQuantizationType[kind])
    receipt = quant.quantize(tmp_path / "m.gguf", tmp_path / "native", check=HELD_OUT)
    assert receipt["method"] == "lossless"
    assert receipt["check"]["kl_mean"] < 1e-6
    assert receipt["check"]["top_token_agreement"] == 1


def test_quantizing_anew(source: Path, tmp_path: Path) -> None:
    quant.quantize(source, tmp_path / "eight", QuantSpec(8, 32))
    quant.quantize(
        tmp_path / "eight", tmp_path / "four", recipe=recipe("mse"), requantize=True,
        calibration=CALIBRATION,
    )  # fmt: skip
    assert NativeCheckpoint(tmp_path / "four").describe("layers.0.q")[1] == QuantSpec(4, 32)
    result = compare(open_checkpoint(tmp_path / "eight"), open_checkpoint(tmp_path / "four"), TEXTS)
    assert 0 < result.mean < 0.5


def test_comparing_what_cannot_be(source: Path, tmp_path: Path) -> None:
    write_huggingface(tmp_path / "other", TINY)
    with pytest.raises(CheckpointError, match="not the same model"):
        compare(open_checkpoint(source), open_checkpoint(tmp_path / "other"), TEXTS)
    same = compare(open_checkpoint(source), open_checkpoint(source), TEXTS)
    assert (same.mean, same.agreement, same.tokens) == (0, 1, 240)


# Interruptions.


class StopError(Exception):
    """Raised in the middle of the work."""


def arguments(**more: Any) -> dict[str, Any]:
    return {"recipe": recipe("gptq"), "calibration": CALIBRATION, "resume": True, **more}


@pytest.fixture
def whole(source: Path, tmp_path: Path) -> bytes:
    quant.quantize(source, tmp_path / "whole", **arguments())
    return (tmp_path / "whole" / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("stop", [1, 2, 5, 9, 15, 28, 29])
def test_going_on_after_a_tensor(source: Path, tmp_path: Path, whole: bytes, stop: int) -> None:
    def progress(done: int, total: int) -> None:
        if done == stop:
            raise StopError

    with pytest.raises(StopError):
        quant.quantize(source, tmp_path / "native", progress=progress, **arguments())
    assert not (tmp_path / "native").exists()
    assert (tmp_path / ".native.partial" / JOURNAL).exists()
    made: list[str] = []
    real = quant.checkpoints.Conversion.make

    def make(self: Any, name: str) -> Any:
        made.append(name)
        return real(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quant.checkpoints.Conversion, "make", make)
        quant.quantize(source, tmp_path / "native", **arguments())
    assert made == tensor_names(CONFIG)[stop:]
    assert (tmp_path / "native" / "weights.safetensors").read_bytes() == whole
    assert not (tmp_path / "native" / JOURNAL).exists()
    assert not (tmp_path / ".native.partial").exists()


def test_another_order_begins_anew(source: Path, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done == 9:
            raise StopError

    for more in ({}, {"recipe": recipe("mse")}, {"calibration": HELD_OUT}):
        shutil.rmtree(tmp_path / "native", ignore_errors=True)
        with pytest.raises(StopError):
            quant.quantize(source, tmp_path / "native", progress=progress, **arguments())
        other = arguments(**more)
        if not more:
            os.utime(source / "model.safetensors", (1, 1))  # another file, as far as one can tell
        quant.quantize(source, tmp_path / "native", **other)
        quant.quantize(source, tmp_path / "fresh", force=True, **other)
        bytes_ = [
            (tmp_path / name / "weights.safetensors").read_bytes() for name in ("native", "fresh")
        ]
        assert bytes_[0] == bytes_[1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"identity": 3}', "\x00\xff"])
def test_a_damaged_journal_counts_for_nothing(
    source: Path, tmp_path: Path, whole: bytes, content: str
) -> None:
    (tmp_path / ".native.partial").mkdir()
    (tmp_path / ".native.partial" / JOURNAL).write_text(content, encoding="latin-1")
    (tmp_path / ".native.partial" / "weights.safetensors").write_bytes(b"rubbish" * 99999)
    quant.quantize(source, tmp_path / "native", **arguments())
    assert (tmp_path / "native" / "weights.safetensors").read_bytes() == whole


def test_two_at_once_do_not_mix(source: Path, tmp_path: Path) -> None:
    waiting, go = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    def progress(done: int, total: int) -> None:
        waiting.set()
        go.wait(60)

    def first() -> None:
        try:
            quant.quantize(source, tmp_path / "native", progress=progress, **arguments())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    assert waiting.wait(60)
    with pytest.raises(StorageError, match="Another process is writing"):
        quant.quantize(source, tmp_path / "native", **arguments())
    go.set()
    thread.join()
    assert failed == []
    assert (tmp_path / "native").is_dir()


def test_what_cannot_be_quantized_is_not_resumed(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    write_huggingface(tmp_path / "hf", CONFIG, tensors={name: np.full((128, 64), np.inf)})
    with pytest.raises(SpecError, match=r"layers.1.up cannot be quantized: .*infinit"):
        quant.quantize(tmp_path / "hf", tmp_path / "native", **arguments())
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


CHILD = """
import json, sys, time
import quant
from quant.checkpoints import Calibration
from quant.qtensor import QuantSpec
from quant.quantizers.recipe import Recipe
from quant.quantizers.rotation import random_rotation
from quant.weights import MATRICES, Layer, Weights

def progress(done, total):
    print(done, flush=True)
    time.sleep(0.01)

quant.quantize(
    sys.argv[1], sys.argv[2], progress=progress,
    recipe=Recipe(QuantSpec(4, 32), QuantSpec(8, 32), "gptq"),
    calibration=Calibration(json.loads(sys.argv[3])), resume=True,
)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_at_twenty_random_moments(source: Path, tmp_path: Path, whole: bytes) -> None:
    chance = random.Random(11)
    command = [sys.executable, "-c", CHILD, str(source), str(tmp_path / "native")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(20):
        with subprocess.Popen(
            [*command, json.dumps(TEXTS)], stdout=subprocess.PIPE, env=environment
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(chance.uniform(0, 0.1))
            child.kill()
        if (tmp_path / "native").exists():  # it was done before it was killed
            shutil.rmtree(tmp_path / "native")
    subprocess.run([*command, json.dumps(TEXTS)], check=True, capture_output=True, env=environment)
    assert (tmp_path / "native" / "weights.safetensors").read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "native", "whole"]


@pytest.mark.parametrize("size", [64, 96])
def test_a_rotation_is_orthogonal(size: int) -> None:
    turn = random_rotation(size, 3).astype(np.float64)
    np.testing.assert_allclose(turn @ turn.T, np.eye(size), atol=1e-6)
    assert not np.array_equal(random_rotation(size, 4), random_rotation(size, 3))
    if size == 64:
        np.testing.assert_allclose(np.abs(turn), 1 / 8, atol=1e-7)


def weights_of(checkpoint: Any) -> Weights:
    """All tensors of a checkpoint."""
    config = checkpoint.config
    layers = tuple(
        Layer(
            **{
                name: checkpoint.read(f"layers.{i}.{name}")
                for name in ("attention_norm", "mlp_norm", *MATRICES)
            }
        )
        for i in range(config.num_hidden_layers)
    )
    head = checkpoint.read("embedding" if config.tie_word_embeddings else "head")
    return Weights(checkpoint.read("embedding"), layers, checkpoint.read("norm"), head)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("hidden", [64, 96])
def test_a_rotation_changes_nothing(tmp_path: Path, hidden: int, tied: bool) -> None:
    config = replace(CONFIG, hidden_size=hidden, head_dim=16, tie_word_embeddings=tied)
    write_huggingface(tmp_path, config)
    original = open_checkpoint(tmp_path)
    rotated = Rotated(original, 5)
    result = Divergence()
    for ids in TEXTS:
        reference, turned = (
            forward(checkpoint.config, weights_of(checkpoint), ids)
            for checkpoint in (original, rotated)
        )
        result.add(reference, turned)
    assert result.mean < 1e-10
    assert result.agreement == 1
    assert not rotated.config.tie_word_embeddings
    for name in ("layers.0.q", "layers.1.down", "embedding", "head"):
        whole = rotated.read(name)
        # The order in which a row's products are added is the BLAS's, and goes by the shape.
        np.testing.assert_allclose(rotated.read_rows(name, 16, 48), whole[16:48], atol=1e-6)  # type: ignore[index]
        if name != "head" or not tied:
            assert not np.allclose(whole, original.read(name))  # type: ignore[arg-type]
    assert np.array_equal(rotated.read("norm"), np.ones(hidden))


def test_quantizing_what_was_rotated(source: Path, tmp_path: Path) -> None:
    receipt = quant.quantize(
        source, tmp_path / "native", recipe=recipe("gptq"), calibration=CALIBRATION, check=HELD_OUT,
        rotate=True,
    )  # fmt: skip
    assert receipt["recipe"]["rotate"] is True
    assert 0 < receipt["check"]["kl_mean"] < 0.3
    quant.quantize(source, tmp_path / "eight", QuantSpec(8, 32))
    with pytest.raises(SpecError, match="cannot be rotated as it is"):
        quant.quantize(tmp_path / "eight", tmp_path / "no", rotate=True)
