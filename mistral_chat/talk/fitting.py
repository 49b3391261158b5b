"""What of a talk fits into the context: what goes for a question, and what fills it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import quant
from mistral_chat.engines.events import Finished
from mistral_chat.engines.protocol import Engine
from mistral_chat.messages import Message, Role
from mistral_chat.settings import Settings
from mistral_chat.talk.events import Talk, Turn
from quant.errors import ContextFullError

SUMMARY_REQUEST = "Sum up our conversation so far in a few sentences, with all facts that matter."

ROOM_SHARE = 4
"""One part in this many of the context is kept for an answer, unless max_tokens asks for less."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the context: what it is, and its tokens."""

    name: str
    tokens: int


def make_room(
    engine: Engine,
    settings: Settings,
    talk: Talk,
    may_go: int,
    told: Callable[[int, str | None], list[Message]],
    cancel: Callable[[], bool] | None,
    tell: Callable[[str], None],
) -> tuple[int, str | None]:
    """How many turns go, and what stands for them, as ``on_full`` says.

    The first ``may_go`` turns may; ``told`` gives what the model is told where so many have gone
    and a summary stands for them. ``tell`` gets a sentence for each turn that goes. Raises
    ContextFullError for what does not fit all the same.
    """
    context = engine.session.max_context
    room = min(settings.max_tokens or context, context // ROOM_SHARE)
    evicted, summary = talk.evicted, talk.summary
    count = engine.count_tokens(told(evicted, summary))
    if settings.on_full == "stop" or count + room <= context or evicted >= may_go:
        if count > context:
            raise ContextFullError(count, context)
        return evicted, summary
    summary = summary if settings.on_full == "summarize" else None

    def size(turns: int) -> int:
        return engine.count_tokens(told(turns, summary))

    evicted = fewest(evicted + 1, may_go, lambda turns: size(turns) + room <= context)
    left = size(evicted)
    if left > context:
        raise ContextFullError(left, context)
    first = talk.evicted
    gone = talk.turns[first:evicted]
    if settings.on_full == "summarize":
        tell(f"The context is full; summing up the {len(gone)} oldest turns ...")
        summary = summary_of(engine, talk.summary, gone, cancel)
        if engine.count_tokens(told(evicted, summary)) > context:
            summary = None
    for number, turn in enumerate(gone, first + 1):
        title = " ".join(turn.user.split())[:40]
        place = "is summed up" if summary else "slid out of the context"
        tell(f"Turn {number} ({title!r}) {place}.")
    return evicted, summary


def summary_of(
    engine: Engine,
    earlier: str | None,
    gone: Sequence[Turn],
    cancel: Callable[[], bool] | None,
) -> str | None:
    """The model's own summary of turns, after an earlier one; None where it wrote nothing."""
    messages = [] if earlier is None else Turn(SUMMARY_REQUEST, earlier).messages()
    messages += [each for turn in gone for each in turn.messages()]
    messages.append(Message(Role.USER, SUMMARY_REQUEST))
    context = engine.session.max_context

    def fits(pairs: int) -> bool:
        return engine.count_tokens(messages[2 * pairs :]) + context // 8 <= context

    if not fits(0):
        del messages[: 2 * fewest(1, len(messages) // 2, fits)]
    for event in engine.reply(messages, quant.Sampling(temperature=0), context // 8, cancel):
        if isinstance(event, Finished) and event.finish_reason != "cancelled":
            return event.text.strip() or None
    return None


def parts_of(
    engine: Engine, talk: Talk, messages: list[Message], system: str | None, guarded: bool
) -> list[Part]:
    """What fills the context where the model is told ``messages``; the last part is what is free.

    With ``guarded`` the guardrail's words stand in the system message before those of ``system``.
    """
    sizes = []
    count = engine.count_tokens(messages)
    if guarded:
        own = [Message(Role.SYSTEM, system)] if system else []
        messages = own + messages[1:]
        left = engine.count_tokens(messages)
        sizes.append(Part("guardrail", count - left))
        count = left
    if system:
        messages = messages[1:]
        left = engine.count_tokens(messages)
        sizes.append(Part("system prompt", count - left))
        count = left
    if talk.summary is not None:
        messages = messages[2:]
        left = engine.count_tokens(messages)
        sizes.append(Part("summary", count - left))
        count = left
    if len(talk.turns) > talk.evicted:
        sizes.append(Part("turns", count))
    free = engine.session.max_context - sum(part.tokens for part in sizes)
    return [*sizes, Part("free", max(0, free))]


def fewest(first: int, last: int, fits: Callable[[int], bool]) -> int:
    """The smallest number from ``first`` to ``last`` that ``fits``; ``last`` where none does.

    What fits once fits on. It is looked for from the last one back, in growing steps: with many
    turns gone little is left to count, so this costs a few times what fits, however long the talk.

    >>> fewest(1, 1000, lambda turns: turns >= 958)
    958
    """
    step = 1
    while last - step >= first and fits(last - step):
        step *= 2
    low = max(first, last - step)
    return low + bisect_left(range(low, last), True, key=fits)
