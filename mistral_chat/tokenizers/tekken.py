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

from quant.errors import CheckpointError

MODEL_FILE = "tekken.json"

_DEFAULT_SPECIAL = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] "
    "[/TOOL_RESULTS] [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] "
    "[SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
).split()
"""The special tokens of files that list none, which are those up to v7."""

_LONGEST = 50_000
"""White space in a row that is given to the pattern at once; of some 10**5 it runs out of room."""


class TekkenTokenizer:
    """The vocabulary of a ``tekken.json``: its ``data``, which parsed is ``values``.

    Raises CheckpointError, naming ``path``, for a broken file.

    With the file of July 2024, ``encode("Hello world")`` is ``[22177, 4304]``.
    """

    kind = "Tekken"
    space_prefix = "never"
    adds_bos = True
    chat_template = None

    def __init__(self, data: bytes, values: Mapping[str, Any], path: str) -> None:
        try:
            config = values["config"]
            self.mistral_version: str | None = config["version"]
            self.vocab_size: int = config["default_vocab_size"]
            self._special: int = config["default_num_special_tokens"]
            ranks = {
                base64.b64decode(entry["token_bytes"]): entry["rank"]
                for entry in values["vocab"][: self.vocab_size - self._special]
            }
            pieces = _special_pieces(values.get("special_tokens"), self._special)
            whole = set(ranks.values()) == set(range(len(ranks)))
            pattern = config["pattern"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{path} is no tekken.json, or a damaged one ({error}); fetch it again."
            ) from error
        if not whole or len(ranks) != self.vocab_size - self._special:
            raise CheckpointError(f"{path} is damaged: ranks are missing; fetch it again.")
        self._bytes = sorted(ranks, key=ranks.__getitem__)
        self._data = data
        self._pieces = pieces
        self._controls = {piece: token for token, piece in enumerate(pieces)}
        try:
            self._library = tiktoken.Encoding(
                "tekken", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
            )
        # The library is compiled and raises what it likes for a pattern it cannot use.
        except Exception as error:
            raise CheckpointError(f"{path} cannot be used: {error}.") from error

    def save(self, folder: Path) -> None:
        """Write ``tekken.json``, byte for byte the one that was read."""
        (folder / MODEL_FILE).write_bytes(self._data)

    @property
    def bos_id(self) -> int | None:
        """The id that begins a text."""
        return self.control_id("<s>")

    @property
    def eos_id(self) -> int | None:
        """The id that ends a text."""
        return self.control_id("</s>")

    @property
    def special_tokens(self) -> Mapping[str, str | list[str]]:
        """None beside BOS and EOS."""
        return {}

    @property
    def controls(self) -> Mapping[str, int]:
        """Every special token and its id."""
        return self._controls

    def encode(self, text: str, first: bool = True) -> list[int]:  # noqa: ARG002 - no spaces here
        """Ids of plain text, never a control id."""
        offset = self._special
        return [
            rank + offset for part in _parts(text) for rank in self._library.encode_ordinary(part)
        ]

    def control_id(self, piece: str) -> int | None:
        """The id of a special token, or None."""
        return self._controls.get(piece)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; none for a control id. Raises ValueError for an unknown id."""
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"The vocabulary has no token {token}.")
        return b"" if token < self._special else self._bytes[token - self._special]

    def show(self, ids: Sequence[int]) -> str:
        """Text between the special tokens' names; half a character is U+FFFD."""
        shown = []
        for special, group in itertools.groupby(ids, key=lambda token: token < self._special):
            if special:
                shown += [self._pieces[token] for token in group]
            else:
                shown.append(b"".join(map(self.token_bytes, group)).decode("utf-8", "replace"))
        return "".join(shown)


def _special_pieces(entries: Any, count: int) -> list[str]:
    """The names of the special tokens, by id."""
    pieces = [f"<SPECIAL_{token}>" for token in range(count)]
    if entries is None:
        pieces[: len(_DEFAULT_SPECIAL)] = _DEFAULT_SPECIAL
    for entry in entries or ():
        pieces[entry["rank"]] = entry["token_str"]
    return pieces


def _parts(text: str) -> list[str]:
    """``text`` cut so that no part ends in a run of white space too long for the pattern.

    Only beyond such a run can ids differ from the reference, which fails there.
    """
    if len(text) <= _LONGEST:
        return [text]
    cuts = [match.end() for match in re.finditer(rf"\s{{{_LONGEST}}}", text)]
    return [text[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(text)])]
