"""Files of compiled kernels, damaged: the kernel computes the same, and nothing is raised."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from quant.kernels.jit import entry
from quant.kernels.kernel_cache import CACHE_VARIABLE, CompiledFiles, kept_folder

from ..mutation import changed_bytes, odd_value
from ..target import Target, require


def _reversed(number: float) -> float:
    return 1 - number


ARGUMENTS = (21, 0.25)
"""One for each compiled form: of whole numbers, and of floats."""
KEPT = {"one": ["first", 1], "two": {"second": 2.0}, ("three", 3): b"third"}
"""What is kept in files without a kernel."""


def damage(random: Random, folder: Path) -> None:
    """Damage one or several of the files in ``folder``, or put others in their place."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for _ in range(random.choice((1, 1, 2, 3))):
        path, kind = random.choice(files), random.randrange(10)
        if path.is_dir():
            continue
        data = path.read_bytes() if path.exists() else b""
        if kind < 4:
            path.write_bytes(changed_bytes(random, data))
        elif kind == 4:
            path.write_bytes(data[: random.randrange(len(data) + 1)])
        elif kind == 5:
            path.write_bytes(bytes(len(data)))
        elif kind == 6:
            other = random.choice(files)
            path.write_bytes(other.read_bytes() if other.is_file() else b"")
        elif kind == 7:
            path.unlink(missing_ok=True)
        elif kind == 8:
            path.unlink(missing_ok=True)
            path.mkdir()
        else:
            path.write_bytes(data + random.randbytes(9))


class KernelCache(Target):
    """A kernel with damaged files, and the files alone with other contents."""

    name = "kernel_cache"
    short = 60

    def start(self) -> None:
        whole = self.folder / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        self._compute(whole)
        self.whole = whole

    def case(self, random: Random, scratch: Path) -> None:
        folder = scratch / "kernels"
        if random.random() < 0.3:
            shutil.copytree(self.whole, folder)
            damage(random, folder)
            for _start in range(2):
                self._compute(folder)
        else:
            self._keep(random, folder)

    def _compute(self, folder: Path) -> None:
        """Call the kernel as a process does that has just begun."""
        os.environ[CACHE_VARIABLE] = str(folder)
        kept_folder.cache_clear()
        kernel: Callable[[Any], Any] = entry(_reversed)
        for number in ARGUMENTS:
            require(kernel(number) == 1 - number, f"the kernel gives {kernel(number)}")

    def _keep(self, random: Random, folder: Path) -> None:
        folder.mkdir()
        files = CompiledFiles(folder, "kernel", "stamp")
        for key, value in KEPT.items():
            files.save(key, value)
        damage(random, folder)
        try:
            for key, value in KEPT.items():
                self._check_loaded(files, key, value)
            key, value = random.choice(list(KEPT.items()))
            files.save(key, odd_value(random))
            files.save(key, value)
        except OSError:
            return  # a folder in the place of a file; KernelCache goes on without it
        self._check_loaded(files, key, value)

    def _check_loaded(self, files: CompiledFiles, key: Any, value: Any) -> None:
        try:
            loaded = files.load(key)
        except (OSError, ValueError):
            return  # it is damaged, and says so
        require(loaded is None or loaded == value, f"{key} became {loaded!r}")


TARGET = KernelCache
