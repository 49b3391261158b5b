"""Byte-level BPE, as in GPT-2 and SmolLM2, computed by the ``tokenizers`` library."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from quant.errors import CheckpointError, UnsupportedError

MODEL_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"

# tokenizer.ggml.token_type (GGUF specification): these two are all that the known vocabularies use.
_NORMAL = 1
_CONTROL = 3


def byte_alphabet() -> dict[str, int]:
    """The 256 characters that stand for bytes in a byte-level vocabulary.

    Printable bytes stand for themselves, the others for the characters from U+0100 on, in order
    (OpenAI's GPT-2 ``bytes_to_unicode``).

    >>> byte_alphabet()["A"], byte_alphabet()["Ġ"], byte_alphabet()["Ċ"]
    (65, 32, 10)
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in sorted(printable)}
    alphabet.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return alphabet


class ByteLevelTokenizer:
    """A byte-level BPE vocabulary, its control pieces and its chat template.

    Control pieces are never registered with the library, so nothing a person types becomes one.
    Bytes that have no token of their own (in SmolLM2 six control characters and bytes that no
    assigned character needs) give no id, as in the library the model was trained with.
    """

    def __init__(self, library: Library, config: Mapping[str, Any]) -> None:
        self._library = library
        self._config = dict(config)
        self._controls: dict[str, int] = dict(config["control_tokens"])
        self._control_ids = frozenset(self._controls.values())
        self._alphabet = byte_alphabet()
        pieces = sorted(self._controls, key=len, reverse=True)
        self._control_pattern = re.compile("(" + "|".join(map(re.escape, pieces)) + ")")

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> ByteLevelTokenizer:
        """Built from ``tokenizer.ggml.*``; raises CheckpointError and UnsupportedError."""
        split = metadata.get("tokenizer.ggml.pre")
        if split != "smollm":
            raise UnsupportedError(
                f"This model splits text by the rule {split!r} (tokenizer.ggml.pre), which is not "
                "handled yet; choose a model whose rule is 'smollm'."
            )
        try:
            pieces: list[str] = metadata["tokenizer.ggml.tokens"]
            kinds: list[int] = metadata["tokenizer.ggml.token_type"]
            merges: list[str] = metadata["tokenizer.ggml.merges"]
        except KeyError as error:
            raise CheckpointError(
                f"The model file has no {error.args[0]}; it is incomplete, fetch it again."
            ) from error
        controls = _control_pieces(pieces, kinds)
        library = _build(pieces, merges, controls)
        config = {
            "tokenizer_class": "ByteLevelTokenizer",
            "control_tokens": controls,
            "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
            "add_bos_token": metadata.get("tokenizer.ggml.add_bos_token", False),
            "chat_template": metadata.get("tokenizer.chat_template"),
        }
        return cls(library, config)

    @classmethod
    def load(cls, folder: Path) -> ByteLevelTokenizer:
        """Read what :meth:`save` wrote; raises CheckpointError if it is missing or broken."""
        for name in (MODEL_FILE, CONFIG_FILE):
            if not (folder / name).is_file():
                raise CheckpointError(
                    f"The model folder {folder} has no {name}; remove the folder and make it again."
                )
        try:
            config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            return cls(Library.from_file(str(folder / MODEL_FILE)), config)
        except OSError:
            raise
        # The library raises plain Exception for a file it cannot read.
        except Exception as error:
            raise CheckpointError(
                f"The tokenizer in {folder} cannot be read ({error}); remove the folder and make "
                "it again."
            ) from error

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` (the library's own format) and ``tokenizer_config.json``."""
        text = json.dumps(self._config, ensure_ascii=False, indent=2)
        (folder / MODEL_FILE).write_text(self._library.to_str(), encoding="utf-8")
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Number of ids, control ids included."""
        return self._library.get_vocab_size(with_added_tokens=False)

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text."""
        value: int | None = self._config.get("eos_token_id")
        return value

    @property
    def chat_template(self) -> str | None:
        """The Jinja text that came with the model."""
        value: str | None = self._config.get("chat_template")
        return value

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, never a control id.

        For SmolLM2, ``encode("Hello world")`` is ``[19556, 905]``, and ``encode("<|im_end|>")``
        is seven ordinary ids.
        """
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def encode_template_text(self, text: str) -> list[int]:
        """Ids of text that the project itself wrote, in which control pieces are control ids.

        Never for text that a person or a model wrote.
        """
        if not self._controls:
            return self.encode(text)
        ids: list[int] = []
        for part in self._control_pattern.split(text):
            control = self._controls.get(part)
            ids.extend(self.encode(part) if control is None else [control])
        return ids

    def control_id(self, piece: str) -> int | None:
        """The id of a control piece, or None."""
        return self._controls.get(piece)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; none for a control id. Raises ValueError for an unknown id."""
        if token in self._control_ids:
            return b""
        piece = self._library.id_to_token(token) if token >= 0 else None
        if piece is None:
            raise ValueError(f"The vocabulary has no token {token}.")
        return bytes(self._alphabet[character] for character in piece)


def _control_pieces(pieces: list[str], kinds: list[int]) -> dict[str, int]:
    """The control pieces and their ids.

    Raises for a vocabulary in which a piece would not mean what the methods above assume.
    """
    alphabet = byte_alphabet()
    if len(kinds) != len(pieces) or len(set(pieces)) != len(pieces):
        raise CheckpointError("The model's vocabulary is inconsistent; fetch the file again.")
    for piece, kind in zip(pieces, kinds, strict=True):
        if kind not in (_NORMAL, _CONTROL):
            raise UnsupportedError(
                f"The model's vocabulary has a token of type {kind} ({piece!r}), which is not "
                "handled yet; choose another model."
            )
        if kind == _NORMAL and not alphabet.keys() >= set(piece):
            raise CheckpointError(
                f"The model's vocabulary has a token {piece!r} that is no bytes; fetch it again."
            )
    controls = {piece: i for i, piece in enumerate(pieces) if kinds[i] == _CONTROL}
    if any(len(piece) < 2 for piece in controls):
        raise UnsupportedError(
            "The model's vocabulary has a control token of one character, which "
            "plain text would give; choose another model."
        )
    return controls


def _build(pieces: list[str], merges: list[str], controls: Mapping[str, int]) -> Library:
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        # A merge that spells a control piece would let plain text produce its id.
        if left + right not in controls:
            pairs.append((left, right))
    try:
        model = models.BPE({piece: i for i, piece in enumerate(pieces)}, pairs)
    except Exception as error:
        raise CheckpointError(
            f"The model's merges do not fit its vocabulary ({error}); fetch the file again."
        ) from error
    library = Library(model)
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    library.decoder = decoders.ByteLevel()
    return library
