"""What a text asks of the passes that read it: a task says what to read and is sent the logits.

A task is a generator. It yields what is to be read next, is sent the logits that it wanted, float32
[wanted, vocab], and returns its result; it knows nothing of the passes in which it is read, nor of
who shares them. Greedily, three tokens after a prompt::

    def three(prompt):
        logits = yield Prompt(prompt)
        first = int(logits[-1].argmax())
        logits = yield Further([first])
        second = int(logits[-1].argmax())
        logits = yield Further([second])
        return [first, second, int(logits[-1].argmax())]
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..model import Session
from ..qtensor import Floats


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text is to be ``ids``; the logits after the last one are wanted.

    What is held of them already, by this text or another, is not read again.
    """

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Further:
    """``ids`` are to be read after what was read; the logits after the last ``wanted`` of them."""

    ids: Sequence[int]
    wanted: int = 1


@dataclass(frozen=True, slots=True)
class Branches:
    """Each of ``runs`` is to be read as if it alone went on with the text, which stays as it is.

    The logits after each id of each run are wanted, run after run.
    """

    runs: Sequence[Sequence[int]]


Wish = Prompt | Further | Branches
Result = TypeVar("Result")
Task = Generator[Wish, Floats, Result]


def carry_out(
    session: Session,
    task: Task[Result],
    progress: Callable[[int, int], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Result | None:
    """Read for one task in a session of its own; its result, or None where cancelled.

    ``cancel`` is asked between the chunks of a prompt and before all else that is read;
    ``progress(done, total)`` is told of prompts. Raises what :meth:`~quant.model.Session.feed`
    raises, and :class:`~quant.errors.CacheError` as :meth:`~quant.model.Session.reuse` does.
    """
    logits = None
    while True:
        try:
            wish = next(task) if logits is None else task.send(logits)
        except StopIteration as end:
            result: Result = end.value
            return result
        if isinstance(wish, Prompt):
            kept = session.reuse(wish.ids)
            logits = session.feed(wish.ids[kept:], progress=progress, cancel=cancel)[None]
            if session.position < len(wish.ids):
                return None
            continue
        if cancel is not None and cancel():
            return None
        if isinstance(wish, Branches):
            logits = session.branch(wish.runs)
        else:
            logits = session.feed(wish.ids, every=True)[len(wish.ids) - wish.wanted :]
