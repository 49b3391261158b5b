"""Who reads what in which pass, where many texts share one model.

A :class:`Scheduler` has a number of sequences and a queue. Tasks join as sequences become free and
leave when they are done, between any two passes. A pass is filled in this order: first a token for
each answer under way, then pieces of prompts, the earliest first, up to the budget; so nobody who
is being answered waits longer for the next token than a pass of ``budget`` tokens takes (chunked
prefill that decode rides along with: Sarathi-Serve, arXiv 2403.02310, section 4).

What a prompt begins with as another text does, of which it is held already or is about to be read,
is not read again: the keys and values are copied when they are there. In exact mode none of this
changes a bit of what a task is sent.

Example, with a budget of 64: A is being answered; B comes with a prompt of 100 ids, C with one of
90 that begins with the same 80. The first pass reads a token of A and 63 of B, the second one of A
and the last 37 of B. Then C is given what B read of the 80, and the third pass reads a token of A,
one of B, whose answer has begun, and the last 10 of C.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from ..batch import Batch, Part, SessionOptions, reusable, shared_start
from ..errors import CacheError, ConfigError, ContextFullError, InputError, QuantError
from ..model import Model
from ..qtensor import Floats
from ..sampling import check_logits
from .tasks import Branches, Prompt, Task, Wish

BUDGET = 64
"""Tokens of a pass while somebody is being answered, by default."""

LEAST_PIECE = 16
"""Tokens of prompts for which a pass has room however many are being answered."""

WORTHWHILE = 32
"""Ids that are still to be read for another text are waited for from so many on."""

Result = TypeVar("Result")


@dataclass(eq=False)
class Running(Generic[Result]):
    """A task that was handed in. Of ``prompt`` tokens ``cached`` did not have to be read.

    When ``done``, there is a ``result``, or an ``error``, or neither where it was cancelled.
    """

    task: Task[Result]
    done: bool = False
    result: Result | None = None
    error: QuantError | None = None
    prompt: int = 0
    cached: int = 0


@dataclass(eq=False)
class _Reader:
    """A task that has a sequence: what is left to read for it, and its logits so far.

    ``planned`` is the prompt that is being read, and ``waits`` another that is about to hold so
    many ids of it; ``since`` is the pass after which the task said what it wants.
    """

    running: Running[Any]
    sequence: int
    left: deque[Part] = field(default_factory=deque)
    rows: list[Floats] = field(default_factory=list)
    planned: Sequence[int] = ()
    waits: tuple[_Reader, int] | None = None
    since: int = 0


class Scheduler:
    """Runs tasks of :mod:`quant.decoding.tasks`, ``sequences`` of them at once.

    ``budget`` are the tokens of a pass while anybody is sent more than the logits of a prompt, more
    where there are more sequences; passes that read prompts alone have ``options.chunk``. Raises
    :class:`~quant.errors.ConfigError` for options that cannot be.

    >>> scheduler = Scheduler(model, SessionOptions(max_context=512), 8)  # doctest: +SKIP
    >>> running = [scheduler.submit(three(ids)) for ids in prompts]       # doctest: +SKIP
    >>> while scheduler.busy:                                             # doctest: +SKIP
    ...     scheduler.step()
    >>> [each.result for each in running]                                 # doctest: +SKIP
    """

    def __init__(
        self, model: Model, options: SessionOptions, sequences: int, budget: int = BUDGET
    ) -> None:
        if budget < 1:
            raise ConfigError(f"A pass has at least one token, not {budget}.")
        self.batch = Batch(model.config, model.weights, model.on_device, options, sequences)
        self.budget = min(max(budget, sequences + LEAST_PIECE), self.batch.rows)
        self.passes = 0
        self._queue: deque[tuple[Running[Any], Prompt]] = deque()
        self._readers: list[_Reader] = []
        # Sequences that nobody has, the longest idle first.
        self._free = list(range(sequences))

    @property
    def busy(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self._queue or self._readers)

    @property
    def queued(self) -> int:
        """Tasks that have no sequence yet."""
        return len(self._queue)

    def submit(self, task: Task[Result]) -> Running[Result]:
        """Queue a task.

        Raises :class:`~quant.errors.ContextFullError` for a prompt that can never fit, and
        :class:`~quant.errors.InputError` for ids that the model does not have, and for a task that
        does not begin with a prompt.
        """
        prompt = next(task)
        if not isinstance(prompt, Prompt):
            raise InputError("A task begins with its prompt.")
        self._check_prompt(prompt)
        running = Running(task)
        self._queue.append((running, prompt))
        return running

    def cancel(self, running: Running[Any]) -> None:
        """Take a task out, wherever it is; its sequence is free from the next pass on."""
        if running.done:
            return
        self._queue = deque(each for each in self._queue if each[0] is not running)
        for reader in [each for each in self._readers if each.running is running]:
            self._leave(reader)
        _end(running)

    def step(self) -> list[Running[Any]]:
        """One pass; the tasks that it moved, those that have come to an end among them.

        An error that belongs to one task, such as a context that is full, ends it alone; errors of
        the device are raised.
        """
        self._admit()
        parts = self._compose()
        if not parts:
            return []
        logits = self.batch.read([part for _, part in parts])
        self.passes += 1
        row = 0
        for reader, part in parts:
            reader.rows.append(logits[row : row + part.wanted])
            row += part.wanted
        whole = [reader for reader in dict.fromkeys(each for each, _ in parts) if not reader.left]
        for reader in whole:
            self._send(reader)
        return [reader.running for reader in whole]

    # Joining.

    def _admit(self) -> None:
        while self._queue and self._free:
            running, prompt = self._queue.popleft()
            # Where most of it lies already; else what was left longest ago.
            sequence = max(self._free, key=lambda each: reusable(self.batch.ids[each], prompt.ids))
            self._free.remove(sequence)
            reader = _Reader(running, sequence)
            self._readers.append(reader)
            self._want(reader, prompt)

    def _want(self, reader: _Reader, wish: Wish) -> None:
        """Note what a task wants to be read next."""
        reader.rows, reader.planned, reader.since = [], (), self.passes
        if isinstance(wish, Prompt):
            self._check_prompt(wish)
            reader.planned = wish.ids
            self._begin_or_wait(reader)
            return
        if isinstance(wish, Branches):
            parts = [Part(reader.sequence, run, len(run), kept=False) for run in wish.runs]
        else:
            parts = [Part(reader.sequence, wish.ids, wish.wanted)]
        for part in parts:
            self.batch.check(part)
        reader.left = deque(parts)

    def _check_prompt(self, prompt: Prompt) -> None:
        self.batch.check_vocabulary(prompt.ids)
        if len(prompt.ids) > self.batch.max_context:
            raise ContextFullError(len(prompt.ids), self.batch.max_context)

    def _worth_waiting(self, reader: _Reader) -> tuple[_Reader, int] | None:
        """Who is about to read much more of a task's prompt than anybody holds.

        Nobody waits for one that waits, so there is no circle.
        """
        ids = reader.planned
        held = max(reusable(self.batch.ids[each], ids) for each in range(len(self.batch.ids)))
        found = [
            (other, reusable(other.planned, ids))
            for other in self._readers
            if other is not reader and other.waits is None
        ]
        best = max(found, key=lambda each: each[1], default=None)
        return best if best is not None and best[1] >= held + WORTHWHILE else None

    def _still_waits(self, other: _Reader, shared: int, ids: Sequence[int]) -> bool:
        """Whether so many of ``ids`` are yet to be read for another task, and going to be."""
        there = other in self._readers and shared_start(ids, other.planned) >= shared
        return there and len(self.batch.ids[other.sequence]) < shared

    def _begin_or_wait(self, reader: _Reader) -> None:
        """Take over what any sequence holds of a task's prompt, and note the rest to be read."""
        reader.waits = self._worth_waiting(reader)
        if reader.waits is not None:
            return
        ids, own = reader.planned, reader.sequence
        sequences = range(len(self.batch.ids))
        best = max(sequences, key=lambda each: (reusable(self.batch.ids[each], ids), each == own))
        kept = reusable(self.batch.ids[best], ids)
        try:
            self.batch.copy(best, own, kept)
        except CacheError:  # a sliding window has moved on
            kept = 0
            self.batch.trim(own, 0)
        reader.left = deque([Part(own, ids[kept:])])
        reader.running.prompt += len(ids)
        reader.running.cached += kept

    # A pass.

    def _compose(self) -> list[tuple[_Reader, Part]]:
        """The parts of the next pass; what was taken is no longer left."""
        for reader in self._readers:
            if reader.waits is not None and not self._still_waits(*reader.waits, reader.planned):
                self._begin_or_wait(reader)
        # Who was left out of a pass is first in the next.
        answering = sorted(
            (each for each in self._readers if not each.planned), key=lambda each: each.since
        )
        reading = [each for each in self._readers if each.planned and each.waits is None]
        budget = self.budget if answering else self.batch.chunk
        parts: list[tuple[_Reader, Part]] = []
        for reader in (*answering, *reading):
            while reader.left:
                piece = self._piece(reader, [part for _, part in parts], budget)
                if piece is None:
                    break
                parts.append((reader, piece))
                if piece.kept:
                    break  # a sequence has one of them in a pass
        return parts

    def _piece(self, reader: _Reader, parts: Sequence[Part], budget: int) -> Part | None:
        """As much of what is left for a task as fits behind ``parts``."""
        whole = reader.left[0]
        rows = budget - sum(len(part.ids) for part in parts)
        if not whole.kept:
            # Of a branch nothing is held from one pass to the next: it is read whole.
            fits = (len(whole.ids) <= rows or not parts) and self.batch.has_room([*parts, whole])
            return reader.left.popleft() if fits else None
        unwanted = len(whole.ids) - whole.wanted
        logits = self.batch.logits - sum(part.wanted for part in parts)
        count = min(len(whole.ids), rows, unwanted + logits)
        if count <= 0:
            return None
        piece = Part(whole.sequence, whole.ids[:count], max(0, count - unwanted))
        if not self.batch.has_room([*parts, piece]):
            return None  # branches take more room aside
        reader.left.popleft()
        if count < len(whole.ids):
            rest = Part(whole.sequence, whole.ids[count:], whole.wanted - piece.wanted)
            reader.left.appendleft(rest)
        return piece

    # Leaving.

    def _send(self, reader: _Reader) -> None:
        """Send a task its logits, and note what it wants next."""
        running = reader.running
        try:
            logits = np.concatenate(reader.rows)
            check_logits(logits)
            self._want(reader, running.task.send(logits))
            return
        except StopIteration as end:
            running.result = end.value
        except QuantError as error:
            running.error = error
        self._leave(reader)
        _end(running)

    def _leave(self, reader: _Reader) -> None:
        self._readers.remove(reader)
        self._free.append(reader.sequence)


def _end(running: Running[Any]) -> None:
    running.done = True
    running.task.close()
