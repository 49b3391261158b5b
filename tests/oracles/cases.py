"""The tiny models whose logits other engines have computed; their files are made from a seed.

The scripts beside this file run those engines, once and by hand, each in an environment of its own,
and store what came out under ``tests/vectors``. The tests read that.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from quant.config import ModelConfig

from ..quant.models import TINY

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
TRANSFORMERS_FILE = VECTORS / "transformers_logits.npz"
DEFAULTS_FILE = VECTORS / "transformers_defaults.json"
LLAMA_CPP_FILE = VECTORS / "llama_cpp_logits.npz"

TOKENS = 100
IDS = np.random.default_rng(20).integers(0, TINY.vocab_size, TOKENS).tolist()

TRANSFORMERS: dict[str, ModelConfig] = {
    "plain": TINY,
    "window": replace(TINY, windows=(8, 8)),
    "wide": replace(TINY, hidden_size=96, head_dim=16, rope_theta=1e6),
    "tied": replace(TINY, tie_word_embeddings=True, windows=(8, 8)),
    "interleaved": replace(TINY, num_hidden_layers=4, windows=(None, 8, 8, 8)),
}
"""By name; each with the seed that is its place in this table."""

LLAMA_CPP: dict[str, ModelConfig] = {"plain": TINY, "wide": TRANSFORMERS["wide"]}
"""Without windows, which that engine does not apply to these models."""


def seed_of(name: str) -> int:
    """The seed of a model's weights."""
    return list(TRANSFORMERS).index(name) + 100


def changes(config: ModelConfig) -> dict[str, object]:
    """What a config.json says besides, for windows that are not the same in every layer."""
    if len(set(config.windows)) == 1:
        return {}
    types = ["full_attention" if own is None else "sliding_attention" for own in config.windows]
    window = next(own for own in config.windows if own is not None)
    return {"model_type": "ministral", "layer_types": types, "sliding_window": window}
