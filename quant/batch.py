"""The forward pass, and passes that several sequences share."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .backends.protocol import Program, new_program
from .backends.scratch import Scratch, rows_of_logits
from .backends.spans import lay_out, slots_aside
from .cache import KeyValues, RollingCache, narrowed, rings
from .config import ModelConfig
from .errors import ConfigError, ContextFullError, InputError
from .qtensor import Floats
from .weights import Weights

CHUNK = 256
"""Tokens of a prompt that are read at once; between chunks a reader can stop or show progress."""

LEAST_ROWS = 32
"""Tokens for which a pass has room however short the chunks are."""

PLANES = {"exact": 2, "fast": 1}
"""Precision of a prompt's activations: two int8 planes (as good as float32), or one."""


def record_forward(
    program: Program,
    weights: Weights,
    rooms: Sequence[KeyValues],
    windows: Sequence[int | None],
    scratch: Scratch,
) -> None:
    """The forward pass (Mistral 7B, section 2), step by step.

    The residual stream is ``x``; what a branch computes waits in ``delta`` until the next norm adds
    it. ``h`` is the input of the next product.
    """
    s = scratch
    program.embed(weights.embedding, s.ids, s.x)
    program.angles(s.cosines, s.sines)
    delta = None
    for layer, ring, window in zip(weights.layers, rooms, windows, strict=True):
        # What comes after the last layer's keys and values serves the logits alone.
        head = layer is weights.layers[-1]
        program.norm(s.x, delta, layer.attention_norm, s.h, readers=(layer.q, layer.k, layer.v))
        program.matmul(s.h, ((layer.q, s.q), (layer.k, s.k), (layer.v, s.v)))
        program.rope(s.q, s.k, s.v, s.cosines, s.sines, ring, s.chunk)
        program.attention(s.q, ring, window, s.chunk, s.h, readers=(layer.o,), head=head)
        program.commit(s.chunk, ring)
        program.matmul(s.h, ((layer.o, s.delta),), head=head)
        program.norm(s.x, s.delta, layer.mlp_norm, s.h, readers=(layer.gate, layer.up), head=head)
        program.matmul(s.h, ((layer.gate, s.gate), (layer.up, s.up)), head=head)
        program.gate(s.gate, s.up, s.h, readers=(layer.down,), head=head)
        program.matmul(s.h, ((layer.down, s.delta),), head=head)
        delta = s.delta
    program.norm(s.x, delta, weights.norm, s.h, readers=(weights.head,), head=True)
    program.matmul(s.h, ((weights.head, s.logits),), head=True)


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a session computes; :meth:`Model.session` says what each means."""

    max_context: int | None = None
    window: int | None = None
    kv: str = "f16"
    prefill: str = "exact"
    backend: str = "cpu"
    threads: int | None = None
    chunk: int = CHUNK
    gpu_layers: int | None = None

    def checked_context(self, config: ModelConfig) -> int:
        """The most tokens that a session of a model will hold.

        Raises :class:`~quant.errors.ConfigError` for options that cannot be.
        """
        limit = config.max_position_embeddings
        context = limit if self.max_context is None else self.max_context
        if not 0 < context <= limit:
            raise ConfigError(f"The context can be 1 to {limit} tokens long, not {context}.")
        if self.prefill not in PLANES:
            raise ConfigError(f"Prefill is {' or '.join(PLANES)}, not {self.prefill!r}.")
        if self.chunk < 1:
            raise ConfigError(f"A chunk holds at least one token, not {self.chunk}.")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"At least one thread must compute, not {self.threads}.")
        return context


@dataclass(frozen=True, slots=True)
class Part:
    """What a pass reads for one sequence; logits of the last ``wanted`` ids are wanted.

    What is not ``kept`` branches off: it is read after what the sequence holds, and leaves no
    trace. A sequence has several such parts in a pass, or one that is kept.
    """

    sequence: int
    ids: Sequence[int]
    wanted: int = 1
    kept: bool = True


class Batch:
    """Sequences that share each reading of the weights.

    Each has a rolling buffer of its own, and joins a pass or not. With ``prefill="exact"`` what a
    sequence computes does not depend, to the last bit, on which others there are.

    ``rows`` are the most tokens of a pass, ``chunk`` those in which a prompt is to be read. Raises
    :class:`~quant.errors.ConfigError` for options that cannot be.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        on_device: dict[int, Any],
        options: SessionOptions,
        sequences: int = 1,
    ) -> None:
        if sequences < 1:
            raise ConfigError(f"At least one sequence must be read, not {sequences}.")
        self.config = config
        self.max_context = options.checked_context(config)
        self.chunk = max(min(options.chunk, self.max_context), sequences)
        self.rows = max(self.chunk, min(LEAST_ROWS, self.max_context))
        self.logits = rows_of_logits(sequences)
        windows = narrowed(config, options.window)
        self._rooms = rings(config, self.max_context, windows, options.kv, sequences)
        self.caches = tuple(
            RollingCache(
                config,
                self.max_context,
                options.window,
                options.kv,
                tuple(room.of(sequence) for room in self._rooms),
            )
            for sequence in range(sequences)
        )
        self.ids: tuple[list[int], ...] = tuple([] for _ in range(sequences))
        self._scratch = Scratch.allocate(config, self.rows, options.kv, sequences)
        self.program = new_program(
            options.backend,
            config,
            self.rows,
            PLANES[options.prefill],
            options.threads or available_processors(),
            on_device,
            options.gpu_layers,
        )
        record_forward(self.program, weights, self._rooms, windows, self._scratch)

    def read(self, parts: Sequence[Part], fetch: bool = True) -> Floats:
        """One pass over the weights: logits float32 [wanted tokens, vocab], part by part.

        Without ``fetch`` they may stay on the device. Before anything is computed it raises
        :class:`~quant.errors.InputError` for parts that do not fit into a pass and for ids outside
        the vocabulary, :class:`~quant.errors.ContextFullError` for a sequence that is full.
        """
        self._check(parts)
        wanted = sum(part.wanted for part in parts)
        spans = lay_out([(*self._place(part), part.wanted, part.kept) for part in parts])
        for part, span in zip(parts, spans, strict=True):
            self._scratch.ids[span.row : span.row + span.tokens] = part.ids
            self.caches[part.sequence].claim(span.tokens if part.kept else 1)
        self.program.run(spans)
        if fetch:
            self.program.fetch(wanted)
        for part in parts:
            if part.kept:
                self.caches[part.sequence].advance(len(part.ids))
                self.ids[part.sequence].extend(map(int, part.ids))
        return self._scratch.logits[:wanted, : self.config.vocab_size].copy()

    def has_room(self, parts: Sequence[Part]) -> bool:
        """Whether the parts fit into one pass."""
        rows, wanted = sum(len(part.ids) for part in parts), sum(part.wanted for part in parts)
        aside = sum(slots_aside(at, tokens) for _, tokens, at in map(self._place, parts))
        return rows <= self.rows and wanted <= self.logits and aside <= self._scratch.chunk.slots

    def _place(self, part: Part) -> tuple[int, int, int]:
        return part.sequence, len(part.ids), self.caches[part.sequence].position

    def _check(self, parts: Sequence[Part]) -> None:
        kept = [part.sequence for part in parts if part.kept]
        branched = {part.sequence for part in parts if not part.kept}
        if len(set(kept)) < len(kept) or branched.intersection(kept):
            raise InputError("A sequence has one part of a pass, or several that are not kept.")
        for part in parts:
            self.check(part)
        if not parts or not self.has_room(parts):
            rows, wanted = sum(len(part.ids) for part in parts), sum(part.wanted for part in parts)
            raise InputError(
                f"A pass reads 1 to {self.rows} tokens, with logits of up to {self.logits}, not "
                f"{rows} with {wanted} in {len(parts)} parts."
            )

    def check(self, part: Part) -> None:
        """Raise InputError for a part that cannot be, ContextFullError where it does not fit.

        One that is kept may be longer than a pass, and is then read in pieces.
        """
        if not 0 <= part.sequence < len(self.caches):
            raise InputError(f"There is no sequence {part.sequence}.")
        self.check_vocabulary(part.ids)
        count, left = len(part.ids), self.max_context - self.caches[part.sequence].position
        if not 0 <= part.wanted <= count:
            raise InputError(f"Logits of {part.wanted} of {count} tokens cannot be had.")
        if count > left:
            raise ContextFullError(count, left)
        if not part.kept and not self.has_room([part]):
            raise InputError(f"A branch of {count} tokens does not fit into a pass.")

    def check_vocabulary(self, ids: Sequence[int]) -> None:
        """Raise InputError for no ids, and for ids that there are not."""
        if not len(ids):
            raise InputError("There is nothing to read: no token ids were given.")
        if min(ids) < 0 or max(ids) >= self.config.vocab_size:
            raise InputError(
                f"A token id is outside the model's vocabulary of {self.config.vocab_size}."
            )

    def fetch(self, rows: int) -> Floats:
        """The logits of a pass that were left where they are, float32 [rows, vocab]."""
        self.program.fetch(rows)
        return self._scratch.logits[:rows, : self.config.vocab_size]

    def copy(self, source: int, target: int, position: int) -> None:
        """Let sequence ``target`` hold what ``source`` read in its first ``position`` tokens.

        So what texts begin with in common is read once. Raises :class:`~quant.errors.CacheError`
        where ``source`` no longer holds what the next token would see.
        """
        if source == target:
            self.trim(source, position)
            return
        slots = self.caches[target].follow(self.caches[source], position)
        self.ids[target][:] = self.ids[source][:position]
        self.program.copy(source, target, slots)

    def trim(self, sequence: int, position: int) -> None:
        """Forget a sequence's tokens from ``position`` on; see :meth:`RollingCache.trim`."""
        self.caches[sequence].trim(position)
        del self.ids[sequence][position:]


def shared_start(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many ids both begin with; lists are compared as a whole, some times, not id by id.

    >>> shared_start([1, 5, 7, 9], [1, 5, 8])
    2
    """
    ids, others = list(ids), list(others)  # a list never equals a tuple
    longest = min(len(ids), len(others))
    return bisect_left(range(1, longest + 1), True, key=lambda n: ids[:n] != others[:n])


def reusable(held: Sequence[int], ids: Sequence[int]) -> int:
    """How many of ``ids`` need not be read again: all that are held but the last, whose logits are
    wanted.
    """
    return max(0, min(shared_start(ids, held), len(ids) - 1))


def available_processors() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
