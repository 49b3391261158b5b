"""Vocabularies of Hugging Face's ``tokenizers``: ``tokenizer.json``, and byte-level ones in GGUF.

The library finds added tokens in a text wherever they are spelled, special or not. So the marks
among them are taken out before it is built, and so are merges that would spell one: what a person
types is never cut into a control piece.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Library

from mistral_chat.tokenizers.config import TokenizerConfig, config_from_gguf, gguf_list
from mistral_chat.tokenizers.sentencepiece import SPACE
from quant.errors import CheckpointError, UnsupportedError

MODEL_FILE = "tokenizer.json"

TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Tekken splits a text; a GGUF names it ``tekken`` and does not spell it out."""

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_SPLITS: dict[str, Any] = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {**_BYTE_LEVEL, "use_regex": True},
        ],
    },
    "gpt-2": {**_BYTE_LEVEL, "use_regex": True},
    "tekken": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": TEKKEN_PATTERN},
                "behavior": "Isolated",
                "invert": False,
            },
            {**_BYTE_LEVEL, "use_regex": False},
        ],
    },
}
"""How a text is split before the merges, by the name in ``tokenizer.ggml.pre``."""

_SUBWORD_MARKS = ("continuing_subword_prefix", "end_of_word_suffix")
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # tokenizer.ggml.token_type


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


