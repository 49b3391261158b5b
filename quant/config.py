"""What a model is: its geometry, read from the files that come with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ConfigError, UnsupportedError

ARCHITECTURES = ("llama", "mistral")
"""Names under which the one architecture of this engine goes in checkpoints."""


@dataclass(frozen=True)
class ModelConfig:
    """Geometry of one transformer, in Hugging Face's field names.

    ``windows`` holds for each layer the number of keys a token sees, itself included, or ``None``
    for all of them. ``head_dim`` is a fact of its own: it need not be hidden_size / heads.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    windows: tuple[int | None, ...]
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            whole = name.endswith(("_size", "_heads", "_layers", "_dim", "_embeddings"))
            if (
                whole
                and name != "tie_word_embeddings"
                and not (isinstance(value, int) and 0 < value < 1 << 31)
            ):
                raise ConfigError(f"The model's {name} is {value!r}; it must be a positive number.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"{self.num_attention_heads} attention heads cannot share "
                f"{self.num_key_value_heads} key/value heads."
            )
        if self.head_dim % 16 or self.hidden_size % 16 or self.intermediate_size % 16:
            raise UnsupportedError(
                "The engine computes heads and layers whose widths are multiples of 16; this model "
                f"has {self.head_dim}, {self.hidden_size} and {self.intermediate_size}."
            )
        if len(self.windows) != self.num_hidden_layers:
            raise ConfigError("The model's sliding windows do not match its number of layers.")
        if any(window is not None and window < 1 for window in self.windows):
            raise ConfigError("A sliding window must hold at least one token.")
        if not (self.rms_norm_eps > 0 and self.rope_theta > 0):
            raise ConfigError("The model's rms_norm_eps and rope_theta must be positive.")

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of a layer's matrices, by the name of :class:`~quant.weights.Layer`."""
        query = self.num_attention_heads * self.head_dim
        shared = self.num_key_value_heads * self.head_dim
        return {
            "q": (query, self.hidden_size),
            "k": (shared, self.hidden_size),
            "v": (shared, self.hidden_size),
            "o": (self.hidden_size, query),
            "gate": (self.intermediate_size, self.hidden_size),
            "up": (self.intermediate_size, self.hidden_size),
            "down": (self.hidden_size, self.intermediate_size),
        }


def from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    """The configuration in a GGUF's metadata; ``tensors`` maps names to shapes (rows first).

    Raises :class:`~quant.errors.UnsupportedError` for an architecture or a rope scaling that is not
    computed here, :class:`~quant.errors.ConfigError` for a missing or senseless value.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedError(
            f"The model's architecture is {architecture!r}; "
            f"supported are {', '.join(ARCHITECTURES)}."
        )
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none":
        raise UnsupportedError(f"The model needs rope scaling {scaling!r}, which is not supported.")
    if metadata.get(f"{architecture}.expert_count"):
        raise UnsupportedError("The model is a mixture of experts, which is not supported.")

    def number(name: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{name}", default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"The file does not say the model's {name}, or says {value!r}.")
        # 1e-5 is stored as a float32, 9.99999974e-06; what was meant is its shortest decimal.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    heads = number("attention.head_count")
    hidden = number("embedding_length")
    layers = number("block_count")
    window = metadata.get(f"{architecture}.attention.sliding_window") or None
    if "token_embd.weight" not in tensors:
        raise ConfigError("The file has no tensor token_embd.weight.")
    eos = metadata.get("tokenizer.ggml.eos_token_id")
    return ModelConfig(
        vocab_size=tensors["token_embd.weight"][0],
        hidden_size=hidden,
        intermediate_size=number("feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=number("attention.head_count_kv", heads),
        head_dim=number("attention.key_length", hidden // heads if heads else 0),
        rms_norm_eps=float(number("attention.layer_norm_rms_epsilon")),
        rope_theta=float(number("rope.freq_base", 10000.0)),
        max_position_embeddings=number("context_length"),
        windows=(window,) * layers,
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=() if eos is None else (eos,),
    )


def write_config(config: ModelConfig, path: Path) -> None:
    """Write ``config`` as JSON to ``path``, in the field names of this class."""
    values = {"model_type": "mistral", **asdict(config)}
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_config(path: Path) -> ModelConfig:
    """The inverse of :func:`write_config`.

    Raises :class:`~quant.errors.ConfigError` for text that is not such a configuration.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values.pop("model_type", None)
        values["windows"] = tuple(values["windows"])
        values["eos_token_ids"] = tuple(values["eos_token_ids"])
        return ModelConfig(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a model configuration: {error}") from error
