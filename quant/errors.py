"""The one tree of errors. Each message is a sentence a person can act on."""

from __future__ import annotations


class QuantError(Exception):
    """Root of every error this project raises on purpose."""


class ConfigError(QuantError):
    """A model's configuration is missing a value or holds one that cannot be."""


class SpecError(QuantError):
    """A quantization cannot be done as asked: bits, group size or shape do not fit."""


class CheckpointError(QuantError):
    """A checkpoint is truncated, foreign, inconsistent, or not what it says it is."""


class UnsupportedError(CheckpointError):
    """A checkpoint is well formed, but uses something this engine does not compute."""


class StorageError(QuantError):
    """Files could not be written: the disk is full, read-only, or the target exists."""


class DeviceError(QuantError):
    """A GPU was asked for that is not there, or what is to lie on it does not fit."""


class CacheError(QuantError):
    """The key/value cache no longer holds what was asked of it."""


class SamplingError(QuantError):
    """A sampling parameter is outside the range in which it means something."""


class NotFiniteError(QuantError):
    """What a model computed is infinite or no number, so it says nothing about the next token."""

    def __init__(self) -> None:
        super().__init__(
            "What the model computed is not finite, so no token follows from it; its files are "
            "damaged, or it needs another precision: try --kv f32, or fetch it again."
        )


class InputError(QuantError):
    """Token ids that the model does not have, or none at all."""


class ContextFullError(QuantError):
    """The ids do not fit into the context.

    ``needed`` and ``available`` are counts of tokens.
    """

    def __init__(self, needed: int, available: int) -> None:
        self.needed = needed
        self.available = available
        super().__init__(
            f"The text needs {needed} tokens, but only {available} are left in the context; "
            "shorten it, or ask for a longer context."
        )
