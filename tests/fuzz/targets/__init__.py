"""The targets, a module for each; they are imported when they are asked for."""

from __future__ import annotations

from importlib import import_module

from ..target import Target

ENGINE = ("gguf", "safetensors", "configuration", "geometry", "kernel_cache")
"""Targets of ``quant``."""
NAMES = (
    *ENGINE, "tokenizer_json", "tekken", "sentencepiece", "template", "conversation", "settings",
    "session", "cache", "command", "hub",
)  # fmt: skip


def find(name: str) -> type[Target]:
    """The target of that name, one of NAMES."""
    kind: type[Target] = import_module(f".{name}", __package__).TARGET
    return kind
