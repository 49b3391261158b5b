"""Vocabularies of Hugging Face's ``tokenizers``: ``tokenizer.json`` and byte-level ones in GGUF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Library

from mistral_chat.tokenizers.config import TokenizerConfig, config_from_gguf, gguf_list
from mistral_chat.tokenizers.description import Description, build
from mistral_chat.tokenizers.fields import write_json
from mistral_chat.tokenizers.tekken import TEKKEN_PATTERN
from mistral_chat.tokenizers.vocabulary import Vocabulary, check_marks
from quant.errors import CheckpointError, UnsupportedError

MODEL_FILE = "tokenizer.json"

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

_BYTE_PIECES = {f"<0x{byte:02X}>" for byte in range(256)}
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


_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
"""What Unicode counts as white space. Python counts four separators of data among it, too."""


class HuggingFaceTokenizer(Vocabulary):
    """The vocabulary that ``values``, the content of a ``tokenizer.json``, describes.

    Bytes that have no token of their own (in SmolLM2 six control characters and bytes that no
    assigned character needs) give no id, or the one for what is unknown where there is such a
    token, as in the library the model was trained with.

    Raises CheckpointError for a broken description, UnsupportedError for a kind of vocabulary
    whose tokens are neither byte-level nor like SentencePiece's. ``place`` is the file's name for
    these errors.
    """

    mistral_version = None

    def __init__(
        self, values: Mapping[str, Any], config: TokenizerConfig, place: str = MODEL_FILE
    ) -> None:
        self._values = values
        self._config = config
        self._description = Description.read(values, place)
        self._marks = self._description.marks(config)
        self._pieces = _texts(self._description, self._marks, place)
        check_marks(self._marks, self._pieces)
        self._added = {each.token for each in self._description.added}
        self._swallowing = {
            each.piece: (each.flags["lstrip"], each.flags["rstrip"], each.flags["normalized"])
            for each in self._description.added
        }
        self._byte_level = self._description.is_byte_level
        self._decode = self._description.decoding()
        self.space_prefix = self._description.space_prefix
        self._library, self._numbers = build(self._description, self._marks)
        self._names = {token: piece for piece, token in self._marks.items()}
        unknown = self._description.unknown
        if unknown is not None and unknown in self._description.vocabulary:
            self._names[self._description.vocabulary[unknown]] = unknown
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
                "special": types[token] != _USER_DEFINED,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for token, piece in enumerate(pieces)
            if types[token] in (_CONTROL, _USER_DEFINED) or config.spells_mark(piece)
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
        write_json(folder / MODEL_FILE, self._values)
        self._config.save(folder)

    @property
    def vocab_size(self) -> int:
        """Number of ids, added ones included."""
        return max([self.text_size, *(token + 1 for token in self._names)])

    @property
    def text_size(self) -> int:
        """One more than the largest id that a text can give."""
        return max(self._pieces, default=-1) + 1

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

    def left_between(self, text: str, before: str | None, after: str | None) -> tuple[int, int]:
        """Where begins and ends what the control pieces beside a text leave of its white space.

        A token that is looked for in texts and is found there is none of theirs.
        """
        nothing = False, False, False
        _, takes_after, late_before = self._swallowing.get(before or "", nothing)
        takes_before, _, late_after = self._swallowing.get(after or "", nothing)
        begin, end = 0, len(text)
        if takes_after:
            begin = _white_space_after(text, 0)
            for start, stop, each in self._description.find_added(text, self._marks, late_before):
                if start >= begin:
                    break
                stop = _white_space_after(text, stop) if each.flags["rstrip"] else stop
                if not each.flags["lstrip"] or begin < stop:
                    begin = start
                    break
                # Nothing is left of one that takes in white space before it, too.
                begin = stop
        if takes_before:
            end = len(text.rstrip(_WHITE_SPACE))
            found = self._description.find_added(text, self._marks, late_after)
            end = max([end, *(stop for _, stop, _ in found[-1:])])
        return begin, max(begin, end)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; none for a control id, and for one the vocabulary does not have.

        A piece of a byte-level vocabulary that holds other characters than those that stand for
        bytes is its own text, as in the library.
        """
        piece = self._pieces.get(token)
        if piece is None or token in self._names:
            return b""
        if token in self._added:
            return piece.encode()
        if not self._byte_level:
            return self._decode(piece)
        alphabet = self._alphabet
        data = [alphabet.get(character, -1) for character in piece]
        return piece.encode() if -1 in data else bytes(data)

    def show(self, ids: Sequence[int]) -> str:
        """Text between the control pieces' names; half a character is U+FFFD."""
        names = self._names
        shown = [names[t].encode() if t in names else self.token_bytes(t) for t in ids]
        return b"".join(shown).decode("utf-8", "replace")

    def _cut(self, text: str, first: bool) -> list[int]:
        library = self._library if first or self.space_prefix == "never" else self._inside
        numbers = self._numbers
        return [numbers[place] for place in library.encode(text, add_special_tokens=False).ids]

    def _coverage(self) -> tuple[int, bytes] | None:
        description = self._description
        options = description.options
        swallows = any(each.flags["lstrip"] or each.flags["rstrip"] for each in description.added)
        affixes = options["continuing_subword_prefix"] or options["end_of_word_suffix"]
        if swallows or affixes or not description.keeps_length:
            return None
        pieces = set(self._pieces.values())
        lost = b""
        if self._byte_level and description.spells_bytes:
            lost = bytes(byte for letter, byte in self._alphabet.items() if letter not in pieces)
            # What is unknown may be one token, however long.
            if lost and description.unknown is not None:
                return None
        elif not (options["byte_fallback"] and pieces >= _BYTE_PIECES):
            return None
        normalizer = self._library.normalizer
        if normalizer is not None:
            pieces |= {normalizer.normalize_str(each.piece) for each in description.added}
        return max((len(piece.encode()) for piece in pieces), default=0), lost

    @cached_property
    def _inside(self) -> Library:
        """The same vocabulary without the space before a text."""
        return build(self._description, self._marks, prefix=False)[0]

    @cached_property
    def _alphabet(self) -> dict[str, int]:
        return byte_alphabet()


def _white_space_after(text: str, place: int) -> int:
    return len(text) - len(text[place:].lstrip(_WHITE_SPACE))


def _texts(description: Description, marks: Mapping[str, int], place: str) -> dict[int, str]:
    """Every id that is no mark's, and its piece; raises CheckpointError where two have one id."""
    texts = {piece: token for piece, token in description.vocabulary.items() if piece not in marks}
    texts |= {each.piece: each.token for each in description.added if each.piece not in marks}
    pieces = {token: piece for piece, token in texts.items()}
    if len(pieces) != len(texts):
        piece = next(piece for piece, token in texts.items() if pieces[token] != piece)
        raise CheckpointError(
            f"{place} is damaged: {piece!r} and {pieces[texts[piece]]!r} have one id; fetch it "
            "again."
        )
    return pieces


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
