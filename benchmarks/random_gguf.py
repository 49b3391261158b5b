"""GGUF files of a known shape with random weights, for llama.cpp to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from quant import ModelConfig
from quant.checkpoints.names import gguf_name, tensor_names, tensor_shape

Kind = gguf.GGMLQuantizationType
BLOCK = 32
"""Columns that share a scale in Q4_0 and Q8_0."""


def write_random_gguf(path: Path, config: ModelConfig, kind: Kind) -> None:
    """Write a model whose matrices are all of ``kind``, Q4_0 or Q8_0; norms are ones.

    Matrices of one shape are alike. There is no vocabulary, only its size. The file is written
    under another name and renamed when it is whole.
    """
    unfinished = path.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, arch="llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    made: dict[tuple[int, ...], Any] = {}
    for name in tensor_names(config):
        shape = tensor_shape(config, name)
        if len(shape) == 1:
            writer.add_tensor(gguf_name(name), np.ones(shape, np.float32))
            continue
        if shape not in made:
            made[shape] = random_blocks(shape[0], shape[1], kind)
        writer.add_tensor(gguf_name(name), made[shape], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.replace(path)


def random_blocks(rows: int, columns: int, kind: Kind) -> Any:
    """The bytes of a random matrix, uint8 [rows, bytes of a row].

    A block is a float16 scale and its codes. The spread keeps the activations near 1, layer after
    layer.
    """
    bits = {Kind.Q4_0: 4, Kind.Q8_0: 8}[kind]
    size = BLOCK * bits // 8
    blocks = np.empty((rows, columns // BLOCK, 2 + size), np.uint8)
    scale = np.float16(1 / (columns**0.5 * (1 << (bits - 2))))
    blocks[..., :2] = np.frombuffer(scale.tobytes(), np.uint8)
    blocks[..., 2:] = np.random.default_rng(0).integers(0, 256, blocks[..., 2:].shape, np.uint8)
    return blocks.reshape(rows, -1)
