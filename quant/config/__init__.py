"""What a model is, and how each format tells it."""

from __future__ import annotations

from .formats import from_gguf, from_huggingface, from_params, windows_of
from .geometry import MOST_JSON, ModelConfig, read_config, read_json, write_config

__all__ = [
    "MOST_JSON",
    "ModelConfig",
    "from_gguf",
    "from_huggingface",
    "from_params",
    "read_config",
    "read_json",
    "windows_of",
    "write_config",
]
