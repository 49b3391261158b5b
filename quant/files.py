"""Files and folders, with no more trust than the operating system gives a reason for.

What is read must be an ordinary file: a pipe that nobody writes into would be waited for without
end. What is worked in must be this person's own: in a shared folder anybody can foresee a name, put
a link there, and have another file written over.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import StorageError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

UNFINISHED = ".unfinished"
"""How the names of folders end that are nobody's once no process holds their lock."""

REPLACED = ".replaced"
"""How the name of a folder ends that is kept while another one takes its place."""

_MOST_TRIES = 100
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has none

_AT_WORKING_FOLDER = -100
_SWAP = 2


def open_file(path: Path) -> BinaryIO:
    """An ordinary file, to be read. Raises OSError for anything else, without waiting for it."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) and not is_waited_for(descriptor):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    raise OSError(errno.EINVAL, "it is not an ordinary file", str(path))


def is_waited_for(descriptor: int) -> bool:
    """Whether an open file, which is one by its kind, is a queue of the system's and empty now.

    The kernel's log and its like are such; of a file on a disk no reader ever waits.
    """
    try:
        os.pread(descriptor, 1, 0)
    except BlockingIOError:
        return True
    except OSError:  # reading it tells
        return False
    return False


def read_file(path: Path, most: int) -> bytes:
    """All bytes of an ordinary file of ``most`` bytes at most. Raises OSError."""
    with open_file(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is larger than {most / 1e6:.0f} MB", str(path))
    return content


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, through one beside it that nobody can foresee.

    Raises OSError.
    """
    write_pieces(path, [content])


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """As :func:`write_whole`, for content that comes piece by piece."""
    new = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(new, flags, 0o666), "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def own_folder(path: Path, keep: bool = True) -> Path:
    """The folder at ``path``, made if it is not there, that only this user writes to.

    One of this user's that others may write to is closed to them; without ``keep`` it is emptied,
    too. Raises StorageError, saying what to do, where it is a link, no folder, or another user's.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o755)
    what = path.lstat()
    if not stat.S_ISDIR(what.st_mode) or not is_own(what):
        raise StorageError(
            f"{path} is not a folder of your own, so nothing is written there; remove it, or "
            "choose a place that only you write to."
        )
    if os.name == "posix" and what.st_mode & OTHERS_WRITE:
        descriptor = os.open(path, os.O_RDONLY | NO_LINK)
        try:
            if os.path.samestat(what, os.fstat(descriptor)):
                os.fchmod(descriptor, stat.S_IMODE(what.st_mode) & ~OTHERS_WRITE)
        finally:
            os.close(descriptor)
        if not keep:
            for inside in path.iterdir():
                discard(inside)
    return path


def is_own(what: os.stat_result) -> bool:
    """Whether something on the disk is this user's, where there are users."""
    return not hasattr(os, "geteuid") or what.st_uid == os.geteuid()


def discard(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a folder; nothing where there is none."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go of when a process dies.

    Raises StorageError where another process holds it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                f"Another process is writing {folder}; wait for it, or choose another target."
            ) from None
        yield
    finally:
        os.close(descriptor)


def new_folder(beside: Path) -> Path:
    """A new folder of this person's own beside ``beside``, swept once its process is no more."""
    prefix = f".{beside.name}."
    return Path(tempfile.mkdtemp(prefix=prefix, suffix=UNFINISHED, dir=beside.parent))


def sweep(folder: Path) -> None:
    """Remove what processes that were killed have left in ``folder`` under an unfinished name."""
    for path in folder.glob(f".*{UNFINISHED}"):
        # Somebody else's stays; of this person's none that a living process works in.
        with contextlib.suppress(OSError, StorageError):
            own_folder(path)
            with alone_in(path):
                shutil.rmtree(path, ignore_errors=True)


def put_in_place(new: Path, target: Path) -> None:
    """Give a whole folder the name ``target``, in place of a folder or nothing.

    At no moment is there neither: where the system can, the two exchange their names in one step;
    else what was there is kept aside until the new one has its name, and :func:`put_back` knows it.
    Raises OSError, and StorageError where another process keeps changing what is there.
    """
    for _ in range(_MOST_TRIES):
        try:
            if target.exists():
                _replace(new, target)
            else:
                new.rename(target)
                sync_folder(target.parent)
        except OSError as error:
            # Another process has put something there, or taken it away, meanwhile.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT) or not new.exists():
                raise
            continue
        return
    raise StorageError(f"{target} is being written by another process; try again.")


def _replace(new: Path, target: Path) -> None:
    gone = new_folder(target)
    try:
        _exchange(new, target)
        sync_folder(target.parent)
        new.rename(gone)  # an empty folder gives way
    except OSError as error:
        gone.rmdir()
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        gone = _kept_aside(target)
        target.rename(gone)
        new.rename(target)
        sync_folder(target.parent)
    shutil.rmtree(gone, ignore_errors=True)


def put_back(target: Path) -> None:
    """Undo the half of :func:`put_in_place` after which a process was killed."""
    aside = _kept_aside(target)
    with contextlib.suppress(OSError):
        if aside.is_dir() and not target.exists():
            aside.rename(target)
        elif aside.is_dir():
            shutil.rmtree(aside)


def _kept_aside(target: Path) -> Path:
    return target.with_name(f".{target.name}{REPLACED}")


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk, where the system knows such a thing."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some filesystems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders have each other's names (Linux 3.15, macOS 10.12). Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True) if os.name != "nt" else None
    first, second = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(first, second, _SWAP)
    elif library is not None and hasattr(library, "renameat2"):
        here = _AT_WORKING_FOLDER
        failed = library.renameat2(here, first, here, second, _SWAP)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))
