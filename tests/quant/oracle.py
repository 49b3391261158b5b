"""A transformer in plain NumPy, without cache, chunks or bytes: what every engine must equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quant.config import ModelConfig
from quant.qtensor import QuantTensor
from quant.weights import Weights


def _floats(matrix: Any) -> Any:
    return matrix.dequantize() if isinstance(matrix, QuantTensor) else matrix


def _norm(x: Any, weight: Any, epsilon: float) -> Any:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight


def _softmax(scores: Any) -> Any:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _rotate(x: Any, theta: float) -> Any:
    tokens, _, size = x.shape
    angle = np.arange(tokens)[:, None] / theta ** (np.arange(0, size, 2) / size)
    pairs = x[..., : size // 2] + 1j * x[..., size // 2 :]
    turned = pairs * np.exp(1j * angle)[:, None]
    return np.concatenate([turned.real, turned.imag], -1).astype(np.float32)


def forward(
    config: ModelConfig, weights: Weights, ids: Sequence[int], window: int | None = None
) -> Any:
    """Logits float32 [len(ids), vocab] with a full mask; ``window`` narrows every layer's own."""
    n = len(ids)
    heads, shared, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    j, i = np.arange(n)[None, :], np.arange(n)[:, None]
    x = _floats(weights.embedding)[np.asarray(ids)]
    for layer, own in zip(weights.layers, config.windows, strict=True):
        h = _norm(x, layer.attention_norm, config.rms_norm_eps)
        q = _rotate((h @ _floats(layer.q).T).reshape(n, heads, size), config.rope_theta)
        k = _rotate((h @ _floats(layer.k).T).reshape(n, shared, size), config.rope_theta)
        v = (h @ _floats(layer.v).T).reshape(n, shared, size)
        k, v = (np.repeat(part, heads // shared, axis=1) for part in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) / np.float32(np.sqrt(size))
        widths = [width for width in (own, window) if width is not None]
        seen = (j <= i) & (j > i - min(widths)) if widths else j <= i
        mixed = np.einsum("hij,jhd->ihd", _softmax(np.where(seen, scores, -np.inf)), v)
        x = x + mixed.reshape(n, -1) @ _floats(layer.o).T
        h = _norm(x, layer.mlp_norm, config.rms_norm_eps)
        gate = h @ _floats(layer.gate).T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ _floats(layer.up).T)) @ _floats(layer.down).T
    return _norm(x, weights.norm, config.rms_norm_eps) @ _floats(weights.head).T


def kl_divergence(reference: Any, logits: Any) -> Any:
    """KL(reference || logits) of the softmax of each row."""
    p, q = (_softmax(part.astype(np.float64)) for part in (reference, logits))
    return (p * (np.log(p + 1e-300) - np.log(q + 1e-300))).sum(-1)
