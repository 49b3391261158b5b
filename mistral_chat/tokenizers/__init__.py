"""Text to token ids and back: one protocol, and a class for each kind of vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mistral_chat.tokenizers.byte_level import ByteLevelTokenizer
from mistral_chat.tokenizers.detokenizer import Detokenizer
from quant.errors import UnsupportedError

__all__ = ["Detokenizer", "Tokenizer", "load_tokenizer", "tokenizer_from_gguf"]


class Tokenizer(Protocol):
    """What a chat template and an engine need from a vocabulary."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text, where the vocabulary names one."""

    @property
    def chat_template(self) -> str | None:
        """The Jinja text that came with the model; read for facts, never run."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. No text, whatever it spells, gives a control id."""

    def control_id(self, piece: str) -> int | None:
        """The id of a control piece such as ``<|im_end|>``, or None if there is none."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token adds to a text: none for a control id.

        Raises ValueError for an id outside the vocabulary.
        """

    def save(self, folder: Path) -> None:
        """Write the tokenizer's own files into a folder."""


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer inside a GGUF header, given its key/value pairs.

    Raises UnsupportedError naming a kind of vocabulary that is not handled, and CheckpointError
    where a part of the vocabulary is missing.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UnsupportedError(
            f"This model's tokenizer is of the kind {kind!r}, which is not handled yet; "
            "choose a model whose tokenizer.ggml.model is 'gpt2'."
        )
    return ByteLevelTokenizer.from_gguf(metadata)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer saved in a native model folder; raises CheckpointError if it is not there."""
    return ByteLevelTokenizer.load(folder)
