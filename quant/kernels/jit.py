"""How kernels are compiled: one decorator, and the only place that knows the flags.

Numba keys its cache on the file that holds the decorated function and so misses an edit in a
function it calls. Here the key is a digest of every source file of ``quant``, of the library
versions and of the instruction set, so a stale kernel can never be loaded.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import bytecode, config, dispatcher

from ..errors import ConfigError
from .kernel_cache import KernelCache

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

INSTRUCTION_SET_VARIABLE = "MISTRAL_CHAT_ISA"
"""Forces an instruction set (for tests and comparisons); it must be one the host can run."""


@functools.cache
def source_stamp() -> str:
    """Digest of the sources of ``quant`` and of the versions that compile them."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
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


@functools.cache
def name_apart() -> None:
    """Let no two functions that are ever compiled bear the same symbol, in whatever process.

    Two closures of one definition have the same name and argument types. Numba tells them apart by
    a number that each process counts from 1, so kernels that two processes have compiled could meet
    in a third under one symbol, and the wrong one be called. Drawn at random, numbers differ.
    """
    bytecode.FunctionIdentity._unique_ids = iter(lambda: secrets.randbits(63), None)


def kernel(function: Callable[..., Any]) -> dispatcher.Dispatcher:
    """Compile ``function`` for the host on its first call, without the interpreter's lock.

    Kernels called from other kernels are compiled into them.
    """
    instruction_set()
    name_apart()
    return numba.njit(nogil=True, error_model="numpy")(function)


def entry(function: Callable[..., Any]) -> dispatcher.Dispatcher:
    """A kernel that Python calls: as :func:`kernel`, and kept on disk once compiled."""
    compiled = kernel(function)
    compiled._cache = KernelCache(function, source_stamp)
    return compiled


def is_compiled(function: dispatcher.Dispatcher, *arguments: Any) -> bool:
    """Whether calling an :func:`entry` with ``arguments`` can begin without compiling it."""
    signature = tuple(function.typeof_pyval(argument) for argument in arguments)
    return signature in function.overloads or function._cache.holds(signature, function.targetctx)
