"""``mistral-chat plan``: the memory that a model takes, told from its headers alone."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

from rich.table import Table

from mistral_chat.errors import MemoryShortError
from mistral_chat.models.texts import LENGTH
from mistral_chat.system.screen import Screen
from quant import ModelConfig, QuantSpec
from quant.backends.scratch import Scratch
from quant.batch import CHUNK
from quant.cache import TILE, element_type
from quant.checkpoints import fitting_spec, open_checkpoint
from quant.checkpoints.checkpoint import Checkpoint
from quant.checkpoints.conversion import SLAB_WEIGHTS
from quant.checkpoints.names import tensor_names
from quant.qtensor import packed_shapes
from quant.quantizers.gptq import LARGEST_DOUBLE

PROGRAM = 250_000_000
"""Bytes that Python, its libraries and the kernels take by themselves, about."""

COPIES = 2
"""Matrices of the largest Hessian's size held at once: itself, and its temporary parts.

Two layers of Mistral 7B took 2.7 GB at most, where this tells 2.9.
"""


AT_ONCE = 16
"""Texts that are read at once where nobody says how many; fewer where memory bears no more."""

MOST_COUNTED = 1024
"""Texts that are counted when it is told how many fit at once: more would gain nothing."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of memory: to chat, by part, and while quantizing by each method.

    ``cache``, ``scratch`` and ``chat`` are those of ``at_once`` texts that are read at once, each
    with ``context`` tokens. ``fitting`` is how many could be, by the kind of cache, of
    ``MOST_COUNTED``; None where nobody knows what memory there is.
    """

    model: str
    context: int
    at_once: int
    weights: int
    cache: dict[str, int]
    scratch: int
    chat: dict[str, int]
    quantizing: dict[str, int]
    available: int | None
    fitting: dict[str, int] | None

    def to_json(self) -> str:
        """One JSON object in the names of the fields."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)

    def print(self, console: Screen) -> None:
        """A line for each part, and what this computer has."""
        table = Table.grid(padding=(0, 2))
        rows = [("weights", self.weights), *((f"cache, {k}", v) for k, v in self.cache.items())]
        rows += [("buffers", self.scratch)]
        rows += [(f"chatting with {kind}", size) for kind, size in self.chat.items()]
        rows += [(f"quantizing by {method}", size) for method, size in self.quantizing.items()]
        if self.available is not None:
            rows.append(("free on this computer", self.available))
        for name, size in rows:
            table.add_row(name, f"{size / 1e9:8.2f} GB")
        many = f", {self.at_once} texts at once" if self.at_once > 1 else ""
        console.print(f"{self.model}, {self.context} tokens of context{many}:")
        console.print(table)
        if self.fitting is not None:
            counts = (
                f"{count}{' or more' if count == MOST_COUNTED else ''} with {kind}"
                for kind, count in self.fitting.items()
            )
            console.print(f"Texts of that length that fit at once: {', '.join(counts)}.")


def plan(path: Path, context: int, at_once: int = 1) -> MemoryPlan:
    """What the model at ``path`` needs to read ``at_once`` texts, with ``context`` tokens each.

    Nothing of it is loaded. Raises CheckpointError and ConfigError as opening the model does.
    Estimates; a mapped native folder may take less, since pages that nobody reads are not in
    memory.
    """
    return plan_of(open_checkpoint(path), context, at_once)


def plan_of(checkpoint: Checkpoint, context: int, at_once: int = 1) -> MemoryPlan:
    """As :func:`plan`, for a checkpoint that is open."""
    config = checkpoint.config
    context = min(context, config.max_position_embeddings)
    names = tensor_names(config)
    spec = fitting_spec(config)
    weights = sum(tensor_bytes(*checkpoint.describe(name), spec) for name in names)
    kinds = ("f16", "int8")
    available = available_memory()
    return MemoryPlan(
        model=checkpoint.source,
        context=context,
        at_once=at_once,
        weights=weights,
        cache={kind: at_once * cache_bytes(config, context, kind) for kind in kinds},
        scratch=scratch_bytes(config, _rows(context, at_once), at_once),
        chat={kind: chat_bytes(config, weights, context, kind, at_once) for kind in kinds},
        quantizing=quantizing_bytes(config),
        available=available,
        fitting=None
        if available is None
        else {
            kind: _fitting(config, weights, context, kind, MOST_COUNTED, available)
            for kind in kinds
        },
    )


def chat_bytes(
    config: ModelConfig, weights_bytes: int, context: int, kind: str, sequences: int = 1
) -> int:
    """Bytes to read and answer so many texts at once, each of up to ``context`` tokens."""
    caches = sequences * cache_bytes(config, context, kind)
    buffers = scratch_bytes(config, _rows(context, sequences), sequences)
    return PROGRAM + weights_bytes + buffers + caches


