"""Models of known shapes with random weights, to measure without a file."""

from __future__ import annotations

import numpy as np

from ..config import ModelConfig
from ..errors import ConfigError
from ..model import Model
from ..qtensor import QuantSpec, QuantTensor, packed_shapes
from ..weights import MATRICES, Layer, Weights

GEOMETRIES = {
    "mistral-7b": ModelConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        max_position_embeddings=32768,
        windows=(4096,) * 32,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_ids=(2,),
    ),
    "smollm2-135m": ModelConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        rms_norm_eps=1e-5,
        rope_theta=1e5,
        max_position_embeddings=8192,
        windows=(None,) * 30,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_ids=(2,),
    ),
}
"""Shapes that can be measured without a file."""


def random_model(geometry: str, layers: int | None, spec: QuantSpec) -> Model:
    """A model of a known shape with random packed weights, in memory.

    Raises :class:`~quant.errors.ConfigError` for a geometry that is not known.
    """
    if geometry not in GEOMETRIES:
        raise ConfigError(f"There is no geometry {geometry!r}; there are {', '.join(GEOMETRIES)}.")
    values = dict(vars(GEOMETRIES[geometry]))
    if layers is not None:
        if layers < 1:
            raise ConfigError(f"A model has at least one layer, not {layers}.")
        values |= {"num_hidden_layers": layers, "windows": values["windows"][:1] * layers}
    config = ModelConfig(**values)
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, 1 << 20, np.uint8)

    def matrix(rows: int, columns: int) -> QuantTensor:
        codes, scales = packed_shapes(rows, columns, spec)
        packed = np.empty(codes, np.uint8)
        flat = packed.reshape(-1)
        for start in range(0, flat.size, noise.size):
            part = flat[start : start + noise.size]
            part[:] = noise[: part.size]
        # A spread that keeps the activations near 1, layer after layer.
        step = np.float16(1 / (columns**0.5 * (1 << (spec.bits - 2))))
        minimums = None if spec.symmetric else np.full(scales, -step * (1 << (spec.bits - 1)))
        return QuantTensor(
            spec,
            rows,
            columns,
            packed,
            np.full(scales, step, np.float16),
            None if minimums is None else minimums.astype(np.float16),
        )

    ones = np.ones(config.hidden_size, np.float32)
    embedding = matrix(config.vocab_size, config.hidden_size)
    head = embedding if config.tie_word_embeddings else matrix(*embedding.shape)
    stack = tuple(
        Layer(
            attention_norm=ones,
            mlp_norm=ones,
            **{name: matrix(*config.matrices()[name]) for name in MATRICES},
        )
        for _ in range(config.num_hidden_layers)
    )
    return Model(config, Weights(embedding, stack, ones, head), f"random {geometry}", lambda: "")
