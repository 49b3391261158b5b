"""Whole models on a GPU: on one if there is one, else simulated."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quant.backends import devices
from quant.backends.cpu import CpuProgram
from quant.backends.split import SplitProgram
from quant.batch import Batch, Part, SessionOptions
from quant.cache import RollingCache
from quant.decoding.generation import generate
from quant.errors import CacheError, DeviceError
from quant.model import Model
from quant.qtensor import QuantSpec
from quant.sampling import Sampling

from ..models import random_model
from ..oracle import forward, kl_divergence
from .gpu import INT4, INT8, RANDOM, SMALL
from .gpu import simulator as simulator

cuda = pytest.importorskip("numba.cuda")
if devices.missing() is not None:
    pytest.skip("there is neither a GPU nor the simulator", allow_module_level=True)

from quant.backends.cuda import attention as attending  # noqa: E402 - only where it can be imported
from quant.backends.cuda import memory  # noqa: E402
from quant.backends.cuda.jit import (  # noqa: E402
    SIMULATED,
)
from quant.backends.cuda.program import CudaAPIError, CudaProgram  # noqa: E402


def model_of(spec: QuantSpec | None, layers: int = 2) -> Model:
    config = replace(SMALL, num_hidden_layers=layers, windows=SMALL.windows[:1] * layers)
    return random_model(config, spec=spec)


def assert_equal_but_for_rounding(got: Any, expected: Any) -> None:
    """Sums in another order may move an activation by one of its 16,256 steps."""
    np.testing.assert_allclose(got, expected, atol=2e-3)
    assert kl_divergence(expected, got).mean() < 1e-6


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
@pytest.mark.parametrize("spec", [INT4, INT8, None], ids=str)
def test_a_model(spec: QuantSpec | None, kv: str) -> None:
    model = model_of(spec)
    ids = RANDOM.integers(0, 40, 6).tolist()
    expected = model.session(128, kv=kv, backend="numpy").feed(ids, every=True)
    session = model.session(128, kv=kv, backend="cuda")
    got = np.concatenate([session.feed(ids[:4], every=True), session.feed(ids[4:5])[None]])
    got = np.concatenate([got, session.feed(ids[5:])[None]])
    assert kl_divergence(expected, got).mean() < 1e-4
    np.testing.assert_allclose(got, expected, atol=5e-2 if kv == "int8" else 5e-3)


def test_a_model_equals_the_processor() -> None:
    model = model_of(INT4)
    ids = RANDOM.integers(0, 40, 5).tolist()
    logits = [
        model.session(64, kv="f32", backend=backend).feed(ids, every=True)
        for backend in ("cpu", "cuda")
    ]
    assert_equal_but_for_rounding(logits[1], logits[0])


def test_a_window_that_wraps() -> None:
    model = model_of(None, layers=1)
    ids = RANDOM.integers(0, 40, 70).tolist()
    session = model.session(128, window=16, kv="f32", backend="cuda", chunk=40)
    got = np.stack([session.feed(ids[:66]), session.feed(ids[66:67]), session.feed(ids[67:])])
    expected = forward(model.config, model.weights, ids, 16)
    np.testing.assert_allclose(got, expected[[65, 66, 69]], atol=1e-3)


def test_the_same_words_from_every_backend() -> None:
    model = model_of(INT4)
    texts = [
        list(
            generate(
                model.session(64, backend=backend), [1, 2, 3], Sampling(0.7, seed=5), max_tokens=4
            )
        )
        for backend in ("numpy", "cpu", "cuda")
    ]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("layers", [0, 1, 2, 5])
def test_layers_on_two_devices(layers: int) -> None:
    model = model_of(INT4)
    ids = RANDOM.integers(0, 40, 5).tolist()
    expected = model.session(64, kv="f32").feed(ids, every=True)
    session = model.session(64, kv="f32", backend="cuda", gpu_layers=layers)
    kinds: dict[int, type] = {0: CpuProgram, 1: SplitProgram}
    assert type(session.program) is kinds.get(layers, CudaProgram)
    got = np.concatenate([session.feed(ids[:3], every=True), session.feed(ids[3:4])[None]])
    assert_equal_but_for_rounding(got, expected[:4])


def test_a_cache_goes_to_a_file_and_back(tmp_path: Path) -> None:
    model = model_of(INT4, layers=1)
    ids = RANDOM.integers(0, 40, 6).tolist()
    first = model.session(64, backend="cuda")
    first.feed(ids[:5])
    first.save(tmp_path / "cache", "tiny")
    expected = first.feed(ids[5:])
    for backend in ("cuda", "cpu"):
        session = model.session(64, backend=backend)
        session.restore(tmp_path / "cache", "tiny")
        assert_equal_but_for_rounding(session.feed(ids[5:]), expected)
    with pytest.raises(CacheError):
        model.session(64, backend="cuda").restore(tmp_path / "cache", "another")


def test_weights_are_copied_once() -> None:
    model = model_of(INT4, layers=1)
    for _ in range(2):
        model.session(64, backend="cuda").feed([1, 2])
    # Seven matrices, the embedding and the output.
    assert len(model.on_device) == 9
    program = model.session(64, backend="cuda").program
    assert isinstance(program, CudaProgram)
    assert program.needed_bytes() < 2_000_000
    fresh = model_of(INT4, layers=1).session(64, backend="cuda").program
    assert isinstance(fresh, CudaProgram)
    assert fresh.needed_bytes() - program.needed_bytes() == sum(
        matrix.nbytes for matrix in fresh.memory._matrices.values()
    )


def test_what_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [1_000_000_000]

    class Context:
        """A GPU on which two gigabytes wait to be freed."""

        @property
        def deallocations(self) -> Context:
            return self

        def clear(self) -> None:
            free[0] = 3_000_000_000

        def get_memory_info(self) -> tuple[int, int]:
            return free[0], 8_000_000_000

    monkeypatch.setattr(memory, "SIMULATED", False)
    monkeypatch.setattr(memory.cuda, "current_context", Context)
    memory.check_memory(500_000_000)
    assert free == [1_000_000_000]
    memory.check_memory(2_000_000_000)
    with pytest.raises(DeviceError, match=r"3.0 of 8.0 GB free.*needs 4.3 GB.*--gpu-layers"):
        memory.check_memory(4_000_000_000)


def test_what_the_driver_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(self: CudaProgram) -> None:
        raise CudaAPIError(2, "out of memory")

    monkeypatch.setattr(CudaProgram, "_prepare", prepare)
    with pytest.raises(DeviceError, match="out of memory"):
        model_of(None).session(32, backend="cuda").compile()


@pytest.mark.parametrize(
    ("capability", "version", "said"),
    [
        ((6, 0), (12, 4), r"compute capability is 6.0, and 6.1 is needed"),
        ((8, 0), (11, 8), r"driver is for CUDA 11.8, and 12.0 is needed"),
        ((6, 1), (12, 0), None),
        ((12, 0), (13, 0), None),
    ],
)
def test_what_is_too_old(
    capability: tuple[int, int], version: tuple[int, int], said: str | None
) -> None:
    driver = SimpleNamespace(get_version=lambda: version)
    fake = SimpleNamespace(
        get_current_device=lambda: SimpleNamespace(compute_capability=capability),
        cudadrv=SimpleNamespace(driver=SimpleNamespace(driver=driver)),
    )
    sentence = devices._too_old(fake)
    assert sentence is None if said is None else re.search(said, sentence or "")


def test_heads_that_do_not_fit_are_told() -> None:
    with pytest.raises(DeviceError, match="shared memory; use --device cpu"):
        attending.span_for(512, 32)


def test_without_the_compiler_or_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.chosen("auto") == "cuda"
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    assert devices.chosen("auto") == "cpu"
    with pytest.raises(DeviceError, match=r"pip install 'mistral-chat\[cuda\]'"):
        model_of(None).session(32, backend="cuda")
    monkeypatch.undo()
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="No NVIDIA GPU was found"):
        devices.check_device()


def test_a_ring_is_as_on_the_host() -> None:
    cache = RollingCache(SMALL, 100, None, "f16")
    assert memory.kind_of(cache.layers[0]) == "f16"


@pytest.mark.model
@pytest.mark.skipif(SIMULATED, reason="the real model would take hours in the simulator")
def test_the_default_model_on_a_gpu(default_model_home: Path) -> None:
    import quant
    from mistral_chat.tokenizers import load_tokenizer

    folder = default_model_home / "data" / "models" / "smollm2"
    model = quant.load(folder)
    text = (Path(__file__).resolve().parents[2] / "data" / "english.txt").read_text("utf-8")
    ids = load_tokenizer(folder).encode(text)
    expected, got = (
        model.session(1024, backend=backend).feed(ids, every=True) for backend in ("cpu", "cuda")
    )
    assert kl_divergence(expected, got).mean() <= 1e-4
    greedy = Sampling(temperature=0)
    texts = [
        list(generate(model.session(1024, backend=backend), ids[:40], greedy, max_tokens=40))
        for backend in ("cpu", "cuda")  # the graph of launches is replayed 38 times
    ]
    assert texts[0] == texts[1]


def test_several_sequences_in_a_pass() -> None:
    model = model_of(INT4)
    options = SessionOptions(48, chunk=12, backend="cuda")
    batch = Batch(model.config, model.weights, model.on_device, options, 2)
    alone = [model.session(48, chunk=12, backend="cuda") for _ in range(2)]
    for passes in (((0, [1, 2, 3]), (1, [4])), ((1, [5, 6]), (0, [7])), ((0, [8]),)):
        got = batch.read([Part(sequence, ids) for sequence, ids in passes])
        expected = [alone[sequence].feed(ids) for sequence, ids in passes]
        np.testing.assert_array_equal(got, np.stack(expected))


@pytest.mark.parametrize("kv", ["f16", "int8"])
def test_a_sequence_is_copied_and_branches_off(kv: str) -> None:
    model = model_of(INT4)
    options = SessionOptions(48, chunk=12, kv=kv, backend="cuda")
    batch = Batch(model.config, model.weights, model.on_device, options, 2)
    plain = model.session(48, chunk=12, kv=kv, backend="cuda")
    batch.read([Part(1, [9, 9]), Part(0, [1, 2, 3, 4])])
    batch.copy(0, 1, 3)
    assert batch.ids[1] == [1, 2, 3]
    branches = [Part(1, [5, 6], 2, kept=False), Part(1, [7], 1, kept=False)]
    got = batch.read([*branches, Part(0, [8])])
    expected = []
    for ids in ([1, 2, 3, 5, 6], [1, 2, 3, 7], [1, 2, 3, 4, 8]):
        plain.trim(0)
        expected.append(plain.feed(ids, every=True))
    np.testing.assert_allclose(got[:2], expected[0][3:], atol=2e-3)
    np.testing.assert_allclose(got[2], expected[1][3], atol=2e-3)
    assert batch.ids[1] == [1, 2, 3]
    after = batch.read([Part(1, [4])])
    np.testing.assert_allclose(after[0], expected[2][3], atol=2e-3)