def sequences_that_fit(
    config: ModelConfig, weights_bytes: int, context: int, kind: str, most: int = AT_ONCE
) -> int:
    """How many texts of up to ``context`` tokens memory bears at once, 1 to ``most``.

    Beside them ``weights_bytes`` must find their place: those of weights that are not loaded yet,
    or are mapped from a file. ``kind`` is the cache's element. Where nobody knows what memory is
    free, it bears ``most``.

    Example: a model of Mistral 7B's shapes in int4 takes 4.1 GB, and 0.13 MB of keys and values a
    token in float16, so a text of 4,096 tokens takes 0.54 GB. Where 8 GB are free, 6 of them fit.
    """
    available = available_memory()
    if available is None:
        return most
    return max(1, _fitting(config, weights_bytes, context, kind, most, available))


def _fitting(
    config: ModelConfig, weights_bytes: int, context: int, kind: str, most: int, available: int
) -> int:
    """How many texts fit, 0 to ``most``."""

    def needed(sequences: int) -> int:
        return chat_bytes(config, weights_bytes, context, kind, sequences)

    return bisect_right(range(1, most + 1), available, key=needed)


def _rows(context: int, sequences: int) -> int:
    """Tokens of a pass for which there are buffers."""
    return max(min(CHUNK, context), sequences)


def tensor_bytes(shape: tuple[int, ...], packed: QuantSpec | None, spec: QuantSpec) -> int:
    """Bytes of a tensor in memory; float matrices are packed by ``spec`` when they are loaded."""
    if len(shape) < 2:
        return 4 * prod(shape)
    spec = packed or spec
    codes, scales = packed_shapes(shape[0], shape[1], spec)
    return prod(codes) + prod(scales) * (2 if spec.symmetric else 4)


def cache_bytes(config: ModelConfig, context: int, kind: str) -> int:
    """Bytes of keys and values; a layer with a window holds no more than it.

    Mistral 7B v0.1 at 32768 tokens: 32 layers * 4096 slots * 8 heads * 128 * 2 bytes, twice.
    """
    size = 0
    for window in config.windows:
        slots = -(-min(window or context, context) // TILE) * TILE
        row = config.head_dim * element_type(kind).itemsize + (4 if kind == "int8" else 0)
        size += 2 * slots * config.num_key_value_heads * row
    return size


def scratch_bytes(config: ModelConfig, tokens: int, sequences: int = 1) -> int:
    """Bytes of the buffers for passes of up to ``tokens`` tokens of so many sequences."""
    # Zeros that nobody touches take no memory.
    scratch = Scratch.allocate(config, tokens, "f16", sequences)
    return sum(getattr(scratch, field.name).nbytes for field in fields(scratch))


def quantizing_bytes(config: ModelConfig) -> dict[str, int]:
    """The most that quantizing holds at once, by method."""
    shapes = [*config.matrices().values(), (config.vocab_size, config.hidden_size)]
    largest = max(rows * columns for rows, columns in shapes)
    layer = sum(rows * columns for rows, columns in config.matrices().values())
    rounding = PROGRAM + 6 * 4 * SLAB_WEIGHTS + 2 * largest
    inputs = max(columns for _, columns in config.matrices().values())
    double = 8 if inputs <= LARGEST_DOUBLE else 4
    streams = 8 * LENGTH * config.hidden_size * 4 + scratch_bytes(config, LENGTH)
    searching = rounding + layer + streams
    floats = 3 * 4 * max(rows * columns for rows, columns in config.matrices().values())
    return {
        "rtn": rounding,
        "mse": searching,
        "gptq": PROGRAM + layer + streams + floats + COPIES * double * inputs * inputs,
    }


def check_memory(checkpoint: Checkpoint, context: int, kind: str) -> None:
    """Raise MemoryShortError, with numbers, where chatting with a model cannot fit."""
    told = plan_of(checkpoint, context)
    needed = told.chat[kind]
    if told.available is None or needed <= told.available:
        return
    raise MemoryShortError(
        f"{told.model} needs {needed / 1e9:.1f} GB of memory (weights {told.weights / 1e9:.1f}, "
        f"cache for {told.context} tokens {told.cache[kind] / 1e9:.1f}), but only "
        f"{told.available / 1e9:.1f} GB are free; ask for a smaller --context, for --kv int8 or a "
        "smaller model, or try all the same with --ignore-memory."
    )


def check_quantizing_memory(config: ModelConfig, method: str) -> None:
    """Raise MemoryShortError, with numbers, where quantizing by ``method`` cannot fit."""
    needed, available = quantizing_bytes(config)[method], available_memory()
    if available is None or needed <= available:
        return
    raise MemoryShortError(
        f"Quantizing this model by {method} needs {needed / 1e9:.1f} GB of memory, but only "
        f"{available / 1e9:.1f} GB are free; take --method "
        f"{'rtn' if method == 'mse' else 'mse or rtn'}, or try all the same with --ignore-memory."
    )


def available_memory() -> int | None:
    """Bytes of memory that are free, as far as the system tells; no more than a container's."""
    found = [size for size in (_free_of_system(), _free_of_container()) if size is not None]
    return min(found, default=None)


def _free_of_system() -> int | None:
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as file:
            values: dict[str, Any] = dict(line.split(":", 1) for line in file)
        return int(values["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _free_of_container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a Linux control group leaves; pages of files that it holds can be given back."""
    try:
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        stat = dict(line.split() for line in lines)
        return max(0, limit - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):  # "max" is no number: no limit
        return None
