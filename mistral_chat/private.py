"""Folders and files to work in, at places that other users of the computer may write to.

Their names can be foreseen, since what was interrupted is to be found again. So nobody else's
folder is worked in, no link is followed, and nothing is written into a file with a second name.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mistral_chat.settings import HOME_VARIABLE
from quant.errors import StorageError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has none
_BINARY = getattr(os, "O_BINARY", 0)  # and only Windows has this


def own_folder(path: Path, keep: bool = True) -> Path:
    """The folder at ``path``, made if it is not there, that only this user writes to.

    One of this user's that others may write to is closed to them; without ``keep`` it is emptied,
    too. Raises StorageError, saying what to do, where it is a link, no folder, or another user's.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o755)
    what = path.lstat()
    if not stat.S_ISDIR(what.st_mode) or not _is_own(what):
        raise StorageError(
            f"{path} is not a folder of your own, so nothing is written there; remove it, or set "
            f"{HOME_VARIABLE} to a folder that only you write to."
        )
    if os.name == "posix" and what.st_mode & _OTHERS_WRITE:
        descriptor = os.open(path, os.O_RDONLY | _NO_LINK)
        try:
            if os.path.samestat(what, os.fstat(descriptor)):
                os.fchmod(descriptor, stat.S_IMODE(what.st_mode) & ~_OTHERS_WRITE)
        finally:
            os.close(descriptor)
        if not keep:
            for inside in path.iterdir():
                discard(inside)
    return path


def discard(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a folder; nothing where there is none."""
    with suppress(FileNotFoundError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)


def is_own_file(path: Path) -> bool:
    """Whether a plain file, no link, lies there that no other user may change."""
    try:
        what = path.lstat()
    except FileNotFoundError:
        return False
    closed = os.name != "posix" or not what.st_mode & _OTHERS_WRITE
    return stat.S_ISREG(what.st_mode) and _is_own(what) and closed


@contextmanager
def own_file(path: Path, keep: bool = False) -> Iterator[BinaryIO]:
    """A file of one's own, open for reading and writing: what is there (``keep``), or a new one.

    Anything else in its place is removed first: a link, another user's file, one that has a second
    name. So what is written reaches no other file.
    """
    descriptor = _opened(path) if keep else None
    if descriptor is None:
        path.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY
        descriptor = os.open(path, flags, 0o644)
    with os.fdopen(descriptor, "r+b") as stream:
        yield stream


def _opened(path: Path) -> int | None:
    """A descriptor for the file that is there, where it may be written to."""
    if not is_own_file(path):
        return None
    descriptor = os.open(path, os.O_RDWR | _NO_LINK | _BINARY)
    what = os.fstat(descriptor)
    if stat.S_ISREG(what.st_mode) and _is_own(what) and what.st_nlink == 1:
        return descriptor
    os.close(descriptor)
    return None


def _is_own(what: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or what.st_uid == os.geteuid()
