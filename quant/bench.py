"""Measuring the engine: prefill, decode, and what the machine could do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .backends.cpu import CpuProgram, Crew
from .backends.spans import lay_out
from .batch import available_processors
from .config import ModelConfig
from .errors import ConfigError
from .kernels import probes
from .kernels import table as steps
from .kernels.threads import BARRIER_SIZE
from .model import Model, Session
from .qtensor import QuantSpec, QuantTensor, packed_shapes
from .weights import MATRICES, Layer, Weights

GEOMETRIES = {
    "mistral-7b": ModelConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        max_position_embeddings=32768,
        windows=(4096,) * 32,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_ids=(2,),
    ),
    "smollm2-135m": ModelConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        rms_norm_eps=1e-5,
        rope_theta=1e5,
        max_position_embeddings=8192,
        windows=(None,) * 30,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_ids=(2,),
    ),
}
"""Shapes that can be measured without a file."""


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


def random_model(geometry: str, layers: int | None, spec: QuantSpec) -> Model:
    """A model of a known shape with random packed weights, in memory.

    Raises :class:`~quant.errors.ConfigError` for a geometry that is not known.
    """
    if geometry not in GEOMETRIES:
        raise ConfigError(f"There is no geometry {geometry!r}; there are {', '.join(GEOMETRIES)}.")
    values = dict(vars(GEOMETRIES[geometry]))
    if layers is not None:
        if layers < 1:
            raise ConfigError(f"A model has at least one layer, not {layers}.")
        values |= {"num_hidden_layers": layers, "windows": values["windows"][:1] * layers}
    config = ModelConfig(**values)
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, 1 << 20, np.uint8)

    def matrix(rows: int, columns: int) -> QuantTensor:
        codes, scales = packed_shapes(rows, columns, spec)
        packed = np.empty(codes, np.uint8)
        flat = packed.reshape(-1)
        for start in range(0, flat.size, noise.size):
            part = flat[start : start + noise.size]
            part[:] = noise[: part.size]
        # A spread that keeps the activations near 1, layer after layer.
        step = np.float16(1 / (columns**0.5 * (1 << (spec.bits - 2))))
        minimums = None if spec.symmetric else np.full(scales, -step * (1 << (spec.bits - 1)))
        return QuantTensor(
            spec,
            rows,
            columns,
            packed,
            np.full(scales, step, np.float16),
            None if minimums is None else minimums.astype(np.float16),
        )

    ones = np.ones(config.hidden_size, np.float32)
    embedding = matrix(config.vocab_size, config.hidden_size)
    head = embedding if config.tie_word_embeddings else matrix(*embedding.shape)
    stack = tuple(
        Layer(
            attention_norm=ones,
            mlp_norm=ones,
            **{name: matrix(*config.matrices()[name]) for name in MATRICES},
        )
        for _ in range(config.num_hidden_layers)
    )
    return Model(config, Weights(embedding, stack, ones, head), f"random {geometry}", lambda: "")


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


def pretend(session: Session, depth: int) -> None:
    """Let a session hold ``depth`` tokens that were never read.

    The cache is written, if not with keys of any text: memory that was never written costs nothing
    to read.
    """
    session.trim(0)
    for layer in session.cache.layers:
        for array in (layer.keys, layer.values):
            if not array.any():
                array[...] = {1: 129, 2: 0x3000, 4: 0.125}[array.itemsize]  # an eighth
        layer.key_scales[...] = 0.125
        layer.value_scales[...] = 0.125
    session.program.take_up()
    session.cache.claim(depth)
    session.cache.advance(depth)


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


def read_bandwidth(threads: int | None = None, size: int = 1 << 30) -> float:
    """GB/s at which all threads together read ``size`` bytes of memory; the median of nine."""
    source = np.ones(size // 4, np.float32)
    sink = np.empty(1024, np.float32)
    return size / 1e9 / _typical(probes.read_memory, (source, sink), threads)


def dot_products(threads: int | None = None, rounds: int = 4_000_000) -> float:
    """Billions of byte products a second (GMAC/s) out of registers, all threads; median of nine."""
    source = np.ones(128, np.int8)
    sink = np.empty(1024, np.float32)
    count = threads or available_processors()
    return (
        rounds
        * probes.DOTS
        * 64
        * count
        / 1e9
        / _typical(probes.multiply, (source, sink, rounds), threads)
    )


def _typical(probe: Callable[..., None], arguments: tuple[Any, ...], threads: int | None) -> float:
    crew = Crew(threads or available_processors())
    barrier = np.zeros(BARRIER_SIZE, np.int64)
    probe(*arguments, barrier, 0, 1)  # compiles it
    times = []
    for _ in range(9):
        start = time.perf_counter()
        crew.run(lambda thread: probe(*arguments, barrier, thread, crew.threads))
        times.append(time.perf_counter() - start)
    return statistics.median(times)
