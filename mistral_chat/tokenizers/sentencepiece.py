"""SentencePiece vocabularies: Mistral's v1, v2, v3 and v7, Llama's, and those inside GGUF files.

Computed by the ``sentencepiece`` library. A control piece has a type of its own there, and no text
is ever cut into one.

For those inside a GGUF the rules are llama.cpp's: user-defined pieces are looked for before
anything else, the longest first; text after one of them begins with a space like a text of its own;
of pieces that are spelled alike the last counts; and bytes are found by their names, whatever their
type. So the library gets a vocabulary in which this is so (:func:`_for_library`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from mistral_chat.tokenizers.config import (
    TokenizerConfig,
    config_from_gguf,
    gguf_flag,
    gguf_list,
)
from mistral_chat.tokenizers.fields import are_texts, library
from mistral_chat.tokenizers.vocabulary import Vocabulary, check_marks
from quant.errors import CheckpointError, UnsupportedError

MODEL_FILE = "tokenizer.model"
SPACE = "▁"

_PIECE = ModelProto.SentencePiece
_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_BYTE_NAMES = {f"<0x{byte:02X}>": byte for byte in range(256)}
_GGUF_RULES = "gguf"
"""The name of the normalizer in a model that came out of a GGUF, by which its rules are known."""


class SentencePieceTokenizer(Vocabulary):
    """A vocabulary of pieces in which ``▁`` is a space and ``<0x41>`` the byte 0x41.

    ``model`` is a serialized ModelProto (the content of ``tokenizer.model``). Tokens that
    ``config`` adds behind the pieces are control ids. Raises CheckpointError for a broken model.

    With Mistral's v1, ``encode("Hello world")`` is ``[22557, 1526]``.
    """

    kind = "SentencePiece"

    def __init__(self, model: bytes, config: TokenizerConfig | None = None) -> None:
        self._config = config or TokenizerConfig()
        proto = ModelProto()
        with library("The tokenizer is no SentencePiece model"):
            proto.ParseFromString(model)
        if not proto.pieces:
            raise CheckpointError("The tokenizer has no pieces; fetch the file again.")
        if not are_texts(piece.piece for piece in proto.pieces):
            raise CheckpointError("The tokenizer has a piece that is no UTF-8; fetch it again.")
        self._controls = _controls(proto, self._config)
        self._pieces = [(piece.piece, piece.type) for piece in proto.pieces]
        texts = [token for token, (_, kind) in enumerate(self._pieces) if kind != _PIECE.CONTROL]
        check_marks(self._controls, texts)
        self._proto = proto
        self._by_gguf = proto.normalizer_spec.name == _GGUF_RULES
        if not self._by_gguf and any(self._pieces[each][0] in self._controls for each in texts):
            raise UnsupportedError(
                "The model's vocabulary spells a control token like a piece of text, so that "
                "anybody could write one; choose another model."
            )
        self._library = _processor(_for_library(proto) if self._by_gguf else proto)
        self.space_prefix = "always" if proto.normalizer_spec.add_dummy_prefix else "never"
        self._added = {
            token: piece for piece, token in self._controls.items() if token >= len(self._pieces)
        }
        found = {text: token for token, (text, kind) in enumerate(self._pieces)
                 if kind == _PIECE.USER_DEFINED and text}  # fmt: skip
        # The longest is looked for first.
        self._found = dict(sorted(found.items(), key=lambda pair: -len(pair[0].encode())))

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
        normalizer = proto.normalizer_spec
        normalizer.name = _GGUF_RULES
        normalizer.add_dummy_prefix = gguf_flag(metadata, "add_space_prefix", True)
        normalizer.remove_extra_whitespaces = False
        normalizer.escape_whitespaces = True
        try:
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
        return max([len(self._pieces), *(token + 1 for token in self._added)])

    @property
    def text_size(self) -> int:
        """One more than the largest id that a text can give."""
        sizes = (
            token + 1 for token, (_, kind) in enumerate(self._pieces) if kind != _PIECE.CONTROL
        )
        return max(sizes, default=0)

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text."""
        return self._named(self._config.bos, self._proto.trainer_spec.bos_piece)

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text."""
        return self._named(self._config.eos, self._proto.trainer_spec.eos_piece)

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
        pieces = len(self._pieces)
        if pieces == 32000 and self._pieces[28705][0] == SPACE:
            return "v1"
        if pieces != 32768 or self.control_id("[INST]") != 3 or self.control_id("[/INST]") != 4:
            return None
        if self.control_id("[SYSTEM_PROMPT]") is not None:
            return "v7"
        return "v2" if self.control_id("[PREFIX]") is None else "v3"

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; none for a control id, and for one the vocabulary does not have."""
        if not 0 <= token < len(self._pieces):
            return b""
        piece, kind = self._pieces[token]
        if kind in (_PIECE.CONTROL, _PIECE.UNKNOWN):
            return b""
        if kind == _PIECE.BYTE and piece in _BYTE_NAMES:
            return bytes([_BYTE_NAMES[piece]])
        return str(piece).replace(SPACE, " ").encode()

    def show(self, ids: Sequence[int]) -> str:
        """The pieces themselves, side by side."""
        pieces, added = self._pieces, self._added
        return "".join(
            pieces[token][0] if 0 <= token < len(pieces) else added.get(token, "") for token in ids
        )

    def _cut(self, text: str, first: bool) -> list[int]:
        if not self._by_gguf:
            ids: list[int] = (self._library if first else self._inside).encode(text)
            return ids
        ids = []
        begins = first
        for part in self._parts(text):
            if isinstance(part, int):
                ids.append(part)
            elif part:
                space = " " if begins and self.space_prefix == "always" else ""
                ids += self._library.encode(space + part)
            begins = True
        # The library may have been lent pieces that the model does not have.
        return [token for token in ids if token < len(self._pieces)]

    def _parts(self, text: str) -> list[str | int]:
        """The text with the ids of user-defined pieces in their places."""
        parts: list[str | int] = [text]
        for piece, token in self._found.items():
            if piece in text:
                parts = [each for part in parts for each in _split(part, piece, token)]
        return parts

    def _coverage(self) -> tuple[int, bytes] | None:
        normalizer, trainer = self._proto.normalizer_spec, self._proto.trainer_spec
        shrinks = normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces
        if shrinks or trainer.model_type not in (_UNIGRAM, _BPE):
            return None
        texts = [piece for piece, kind in self._pieces if kind != _PIECE.CONTROL]
        if not _BYTE_NAMES.keys() <= set(texts) or not (self._by_gguf or trainer.byte_fallback):
            return None
        return max(len(piece.encode()) for piece in texts), b""

    @cached_property
    def _inside(self) -> Any:
        """The same vocabulary without the space before a text."""
        proto = ModelProto()
        proto.CopyFrom(self._proto)
        proto.normalizer_spec.add_dummy_prefix = False
        return _processor(proto)

    def _named(self, piece: str | None, otherwise: str) -> int | None:
        token = self._controls.get(piece) if piece is not None else None
        return self._controls.get(otherwise) if token is None else token


