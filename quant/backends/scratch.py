"""Room for what is computed between the weights, allocated once for a session."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..cache import KeyValues
from ..config import ModelConfig
from ..qtensor import Floats
from .spans import aside_slots

HEAD_TOKENS = 48
"""Rows of logits held at once, or more where there are more sequences; so many of a chunk's tokens
can be wanted."""

WIDTH_PADDING, TOKEN_PADDING = 64, 24
"""Buffers have room for multiples of these, so that kernels may write whole tiles."""


BRANCHES = 8
"""Spans for which there is always room aside, so that a sequence can branch off."""


def padded_tokens(tokens: int) -> int:
    """``tokens`` rounded up to whole tiles of any size that a kernel has."""
    return -(-tokens // TOKEN_PADDING) * TOKEN_PADDING


def rows_of_logits(sequences: int) -> int:
    """Rows of logits that are held for so many sequences: one for each at least."""
    return max(HEAD_TOKENS, sequences)


@dataclass(frozen=True)
class Scratch:
    """Buffers of one session.

    T is the longest chunk and D a width, each padded to whole tiles.
    """

    ids: npt.NDArray[np.int64]  # [T] token ids of the chunk
    x: Floats  # [T, D hidden] the residual stream
    delta: Floats  # [T, D hidden] a branch's output, not yet added to x
    h: Floats  # [T, D widest input] what the next product reads
    q: Floats  # [T, D heads * head_dim]
    k: Floats  # [T, D kv heads * head_dim]
    v: Floats  # [T, D kv heads * head_dim]
    gate: Floats  # [T, D intermediate]
    up: Floats  # [T, D intermediate]
    cosines: Floats  # [T, head_dim / 2]
    sines: Floats  # [T, head_dim / 2]
    logits: Floats  # [rows wanted at most, D vocab]
    chunk: KeyValues  # keys and values of the chunk, one layer after the other

    @classmethod
    def allocate(cls, config: ModelConfig, tokens: int, kind: str, sequences: int = 1) -> Scratch:
        """Room for passes of up to ``tokens`` tokens and a cache of element type ``kind``."""
        rows = padded_tokens(tokens)
        query = config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim

        def room(width: int, count: int = rows) -> Floats:
            return np.zeros((count, -(-width // WIDTH_PADDING) * WIDTH_PADDING), np.float32)

        return cls(
            ids=np.zeros(rows, np.int64),
            x=room(config.hidden_size),
            delta=room(config.hidden_size),
            h=room(max(config.hidden_size, query, config.intermediate_size)),
            q=room(query),
            k=room(shared),
            v=room(shared),
            gate=room(config.intermediate_size),
            up=room(config.intermediate_size),
            cosines=np.zeros((rows, config.head_dim // 2), np.float32),
            sines=np.zeros((rows, config.head_dim // 2), np.float32),
            logits=room(config.vocab_size, padded_tokens(rows_of_logits(sequences))),
            chunk=KeyValues.allocate(config, aside_slots(tokens, max(sequences, BRANCHES)), kind),
        )
