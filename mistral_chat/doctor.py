"""``mistral-chat doctor``: what this computer is, and what of it is used."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from mistral_chat import __version__
from mistral_chat.models.names import list_models
from mistral_chat.models.planning import available_memory
from mistral_chat.models.warmup import cannot_keep
from mistral_chat.settings import Paths, Settings
from mistral_chat.system.screen import Screen
from quant.backends.cpu import kernels_compiled
from quant.backends.devices import copy_bandwidth, describe, missing
from quant.batch import available_processors
from quant.kernels.jit import instruction_set
from quant.kernels.kernel_cache import cache_folder

LIBRARIES = ("numba", "llvmlite", "numpy", "prompt-toolkit", "rich", "huggingface-hub")
COMMAND = "mistral-chat"


@dataclass(frozen=True)
class Report:
    """All that ``doctor`` tells; sizes are bytes, ``problems`` sentences that say what to do."""

    version: str
    python: str
    libraries: dict[str, str | None]
    processor: str
    instruction_set: str
    threads: int
    threading_layer: str
    kernel_cache: str
    kernels_compiled: dict[str, bool]
    memory_available: int | None
    models: dict[str, int]
    folders: dict[str, str]
    terminal: dict[str, Any]
    commands: list[str]
    problems: list[str]
    gpu: str = ""

    def to_json(self) -> str:
        """One JSON object in the names of the fields."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def print(self, console: Screen) -> None:
        """A line for each fact, then the problems."""
        table = Table.grid(padding=(0, 2))
        compiled = [kind for kind, ready in self.kernels_compiled.items() if ready]
        memory = self.memory_available
        for name, value in (
            ("version", f"{self.version}, Python {self.python}"),
            ("libraries", ", ".join(f"{k} {v or 'missing'}" for k, v in self.libraries.items())),
            ("processor", self.processor),
            ("instructions", self.instruction_set),
            ("threads", f"{self.threads}, {self.threading_layer}"),
            ("kernels", f"{', '.join(compiled) or 'none'} compiled in {self.kernel_cache}"),
            ("GPU", self.gpu),
            ("memory", "unknown" if memory is None else f"{memory / 1e9:.1f} GB free"),
            ("models", ", ".join(f"{k} ({v / 1e6:.0f} MB)" for k, v in self.models.items())),
            *((f"{name} folder", place) for name, place in self.folders.items()),
            ("terminal", ", ".join(f"{key} {value}" for key, value in self.terminal.items())),
            ("command", ", ".join(self.commands) or "not on the PATH"),
        ):
            table.add_row(name, value or "none")
        console.print(table)
        for problem in self.problems:
            console.print(problem, style="yellow")
        if not self.problems:
            console.print("Nothing is amiss.", style="green")


def examine(settings: Settings, paths: Paths, environ: Mapping[str, str]) -> Report:
    """Look at this computer; nothing is changed, loaded or compiled."""
    problems = []
    commands = commands_on_path(environ.get("PATH", ""))
    if len(commands) > 1:
        problems.append(
            f"There are {len(commands)} commands named {COMMAND} on the PATH (mistral-inference "
            f"installs one, too); {commands[0]} is the one that runs."
        )
    compiled = {kind: kernels_compiled(kind) for kind in ("f16", "int8")}
    unkept = cannot_keep()
    if unkept is not None:
        problems.append(unkept)
    elif not compiled[settings.kv]:
        problems.append("The kernels are not compiled yet; 'mistral-chat warmup' does it now.")
    gpu = _gpu(settings)
    if settings.device == "cuda" and missing() is not None:
        problems.append(gpu)
    memory = available_memory()
    folder = cache_folder()
    here = {e.name: e.size for e in list_models(paths) if e.path is not None}
    if not here:
        problems.append("No model is here yet; the first question fetches a small one.")
    return Report(
        version=__version__,
        python=platform.python_version(),
        libraries={name: _version(name) for name in LIBRARIES},
        processor=_processor(),
        instruction_set=instruction_set(),
        threads=settings.threads or available_processors(),
        threading_layer="the engine's own threads (Numba's layers are not used)",
        kernel_cache=str(folder),
        kernels_compiled=compiled,
        memory_available=memory,
        models=here,
        folders={name: str(getattr(paths, name)) for name in ("config", "data", "state", "cache")},
        terminal=_terminal(environ),
        commands=commands,
        problems=problems,
        gpu=gpu,
    )


def commands_on_path(path: str) -> list[str]:
    """Every command of our name on a PATH, the one that runs first."""
    found = []
    for folder in dict.fromkeys(path.split(os.pathsep)):
        command = shutil.which(COMMAND, path=folder) if folder else None
        if command is not None and command not in found:
            found.append(command)
    return found


def _terminal(environ: Mapping[str, str]) -> dict[str, Any]:
    console = Screen()
    return {
        "TERM": environ.get("TERM", "(not set)"),
        "size": f"{console.width} x {console.height}",
        "colours": console.color_system or "none",
        "encoding": console.encoding,
        "input": "terminal" if sys.stdin is not None and sys.stdin.isatty() else "no terminal",
    }


def _gpu(settings: Settings) -> str:
    """The GPU with its memory, driver and bandwidth, where one may be used; else why not."""
    if settings.device == "cpu":
        return "not asked for (--device cuda)"
    sentence = missing()
    if sentence is not None:
        return sentence
    device = describe()
    return (
        f"{device.name}, compute capability {device.capability}, CUDA {device.driver}, "
        f"{device.free_bytes / 1e9:.1f} of {device.memory_bytes / 1e9:.1f} GB free, copies "
        f"{copy_bandwidth(1 << 28):.0f} GB/s"
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()
