"""How kernels are compiled: one decorator, and the only place that knows the flags.

Numba keys its cache on the file that holds the decorated function and so misses an edit in a
function it calls. Here the key is a digest of every source file of ``quant``, of the library
versions and of the instruction set, so a stale kernel can never be loaded.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
import platformdirs
from numba.core import caching, config, dispatcher

from .errors import ConfigError

_INSTRUCTION_SETS: dict[str, frozenset[str]] = {
    "avx512vnni": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"}),
    "avxvnni": frozenset({"avx2", "fma", "f16c", "avxvnni"}),
    "avx2": frozenset({"avx2", "fma", "f16c"}),
    "neon": frozenset({"neon", "dotprod"}),
    "portable": frozenset(),
}
"""Best first: what LLVM must say of the host for each."""

_FORCED_PROCESSORS = {
    "avxvnni": ("haswell", "+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+sse4.2,+avxvnni"),
    "avx2": ("haswell", "+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+sse4.2"),
}
"""Processor and features to compile for, so that a forced set is all that is used."""

logger = logging.getLogger(__name__)

INSTRUCTION_SET_VARIABLE = "MISTRAL_CHAT_ISA"
"""Forces an instruction set (for tests and comparisons); it must be one the host can run."""

CACHE_VARIABLE = "MISTRAL_CHAT_KERNEL_CACHE"
"""Folder for compiled kernels; the default is the user's cache folder."""

HOME_VARIABLE = "MISTRAL_CHAT_HOME"
"""One folder for everything the application writes; the kernels go to ``cache/kernels`` in it."""


@functools.cache
def source_stamp() -> str:
    """Digest of the sources of ``quant`` and of the versions that compile them."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    for version in (numba.__version__, llvmlite.__version__, np.__version__):
        digest.update(version.encode())
    digest.update(host_features().encode())
    digest.update(os.environ.get(INSTRUCTION_SET_VARIABLE, "").encode())
    return digest.hexdigest()


@functools.cache
def host_features() -> str:
    """Name and feature string of the processor kernels are compiled for, as LLVM says them."""
    if config.CPU_NAME or config.CPU_FEATURES:
        return f"{config.CPU_NAME or ''} {config.CPU_FEATURES or ''}"
    return f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"


def available_instruction_sets() -> list[str]:
    """The instruction sets that this processor can run, best first."""
    flags = {name for name, present in llvm.get_host_cpu_features().items() if present}
    return [name for name, needs in _INSTRUCTION_SETS.items() if needs <= flags]


@functools.cache
def instruction_set() -> str:
    """The instruction set the kernels use, a key of the table above.

    Raises :class:`~quant.errors.ConfigError` when the environment asks for one that the host lacks.
    """
    available = available_instruction_sets()
    wanted = os.environ.get(INSTRUCTION_SET_VARIABLE)
    if not wanted:
        return available[0]
    if wanted not in available:
        raise ConfigError(
            f"{INSTRUCTION_SET_VARIABLE}={wanted} cannot be used on this processor; "
            f"it can run {', '.join(available)}."
        )
    if wanted in _FORCED_PROCESSORS:
        # Numba reads these once, before it compiles anything.
        config.CPU_NAME, config.CPU_FEATURES = _FORCED_PROCESSORS[wanted]
    return wanted


def cache_folder() -> Path:
    """A writable folder for compiled kernels: that of :func:`kept_folder`, or a private one.

    The private one lasts as long as the process, so that every start compiles anew.
    """
    return kept_folder() or Path(_private_folder().name)


@functools.cache
def kept_folder() -> Path | None:
    """The folder in which compiled kernels are kept for later starts; None where none can be.

    The first that can be written of :func:`possible_folders`.
    """
    for folder in possible_folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        return folder
    return None


def possible_folders() -> list[Path]:
    """Where compiled kernels may be kept: the environment's folder, the user's cache folder."""
    candidates = []
    if os.environ.get(CACHE_VARIABLE):
        candidates.append(Path(os.environ[CACHE_VARIABLE]))
    if os.environ.get(HOME_VARIABLE):
        candidates.append(Path(os.environ[HOME_VARIABLE]) / "cache" / "kernels")
    else:
        candidates.append(platformdirs.user_cache_path("mistral-chat") / "kernels")
    return candidates


@functools.cache
def _private_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mistral-chat-kernels-")


class Locator(caching._CacheLocator):
    """Tells Numba's cache where files lie and what makes them stale."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        path = Path(file)
        # Kernels of both devices lie in files of the same names.
        self._name = f"{path.parent.name}-{path.stem}-{function.__code__.co_firstlineno}"

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return source_stamp()

    def get_disambiguator(self) -> str:
        return self._name

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> Locator:
        return cls(function, file)


class _CacheFiles(caching.CompileResultCacheImpl):
    _locator_classes: ClassVar = [Locator]


class _Store(caching.FunctionCache):
    _impl_class = _CacheFiles


class KernelCache(caching._Cache):
    """Numba's function cache, opened on the first call and never a reason to fail.

    A cache that cannot be read means compiling anew; one that cannot be written means compiling
    again at the next start.
    """

    def __init__(self, function: Callable[..., Any], store: Callable[..., Any] = _Store) -> None:
        self._function = function
        self._open = store

    @functools.cached_property
    def store(self) -> Any:
        return self._open(self._function)

    @property
    def cache_path(self) -> str:
        return str(self.store.cache_path)

    def load_overload(self, signature: Any, context: Any) -> Any:
        try:
            return self.store.load_overload(signature, context)
        except Exception as error:  # pickle and LLVM raise many kinds on a damaged file
            logger.warning("compiled kernel could not be read, compiling anew: %s", error)
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        try:
            self.store.save_overload(signature, compiled)
        except OSError as error:
            logger.warning("compiled kernel could not be kept: %s", error)

    def holds(self, signature: Any, context: Any) -> bool:
        """Whether an up-to-date compiled form for ``signature`` lies on disk."""
        try:
            key = self.store._index_key(signature, context.codegen())
            return key in self.store._cache_file._load_index()
        except Exception as error:  # as in load_overload
            logger.warning("the index of compiled kernels could not be read: %s", error)
            return False

    def enable(self) -> None:
        self.store.enable()

    def disable(self) -> None:
        self.store.disable()

    def flush(self) -> None:
        self.store.flush()


def kernel(function: Callable[..., Any]) -> dispatcher.Dispatcher:
    """Compile ``function`` for the host on its first call, without the interpreter's lock.

    Kernels called from other kernels are compiled into them.
    """
    instruction_set()
    return numba.njit(nogil=True, error_model="numpy")(function)


def entry(function: Callable[..., Any]) -> dispatcher.Dispatcher:
    """A kernel that Python calls: as :func:`kernel`, and kept on disk once compiled."""
    compiled = kernel(function)
    compiled._cache = KernelCache(function)
    return compiled


def is_compiled(function: dispatcher.Dispatcher, *arguments: Any) -> bool:
    """Whether calling an :func:`entry` with ``arguments`` can begin without compiling it."""
    signature = tuple(function.typeof_pyval(argument) for argument in arguments)
    return signature in function.overloads or function._cache.holds(signature, function.targetctx)
