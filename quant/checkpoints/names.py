"""Names of tensors: the engine's own, and what checkpoint formats call them."""

from __future__ import annotations

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


def gguf_name(name: str) -> str:
    """``layers.3.q`` is ``blk.3.attn_q.weight`` in a GGUF."""
    if name in GGUF_MODEL:
        return f"{GGUF_MODEL[name]}.weight"
    _, number, part = name.split(".")
    return f"blk.{number}.{GGUF_LAYER[part]}.weight"