def _split(part: str | int, piece: str, token: int) -> Iterator[str | int]:
    """A part, cut at every place where it spells ``piece``."""
    if isinstance(part, int):
        yield part
        return
    for place, text in enumerate(part.split(piece)):
        if place:
            yield token
        if text:
            yield text


def _controls(proto: Any, config: TokenizerConfig) -> dict[str, int]:
    """Control pieces and their ids; pieces that ``config`` names as marks become control pieces.

    A piece that ``config`` gives another name has that name: fine-tuning renames reserved ones.
    """
    known = {}
    by_gguf = proto.normalizer_spec.name == _GGUF_RULES
    for token, piece in enumerate(proto.pieces):
        if piece.type == _PIECE.USER_DEFINED and config.names(piece.piece):
            piece.type = _PIECE.CONTROL
        if by_gguf and piece.type == _PIECE.NORMAL and config.spells_mark(piece.piece):
            piece.type = _PIECE.CONTROL
        if piece.type == _PIECE.CONTROL:
            known[piece.piece] = token
    for piece, token in config.added.items():
        if token >= len(proto.pieces) + 4096:
            raise CheckpointError(f"The tokenizer's added token {piece!r} has the id {token}.")
        if token < len(proto.pieces):
            entry = proto.pieces[token]
            if entry.type in (_PIECE.BYTE, _PIECE.UNKNOWN) and entry.piece != piece:
                raise CheckpointError(
                    f"The tokenizer's files disagree about the token {token}: it is "
                    f"{entry.piece!r} and {piece!r}; fetch the files of one model."
                )
            if entry.piece != piece:
                if known.get(entry.piece) == token:
                    del known[entry.piece]
                entry.piece = piece
                entry.type = _PIECE.CONTROL if config.names(piece) else _PIECE.USER_DEFINED
            elif config.names(piece) and entry.type in (_PIECE.NORMAL, _PIECE.USER_DEFINED):
                entry.type = _PIECE.CONTROL
            if entry.type != _PIECE.CONTROL:
                continue
        known[piece] = token
    return known


def _for_library(proto: Any) -> Any:
    """A vocabulary with which the library cuts a text as llama.cpp does with that of a GGUF.

    The library refuses pieces that are empty or spelled alike, and wants an ordinary piece, an
    unknown one, and all 256 bytes or none; what is lacking is lent to it behind the model's ids.
    """
    last = {piece.piece: token for token, piece in enumerate(proto.pieces)
            if piece.type not in (_PIECE.CONTROL, _PIECE.UNKNOWN)}  # fmt: skip
    made = ModelProto()
    made.trainer_spec.CopyFrom(proto.trainer_spec)
    made.normalizer_spec.CopyFrom(proto.normalizer_spec)
    made.normalizer_spec.add_dummy_prefix = False
    # User-defined pieces have been looked for before.
    named = [piece if last.get(piece) == token else "" for token, piece in
             enumerate(each.piece for each in proto.pieces)]  # fmt: skip
    bytes_ = _BYTE_NAMES.keys() & last.keys()
    made.trainer_spec.byte_fallback = bool(bytes_)
    unknown = False
    for token, piece in enumerate(proto.pieces):
        kind = _PIECE.BYTE if named[token] in _BYTE_NAMES else _PIECE.NORMAL
        name = named[token]
        if piece.type == _PIECE.UNKNOWN and not unknown:
            kind, unknown = _PIECE.UNKNOWN, True
            name = ""
        elif not name:
            kind = _PIECE.CONTROL
        # No text is cut into a name of characters that nothing merges.
        while not name or (name in last and last[name] != token):
            name = f"{name}\U0010ffff{token}"
        made.pieces.add(piece=name, score=piece.score, type=kind)
    if all(piece.type != _PIECE.NORMAL for piece in made.pieces):
        made.pieces.add(piece="\U0010ffff" * 3, score=0, type=_PIECE.NORMAL)
    if not unknown:
        made.pieces.add(piece="\U0010ffff" * 2, score=0, type=_PIECE.UNKNOWN)
    for name in sorted(_BYTE_NAMES.keys() - bytes_) if bytes_ else ():
        made.pieces.add(piece=name, score=0, type=_PIECE.BYTE)
    return made


def _processor(proto: Any) -> Any:
    with library("The tokenizer's vocabulary cannot be used"):
        return SentencePieceProcessor(model_proto=proto.SerializeToString())