class HuggingFaceTokenizer:
    """The vocabulary that ``values``, the content of a ``tokenizer.json``, describes.

    Bytes that have no token of their own (in SmolLM2 six control characters and bytes that no
    assigned character needs) give no id, as in the library the model was trained with.

    Raises CheckpointError for a broken description, UnsupportedError for a kind of vocabulary
    whose tokens are neither byte-level nor like SentencePiece's.
    """

    mistral_version = None

    def __init__(self, values: Mapping[str, Any], config: TokenizerConfig) -> None:
        self._values = values
        self._config = config
        try:
            model = values["model"]
            vocabulary: dict[str, int] = dict(model["vocab"])
            added: list[dict[str, Any]] = list(values.get("added_tokens") or [])
            marks = {entry["content"]: entry["id"] for entry in added if _is_mark(entry, config)}
            marks.update(
                {
                    piece: token
                    for piece, token in config.added.items()
                    if config.names(piece) and vocabulary.get(piece, token) == token
                }
            )
            self._texts: dict[int, str] = {
                entry["id"]: entry["content"] for entry in added if entry["content"] not in marks
            }
            self._marks = marks
            self._pieces = {token: piece for piece, token in vocabulary.items()}
            self._byte_level = _is_byte_level(values)
            self._library = _library(values, marks)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"The tokenizer's description is damaged ({error}); fetch the file again."
            ) from error
        self._ids = {token: piece for piece, token in marks.items()}
        self.kind = "byte-level BPE" if self._byte_level else "BPE with byte fallback"

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> HuggingFaceTokenizer:
        """Built from ``tokenizer.ggml.*``; raises CheckpointError and UnsupportedError."""
        split = metadata.get("tokenizer.ggml.pre")
        split = "gpt-2" if split == "default" else split
        if not isinstance(split, str) or split not in _SPLITS:
            raise UnsupportedError(
                f"This model splits text by the rule {split!r} (tokenizer.ggml.pre), which is not "
                f"handled; rules that are: {', '.join(_SPLITS)}."
            )
        pieces: list[str] = gguf_list(metadata, "tokens", str)
        types: list[int] = gguf_list(metadata, "token_type", int)
        merges: list[str] = gguf_list(metadata, "merges", str)
        _check_pieces(pieces, types)

        config = config_from_gguf(metadata, add_bos=False)
        added = [
            {
                "id": token,
                "content": piece,
                "special": types[token] == _CONTROL,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for token, piece in enumerate(pieces)
            if types[token] in (_CONTROL, _USER_DEFINED)
        ]
        values = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": _SPLITS[split],
            "post_processor": None,
            "decoder": {**_BYTE_LEVEL, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                # Tekken's merges are worked out from ranks, and a piece may have none.
                "ignore_merges": split == "tekken",
                "vocab": {piece: token for token, piece in enumerate(pieces)},
                "merges": [merge.split(" ", 1) for merge in merges],
            },
        }
        return cls(values, config)

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
        text = json.dumps(self._values, ensure_ascii=False)
        (folder / MODEL_FILE).write_text(text, encoding="utf-8")
        self._config.save(folder)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added ones included."""
        return max([*self._pieces, *self._ids, *self._texts], default=-1) + 1

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text."""
        return self._marks.get(self._config.bos or "")

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text."""
        return self._marks.get(self._config.eos or "")

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer's own configuration begins a text with BOS."""
        return self._config.add_bos is True

    @cached_property
    def space_prefix(self) -> str:
        """When a space is put before a text: ``always``, ``first`` or ``never``."""
        return _space_prefix(self._values)

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
        return self._marks

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Ids of plain text, never a control id.

        For SmolLM2, ``encode("Hello world")`` is ``[19556, 905]``, and ``encode("<|im_end|>")``
        is seven ordinary ids.
        """
        library = self._library if first or self.space_prefix == "never" else self._inside
        ids: list[int] = library.encode(text, add_special_tokens=False).ids
        return ids

    def control_id(self, piece: str) -> int | None:
        """The id of a control piece, or None."""
        return self._marks.get(piece)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; none for a control id. Raises ValueError for an unknown id."""
        if token in self._ids:
            return b""
        if token in self._texts:
            return self._texts[token].encode()
        piece = self._pieces.get(token)
        if piece is None:
            raise ValueError(f"The vocabulary has no token {token}.")
        if self._byte_level:
            return bytes(self._alphabet[character] for character in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode()

    def show(self, ids: Sequence[int]) -> str:
        """Text between the control pieces' names; half a character is U+FFFD."""
        shown = [self._ids[t].encode() if t in self._ids else self.token_bytes(t) for t in ids]
        return b"".join(shown).decode("utf-8", "replace")

    @cached_property
    def _inside(self) -> Library:
        """The same vocabulary without the space before a text."""
        return _library(_without_prefix(self._values), self._marks)

    @cached_property
    def _alphabet(self) -> dict[str, int]:
        return byte_alphabet()


def _is_mark(entry: Mapping[str, Any], config: TokenizerConfig) -> bool:
    return bool(entry.get("special")) or config.names(entry["content"])


def _library(values: Mapping[str, Any], marks: Mapping[str, int]) -> Library:
    """The library's tokenizer for plain text: it knows no mark and has no way to one."""
    model = values["model"]
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedError(
            f"This model's tokenizer is of the kind {model.get('type')!r}, which is not handled; "
            "choose a model whose tokenizer.json holds BPE."
        )
    merges = [
        tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in model["merges"]
    ]
    kept = [
        (left, right)
        for left, right in merges
        if left + right not in marks and left not in marks and right not in marks
    ]
    vocabulary = {piece: token for piece, token in model["vocab"].items() if piece not in marks}
    added = [entry for entry in values.get("added_tokens") or [] if entry["content"] not in marks]
    # The library numbers added tokens itself, unless it finds them among the pieces.
    vocabulary.update({entry["content"]: entry["id"] for entry in added})
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    rest = {**values, "model": empty, "added_tokens": [], "post_processor": None}
    try:
        library = Library.from_str(json.dumps(rest))
        # Built from Python's objects, in a fraction of the time that a text of them would take. No
        # unknown token: characters without a piece give nothing.
        library.model = models.BPE(
            vocabulary,
            kept,
            byte_fallback=bool(model.get("byte_fallback")),
            ignore_merges=bool(model.get("ignore_merges")),
            **{name: model[name] for name in _SUBWORD_MARKS if model.get(name)},
        )
        flags = ("single_word", "lstrip", "rstrip", "normalized")
        library.add_tokens(
            [
                AddedToken(entry["content"], **{flag: bool(entry.get(flag)) for flag in flags})
                for entry in added
            ]
        )
    # The library raises plain Exception for what it cannot read.
    except Exception as error:
        raise CheckpointError(
            f"The tokenizer cannot be read ({error}); fetch the file again."
        ) from error
    return library


def _steps(value: object) -> list[dict[str, Any]]:
    """A part of a description as a list: a sequence is its members, null is empty."""
    if not isinstance(value, dict):
        return []
    for name in ("normalizers", "pretokenizers", "decoders"):
        if name in value:
            return list(value[name])
    return [value]


def _is_byte_level(values: Mapping[str, Any]) -> bool:
    kinds = {step["type"] for step in _steps(values.get("decoder"))}
    if "ByteLevel" in kinds:
        return True
    if kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return False
    raise UnsupportedError(
        f"This model's tokenizer turns tokens into text by {', '.join(sorted(kinds)) or 'nothing'},"
        " which is not handled; choose a model with a byte-level or SentencePiece vocabulary."
    )


def _space_prefix(values: Mapping[str, Any]) -> str:
    for step in _steps(values.get("normalizer")):
        if step["type"] == "Prepend":
            return "always"
    for step in _steps(values.get("pre_tokenizer")):
        if step["type"] == "Metaspace":
            scheme: str = step.get("prepend_scheme", "always")
            return scheme
        if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
            return "always"
    return "never"


def _without_prefix(values: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the same tokenizer that puts no space before a text."""
    no_space: dict[str, dict[str, Any]] = {
        "Metaspace": {"prepend_scheme": "never"},
        "ByteLevel": {"add_prefix_space": False},
    }
    changed = dict(values)
    for part, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        steps = [
            {**step, **no_space.get(step["type"], {})}
            for step in _steps(values.get(part))
            if step["type"] != "Prepend"
        ]
        changed[part] = {"type": "Sequence", inner: steps} if steps else None
    return changed


def _check_pieces(pieces: list[str], types: list[int]) -> None:
    """Raise for a GGUF vocabulary in which a piece would not mean what is assumed here."""
    alphabet = byte_alphabet()
    if len(types) != len(pieces) or len(set(pieces)) != len(pieces):
        raise CheckpointError("The model's vocabulary is inconsistent; fetch the file again.")
    for piece, kind in zip(pieces, types, strict=True):
        if kind not in (_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED):
            raise UnsupportedError(
                f"The model's vocabulary has a token of type {kind} ({piece!r}), which is not "
                "handled; choose another model."
            )
        if kind == _NORMAL and not alphabet.keys() >= set(piece):
            raise CheckpointError(
                f"The model's vocabulary has a token {piece!r} that is no bytes; fetch it again."
            )
        if kind == _CONTROL and len(piece) < 2:
            raise UnsupportedError(
                "The model's vocabulary has a control token of one character, which plain text "
                "would give; choose another model."
            )
