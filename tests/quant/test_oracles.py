"""Logits against those of transformers and llama.cpp, which ``tests/oracles`` stored."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quant
from quant.config import from_huggingface

from ..oracles.cases import (
    DEFAULTS_FILE,
    IDS,
    LLAMA_CPP,
    LLAMA_CPP_FILE,
    TRANSFORMERS,
    TRANSFORMERS_FILE,
    changes,
    seed_of,
)
from .models import write_gguf, write_huggingface, write_mistral

TOLERANCE = 1e-4


@cache
def stored(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return dict(file)


def fed(model: quant.Model, backend: str, chunk: int) -> Any:
    session = model.session(kv="f32", backend=backend)
    parts = [IDS[start : start + chunk] for start in range(0, len(IDS), chunk)]
    return np.concatenate([session.feed(part, every=True) for part in parts])


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("chunk", [100, 33, 1], ids=["at once", "chunks", "one by one"])
def test_transformers(tmp_path: Path, name: str, backend: str, chunk: int) -> None:
    config = TRANSFORMERS[name]
    write_huggingface(tmp_path, config, seed_of(name), change=changes(config))
    logits = fed(quant.load(tmp_path), backend, chunk)
    np.testing.assert_allclose(logits, stored(TRANSFORMERS_FILE)[name], atol=TOLERANCE)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_in_mistral_s_own_format(tmp_path: Path, name: str) -> None:
    write_mistral(tmp_path, TRANSFORMERS[name], seed_of(name))
    logits = fed(quant.load(tmp_path), "numpy", 100)
    np.testing.assert_allclose(logits, stored(TRANSFORMERS_FILE)[name], atol=TOLERANCE)


@pytest.mark.parametrize("name", LLAMA_CPP)
@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("chunk", [100, 1], ids=["at once", "one by one"])
def test_llama_cpp(tmp_path: Path, name: str, backend: str, chunk: int) -> None:
    write_gguf(tmp_path / "m.gguf", LLAMA_CPP[name], seed_of(name))
    logits = fed(quant.load(tmp_path / "m.gguf"), backend, chunk)
    np.testing.assert_allclose(logits, stored(LLAMA_CPP_FILE)[name], atol=TOLERANCE)


def test_the_window_makes_a_difference() -> None:
    expected = stored(TRANSFORMERS_FILE)
    assert np.abs(expected["plain"][8:] - expected["window"][8:]).max() > 0.1


@pytest.mark.parametrize("kind", ["mistral", "ministral", "llama"])
def test_absent_keys_mean_what_transformers_takes(kind: str) -> None:
    values = json.loads(DEFAULTS_FILE.read_text())[kind]
    config = from_huggingface({"model_type": kind})
    theta = values.pop("rope_parameters")["rope_theta"]
    window = values.pop("sliding_window", None)
    assert config == from_huggingface({"model_type": kind, "sliding_window": window, **values})
    assert config.rope_theta == theta
    assert config.windows == (window,) * values["num_hidden_layers"]
    assert config.hidden_size == values["hidden_size"]
    assert config.rms_norm_eps == values["rms_norm_eps"]
    assert config.num_key_value_heads == values["num_key_value_heads"]
    assert config.max_position_embeddings == values["max_position_embeddings"]
