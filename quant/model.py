"""One transformer: its forward pass, and sessions that read token ids with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends.protocol import Program
from .backends.scratch import HEAD_TOKENS
from .batch import CHUNK, Batch, Part, SessionOptions, reusable
from .cache import RollingCache
from .cache_file import read_cache, write_cache
from .config import ModelConfig
from .errors import CacheError, InputError
from .qtensor import Floats
from .sampling import Sampler, check_logits
from .weights import Weights, check_weights


class Model:
    """A loaded model. ``source`` is the name of the file that it came from.

    Raises :class:`~quant.errors.CheckpointError` for weights that are not as ``config`` says.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, source: str, identify: Callable[[], str]
    ) -> None:
        check_weights(weights, config)
        self.config = config
        self.weights = weights
        self.source = source
        self._identify = identify
        # Twins of weights on a device, by the identity of the matrix.
        self.on_device: dict[int, Any] = {}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the source file in hexadecimal; a large GGUF takes seconds to read for it."""
        return self._identify()

    @cached_property
    def identity(self) -> str:
        """What keys and values depend on beside the ids, the cache and the precision: the weights
        that compute, whatever file they came from, and the geometry. SHA-256 in hexadecimal.
        """
        text = f"{self.config!r} {self.weights.fingerprint()}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return self.weights.nbytes

    def session(
        self,
        max_context: int | None = None,
        window: int | None = None,
        kv: str = "f16",
        prefill: str = "exact",
        *,
        backend: str = "cpu",
        threads: int | None = None,
        chunk: int = CHUNK,
        gpu_layers: int | None = None,
    ) -> Session:
        """A new, empty session, of :class:`SessionOptions`.

        ``max_context`` is the most tokens it will hold (default: what the model was trained for),
        ``window`` narrows the model's own sliding window, ``kv`` is the cache's element (``f16``,
        ``int8``, or ``f32``), ``prefill`` is ``exact`` or ``fast``, ``chunk`` how many ids are read
        at once. ``backend`` is ``cpu``, ``numpy`` or ``cuda``; with the last, ``gpu_layers`` of the
        layers run on the GPU (default: all). Raises :class:`~quant.errors.ConfigError` for values
        that cannot be, :class:`~quant.errors.DeviceError` where there is no GPU, and where its
        memory does not suffice, at the latest when it is first used.
        """
        return self.open(
            SessionOptions(max_context, window, kv, prefill, backend, threads, chunk, gpu_layers)
        )

    def open(self, options: SessionOptions) -> Session:
        """A new, empty session; see :meth:`session`."""
        return Session(self, options)


class Session:
    """One text being read: the cache of what was fed, and the room to feed more.

    >>> session = model.session(max_context=512)             # doctest: +SKIP
    >>> logits = session.feed([1, 9690, 198])                # doctest: +SKIP
    >>> logits.shape, session.position                       # doctest: +SKIP
    ((49152,), 3)
    """

    def __init__(self, model: Model, options: SessionOptions) -> None:
        self.model = model
        self._batch = Batch(model.config, model.weights, model.on_device, options)
        self.max_context = self._batch.max_context
        self.chunk = self._batch.chunk

    @property
    def ids(self) -> list[int]:
        """The ids that were read."""
        return self._batch.ids[0]

    @property
    def cache(self) -> RollingCache:
        """Keys and values of what was read."""
        return self._batch.caches[0]

    @property
    def position(self) -> int:
        """Tokens fed so far; the next one's position."""
        return self.cache.position

    @property
    def program(self) -> Program:
        """The recorded forward pass."""
        return self._batch.program

    @property
    def is_compiled(self) -> bool:
        """Whether kernels are ready, in memory or on disk; else :meth:`compile` takes seconds."""
        return self._batch.program.is_compiled()

    def compile(self) -> None:
        """Compile the kernels, or load them; otherwise the first :meth:`feed` does."""
        self._batch.program.compile()

    def feed(
        self,
        ids: Sequence[int],
        every: bool = False,
        progress: Callable[[int, int], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> Floats:
        """Read ``ids`` and return the logits after the last one, float32 [vocab].

        With ``every`` the logits after each id, float32 [len(ids), vocab].
        ``progress(done, total)`` is called after each chunk; ``cancel()`` is asked between chunks,
        and where it says yes the logits after what was read so far are returned
        (:attr:`position` tells).

        Raises :class:`~quant.errors.ContextFullError` before anything is computed if the ids do not
        fit, :class:`~quant.errors.InputError` for no ids or an id outside the vocabulary, and
        :class:`~quant.errors.NotFiniteError` where what the model computes is no number.
        """
        return self._read(ids, every, progress, cancel)

    def next_token(
        self,
        ids: Sequence[int],
        sampler: Sampler,
        progress: Callable[[int, int], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> int:
        """Read ``ids`` and choose the id that follows; see :meth:`feed`.

        Where the backend can choose, its logits never leave the device.
        """
        self._read(ids, False, progress, cancel, fetch=False)
        draw = sampler.draw()
        token = self._batch.program.choose(sampler.sampling, self.ids, draw)
        if token is None:
            logits = self._batch.fetch(1)[0]
            check_logits(logits)
            token = sampler.choose(logits, self.ids, draw)
        return token

    def _read(
        self,
        ids: Sequence[int],
        every: bool,
        progress: Callable[[int, int], None] | None,
        cancel: Callable[[], bool] | None,
        fetch: bool = True,
    ) -> Floats:
        array = self._checked(ids)
        kept = []
        logits = np.empty(0, np.float32)
        chunk = min(self.chunk, HEAD_TOKENS) if every else self.chunk
        for start in range(0, array.size, chunk):
            part = array[start : start + chunk]
            done = start + part.size
            last = done == array.size or (cancel is not None and cancel())
            logits = self._feed_chunk(part, every, last, fetch)
            if fetch:
                check_logits(logits)
            kept.append(logits)
            if progress is not None:
                progress(done, array.size)
            if last:
                break
        return np.concatenate(kept) if every else logits[-1]

    def branch(self, runs: Sequence[Sequence[int]]) -> Floats:
        """Logits after each id of each of ``runs``, float32 [ids, vocab]; none of them is kept.

        Each run is read as if it alone followed what was fed; they share their passes. Raises
        :class:`~quant.errors.InputError` for a run of no ids or of more than a pass has room for,
        and what :meth:`feed` raises.

        >>> rows = session.branch([[28, 338], [28]])         # doctest: +SKIP
        >>> rows.shape, session.position                     # doctest: +SKIP
        ((3, 49152), 3)
        """
        rows: list[Floats] = []
        parts: list[Part] = []
        for run in (*runs, None):
            part = None if run is None else Part(0, run, len(run), kept=False)
            if parts and (part is None or not self._batch.has_room([*parts, part])):
                logits = self._batch.read(parts)
                check_logits(logits)
                rows.append(logits)
                parts = []
            if part is not None:
                parts.append(part)
        return np.concatenate(rows)

    def trim(self, position: int) -> None:
        """Forget every token from ``position`` on.

        Raises :class:`~quant.errors.CacheError` where the rolling buffer no longer holds what the
        next token would see; ``trim(0)`` always works.
        """
        self._batch.trim(0, position)

    def reuse(self, ids: Sequence[int]) -> int:
        """Forget what ``ids`` does not begin with; how many of them need not be fed again.

        The last id is never counted, because the logits after it are what one wants. Raises
        :class:`~quant.errors.CacheError` as :meth:`trim` does.

        >>> session.ids                                      # doctest: +SKIP
        [1, 9690, 198, 28]
        >>> session.reuse([1, 9690, 40]), session.ids        # doctest: +SKIP
        (2, [1, 9690])
        """
        kept = reusable(self.ids, ids)
        if kept < self.position:
            self.trim(kept)
        return kept

    def save(self, path: Path, identity: str) -> int:
        """Write what was read to a file; the bytes it takes. See :mod:`quant.cache_file`.

        ``identity`` has all that keys and values depend on beside the model. Raises OSError.
        """
        self._batch.program.read_back()
        return write_cache(path, self.cache, self.ids, f"{self.model.identity} {identity}")

    def restore(self, path: Path, identity: str) -> None:
        """Take up what :meth:`save` wrote; the session is empty before, and after an error.

        Raises :class:`~quant.errors.CacheError` for a file that is damaged or of something else.
        """
        self.trim(0)
        ids = read_cache(path, self.cache, f"{self.model.identity} {identity}")
        if ids and max(ids) >= self.model.config.vocab_size:
            self.cache.trim(0)
            raise CacheError(f"{path} holds ids that the model does not have.")
        self.ids[:] = ids
        self._batch.program.take_up()

    def _checked(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        array = np.asarray(ids, np.int64)
        if array.ndim != 1:
            raise InputError("Token ids are one list of numbers.")
        self._batch.check(Part(0, array.tolist(), 0))
        return array

    def _feed_chunk(
        self, part: npt.NDArray[np.int64], every: bool, last: bool, fetch: bool
    ) -> Floats:
        """Logits [n, vocab]: of every token, of the last one, or of none (n = 0)."""
        wanted = part.size if every else int(last)
        return self._batch.read([Part(0, part.tolist(), wanted)], fetch)
