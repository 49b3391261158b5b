"""``mistral-chat warmup``: the kernels compiled ahead of the first answer, without a model."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import quant
from mistral_chat.models.download import Progress
from quant.errors import StorageError
from quant.kernels.kernel_cache import CACHE_VARIABLE, cache_folder, kept_folder, possible_folders


@dataclass(frozen=True)
class Kernels:
    """Those for one kind of cache: whether they had to be compiled now, and what that took."""

    kv: str
    compiled: bool
    seconds: float


@dataclass(frozen=True)
class Report:
    """What was done, and the folder that the compiled kernels are kept in."""

    folder: str
    kernels: tuple[Kernels, ...]

    def to_json(self) -> str:
        """One JSON object; ``kernels`` is a list of objects."""
        return json.dumps(asdict(self), ensure_ascii=False)

    def sentence(self) -> str:
        """What a person wants to know of it."""
        done = [f"{each.kv} in {each.seconds:.1f} s" for each in self.kernels if each.compiled]
        if not done:
            return f"Every kernel was compiled already. They are kept in {self.folder}"
        return f"Compiled the kernels for {' and '.join(done)}. They are kept in {self.folder}"


def cannot_keep() -> str | None:
    """Why compiled kernels will not be there at the next start; None where they will."""
    if kept_folder() is not None:
        return None
    return (
        f"Compiled kernels cannot be kept, since {possible_folders()[0]} cannot be written; set "
        f"{CACHE_VARIABLE} to a folder that can."
    )


def warm_up(kinds: Sequence[str], progress: Progress) -> Report:
    """Compile the kernels for caches of ``kinds``, or load those that are compiled already.

    Raises StorageError where there is no folder to keep them in, ConfigError for an instruction set
    that this processor cannot run.
    """
    problem = cannot_keep()
    if problem is not None:
        raise StorageError(problem)
    missing = [kv for kv in kinds if not quant.kernels_compiled(kv)]
    kernels = []
    for kv in kinds:
        if kv in missing:
            progress("Compiling the kernels", missing.index(kv), len(missing))
        start = time.perf_counter()
        quant.compile_kernels(kv)
        kernels.append(Kernels(kv, kv in missing, round(time.perf_counter() - start, 3)))
    return Report(str(cache_folder()), tuple(kernels))
