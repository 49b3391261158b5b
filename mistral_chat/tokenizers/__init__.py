"""Text to token ids and back: one protocol, and a class for each kind of vocabulary."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mistral_chat.tokenizers.config import CONFIG_FILE, TokenizerConfig, read_config
from mistral_chat.tokenizers.detokenizer import Detokenizer
from quant.errors import CheckpointError, UnsupportedError
from quant.files import open_file

__all__ = [
    "Detokenizer",
    "Tokenizer",
    "check_vocabulary",
    "load_tokenizer",
    "tokenizer_from_gguf",
]

PADDING = 256
"""Models with a vocabulary of Mistral's own have its size rounded up to a multiple of this."""

SURPLUS = 4096
"""Other models have rows for at most as many tokens more than their vocabularies name."""


class Tokenizer(Protocol):
    """What a chat template and an engine need from a vocabulary."""

    @property
    def kind(self) -> str:
        """What kind of vocabulary it is, for people."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""

    @property
    def text_size(self) -> int:
        """One more than the largest id that a text can give."""

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

    def left_between(self, text: str, before: str | None, after: str | None) -> tuple[int, int]:
        """Where begins and ends what the control pieces beside a text leave of its white space."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token adds to a text: none for a control id.

        None either for an id that the vocabulary does not have: a model may have rows for some.
        """

    def least_tokens(self, text: str) -> int:
        """A number of tokens that ``text`` has at least, told without cutting it."""

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

    Which of a folder's files counts, :func:`_open` decides. A file is told by its content. Raises
    CheckpointError where there is none, it is broken, or it lacks a mark that the chat template
    spells.
    """
    return _open(path) if path.is_dir() else _load(path, path.parent)


def check_vocabulary(tokenizer: Tokenizer, rows: int) -> None:
    """Raise CheckpointError unless an embedding of ``rows`` rows is one for this tokenizer.

    There may be more rows than tokens, and a control piece that nothing writes, such as an added
    ``<pad>``, may have no row. Whatever a text or a chat template gives has one.
    """
    size = tokenizer.vocab_size
    own = tokenizer.mistral_version is not None
    most = -(-size // PADDING) * PADDING if own else size + SURPLUS
    ends = {tokenizer.eos_id, tokenizer.bos_id}
    lost = [
        piece
        for piece, token in tokenizer.controls.items()
        if token >= rows and (token in ends or piece in (tokenizer.chat_template or ""))
    ]
    if lost or not tokenizer.text_size <= rows <= most:
        without = f", none of them for {lost[0]}" if lost else ""
        raise CheckpointError(
            f"The tokenizer has {size} tokens, but the model's embedding has {rows} rows{without}: "
            "they do not belong together; fetch the tokenizer's file of this model."
        )


def _open(folder: Path) -> Tokenizer:
    """The tokenizer of a folder: the one place that decides which of its files counts.

    In a folder of Hugging Face's it is ``tokenizer.json``, as for the transformers library; but a
    vocabulary of Mistral's own beside it that has the same tokens counts, since it tells its
    version. Otherwise it is the first of ``tekken.json``, ``tokenizer.model.v3`` (or another
    version), ``tokenizer.model`` and ``tokenizer.json``.
    """
    names = ("tekken.json", "tokenizer.model", "tokenizer.json")
    tekken, plain, library = (folder / name for name in names)
    versioned = sorted(folder.glob("*.model.v*"))
    own = [path for path in (tekken, *versioned[-1:], plain) if path.is_file()]
    if not own and not library.is_file():
        raise CheckpointError(
            f"{folder} holds no tokenizer: there is no {', '.join(names)} in it; fetch it, too."
        )
    huggingface = any((folder / name).exists() for name in ("config.json", CONFIG_FILE))
    if not library.is_file() or (own and not huggingface):
        return _load(own[0], folder)
    try:
        chosen = _load(library, folder)
    except UnsupportedError:
        if not own:
            raise
        return _load(own[0], folder)
    for path in own:
        try:
            other = _load(path, folder)
        except CheckpointError:  # it is not the one that counts
            continue
        if other.mistral_version is not None and _same_tokens(chosen, other):
            return other
    return chosen


def _same_tokens(chosen: Tokenizer, other: Tokenizer) -> bool:
    """Whether ids mean the same in both, as far as a text or the chat template gives them."""
    if chosen.vocab_size != other.vocab_size:
        return False
    ends = (chosen.bos_id, chosen.eos_id)
    template = chosen.chat_template or ""
    for piece, token in chosen.controls.items():
        if (token in ends or piece in template) and other.control_id(piece) != token:
            return False
    silent = set(chosen.controls.values()) & set(other.controls.values())
    return all(
        token in silent or chosen.token_bytes(token) == other.token_bytes(token)
        for token in range(chosen.vocab_size)
    )


def _load(path: Path, folder: Path) -> Tokenizer:
    config = read_config(folder)
    try:
        with open_file(path) as file:
            data = file.read().removeprefix(codecs.BOM_UTF8)
        values = json.loads(data) if data[:4096].lstrip().startswith(b"{") else None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); fetch it again.") from error
    tokenizer: Tokenizer
    if values is None:
        from mistral_chat.tokenizers.sentencepiece import SentencePieceTokenizer

        tokenizer = SentencePieceTokenizer(data, config)
    elif "model" in values:
        from mistral_chat.tokenizers.huggingface import HuggingFaceTokenizer

        tokenizer = HuggingFaceTokenizer(values, config, str(path))
    else:
        from mistral_chat.tokenizers.tekken import TekkenTokenizer

        tokenizer = TekkenTokenizer(data, values, str(path), config)
    _check_marks(tokenizer, config, path, folder)
    return tokenizer


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
