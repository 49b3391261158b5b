"""What a ``tokenizer.json`` says, read with its types, and the library's tokenizer made of it.

The library finds added tokens in a text wherever they are spelled, special or not. So the marks
among them are taken out before it is built, and so are merges that would spell one: what a person
types is never cut into a control piece.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Library

from mistral_chat.tokenizers.config import TokenizerConfig
from mistral_chat.tokenizers.fields import Record, are_texts, is_whole, library
from quant.errors import CheckpointError, UnsupportedError

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
LARGEST_GROWTH = 64
"""How many times longer a text may become before it is cut: spaces become three bytes, say."""

_WORD = re.compile(r"\w")
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Added:
    """A token that is looked for in a text before it is cut; ``flags`` say how."""

    piece: str
    token: int
    special: bool
    flags: Mapping[str, bool]


@dataclass(frozen=True)
class Description:
    """The parts of a ``tokenizer.json``.

    ``vocabulary`` maps pieces to ids, ``merges`` are in the order in which they are tried. An
    ``added`` token that is among the pieces has the piece's id, as in the library. ``unknown`` is
    the piece that stands for a character without one. ``normalizer`` and ``pre_tokenizer`` are
    lists of steps, ``decoder`` one, too.
    """

    vocabulary: Mapping[str, int]
    merges: list[tuple[str, str]]
    added: list[Added]
    unknown: str | None
    options: Mapping[str, Any]
    normalizer: list[Record]
    pre_tokenizer: list[Record]
    decoder: list[Record]

    @classmethod
    def read(cls, values: Mapping[str, Any], place: str) -> Description:
        """Of a parsed file; raises CheckpointError naming ``place`` and the field that is odd.

        Raises UnsupportedError for another model than BPE.
        """
        file = Record(values, place)
        model = file.record("model")
        kind = model.text("type", "BPE")
        if kind != "BPE":
            raise UnsupportedError(
                f"This model's tokenizer is of the kind {kind!r}, which is not handled; "
                "choose a model whose tokenizer.json holds BPE."
            )
        vocabulary = model.record("vocab").values
        if not are_texts(vocabulary) or not all(map(is_whole, vocabulary.values())):
            model.fail("vocab", "an object of pieces and ids")
        normalizer = _steps(file, "normalizer", "normalizers")
        pre_tokenizer = _steps(file, "pre_tokenizer", "pretokenizers")
        decoder = _steps(file, "decoder", "decoders")
        if max(map(_growth, (normalizer, pre_tokenizer, decoder))) > LARGEST_GROWTH:
            raise CheckpointError(
                f"{place} makes a text longer and longer before it is cut; fetch it again."
            )
        return cls(
            vocabulary,
            _merges(model),
            [_added(entry, vocabulary) for entry in file.records("added_tokens", [])],
            model.text("unk_token", "") or None,
            {
                "fuse_unk": model.flag("fuse_unk", False),
                "byte_fallback": model.flag("byte_fallback", False),
                "ignore_merges": model.flag("ignore_merges", False),
                "continuing_subword_prefix": model.text("continuing_subword_prefix", "") or None,
                "end_of_word_suffix": model.text("end_of_word_suffix", "") or None,
            },
            normalizer,
            pre_tokenizer,
            decoder,
        )

    def marks(self, config: TokenizerConfig) -> dict[str, int]:
        """The control pieces among the tokens, and those that only ``config`` names; their ids.

        Raises CheckpointError where ``config`` gives one the id of another piece.
        """
        found = {
            each.piece: each.token
            for each in self.added
            if (each.special or config.names(each.piece)) and not self._is_unknown(each, config)
        }
        owners = {token: piece for piece, token in self.vocabulary.items()}
        owners |= {each.token: each.piece for each in self.added}
        for piece, token in config.added.items():
            if piece in found or not config.names(piece) or piece == self.unknown:
                continue
            known = self.vocabulary.get(piece)
            if known is None and owners.get(token, piece) != piece:
                raise CheckpointError(
                    f"The tokenizer's files disagree about the token {token}: it is "
                    f"{owners[token]!r} and {piece!r}; fetch the files of one model."
                )
            found[piece] = token if known is None else known
        return found

    def find_added(
        self, text: str, marks: Mapping[str, int], normalized: bool
    ) -> list[tuple[int, int, Added]]:
        """Where added tokens that are no marks stand in a text, the leftmost longest of them.

        Those that are looked for in the normalized text are left out unless ``normalized``: by then
        the marks of the other kind have been found.
        """
        sought = {
            each.piece: each
            for each in self.added
            if each.piece and each.piece not in marks and each.flags["normalized"] <= normalized
        }
        if not sought:
            return []
        pieces = re.compile("|".join(map(re.escape, sorted(sought, key=len, reverse=True))))
        return [
            (start, stop, sought[found[0]])
            for found in pieces.finditer(text)
            for start, stop in [found.span()]
            if not sought[found[0]].flags["single_word"]
            or not (_WORD.match(text[max(0, start - 1) : start]) or _WORD.match(text, stop))
        ]

    def _is_unknown(self, each: Added, config: TokenizerConfig) -> bool:
        """Whether a token stands for what has no piece, and for nothing else."""
        ends = (config.bos, config.eos)
        return (
            each.piece == self.unknown and each.piece not in ends and not config.writes(each.piece)
        )

    @cached_property
    def space_prefix(self) -> str:
        """When a space is put before a text: ``always``, ``first`` or ``never``."""
        if any(step.text("type") == "Prepend" for step in self.normalizer):
            return "always"
        for step in self.pre_tokenizer:
            if step.text("type") == "Metaspace":
                scheme = step.text("prepend_scheme", "always")
                if scheme not in ("always", "first", "never"):
                    step.fail("prepend_scheme", "always, first or never")
                return scheme
            if step.text("type") == "ByteLevel" and step.flag("add_prefix_space", False):
                return "always"
        return "never"

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether a piece is bytes; else it is characters. Raises UnsupportedError for neither."""
        kinds = {step.text("type") for step in self.decoder}
        if "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}:
            return True
        if kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
            return False
        raise UnsupportedError(
            "This model's tokenizer turns tokens into text by "
            f"{', '.join(sorted(kinds)) or 'nothing'}, which is not handled; choose a model with a "
            "byte-level or SentencePiece vocabulary."
        )

    @property
    def spells_bytes(self) -> bool:
        """Whether a text comes to the merges as the characters that stand for its bytes."""
        return any(step.text("type") == "ByteLevel" for step in self.pre_tokenizer)

    def decoding(self) -> Callable[[str], bytes]:
        """A function from a piece of characters to its bytes, by the decoder's steps."""
        replaced: list[tuple[str, str]] = []
        fallback = False
        for step in self.decoder:
            kind = step.text("type")
            if kind == "Replace":
                replaced.append((_literal(step), step.text("content")))
            elif kind == "Metaspace":
                replaced.append((step.text("replacement", "▁"), " "))
            elif kind == "ByteFallback":
                fallback = True

        def decode(piece: str) -> bytes:
            for old, new in replaced:
                piece = piece.replace(old, new)
            byte = _BYTE_PIECE.fullmatch(piece) if fallback else None
            return piece.encode() if byte is None else bytes([int(byte[1], 16)])

        return decode

    @property
    def keeps_length(self) -> bool:
        """Whether a text is at least as many bytes when it comes to the merges as before."""
        for step in self.normalizer:
            kind = step.text("type")
            if kind == "Replace" and "String" in step.record("pattern").values:
                if len(step.text("content").encode()) < len(_literal(step).encode()):
                    return False
            elif kind != "Prepend":
                return False
        for step in self.pre_tokenizer:
            kind = step.text("type")
            removes = kind in ("Split", "Punctuation") and step.values.get("behavior") == "Removed"
            if removes or kind not in ("ByteLevel", "Metaspace", "Digits", "Split", "Punctuation"):
                return False
        return True


