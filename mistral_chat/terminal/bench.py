"""``mistral-chat bench``: what the engine does, beside what the machine could."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from mistral_chat.models.download import Progress
from mistral_chat.models.names import locate
from mistral_chat.settings import Paths, Settings
from mistral_chat.system.screen import Screen
from quant import Model, QuantSpec, load
from quant.backends.devices import chosen, copy_bandwidth, describe
from quant.bench import Result, dot_products, measure, random_model, read_bandwidth
from quant.checkpoints import DEFAULT_SPEC, fitting_spec, open_checkpoint


@dataclass(frozen=True)
class Plan:
    """What to measure. ``geometry`` names shapes to fill with random weights."""

    prefill: Sequence[int]
    depths: Sequence[int]
    rounds: int
    geometry: str | None = None
    layers: int | None = None
    bits: int = DEFAULT_SPEC.bits
    group_size: int = DEFAULT_SPEC.group_size
    symmetric: bool = DEFAULT_SPEC.symmetric


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

    def to_json(self) -> str:
        """One JSON object; ``results`` is a list of objects."""
        return json.dumps(asdict(self))

    def print(self, console: Screen) -> None:
        """A table of the measurements, and a line about the machine."""
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
        threads = self.results[0].threads if self.results else 0
        where = f"{threads} threads" if self.device == "cpu" else self.device
        console.print(f"{self.model}: {self.weight_bytes / 1e6:.0f} MB of weights, {where}")
        console.print(table)
        if self.device != "cpu":
            console.print(f"It copies {self.read_gigabytes_per_second:.1f} GB/s, read and written.")
            return
        console.print(
            f"This machine reads {self.read_gigabytes_per_second:.1f} GB/s and multiplies "
            f"{self.dot_gigamacs_per_second:.0f} billion bytes a second."
        )


def run_benchmark(plan: Plan, settings: Settings, paths: Paths, progress: Progress) -> Report:
    """Measure the model of the settings, or random weights of the plan's geometry.

    Raises ModelMissingError and CheckpointError as loading does, ConfigError for a plan that cannot
    be.
    """
    model, name = _model(plan, settings, paths, progress)
    total = 2 * len(plan.prefill) + len(plan.depths) + 2
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
    results = step(
        measure(
            model,
            plan.prefill,
            plan.depths,
            kv=settings.kv,
            threads=settings.threads,
            rounds=plan.rounds,
            backend=backend,
            gpu_layers=settings.gpu_layers,
        )
    )
    return Report(name, model.weight_bytes, bandwidth, products, tuple(results), device)


def _model(plan: Plan, settings: Settings, paths: Paths, progress: Progress) -> tuple[Model, str]:
    if plan.geometry is None:
        path = locate(settings.model, paths, progress)
        return load(path, fitting_spec(open_checkpoint(path).config)), settings.model
    spec = QuantSpec(plan.bits, plan.group_size, plan.symmetric)
    return random_model(plan.geometry, plan.layers, spec), f"random {plan.geometry}"
