"""Compiled kernels on the disk: used when they are whole and fresh, and never a reason to fail.

For each kernel there is an index (``.nbi``: which file holds what it was compiled to for which
arguments) and a file for each of these (``.nbc``). Both are pickles that begin with the SHA-256 of
what follows, so that one which is cut off or damaged costs a compilation. That is no protection
from somebody who writes into the folder on purpose: a folder of anybody else is not used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
import os
import pickle
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import platformdirs
from numba.core import caching, serialize

CACHE_VARIABLE = "MISTRAL_CHAT_KERNEL_CACHE"
"""Folder for compiled kernels; the default is the user's cache folder."""

HOME_VARIABLE = "MISTRAL_CHAT_HOME"
"""One folder for everything the application writes; the kernels go to ``cache/kernels`` in it."""

DIGEST_BYTES = hashlib.sha256().digest_size

ABANDONED = 3600.0
"""Seconds after which a file that is still being written belongs to a process that is no more."""

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """A folder for compiled kernels: that of :func:`kept_folder`, or a private one.

    The private one lasts as long as the process, so that every start compiles anew.
    """
    return kept_folder() or Path(_private_folder().name)


@functools.cache
def kept_folder() -> Path | None:
    """The folder in which compiled kernels are kept for later starts; None where none can be.

    The first of :func:`possible_folders` that this person can write, and nobody else.
    """
    for folder in possible_folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            trusted = is_own(folder)
        except OSError:
            continue
        if trusted:
            return folder
        logger.warning("others can write into %s; kernels are not kept there", folder)
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


def is_own(folder: Path) -> bool:
    """Whether what lies in a folder was put there by this person or the system's administrator.

    It is what its compiled code is run for. Where there are no such owners (Windows) it is.
    """
    if not hasattr(os, "geteuid"):
        return True
    state = folder.stat()
    return state.st_uid in (0, os.geteuid()) and not state.st_mode & stat.S_IWOTH


@functools.cache
def _private_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mistral-chat-kernels-")


class Locator(caching._CacheLocator):
    """Tells Numba's cache where files lie; how fresh they are :class:`CompiledFiles` looks at."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        path = Path(file)
        # Kernels of both devices lie in files of the same names.
        self._name = f"{path.parent.name}-{path.stem}-{function.__code__.co_firstlineno}"

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return ""

    def get_disambiguator(self) -> str:
        return self._name

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> Locator:
        return cls(function, file)


class _CacheFiles(caching.CompileResultCacheImpl):
    _locator_classes: ClassVar = [Locator]


class _Store(caching.FunctionCache):
    _impl_class = _CacheFiles


class CompiledFiles:
    """The files of one kernel, in the place of Numba's own, which trust what they read.

    ``stamp`` is what they are fresh for. Two processes may write at the same time: then an index
    may name a file that holds something else, so each file says what it holds, too.
    """

    def __init__(self, folder: Path, base: str, stamp: str) -> None:
        self._folder = folder
        self._base = base
        self._index = folder / f"{base}.nbi"
        self._stamp = stamp

    def index(self) -> dict[Any, str]:
        """The names of files by what they hold; empty where it is missing, damaged or stale."""
        try:
            stamp, names = self._read(self._index)
        except FileNotFoundError:
            return {}
        except Exception as error:  # a pickle can raise anything
            logger.warning("the index of compiled kernels could not be read: %s", error)
            return {}
        return names if stamp == self._stamp else {}

    def load(self, key: Any) -> Any:
        """What was saved as ``key``, or None; raises what reading a damaged file raises."""
        name = self.index().get(key)
        if name is None:
            return None
        try:
            stamp, held, data = self._read(self._folder / name)
        except FileNotFoundError:
            return None
        return data if (stamp, held) == (self._stamp, key) else None

    def save(self, key: Any, data: Any) -> None:
        """Keep ``data`` as ``key``. Raises OSError."""
        names = self.index()
        if key not in names:
            numbered = (f"{self._base}.{number}.nbc" for number in itertools.count(1))
            names[key] = next(name for name in numbered if name not in names.values())
            self._write(self._index, (self._stamp, names))
        self._write(self._folder / names[key], (self._stamp, key, data))
        self._sweep()

    def flush(self) -> None:
        """Forget everything."""
        self._write(self._index, (self._stamp, {}))

    def _read(self, path: Path) -> Any:
        whole = path.read_bytes()
        digest, content = whole[:DIGEST_BYTES], whole[DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            raise ValueError(f"{path} is damaged")
        return pickle.loads(content)  # noqa: S301  # docs/security.md: whose folder it may be

    def _write(self, path: Path, value: Any) -> None:
        content = serialize.dumps(value)
        with self._new_file(path) as stream:
            stream.write(hashlib.sha256(content).digest() + content)

    @contextlib.contextmanager
    def _new_file(self, path: Path) -> Iterator[Any]:
        """A file that takes the place of ``path`` once it is whole."""
        descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".tmp", dir=path.parent)
        new = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
            new.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink()
            raise

    def _sweep(self) -> None:
        """Remove what processes that were killed have left half-written."""
        for path in self._folder.glob("*.tmp"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()


class KernelCache(caching._Cache):
    """Numba's cache of a function, opened on the first call.

    A cache that cannot be read means compiling anew; one that cannot be written means compiling
    again at the next start. ``stamp`` gives what compiled kernels are fresh for.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        stamp: Callable[[], str],
        store: Callable[..., Any] = _Store,
    ) -> None:
        self._function = function
        self._stamp = stamp
        self._open = store

    @functools.cached_property
    def store(self) -> Any:
        opened = self._open(self._function)
        base = opened._impl.filename_base
        opened._cache_file = CompiledFiles(Path(opened.cache_path), base, self._stamp())
        return opened

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
        """Whether a fresh compiled form for ``signature`` lies on disk."""
        key = self.store._index_key(signature, context.codegen())
        return key in self.store._cache_file.index()

    def enable(self) -> None:
        self.store.enable()

    def disable(self) -> None:
        self.store.disable()

    def flush(self) -> None:
        self.store.flush()