def build(
    description: Description, marks: Iterable[str], prefix: bool = True
) -> tuple[Library, list[int]]:
    """The library's tokenizer for plain text, which has no way to a mark; and what its ids are.

    The library numbers tokens without gaps: its id ``i`` is that of ``numbers[i]`` in the model.
    Without ``prefix`` it puts no space before a text.
    """
    hidden = set(marks)
    unknown = description.unknown if description.unknown in description.vocabulary else None
    unknown = None if unknown in hidden else unknown
    if unknown is not None:
        hidden.add(unknown)
    kept = {piece: id_ for piece, id_ in description.vocabulary.items() if piece not in hidden}
    numbers = list(kept.values())
    dense: dict[str, int] = {piece: place for place, piece in enumerate(kept)}
    stand_in = None
    if unknown is not None:
        # Under a name that no text is cut into: that of two characters which nothing merges.
        stand_in = "\U0010ffff" * 2
        while stand_in in dense:
            stand_in += "\U0010ffff"
        dense[stand_in] = len(numbers)
        numbers.append(description.vocabulary[unknown])
    start = description.options["continuing_subword_prefix"] or ""
    merges = [
        (left, right)
        for left, right in description.merges
        if hidden.isdisjoint((left, right, left + right.removeprefix(start)))
    ]
    rest: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": _joined(description.normalizer, "normalizers", prefix),
        "pre_tokenizer": _joined(description.pre_tokenizer, "pretokenizers", prefix),
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    texts = [each for each in description.added if each.piece not in hidden]
    with library("The tokenizer cannot be read"):
        built = Library.from_str(json.dumps(rest))
        options = {name: value for name, value in description.options.items() if value is not None}
        # Built from Python's objects, in a fraction of the time that a text of them would take.
        built.model = models.BPE(dense, merges, unk_token=stand_in, **options)
        built.add_tokens([AddedToken(each.piece, **each.flags) for each in texts])
        for each in texts:
            place = built.token_to_id(each.piece)
            if place is not None and place >= len(numbers):
                numbers += [each.token] * (place + 1 - len(numbers))
                numbers[place] = each.token
    return built, numbers


