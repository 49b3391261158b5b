"""Tekken: the byte-level vocabulary of Mistral's models since Nemo, ``tekken.json``.

The file lists tokens by rank, each with its bytes, and the pattern that splits a text; ``tiktoken``
computes with exactly these. An id is the rank plus the number of special tokens, which come first.
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tiktoken

from mistral_chat.tokenizers.config import TokenizerConfig
from mistral_chat.tokenizers.fields import Record, library
from mistral_chat.tokenizers.vocabulary import Vocabulary, check_marks
from quant.errors import CheckpointError

MODEL_FILE = "tekken.json"

_DEFAULT_SPECIAL = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] "
    "[/TOOL_RESULTS] [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] "
    "[SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()
"""The special tokens of files that list none, which are those up to v7."""

TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How every published Tekken splits a text; it leaves out no character."""

_MOST_SPECIAL = 4096
"""Published vocabularies have 1000 special tokens; far more are a damaged file's."""

_LONGEST = 50_000
"""White space in a row that is given to the pattern at once; of some 10**5 it runs out of room."""


class TekkenTokenizer(Vocabulary):
    """The vocabulary of a ``tekken.json``: its ``data``, which parsed is ``values``.

    ``config`` is what lies beside it. Raises CheckpointError, naming ``path``, for a broken file.

    With the file of July 2024, ``encode("Hello world")`` is ``[22177, 4304]``.
    """

    kind = "Tekken"
    space_prefix = "never"
    adds_bos = True

    def __init__(
        self,
        data: bytes,
        values: Mapping[str, Any],
        path: str,
        config: TokenizerConfig | None = None,
    ) -> None:
        if not (values.get("config") and values.get("vocab")):
            raise CheckpointError(f"{path} is no tekken.json, or a damaged one; fetch it again.")
        file = Record(values, path)
        settings = file.record("config")
        self.mistral_version: str | None = settings.text("version")
        self.vocab_size: int = settings.whole("default_vocab_size")
        self._special: int = settings.whole("default_num_special_tokens", most=_MOST_SPECIAL)
        self._config = config or TokenizerConfig()
        self._pattern = settings.text("pattern")
        self._pieces = _special_pieces(file, self._special)
        self._controls = {piece: token for token, piece in enumerate(self._pieces)}
        if len(self._controls) != len(self._pieces):
            raise CheckpointError(f"{path} gives two special tokens one name; fetch it again.")
        check_marks(self._controls, ())
        ranks = _ranks(file, self.vocab_size - self._special)
        self._bytes = sorted(ranks, key=ranks.__getitem__)
        self._data = data
        with library(f"{path} cannot be used"):
            self._library = tiktoken.Encoding(
                "tekken", pat_str=self._pattern, mergeable_ranks=ranks, special_tokens={}
            )

    def save(self, folder: Path) -> None:
        """Write ``tekken.json``, byte for byte the one that was read, and what lay beside it."""
        (folder / MODEL_FILE).write_bytes(self._data)
        if self._config != TokenizerConfig():
            self._config.save(folder)

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text."""
        return self.control_id(self._config.bos or "<s>")

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text."""
        return self.control_id(self._config.eos or "</s>")

    @property
    def special_tokens(self) -> Mapping[str, str | list[str]]:
        """Special tokens beside BOS and EOS, by the names that a chat template knows."""
        return self._config.named

    @property
    def chat_template(self) -> str | None:
        """The Jinja text that lay beside the vocabulary, which has none of its own."""
        return self._config.chat_template

    @property
    def controls(self) -> Mapping[str, int]:
        """Every special token and its id."""
        return self._controls

    @property
    def text_size(self) -> int:
        """One more than the largest id that a text can give."""
        return self.vocab_size

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; none for a control id, and for one the vocabulary does not have."""
        return (
            self._bytes[token - self._special] if self._special <= token < self.vocab_size else b""
        )

    def show(self, ids: Sequence[int]) -> str:
        """Text between the special tokens' names; half a character is U+FFFD."""
        shown = []
        for special, group in itertools.groupby(ids, key=lambda token: token < self._special):
            if special:
                shown += [self._pieces[token] for token in group if token >= 0]
            else:
                shown.append(b"".join(map(self.token_bytes, group)).decode("utf-8", "replace"))
        return "".join(shown)

    def _cut(self, text: str, first: bool) -> list[int]:  # noqa: ARG002 - no spaces here
        offset = self._special
        return [
            rank + offset for part in _parts(text) for rank in self._library.encode_ordinary(part)
        ]

    def _coverage(self) -> tuple[int, bytes] | None:
        # Another pattern may leave out what it does not match.
        return (max(map(len, self._bytes)), b"") if self._pattern == TEKKEN_PATTERN else None


def _special_pieces(file: Record, count: int) -> list[str]:
    """The names of the special tokens, by id."""
    pieces = [f"<SPECIAL_{token}>" for token in range(count)]
    if file.values.get("special_tokens") is None:
        pieces[: len(_DEFAULT_SPECIAL)] = _DEFAULT_SPECIAL[:count]
        return pieces
    for entry in file.records("special_tokens"):
        pieces[entry.whole("rank", most=count - 1)] = entry.text("token_str")
    return pieces


def _ranks(file: Record, count: int) -> dict[bytes, int]:
    """The bytes of the first ``count`` tokens and their ranks."""
    listed = file.records("vocab")
    if not 256 <= count <= len(listed):
        raise CheckpointError(
            f"{file.place} is damaged: it lists {len(listed)} tokens, but is to have {count}; "
            "fetch it again."
        )
    ranks: dict[bytes, int] = {}
    for entry in listed[:count]:
        try:
            piece = base64.b64decode(entry.text("token_bytes"), validate=True)
        except ValueError:
            entry.fail("token_bytes", "base64")
        ranks[piece] = entry.whole("rank", most=count - 1)
    if len(ranks) != count or len(set(ranks.values())) != count or b"" in ranks:
        raise CheckpointError(f"{file.place} is damaged: ranks are missing; fetch it again.")
    # Any text is cut into bytes at first, so each of them has to be a token.
    lacking = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if lacking:
        raise CheckpointError(
            f"{file.place} is damaged: the byte {lacking[0]:#04x} has no token; fetch it again."
        )
    return ranks


def _parts(text: str) -> list[str]:
    """``text`` cut so that no part ends in a run of white space too long for the pattern.

    Only beyond such a run can ids differ from the reference, which fails there.
    """
    if len(text) <= _LONGEST:
        return [text]
    cuts = [match.end() for match in re.finditer(rf"\s{{{_LONGEST}}}", text)]
    return [text[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(text)])]
