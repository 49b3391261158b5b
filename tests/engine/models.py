"""Tiny seeded models, and GGUF files that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from quant.config import ModelConfig
from quant.model import Model
from quant.qtensor import QuantSpec
from quant.quantizers import round_to_nearest
from quant.weights import MATRICES, Layer, Matrix, Weights

TINY = ModelConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    max_position_embeddings=256,
    windows=(None, None),
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_ids=(2,),
)


def random_weights(config: ModelConfig, spec: QuantSpec | None, seed: int = 0) -> Weights:
    """Weights whose logits have a spread of about 1.

    Matrices are packed by ``spec`` if there is one.
    """
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> Matrix:
        floats = random.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(columns))
        return floats if spec is None else round_to_nearest(floats, spec)

    def norm() -> Any:
        return random.uniform(0.5, 1.5, config.hidden_size).astype(np.float32)

    embedding = matrix(config.vocab_size, config.hidden_size)
    layers = []
    for _ in range(config.num_hidden_layers):
        matrices = {name: matrix(*config.matrices()[name]) for name in MATRICES}
        layers.append(Layer(attention_norm=norm(), mlp_norm=norm(), **matrices))
    head = embedding if config.tie_word_embeddings else matrix(*embedding.shape)
    return Weights(embedding, tuple(layers), norm(), head)


def random_model(config: ModelConfig = TINY, spec: QuantSpec | None = None, seed: int = 0) -> Model:
    return Model(config, random_weights(config, spec, seed), "random", lambda: "0" * 64)


def interleave(rows: Any, head_dim: int) -> Any:
    """Rows in the half-split order put into the order GGUF files have."""
    heads = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    path: Path,
    config: ModelConfig = TINY,
    seed: int = 0,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    change: dict[str, Any] | None = None,
    tensors: dict[str, Any] | None = None,
) -> Weights:
    """Write a random model; returns its float weights before ``kind`` rounded them.

    ``change`` replaces metadata (``None`` leaves a key out), ``tensors`` replaces tensors likewise.
    """
    weights = random_weights(config, None, seed)
    writer = gguf.GGUFWriter(path, arch="llama")
    metadata: dict[str, Any] = {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_theta,
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_ids[0],
        **(change or {}),
    }
    for key, value in metadata.items():
        if key == "general.architecture":
            writer.kv_data[0][key] = gguf.GGUFValue(value, gguf.GGUFValueType.STRING)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, tensor in {**gguf_tensors(config, weights), **(tensors or {})}.items():
        if tensor is None:
            continue
        if tensor.ndim == 2 and kind == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(name, tensor.astype(np.float16))
        elif tensor.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def gguf_tensors(config: ModelConfig, weights: Weights) -> dict[str, Any]:
    """The tensors by their names in a GGUF, q and k with interleaved rows."""
    tensors: dict[str, Any] = {
        "token_embd.weight": weights.embedding,
        "output_norm.weight": weights.norm,
    }
    if not config.tie_word_embeddings:
        tensors["output.weight"] = weights.head
    for i, layer in enumerate(weights.layers):
        tensors |= {
            f"blk.{i}.attn_norm.weight": layer.attention_norm,
            f"blk.{i}.attn_q.weight": interleave(layer.q, config.head_dim),
            f"blk.{i}.attn_k.weight": interleave(layer.k, config.head_dim),
            f"blk.{i}.attn_v.weight": layer.v,
            f"blk.{i}.attn_output.weight": layer.o,
            f"blk.{i}.ffn_norm.weight": layer.mlp_norm,
            f"blk.{i}.ffn_gate.weight": layer.gate,
            f"blk.{i}.ffn_up.weight": layer.up,
            f"blk.{i}.ffn_down.weight": layer.down,
        }
    return tensors
