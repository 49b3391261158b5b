"""SentencePiece vocabularies: Mistral's v1, v2, v3 and v7, Llama's, and those inside GGUF files.

Computed by the ``sentencepiece`` library. A control piece has a type of its own there, and no text
is ever cut into one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from mistral_chat.tokenizers.config import TokenizerConfig, config_from_gguf, gguf_list
from quant.errors import CheckpointError

MODEL_FILE = "tokenizer.model"
SPACE = "▁"

_PIECE = ModelProto.SentencePiece
_BPE = 2  # TrainerSpec.ModelType


class SentencePieceTokenizer:
    """A vocabulary of pieces in which ``▁`` is a space and ``<0x41>`` the byte 0x41.

    ``model`` is a serialized ModelProto (the content of ``tokenizer.model``). Tokens that
    ``config`` adds behind the pieces are control ids. Raises CheckpointError for a broken model.

    With Mistral's v1, ``encode("Hello world")`` is ``[22557, 1526]``.
    """

    kind = "SentencePiece"

    def __init__(self, model: bytes, config: TokenizerConfig | None = None) -> None:
        self._config = config or TokenizerConfig()
        proto = ModelProto()
        try:
            proto.ParseFromString(model)
        # The library for the format raises an exception of its own.
        except Exception as error:
            raise CheckpointError(
                "The tokenizer is no SentencePiece model; fetch the file again."
            ) from error
        if not proto.pieces:
            raise CheckpointError("The tokenizer has no pieces; fetch the file again.")
        self._controls = _controls(proto, self._config)
        self._proto = proto
        self._library = _processor(proto)
        self.space_prefix = "always" if proto.normalizer_spec.add_dummy_prefix else "never"
        self._added = {
            token: piece
            for piece, token in self._controls.items()
            if token >= self._library.vocab_size()
        }

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> SentencePieceTokenizer:
        """Built from ``tokenizer.ggml.*``; raises CheckpointError where a part is missing."""
        pieces: list[str] = gguf_list(metadata, "tokens", str)
        scores: list[float] = gguf_list(metadata, "scores", (int, float))
        types: list[int] = gguf_list(metadata, "token_type", int)
        if not len(pieces) == len(scores) == len(types):
            raise CheckpointError("The model's vocabulary is inconsistent; fetch the file again.")

        config = config_from_gguf(metadata, add_bos=True)
        proto = ModelProto()
        proto.trainer_spec.model_type = _BPE
        proto.trainer_spec.vocab_size = len(pieces)
        proto.trainer_spec.byte_fallback = _PIECE.BYTE in types
        normalizer = proto.normalizer_spec
        normalizer.name = "identity"
        normalizer.add_dummy_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        normalizer.remove_extra_whitespaces = bool(
            metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)
        )
        normalizer.escape_whitespaces = True
        try:
            if "tokenizer.ggml.precompiled_charsmap" in metadata:
                characters = gguf_list(metadata, "precompiled_charsmap", int)
                normalizer.precompiled_charsmap = bytes(characters)
            for piece, score, kind in zip(pieces, scores, types, strict=True):
                # GGUF numbers the types as SentencePiece does.
                proto.pieces.add(piece=piece, score=score, type=kind)
        except (ValueError, TypeError) as error:
            raise CheckpointError(
                f"The model's vocabulary is damaged ({error}); fetch the file again."
            ) from error
        return cls(proto.SerializeToString(), config)

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.model`` and ``tokenizer_config.json``."""
        (folder / MODEL_FILE).write_bytes(self._proto.SerializeToString())
        self._config.save(folder)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added ones included."""
        pieces: int = self._library.vocab_size()
        return max([pieces, *(token + 1 for token in self._added)])

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text."""
        return self._named(self._config.bos, self._library.bos_id())

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text."""
        return self._named(self._config.eos, self._library.eos_id())

    @property
    def adds_bos(self) -> bool:
        """True unless the tokenizer's configuration denies it."""
        return self._config.add_bos is not False

    @property
    def chat_template(self) -> str | None:
        """The Jinja text that came with the model."""
        return self._config.chat_template

    @property
    def special_tokens(self) -> Mapping[str, str | list[str]]:
        """Special tokens beside BOS and EOS, by the names that a chat template knows."""
        return self._config.named

    @property
    def controls(self) -> Mapping[str, int]:
        """Every control piece and its id."""
        return self._controls

    @cached_property
    def mistral_version(self) -> str | None:
        """The version of Mistral's own vocabularies, by the pieces that only it has."""
        pieces, library = self._library.vocab_size(), self._library
        if pieces == 32000 and library.id_to_piece(28705) == SPACE:
            return "v1"
        if pieces != 32768 or self.control_id("[INST]") != 3 or self.control_id("[/INST]") != 4:
            return None
        if self.control_id("[SYSTEM_PROMPT]") is not None:
            return "v7"
        return "v2" if self.control_id("[PREFIX]") is None else "v3"

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Ids of plain text, never a control id."""
        library = self._library if first else self._inside
        ids: list[int] = library.encode(text)
        return ids

    def control_id(self, piece: str) -> int | None:
        """The id of a control piece, or None."""
        return self._controls.get(piece)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; none for a control id. Raises ValueError for an unknown id."""
        if not 0 <= token < self._library.vocab_size():
            if token in self._added:
                return b""
            raise ValueError(f"The vocabulary has no token {token}.")
        if self._library.is_control(token) or self._library.is_unknown(token):
            return b""
        piece: str = self._library.id_to_piece(token)
        if self._library.is_byte(token):
            return bytes([int(piece[1:-1], 16)])
        return piece.replace(SPACE, " ").encode()

    def show(self, ids: Sequence[int]) -> str:
        """The pieces themselves, side by side."""
        return "".join(self._added.get(token) or self._library.id_to_piece(token) for token in ids)

    @cached_property
    def _inside(self) -> Any:
        """The same vocabulary without the space before a text."""
        proto = ModelProto()
        proto.CopyFrom(self._proto)
        proto.normalizer_spec.add_dummy_prefix = False
        return _processor(proto)

    def _named(self, piece: str | None, otherwise: int) -> int | None:
        token = self._controls.get(piece) if piece is not None else None
        if token is not None:
            return token
        return otherwise if otherwise >= 0 else None


def _controls(proto: Any, config: TokenizerConfig) -> dict[str, int]:
    """Control pieces and their ids; pieces that ``config`` names as marks become control pieces."""
    known = {}
    for token, piece in enumerate(proto.pieces):
        if piece.type == _PIECE.USER_DEFINED and config.names(piece.piece):
            piece.type = _PIECE.CONTROL
        if piece.type == _PIECE.CONTROL:
            known[piece.piece] = token
    for piece, token in config.added.items():
        if token < 0 or token >= len(proto.pieces) + 4096:
            raise CheckpointError(f"The tokenizer's added token {piece!r} has the id {token}.")
        if token < len(proto.pieces):
            entry = proto.pieces[token]
            marks = config.names(piece) and entry.type in (_PIECE.NORMAL, _PIECE.USER_DEFINED)
            if not marks or entry.piece != piece:
                continue
            entry.type = _PIECE.CONTROL
        known[piece] = token
    return known


def _processor(proto: Any) -> Any:
    try:
        return SentencePieceProcessor(model_proto=proto.SerializeToString())
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"The tokenizer's vocabulary cannot be used ({error}); fetch the file again."
        ) from error
