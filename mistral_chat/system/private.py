"""Files to work in, at places that other users of the computer may write to.

Their names can be foreseen, since what was interrupted is to be found again. So nobody else's
folder is worked in, no link is followed, and nothing is written into a file with a second name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from quant.files import NO_LINK, OTHERS_WRITE, is_own

_BINARY = getattr(os, "O_BINARY", 0)  # and only Windows has this


def is_own_file(path: Path) -> bool:
    """Whether a plain file, no link, lies there that no other user may change."""
    try:
        what = path.lstat()
    except FileNotFoundError:
        return False
    closed = os.name != "posix" or not what.st_mode & OTHERS_WRITE
    return stat.S_ISREG(what.st_mode) and is_own(what) and closed


@contextmanager
def own_file(path: Path, keep: bool = False) -> Iterator[BinaryIO]:
    """A file of one's own, open for reading and writing: what is there (``keep``), or a new one.

    Anything else in its place is removed first: a link, another user's file, one that has a second
    name. So what is written reaches no other file.
    """
    descriptor = _opened(path) if keep else None
    if descriptor is None:
        path.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_LINK | _BINARY
        descriptor = os.open(path, flags, 0o644)
    with os.fdopen(descriptor, "r+b") as stream:
        yield stream


def _opened(path: Path) -> int | None:
    """A descriptor for the file that is there, where it may be written to."""
    if not is_own_file(path):
        return None
    descriptor = os.open(path, os.O_RDWR | NO_LINK | _BINARY)
    what = os.fstat(descriptor)
    if stat.S_ISREG(what.st_mode) and is_own(what) and what.st_nlink == 1:
        return descriptor
    os.close(descriptor)
    return None
