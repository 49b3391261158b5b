"""One transformer: its forward pass, and sessions that read token ids with it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends.protocol import Program, new_program
from .backends.scratch import HEAD_TOKENS, Scratch
from .cache import RollingCache
from .cache_file import read_cache, write_cache
from .config import ModelConfig
from .errors import CacheError, ConfigError, ContextFullError, InputError
from .qtensor import Floats
from .sampling import Sampler, check_logits
from .weights import Weights, check_weights

CHUNK = 256
"""Tokens of a prompt that are read at once; between chunks a reader can stop or show progress."""

PLANES = {"exact": 2, "fast": 1}
"""Precision of a prompt's activations: two int8 planes (as good as float32), or one."""


def record_forward(
    program: Program, weights: Weights, cache: RollingCache, scratch: Scratch
) -> None:
    """The forward pass (Mistral 7B, section 2), step by step.

    The residual stream is ``x``; what a branch computes waits in ``delta`` until the next norm adds
    it. ``h`` is the input of the next product.
    """
    s = scratch
    program.embed(weights.embedding, s.ids, s.x)
    program.angles(s.cosines, s.sines)
    delta = None
    for layer, ring, window in zip(weights.layers, cache.layers, cache.windows, strict=True):
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
        context = options.checked_context(model.config)
        self.model = model
        self.max_context = context
        self.chunk = min(options.chunk, context)
        self.ids: list[int] = []
        self.cache = RollingCache(model.config, context, options.window, options.kv)
        self._scratch = Scratch.allocate(model.config, self.chunk, options.kv)
        self._program = new_program(
            options.backend,
            model.config,
            self.chunk,
            PLANES[options.prefill],
            options.threads or available_processors(),
            model.on_device,
            options.gpu_layers,
        )
        record_forward(self._program, model.weights, self.cache, self._scratch)

    @property
    def position(self) -> int:
        """Tokens fed so far; the next one's position."""
        return self.cache.position

    @property
    def program(self) -> Program:
        """The recorded forward pass."""
        return self._program

    @property
    def is_compiled(self) -> bool:
        """Whether kernels are ready, in memory or on disk; else :meth:`compile` takes seconds."""
        return self._program.is_compiled()

    def compile(self) -> None:
        """Compile the kernels, or load them; otherwise the first :meth:`feed` does."""
        self._program.compile()

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
        token = self._program.choose(sampler.sampling, self.ids, draw)
        if token is None:
            self._program.fetch(1)
            logits = self._scratch.logits[0, : self.model.config.vocab_size]
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

    def trim(self, position: int) -> None:
        """Forget every token from ``position`` on.

        Raises :class:`~quant.errors.CacheError` where the rolling buffer no longer holds what the
        next token would see; ``trim(0)`` always works.
        """
        self.cache.trim(position)
        del self.ids[position:]

    def reuse(self, ids: Sequence[int]) -> int:
        """Forget what ``ids`` does not begin with; how many of them need not be fed again.

        The last id is never counted, because the logits after it are what one wants. Raises
        :class:`~quant.errors.CacheError` as :meth:`trim` does.

        >>> session.ids                                      # doctest: +SKIP
        [1, 9690, 198, 28]
        >>> session.reuse([1, 9690, 40]), session.ids        # doctest: +SKIP
        (2, [1, 9690])
        """
        pairs = zip(self.ids, ids, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        kept = max(0, min(shared, len(ids) - 1))
        if kept < self.position:
            self.trim(kept)
        return kept

    def save(self, path: Path, identity: str) -> int:
        """Write what was read to a file; the bytes it takes. See :mod:`quant.cache_file`.

        ``identity`` has all that keys and values depend on beside the model. Raises OSError.
        """
        self._program.read_back()
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
        self.ids = ids
        self._program.take_up()

    def _checked(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        array = np.asarray(ids, np.int64)
        if array.ndim != 1 or array.size == 0:
            raise InputError("There is nothing to read: no token ids were given.")
        if array.min() < 0 or array.max() >= self.model.config.vocab_size:
            raise InputError(
                f"A token id is outside the model's vocabulary of {self.model.config.vocab_size}."
            )
        if self.position + array.size > self.max_context:
            raise ContextFullError(array.size, self.max_context - self.position)
        return array

    def _feed_chunk(
        self, part: npt.NDArray[np.int64], every: bool, last: bool, fetch: bool
    ) -> Floats:
        """Logits [n, vocab]: of every token, of the last one, or of none (n = 0)."""
        n = part.size
        wanted = n if every else int(last)
        self._scratch.ids[:n] = part
        self.cache.claim(n)
        self._program.run(n, self.position, n - wanted, wanted)
        if fetch:
            self._program.fetch(wanted)
        self.cache.advance(n)
        self.ids.extend(part.tolist())
        return self._scratch.logits[:wanted, : self.model.config.vocab_size].copy()


def available_processors() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
