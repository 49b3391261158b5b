"""Names of tensors, and the order of their rows: the engine's own and the formats'."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..config import ModelConfig
from ..weights import MATRICES

GGUF_LAYER = {
    "attention_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
GGUF_MODEL = {"embedding": "token_embd", "norm": "output_norm", "head": "output"}
HUGGINGFACE_LAYER = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
HUGGINGFACE_MODEL = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
MISTRAL_LAYER = {
    "attention_norm": "attention_norm",
    "q": "attention.wq",
    "k": "attention.wk",
    "v": "attention.wv",
    "o": "attention.wo",
    "mlp_norm": "ffn_norm",
    "gate": "feed_forward.w1",
    "up": "feed_forward.w3",
    "down": "feed_forward.w2",
}
MISTRAL_MODEL = {"embedding": "tok_embeddings", "norm": "norm", "head": "output"}


def tensor_names(config: ModelConfig) -> list[str]:
    """Every tensor of a model in reading order.

    That is ``embedding``, ``layers.0.q``, ..., ``norm``, ``head``; with tied embeddings there is no
    ``head``.
    """
    names = ["embedding"]
    for i in range(config.num_hidden_layers):
        names += [f"layers.{i}.{name}" for name in ("attention_norm", "mlp_norm", *MATRICES)]
    names.append("norm")
    if not config.tie_word_embeddings:
        names.append("head")
    return names


def tensor_shape(config: ModelConfig, name: str) -> tuple[int, ...]:
    """The shape the geometry asks for, by the engine's name."""
    if name in ("embedding", "head"):
        return (config.vocab_size, config.hidden_size)
    part = name.rsplit(".", 1)[-1]
    return config.matrices().get(part, (config.hidden_size,))


def half_split_order(rows: int, head_dim: int) -> npt.NDArray[np.int64]:
    """Rows of interleaved RoPE pairs in the half-split order of this engine.

    >>> half_split_order(4, 4).tolist()
    [0, 2, 1, 3]
    """
    heads = np.arange(rows).reshape(-1, head_dim // 2, 2)
    return heads.swapaxes(1, 2).reshape(-1)


def gguf_name(name: str) -> str:
    """``layers.3.q`` is ``blk.3.attn_q.weight`` in a GGUF."""
    return _translate(name, GGUF_MODEL, "blk", GGUF_LAYER)


def huggingface_name(name: str) -> str:
    """``layers.3.q`` is ``model.layers.3.self_attn.q_proj.weight`` in a Hugging Face folder."""
    return _translate(name, HUGGINGFACE_MODEL, "model.layers", HUGGINGFACE_LAYER)


def mistral_name(name: str) -> str:
    """``layers.3.q`` is ``layers.3.attention.wq.weight`` in Mistral's own folder."""
    return _translate(name, MISTRAL_MODEL, "layers", MISTRAL_LAYER)


def _translate(name: str, model: Mapping[str, str], block: str, layer: Mapping[str, str]) -> str:
    if name in model:
        return f"{model[name]}.weight"
    _, number, part = name.split(".")
    return f"{block}.{number}.{layer[part]}.weight"
