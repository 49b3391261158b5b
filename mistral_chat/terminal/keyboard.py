"""How a terminal takes keys while nobody reads them: they wait, unseen, for the next prompt."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

try:
    import termios
except ImportError:  # Windows' terminals have no such modes
    termios = None  # type: ignore[assignment]

_INPUT, _LOCAL, _CHARACTERS = 0, 3, 6
"""Places in what ``termios.tcgetattr`` gives."""


class Keyboard:
    """The terminal behind a descriptor; nothing is done where there is none."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._before = _modes(descriptor)

    @classmethod
    def of_process(cls) -> Keyboard:
        """That of standard input."""
        try:
            return cls(None if sys.stdin is None else sys.stdin.fileno())
        except (OSError, ValueError):  # no real file
            return cls(None)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it keys are kept as they were pressed, for the prompt that reads them next.

        By itself a terminal would show them in the middle of an answer and make a newline of
        Enter, which then no longer sends. Ctrl-C still interrupts; Ctrl-Z suspends, and others have
        the terminal as it was before until the process goes on.
        """
        if self._before is None:
            yield
            return
        self._set(_waiting(self._before))
        in_main = threading.current_thread() is threading.main_thread()
        previous = signal.signal(signal.SIGTSTP, self._suspend) if in_main else None
        try:
            yield
        finally:
            if in_main:
                signal.signal(signal.SIGTSTP, previous)
            self._set(self._before)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within :meth:`waiting`: the terminal as it was before, for another program."""
        if self._before is None:
            yield
            return
        self._set(self._before)
        try:
            yield
        finally:
            self._set(_waiting(self._before))

    def _suspend(self, _number: int, _frame: FrameType | None) -> None:
        with self.lent():
            # By the signal's own way, which does nothing where no shell could wake the process.
            handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTSTP)
            signal.signal(signal.SIGTSTP, handler)

    def _set(self, modes: list[Any] | None) -> None:
        if self._descriptor is not None and modes is not None:
            with suppress(termios.error):  # the terminal was closed
                termios.tcsetattr(self._descriptor, termios.TCSANOW, modes)


def _modes(descriptor: int | None) -> list[Any] | None:
    if termios is None or descriptor is None or not os.isatty(descriptor):
        return None
    return termios.tcgetattr(descriptor)


def _waiting(before: list[Any]) -> list[Any]:
    modes = [*before[:_CHARACTERS], list(before[_CHARACTERS])]
    modes[_LOCAL] &= ~(termios.ECHO | termios.ICANON)
    modes[_INPUT] &= ~termios.ICRNL
    modes[_CHARACTERS][termios.VMIN], modes[_CHARACTERS][termios.VTIME] = 1, 0
    return modes
