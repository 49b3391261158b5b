"""Exclusive locks between processes: a small file that is there only while somebody holds it."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import Self

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
"""What the system says of a lock that another process holds."""


class FileLock:
    """A lock that is held; the system lets go of it when the process ends, however it ends.

    The file of a process that was killed stays, unlocked, and does no harm: the next one takes it.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> Self | None:
        """The lock at ``path``, or None where another process (or this one) holds it.

        Raises OSError where a file cannot be made there, or its file system has no locks.
        """
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                _lock(descriptor)
                ours = os.fstat(descriptor)
                there = path.stat()
                if os.path.samestat(ours, there):
                    return cls(path, descriptor)
            except FileNotFoundError:
                pass  # as below
            except OSError as error:
                os.close(descriptor)
                if error.errno in TAKEN:
                    return None
                raise
            # Whoever held it removed the file between our opening and our locking: once more.
            os.close(descriptor)

    def release(self) -> None:
        """Let go of it, and remove its file."""
        try:
            if os.name != "nt":
                # While it is held: who has opened this file meanwhile sees that it is gone.
                self.path.unlink(missing_ok=True)
        finally:
            os.close(self._descriptor)
        if os.name == "nt":
            # Windows removes no file that is open; one that another process has taken stays.
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
