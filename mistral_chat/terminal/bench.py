"""``mistral-chat bench``: what the engine does, beside what the machine could."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from mistral_chat.models.download import Progress
from mistral_chat.models.names import locate
from mistral_chat.models.planning import check_caches_memory
from mistral_chat.settings import Paths, Settings
from mistral_chat.system.screen import Screen
from quant import Model, QuantSpec, load
from quant.backends.devices import chosen, copy_bandwidth, describe
from quant.bench import (
    MOST_PASSES,
    Pass,
    PassResult,
    Result,
    dot_products,
    measure,
    measure_passes,
    random_model,
    read_bandwidth,
)
from quant.checkpoints import DEFAULT_SPEC, fitting_spec, open_checkpoint


@dataclass(frozen=True)
class Plan:
    """What to measure. ``geometry`` names shapes to fill with random weights.

    With ``at_once``, which has numbers of sequences, no single sequence's decode is measured but in
    the same passes.
    """

    prefill: Sequence[int]
    depths: Sequence[int]
    rounds: int
    geometry: str | None = None
    layers: int | None = None
    bits: int = DEFAULT_SPEC.bits
    group_size: int = DEFAULT_SPEC.group_size
    symmetric: bool = DEFAULT_SPEC.symmetric
    at_once: Sequence[int] = ()

    @property
    def passes(self) -> list[Pass]:
        """Passes that sequences share, the fewest first; one sequence is what others are beside.

        >>> [one.sequences for one in Plan([], [0], 5, at_once=[16, 4, 16]).passes]
        [1, 4, 16]
        """
        counts = sorted({1, *self.at_once}) if self.at_once else []
        return [Pass(sequences=count) for count in counts]


@dataclass(frozen=True)
class Report:
    """The measurements, and the machine's own speed taken in the same run.

    On a GPU, ``device`` is its name, and the bandwidth that of copying within its memory.
    """

    model: str
    weight_bytes: int
    read_gigabytes_per_second: float
    dot_gigamacs_per_second: float
    results: tuple[Result, ...]
    device: str = "cpu"
    at_once: tuple[PassResult, ...] = ()

    def to_json(self) -> str:
        """One JSON object; ``results`` and ``at_once`` are lists of objects."""
        return json.dumps(asdict(self))

    def print(self, console: Screen) -> None:
        """Tables of the measurements, and a line about the machine."""
        counts = [each.threads for each in self.results] + [each.threads for each in self.at_once]
        threads = counts[0] if counts else 0
        where = f"{threads} threads" if self.device == "cpu" else self.device
        console.print(f"{self.model}: {self.weight_bytes / 1e6:.0f} MB of weights, {where}")
        if self.results:
            console.print(self._table())
        if self.at_once:
            console.print(self._table_at_once())
        if self.device != "cpu":
            console.print(f"It copies {self.read_gigabytes_per_second:.1f} GB/s, read and written.")
            return
        console.print(
            f"This machine reads {self.read_gigabytes_per_second:.1f} GB/s and multiplies "
            f"{self.dot_gigamacs_per_second:.0f} billion bytes a second."
        )

    def _table(self) -> Table:
        table = Table("test", "precision", "tokens/s", "GB/s of weights", "of the bandwidth")
        for result in self.results:
            name = f"prefill {result.tokens}"
            share = ""
            if result.test == "decode":
                name = f"decode at {result.depth}"
                share = f"{result.gigabytes_per_second / self.read_gigabytes_per_second:.0%}"
            table.add_row(
                name,
                result.precision,
                f"{result.tokens_per_second:.1f}",
                f"{result.gigabytes_per_second:.1f}",
                share,
            )
        return table

    def _table_at_once(self) -> Table:
        table = Table(
            "at once", "depth", "precision", "tokens/s", "ms a pass", "times one", "share"
        )
        for each in self.at_once:
            table.add_row(
                str(each.sequences),
                str(each.depth),
                each.precision,
                f"{each.tokens_per_second:.1f}",
                f"{each.milliseconds:.1f}",
                f"{each.times_one:.2f}",
                "" if each.roofline_share is None else f"{each.roofline_share:.0%}",
            )
        if any(each.roofline_share is not None for each in self.at_once):
            table.caption = "share: of what reading and multiplying allow"
        return table


def run_benchmark(plan: Plan, settings: Settings, paths: Paths, progress: Progress) -> Report:
    """Measure the model of the settings, or random weights of the plan's geometry.

    Raises ModelMissingError and CheckpointError as loading does, ConfigError for a plan that cannot
    be, MemoryShortError where the sequences' keys and values have no room.
    """
    model, name = _model(plan, settings, paths, progress)
    passes = plan.passes
    if passes:
        context = max(plan.depths) + MOST_PASSES
        check_caches_memory(model.config, passes[-1].sequences, context, settings.kv)
    alone = () if passes else plan.depths
    # A single token is the same in both precisions, and measured once.
    shared = max(0, 2 * len(passes) - 1) * len(plan.depths)
    total = 2 * len(plan.prefill) + len(alone) + shared + 2
    done = 0

    def step(results: Iterable[Any]) -> list[Any]:
        nonlocal done
        kept = []
        for result in results:
            kept.append(result)
            done += 1
            progress("Measuring", done, total)
        return kept

    backend = chosen(settings.device)
    device = "cpu" if backend == "cpu" else describe().name
    progress("Measuring", 0, total)
    if backend == "cpu":
        probes = (read_bandwidth, dot_products)
        bandwidth, products = step(probe(settings.threads) for probe in probes)
    else:
        bandwidth, products = step([copy_bandwidth(), 0.0])
    how: dict[str, Any] = {
        "kv": settings.kv,
        "threads": settings.threads,
        "rounds": plan.rounds,
        "backend": backend,
        "gpu_layers": settings.gpu_layers,
    }
    results = step(measure(model, plan.prefill, alone, **how))
    at_once = step(measure_passes(model, passes, plan.depths, **how))
    return Report(
        name, model.weight_bytes, bandwidth, products, tuple(results), device, tuple(at_once)
    )


def _model(plan: Plan, settings: Settings, paths: Paths, progress: Progress) -> tuple[Model, str]:
    if plan.geometry is None:
        path = locate(settings.model, paths, progress)
        return load(path, fitting_spec(open_checkpoint(path).config)), settings.model
    spec = QuantSpec(plan.bits, plan.group_size, plan.symmetric)
    return random_model(plan.geometry, plan.layers, spec), f"random {plan.geometry}"
