"""Texts to calibrate and to measure with, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from mistral_chat.errors import UsageError
from mistral_chat.tokenizers import Tokenizer

MOST_BYTES = 16_000_000
"""Bytes of a text that is read; its tokens take two gigabytes while they are made."""

LENGTH = 512
"""Tokens of a piece of text; each piece is read by itself."""

SHORTEST = 256
"""Tokens that a calibration must have at least."""


def calibration_text() -> str:
    """The text that comes with the package to calibrate with: prose, talk, code, tables."""
    return (files("mistral_chat") / "data" / "calibration.txt").read_text(encoding="utf-8")


def held_out_text() -> str:
    """The text that comes with the package to measure with; nothing is calibrated on it."""
    return (files("mistral_chat") / "data" / "held_out.txt").read_text(encoding="utf-8")


def pieces(tokenizer: Tokenizer, text: str, shortest: int = 2) -> list[list[int]]:
    """The text's ids in pieces of ``LENGTH``, each after BOS where the tokenizer adds one.

    Raises UsageError for a text of fewer than ``shortest`` tokens.
    """
    ids = tokenizer.encode(text)
    if len(ids) < shortest:
        raise UsageError(f"The text has only {len(ids)} tokens; give one of at least {shortest}.")
    bos = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    step = LENGTH - len(bos)
    cut: list[Sequence[int]] = [ids[start : start + step] for start in range(0, len(ids), step)]
    # A last piece of one token has nothing to predict.
    return [[*bos, *part] for part in cut if len(part) > 1]
