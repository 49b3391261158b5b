"""Ctrl-C, where it is to end something in order and not anywhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopped_by_interrupt() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C raises nothing; the function it gives says whether Ctrl-C was pressed.

    So an answer stops between two tokens, with the cache whole, instead of anywhere.
    """
    pressed = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        pressed.set()

    # Only the main thread may set handlers; elsewhere Ctrl-C does not arrive either.
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    previous = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
