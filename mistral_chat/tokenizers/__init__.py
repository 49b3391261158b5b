"""Text to token ids and back: one protocol, and a class for each kind of vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mistral_chat.tokenizers.config import TokenizerConfig, read_config
from mistral_chat.tokenizers.detokenizer import Detokenizer
from quant.errors import CheckpointError, UnsupportedError

__all__ = [
    "Detokenizer",
    "Tokenizer",
    "check_vocabulary",
    "load_tokenizer",
    "tokenizer_from_gguf",
]

PADDING = 256
"""Embeddings have rows for their vocabulary rounded up to a multiple of this at most."""


class Tokenizer(Protocol):
    """What a chat template and an engine need from a vocabulary."""

    @property
    def kind(self) -> str:
        """What kind of vocabulary it is, for people."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text, where the vocabulary names one."""

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text, where the vocabulary names one."""

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer's own configuration begins a text with BOS."""

    @property
    def space_prefix(self) -> str:
        """Which texts ``encode`` puts a space before: ``always``, ``first`` (only) or ``never``.

        But for ``never``, an answer begins with a space that is not its own.
        """

    @property
    def mistral_version(self) -> str | None:
        """``v1``, ``v3`` and so on for Mistral's own vocabularies, by their content; else None."""

    @property
    def chat_template(self) -> str | None:
        """The Jinja text that came with the model."""

    @property
    def special_tokens(self) -> Mapping[str, str | list[str]]:
        """Special tokens beside BOS and EOS, by the names that a chat template knows."""

    @property
    def controls(self) -> Mapping[str, int]:
        """Every control piece and its id."""

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Ids of plain text. No text, whatever it spells, gives a control id.

        Without ``first`` no space is put before it.
        """

    def control_id(self, piece: str) -> int | None:
        """The id of a control piece such as ``<|im_end|>``, or None if there is none."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token adds to a text: none for a control id.

        Raises ValueError for an id outside the vocabulary.
        """

    def show(self, ids: Sequence[int]) -> str:
        """The ids as text in which control pieces show (SentencePiece: the pieces themselves)."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer's own files into a folder."""


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer inside a GGUF header, given its key/value pairs.

    Raises UnsupportedError naming a kind of vocabulary that is not handled, and CheckpointError
    where a part of the vocabulary is missing.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "llama":
        from mistral_chat.tokenizers.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer.from_gguf(metadata)
    if kind == "gpt2":
        from mistral_chat.tokenizers.huggingface import HuggingFaceTokenizer

        return HuggingFaceTokenizer.from_gguf(metadata)
    raise UnsupportedError(
        f"This model's tokenizer is of the kind {kind!r}, which is not handled; choose a model "
        "whose tokenizer.ggml.model is 'llama' or 'gpt2'."
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a folder, or a tokenizer's file.

    Of a folder's files the first is taken of: ``tekken.json``, ``tokenizer.model.v3`` (or another
    version), ``tokenizer.model``, ``tokenizer.json``. A file is told by its content. Raises
    CheckpointError where there is none or it is broken.
    """
    if path.is_dir():
        return _load(_find(path), path)
    return _load(path, path.parent)


def check_vocabulary(tokenizer: Tokenizer, rows: int) -> None:
    """Raise CheckpointError unless an embedding of ``rows`` rows is one for this tokenizer.

    >>> from types import SimpleNamespace
    >>> check_vocabulary(SimpleNamespace(vocab_size=32002), 32064)
    """
    size = tokenizer.vocab_size
    if not size <= rows <= -(-size // PADDING) * PADDING:
        raise CheckpointError(
            f"The tokenizer has {size} tokens, but the model's embedding has {rows} rows: they do "
            "not belong together; fetch the tokenizer's file of this model."
        )


def _find(folder: Path) -> Path:
    versioned = sorted(folder.glob("*.model.v*"))
    names = ("tekken.json", "tokenizer.model", "tokenizer.json")
    tekken, plain, library = (folder / name for name in names)
    for path in (tekken, *versioned[-1:], plain, library):
        if path.is_file():
            return path
    raise CheckpointError(
        f"{folder} holds no tokenizer: there is no {', '.join(names)} in it; fetch it, too."
    )


def _load(path: Path, folder: Path) -> Tokenizer:
    try:
        data = path.read_bytes()
        if not data[:4096].lstrip().startswith(b"{"):
            from mistral_chat.tokenizers.sentencepiece import SentencePieceTokenizer

            config = read_config(folder)
            pieces = SentencePieceTokenizer(data, config)
            _check_marks(pieces, config, path, folder)
            return pieces
        values = json.loads(data)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); fetch it again.") from error
    if "model" in values:
        from mistral_chat.tokenizers.huggingface import HuggingFaceTokenizer

        config = read_config(folder)
        tokenizer = HuggingFaceTokenizer(values, config)
        _check_marks(tokenizer, config, path, folder)
        return tokenizer

    from mistral_chat.tokenizers.tekken import TekkenTokenizer

    return TekkenTokenizer(data, values, str(path))


def _check_marks(tokenizer: Tokenizer, config: TokenizerConfig, path: Path, folder: Path) -> None:
    """Raise CheckpointError where the chat template spells a mark that the vocabulary lacks.

    A mark is what the files beside the vocabulary name as a special or added token. It would be
    read letter by letter, which no model was trained on.
    """
    for piece in sorted({*config.special, *config.added}):
        if config.writes(piece) and tokenizer.control_id(piece) is None:
            raise CheckpointError(
                f"The chat template in {folder} writes {piece}, which {path} does not have as a "
                "token: they do not belong together; fetch the vocabulary of this model."
            )
