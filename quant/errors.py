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
