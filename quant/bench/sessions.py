"""How fast one text is read and written: prompts, and a token at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.cpu import CpuProgram
from ..backends.spans import lay_out
from ..batch import Batch, available_processors
from ..cache import RollingCache
from ..errors import ConfigError, ContextFullError
from ..kernels import table as steps
from ..model import Model, Session
from ..qtensor import QuantTensor


@dataclass(frozen=True)
class Result:
    """One measurement: medians of ``rounds``.

    ``test`` is ``prefill`` (of ``tokens`` tokens) or ``decode`` (with ``depth`` tokens in the
    cache); the other of the two is 0. ``gigabytes_per_second`` counts the weights that were read,
    for a prompt once for each chunk.
    """

    test: str
    tokens: int
    depth: int
    precision: str
    bits: int
    kv: str
    threads: int
    tokens_per_second: float
    gigabytes_per_second: float


def measure(
    model: Model,
    prefill: Sequence[int],
    depths: Sequence[int],
    precisions: Sequence[str] = ("exact", "fast"),
    kv: str = "f16",
    threads: int | None = None,
    rounds: int = 5,
    decode_tokens: int = 16,
    backend: str = "cpu",
    gpu_layers: int | None = None,
) -> Iterator[Result]:
    """Measure prefill at each length and precision, and decode at each depth.

    Raises what :meth:`~quant.model.Model.session` raises, and
    :class:`~quant.errors.ContextFullError` for lengths the model was not made for.
    """
    context = max([*prefill, *(depth + decode_tokens for depth in depths), 1])
    count = threads or available_processors()
    for precision in precisions:
        if not prefill:
            break
        session = model.session(
            context, kv=kv, prefill=precision, threads=threads, backend=backend,
            gpu_layers=gpu_layers,
        )  # fmt: skip
        for tokens in prefill:
            ids = np.arange(tokens) % model.config.vocab_size
            prefill_seconds(session, ids)  # brings the weights into memory
            seconds = statistics.median(prefill_seconds(session, ids) for _ in range(rounds))
            passes = -(-tokens // session.chunk)
            yield _result(
                model, "prefill", tokens, 0, precision, kv, count, seconds, tokens, passes
            )
    if depths:
        session = model.session(
            context, kv=kv, threads=threads, backend=backend, gpu_layers=gpu_layers
        )
        for depth in depths:
            decode_seconds(session, depth, 2)
            times = [decode_seconds(session, depth, decode_tokens) for _ in range(rounds)]
            seconds = statistics.median(times)
            yield _result(
                model, "decode", 0, depth, "exact", kv, count, seconds, decode_tokens, decode_tokens
            )


def prefill_seconds(session: Session, ids: Any) -> float:
    """Seconds for a prompt of ``ids`` in an empty cache."""
    session.trim(0)
    start = time.perf_counter()
    session.feed(ids)
    return time.perf_counter() - start


def decode_seconds(session: Session, depth: int, tokens: int) -> float:
    """Seconds for ``tokens`` single tokens after ``depth`` others, whose keys are made up."""
    pretend(session, depth)
    start = time.perf_counter()
    for token in range(tokens):
        session.feed([token])
    return time.perf_counter() - start


def pretend(text: Session | Batch, depth: int, sequences: int = 1) -> None:
    """Let a session, or the first ``sequences`` of a batch, hold ``depth`` tokens never read.

    The cache is written, if not with keys of any text: memory that was never written costs nothing
    to read. Raises :class:`~quant.errors.ContextFullError` where so many do not fit.

    >>> pretend(batch, 1024, sequences=2)                    # doctest: +SKIP
    >>> [cache.position for cache in batch.caches]           # doctest: +SKIP
    [1024, 1024, 0]
    """
    if isinstance(text, Session):
        text.trim(0)
        caches: Sequence[RollingCache] = [text.cache]
    else:
        for sequence in range(sequences):
            text.trim(sequence, 0)
        caches = text.caches[:sequences]
    for cache in caches:
        if depth > cache.context:
            raise ContextFullError(depth, cache.context)
        _make_up(cache)
    text.program.take_up()
    for cache in caches:
        cache.claim(depth)
        cache.advance(depth)


def _make_up(cache: RollingCache) -> None:
    """Fill a cache with eighths, unless it was filled before."""
    for layer in cache.layers:
        for array in (layer.keys, layer.values):
            if not array.any():
                array[...] = {1: 129, 2: 0x3000, 4: 0.125}[array.itemsize]  # an eighth
        layer.key_scales[...] = 0.125
        layer.value_scales[...] = 0.125


def attention_seconds(session: Session, tokens: int) -> float:
    """Seconds of attention alone in a prompt of ``tokens`` ids, which the session has just read.

    The last layer's counts for the last token only, since no other's is computed. Forgets the ids.
    Raises :class:`~quant.errors.ConfigError` for a session of another backend than ``cpu``.
    """
    if not isinstance(session.program, CpuProgram):
        raise ConfigError("Attention can be measured apart with the backend cpu only.")
    attend = session.program.part({steps.ATTENTION, steps.MERGE, steps.COMMIT})
    start = time.perf_counter()
    for position in range(0, tokens, session.chunk):
        count = min(session.chunk, tokens - position)
        last = int(position + count == tokens)
        attend(lay_out([(0, count, position, last, True)]))
    seconds = time.perf_counter() - start
    session.trim(0)
    return seconds


def _result(
    model: Model,
    test: str,
    tokens: int,
    depth: int,
    precision: str,
    kv: str,
    threads: int,
    seconds: float,
    count: int,
    passes: int,
) -> Result:
    matrix = model.weights.layers[0].gate
    return Result(
        test,
        tokens,
        depth,
        precision,
        matrix.spec.bits if isinstance(matrix, QuantTensor) else 32,
        kv,
        threads,
        count / seconds,
        model.weights.bytes_per_token * passes / seconds / 1e9,
    )
