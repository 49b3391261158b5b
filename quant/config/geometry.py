"""What a model is: its geometry."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnsupportedError
from ..files import read_file

MOST_LAYERS = 4096
"""A number of layers beyond this is a damaged file's; the largest published models have 126."""

ARCHITECTURES = ("llama", "mistral")
"""Names under which the one architecture of this engine goes in checkpoints."""


_WHOLE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


def is_whole(value: object, least: int) -> bool:
    """Whether a value is a whole number from ``least`` on that 31 bits hold."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 31


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
        for name in _WHOLE_FIELDS:
            if not is_whole(getattr(self, name), 1):
                raise ConfigError(
                    f"The model's {name} is {getattr(self, name)!r}; it must be a positive whole "
                    "number."
                )
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
        if not all(window is None or is_whole(window, 1) for window in self.windows):
            raise ConfigError("A sliding window must be a number of tokens, at least one.")
        for name in ("rms_norm_eps", "rope_theta"):
            value = getattr(self, name)
            if type(value) is not float or not 0 < value < math.inf:
                raise ConfigError(f"The model's {name} is {value!r}; it must be a positive number.")
        if type(self.tie_word_embeddings) is not bool:
            raise ConfigError("The model's tie_word_embeddings must be true or false.")
        ids = (*self.eos_token_ids, *(() if self.bos_token_id is None else (self.bos_token_id,)))
        if not all(is_whole(token, 0) for token in ids):
            raise ConfigError(f"The model's end or beginning of text is {ids!r}: no token ids.")

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


MOST_JSON = 1 << 23
"""Bytes of the largest file of JSON that is read; published ones have some thousands."""


def read_json(path: Path, most: int = MOST_JSON) -> dict[str, Any]:
    """The JSON object in an ordinary file of ``most`` bytes at most; a byte-order mark is no part.

    Raises :class:`~quant.errors.ConfigError` where there is none.
    """
    try:
        value = json.loads(read_file(path, most).decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}); fetch it again.") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is not a JSON object; fetch it again.")
    return value


def write_config(config: ModelConfig, path: Path) -> None:
    """Write ``config`` as JSON to ``path``, in the field names of this class."""
    values = {"model_type": "mistral", **asdict(config)}
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_config(path: Path) -> ModelConfig:
    """The inverse of :func:`write_config`.

    Raises :class:`~quant.errors.ConfigError` for text that is not such a configuration.
    """
    values = read_json(path)
    values.pop("model_type", None)
    try:
        values["windows"] = tuple(values["windows"])
        values["eos_token_ids"] = tuple(values["eos_token_ids"])
        return ModelConfig(**values)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a model configuration: {error}.") from error
