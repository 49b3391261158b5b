"""The real default model against float32, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quant
from mistral_chat.settings import Paths
from mistral_chat.tokenizers import load_tokenizer
from quant.decoding.generation import generate

from .oracle import forward, kl_divergence

pytestmark = pytest.mark.model

TEXT = Path(__file__).resolve().parents[1] / "data" / "english.txt"


@pytest.fixture(scope="module")
def folder(default_model_home: Path) -> Path:
    paths = Paths.from_environment({"MISTRAL_CHAT_HOME": str(default_model_home)})
    return paths.models / "smollm2"


@pytest.fixture(scope="module")
def model(folder: Path) -> quant.Model:
    return quant.load(folder)


@pytest.fixture(scope="module")
def ids(folder: Path) -> list[int]:
    return load_tokenizer(folder).encode(TEXT.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reference(model: quant.Model, ids: list[int]) -> Any:
    return forward(model.config, model.weights, ids)


def test_the_distribution_is_that_of_float32(
    model: quant.Model, ids: list[int], reference: Any
) -> None:
    assert len(ids) > 450
    logits = model.session(max_context=1024).feed(ids, every=True)
    assert kl_divergence(reference, logits).mean() <= 1e-4
    assert (logits.argmax(-1) == reference.argmax(-1)).mean() >= 0.995


def test_an_int8_cache_and_a_fast_prefill_stay_close(
    model: quant.Model, ids: list[int], reference: Any
) -> None:
    int8 = model.session(max_context=1024, kv="int8").feed(ids, every=True)
    assert kl_divergence(reference, int8).mean() < 2e-3
    fast = model.session(max_context=1024, prefill="fast").feed(ids, every=True)
    assert kl_divergence(reference, fast).mean() < 1e-2


def test_chunks_and_windows(model: quant.Model, ids: list[int]) -> None:
    ids = ids[:300]
    for window in (None, 100):
        whole = model.session(max_context=512, window=window).feed(ids)
        for chunk in (1, 7, 64):
            logits = model.session(max_context=512, window=window, chunk=chunk).feed(ids)
            np.testing.assert_allclose(logits, whole, atol=1e-4)


def test_the_numpy_backend_says_the_same(model: quant.Model, ids: list[int]) -> None:
    sampling = quant.Sampling(temperature=0)
    texts = [
        list(generate(model.session(512, backend=backend), ids[:40], sampling, max_tokens=8))
        for backend in ("numpy", "cpu")
    ]
    assert texts[0] == texts[1]


def test_labels_are_scored_as_by_plain_numpy(folder: Path, model: quant.Model) -> None:
    tokenizer = load_tokenizer(folder)
    prompt = tokenizer.encode("Is this fine, or illegal, or advice of no expert? A joke. It is")
    words = (" fine", " illegal", " illegal advice", " advice of no expert", " a joke")
    labels = [tokenizer.encode(word) for word in words]
    exact = quant.score(model.session(128, kv="f32", backend="numpy"), prompt, labels)
    scores = quant.score(model.session(128), prompt, labels)
    expected = []
    for label in labels:
        logits = forward(model.config, model.weights, [*prompt, *label]).astype(np.float64)
        chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        rows = np.arange(len(prompt) - 1, len(prompt) + len(label) - 1)
        expected.append(chances[rows, label].sum())
    assert exact is not None
    assert scores is not None
    np.testing.assert_allclose(exact, expected, atol=1e-3)
    # The kernels round activations to 15 bits and the cache to float16: some 2e-3 of a logarithm
    # like -7, and less than 1e-3 of any probability.
    np.testing.assert_allclose(scores, expected, rtol=1e-3)
    np.testing.assert_allclose(np.exp(scores), np.exp(expected), atol=1e-3)
