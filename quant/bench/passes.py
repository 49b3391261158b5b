"""How fast passes are that several tokens share: of several sequences, or of one."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..batch import CHUNK, PLANES, Batch, Part, SessionOptions, available_processors
from ..model import Model
from ..qtensor import QuantTensor
from .roofline import Probes, Roofline
from .sessions import pretend

ENOUGH_SECONDS = 0.05
"""Passes of less are repeated between two probes, so that what the first read of them has pushed
out of the caches counts for little."""

MOST_PASSES = 16
"""Passes between two probes at most, and so the tokens that a context has room for after its
depth."""


@dataclass(frozen=True)
class Pass:
    """What one pass reads: ``tokens`` of each of ``sequences``; logits of all are wanted.

    >>> Pass(sequences=16).width, Pass(tokens=3).width
    (16, 3)
    """

    sequences: int = 1
    tokens: int = 1

    @property
    def width(self) -> int:
        """Tokens in all."""
        return self.sequences * self.tokens

    def planes(self, precision: str) -> int:
        """Planes of its activations; a single token always has two.

        >>> Pass(sequences=4).planes("fast"), Pass().planes("fast")
        (1, 2)
        """
        return PLANES[precision] if self.width > 1 else PLANES["exact"]


@dataclass(frozen=True)
class PassResult:
    """One kind of pass, with ``depth`` tokens of each sequence in the cache: medians of the rounds.

    ``tokens_per_second`` counts the tokens of all sequences. ``times_one`` is that beside passes of
    a single token in the same rounds: 16 sequences at once beside one after the other.
    ``roofline_share`` is what :class:`~quant.bench.roofline.Roofline` allows, by the probes right
    before and after, beside what was needed; on a GPU, where there are no probes, it and they are
    None.
    """

    sequences: int
    tokens: int
    depth: int
    precision: str
    bits: int
    kv: str
    threads: int
    tokens_per_second: float
    milliseconds: float
    times_one: float
    roofline_share: float | None
    read_gigabytes_per_second: float | None
    dot_gigamacs_per_second: float | None


@dataclass(frozen=True)
class Sample:
    """Passes of one kind between two probes: seconds of one, GB/s read before, GMAC/s after."""

    seconds: float
    read: float | None
    dots: float | None

    def share(self, roofline: Roofline, one: Pass, precision: str) -> float | None:
        """The part of the roofline that was reached; None without probes."""
        if self.read is None or self.dots is None:
            return None
        return (
            roofline.seconds(one.width, one.planes(precision), self.read, self.dots) / self.seconds
        )


class PassTimer:
    """A batch of a model, whose passes of several kinds are timed.

    It has room for passes of up to ``widest`` tokens, ``longest`` of one sequence, after ``depth``
    others. Raises :class:`~quant.errors.ConfigError` for what cannot be.

    >>> timer = PassTimer(model, widest=16, depth=1024)      # doctest: +SKIP
    >>> timer.sample(Pass(sequences=16), 1024).seconds       # doctest: +SKIP
    0.139
    """

    def __init__(
        self,
        model: Model,
        widest: int,
        depth: int,
        longest: int = 1,
        precision: str = "exact",
        kv: str = "f16",
        threads: int | None = None,
        backend: str = "cpu",
        gpu_layers: int | None = None,
        probes: Probes | None = None,
    ) -> None:
        # As many sequences as tokens, since a batch holds a row of logits for each sequence; rings
        # that nobody writes take no memory.
        self._batch = Batch(
            model.config,
            model.weights,
            model.on_device,
            SessionOptions(
                depth + max(MOST_PASSES, longest),
                kv=kv,
                prefill=precision,
                backend=backend,
                threads=threads,
                chunk=max(CHUNK, widest),
                gpu_layers=gpu_layers,
            ),
            widest,
        )
        self._probes = probes
        self._counts: dict[tuple[Pass, int], int] = {}

    def sample(self, one: Pass, depth: int) -> Sample:
        """Passes after ``depth`` tokens that were made up, between the two probes if there are any.

        The first call for a pass and a depth warms up. Raises :class:`~quant.errors.InputError` for
        a pass wider than the room, :class:`~quant.errors.ContextFullError` for one too deep.
        """
        if (one, depth) not in self._counts:
            self._seconds(one, depth, 1)
            count = math.ceil(ENOUGH_SECONDS / self._seconds(one, depth, 1))
            self._counts[one, depth] = max(1, min(count, MOST_PASSES // one.tokens))
        read = self._probes.read_bandwidth() if self._probes else None
        seconds = self._seconds(one, depth, self._counts[one, depth])
        return Sample(seconds, read, self._probes.dot_products() if self._probes else None)

    def _seconds(self, one: Pass, depth: int, count: int) -> float:
        """Seconds of one of ``count`` passes after ``depth`` tokens."""
        vocabulary = self._batch.config.vocab_size
        parts = [
            Part(
                sequence,
                [(sequence + token) % vocabulary for token in range(one.tokens)],
                one.tokens,
            )
            for sequence in range(one.sequences)
        ]
        pretend(self._batch, depth, one.sequences)
        start = time.perf_counter()
        for _ in range(count):
            self._batch.read(parts)
        return (time.perf_counter() - start) / count


def measure_passes(
    model: Model,
    passes: Sequence[Pass],
    depths: Sequence[int],
    precisions: Sequence[str] = ("exact", "fast"),
    kv: str = "f16",
    threads: int | None = None,
    rounds: int = 5,
    backend: str = "cpu",
    gpu_layers: int | None = None,
) -> Iterator[PassResult]:
    """Measure kinds of passes at each depth and precision; a single token only in ``exact``.

    A round has each kind once, and first a pass of a single token, which the others are told
    beside; so the machine's moods reach all of them. Raises :class:`~quant.errors.ConfigError` for
    options that cannot be and depths the model was not made for.
    """
    probes = None if backend == "cuda" else Probes(threads)
    roofline = Roofline.of(model.weights)
    for precision in precisions:
        kept = [one for one in passes if one.width > 1 or precision == "exact"]
        if not (kept and depths):
            continue
        timer = PassTimer(
            model, max(one.width for one in kept), max(depths), max(one.tokens for one in kept),
            precision, kv, threads, backend, gpu_layers, probes,
        )  # fmt: skip
        for depth in depths:
            kinds = dict.fromkeys([Pass(), *kept])
            taken = [{one: timer.sample(one, depth) for one in kinds} for _ in range(rounds)]
            for one in kept:
                pairs = [(each[one], each[Pass()]) for each in taken]
                yield _result(model, one, depth, precision, kv, threads, roofline, pairs)


def _result(
    model: Model,
    one: Pass,
    depth: int,
    precision: str,
    kv: str,
    threads: int | None,
    roofline: Roofline,
    pairs: Sequence[tuple[Sample, Sample]],
) -> PassResult:
    """Medians of a kind's samples, each beside that of a single token in the same round."""
    matrix = model.weights.layers[0].gate
    seconds = statistics.median(sample.seconds for sample, _ in pairs)
    return PassResult(
        one.sequences,
        one.tokens,
        depth,
        precision,
        matrix.spec.bits if isinstance(matrix, QuantTensor) else 32,
        kv,
        threads or available_processors(),
        one.width / seconds,
        1e3 * seconds,
        statistics.median(one.width * single.seconds / sample.seconds for sample, single in pairs),
        _median([sample.share(roofline, one, precision) for sample, _ in pairs]),
        _median([sample.read for sample, _ in pairs]),
        _median([sample.dots for sample, _ in pairs]),
    )


def _median(values: Sequence[float | None]) -> float | None:
    """The median of what there is.

    >>> _median([3.0, 1.0, 2.0]), _median([None])
    (2.0, None)
    """
    return statistics.median(known) if (known := [v for v in values if v is not None]) else None