def _merges(model: Record) -> list[tuple[str, str]]:
    merges = [
        tuple(merge.split(" ", 1)) if isinstance(merge, str) else merge
        for merge in model.items("merges")
    ]
    for place, merge in enumerate(merges):
        if not isinstance(merge, (list, tuple)) or len(merge) != 2 or not are_texts(merge):
            model.fail(f"merges[{place}]", "two pieces")
    return [(left, right) for left, right in merges]


def _added(entry: Record, vocabulary: Mapping[str, int]) -> Added:
    piece = entry.text("content")
    return Added(
        piece,
        vocabulary.get(piece, entry.whole("id")),
        entry.flag("special", False),
        {name: entry.flag(name, False) for name in _FLAGS},
    )


def _steps(file: Record, part: str, inner: str) -> list[Record]:
    """A part of a description as a list: a sequence is its members, null is empty."""
    if file.values.get(part) is None:
        return []
    step = file.record(part)
    if step.text("type") != "Sequence":
        return [step]
    steps = step.records(inner)
    for each in steps:
        if each.text("type") == "Sequence":
            each.fail("type", "a single step")
    return steps


def _growth(steps: list[Record]) -> int:
    """How many times longer the steps can make a text."""
    growth = 1
    for step in steps:
        if step.text("type") == "Replace":
            old = str(step.record("pattern").values.get("String") or "")
            new = len(step.text("content").encode())
            growth *= max(1, -(-new // len(old)) if old else 1 + new)
        elif step.text("type") in ("ByteLevel", "NFKC", "NFKD"):
            growth *= 2
    return growth


def _joined(steps: list[Record], inner: str, prefix: bool) -> dict[str, Any] | None:
    """The steps as the library reads them, without those that put a space before a text."""
    changes: Mapping[str, Mapping[str, Any]] = {}
    if not prefix:
        changes = {
            "Metaspace": {"prepend_scheme": "never"},
            "ByteLevel": {"add_prefix_space": False},
        }
        steps = [step for step in steps if step.text("type") != "Prepend"]
    members = [{**step.values, **changes.get(step.text("type"), {})} for step in steps]
    return {"type": "Sequence", inner: members} if members else None


def _literal(step: Record) -> str:
    """What a step replaces; raises UnsupportedError for a pattern, which is not handled."""
    pattern = step.record("pattern")
    if "String" not in pattern.values:
        raise UnsupportedError(
            "This model's tokenizer turns tokens into text by a regular expression, which is not "
            "handled; choose another model."
        )
    return pattern.text("String")
