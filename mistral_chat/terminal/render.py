"""Everything that is drawn: the answer on stdout, everything else on stderr.

Whatever moves (a progress bar) is drawn only where stderr is a terminal that can move; colours
follow NO_COLOR and FORCE_COLOR, as Rich reads them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mistral_chat.engines.events import Finished, PrefillProgress
from mistral_chat.printable import printable, without_controls
from mistral_chat.system.screen import Screen
from mistral_chat.talk.fitting import Part

MILESTONE_SECONDS = 30


class Writer(Protocol):
    """Takes an answer as it comes."""

    def write(self, text: str) -> None:
        """Take the next piece."""

    def end(self) -> None:
        """The answer is complete."""


class AnswerWriter:
    """Writes an answer to a stream as it comes, ending it in exactly one newline."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._held = ""

    def write(self, text: str) -> None:
        """Write a piece. Newlines at its end wait until it is known that more text follows."""
        if self._terminal:
            text = without_controls(text)
        text = self._held + text
        body = text.rstrip("\n")
        self._held = text[len(body) :]
        if body:
            self._stream.write(body)
            self._stream.flush()

    def end(self) -> None:
        """Write the one newline that ends the answer."""
        self._held = ""
        self._stream.write("\n")
        self._stream.flush()


def answer_writer(stream: TextIO, plain: bool, theme: str) -> Writer:
    """Markdown where ``stream`` is a terminal that can move its cursor, else the text as it is."""
    moving = stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if plain or not moving:
        return AnswerWriter(stream)
    from mistral_chat.terminal.markdown import MarkdownWriter  # takes long to import

    return MarkdownWriter(stream, theme)


class Milestones:
    """Progress for a log: a line for each label, then one every half minute with the time left."""

    def __init__(
        self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say = say
        self._clock = clock
        self._said: set[str] = set()
        self._started = self._last = (0.0, 0)

    def tell(self, label: str, done: int, total: int, more: str = "") -> None:
        """Take note of how far the work is, and say it, and what more there is, if it is time."""
        now = self._clock()
        if label not in self._said:
            self._said.add(label)
            self._started = self._last = (now, done)
            self._say(f"{label} ...")
            return
        if now - self._last[0] < MILESTONE_SECONDS or not self._started[1] < done < total:
            return
        self._last = (now, done)
        start, first = self._started
        left = (now - start) * (total - done) / (done - first)
        self._say(f"{label}: {done / total:.0%}, {duration(left)} left{more}")


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(7), duration(100), duration(7300)
    ('7 s', '2 min', '2 h 2 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class Notes:
    """What is said beside the answer, on stderr; nothing but warnings where ``quiet``.

    Where ``plain`` nothing is coloured and nothing moves.
    """

    def __init__(self, quiet: bool = False, plain: bool = False) -> None:
        self._console = Screen(
            stderr=True, highlight=False, soft_wrap=True, color_system=None if plain else "auto"
        )
        self._quiet = quiet
        # FORCE_COLOR makes Rich take any stream for a terminal; what moves asks the stream itself.
        moving = self._console.file.isatty() and os.environ.get("TERM") != "dumb"
        self._moving = moving and not quiet and not plain

    def say(self, text: str) -> None:
        """A line that can be missed, such as the banner."""
        if not self._quiet:
            self._console.print(text, style="dim")

    def warn(self, text: str) -> None:
        """A line that should not be missed, such as an error that does not end the session."""
        self._console.print(text, style="yellow")

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """A bar for as long as the block lasts; a new label starts it over.

        Without a moving terminal each label is said once, and long work tells now and then how
        far it is.
        """
        if not self._moving:
            yield Milestones(self.say).tell
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=self._console, transient=True)
        task = bar.add_task("", total=None)
        label_shown = ""

        def draw(label: str, done: int, total: int) -> None:
            nonlocal label_shown
            label = printable(label)  # a bar is drawn beside what a screen prints
            if label != label_shown:
                label_shown = label
                bar.reset(task, description=label)
                bar.start()
            bar.update(task, completed=done, total=total)

        try:
            yield draw
        finally:
            bar.stop()

    @contextmanager
    def counting(self, label: str) -> Iterator[Callable[[int, int, str], None]]:
        """A bar for things of which so many of so many are done, with a word about the speed."""
        if not self._moving:
            milestones = Milestones(self.say)
            yield lambda done, total, speed: milestones.tell(label, done, total, f", {speed}")
            return
        columns = (
            TextColumn(label + " {task.completed}/{task.total}", markup=False),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=self._console, transient=True)
        task = bar.add_task("", total=None)

        def draw(done: int, total: int, speed: str) -> None:
            bar.start()
            bar.update(task, completed=done, total=total, description=speed)

        try:
            yield draw
        finally:
            bar.stop()

    @contextmanager
    def prefill(self) -> Iterator[tuple[Callable[[PrefillProgress], None], Callable[[], None]]]:
        """A bar for reading a prompt: a function that moves it, and one that takes it away.

        It appears only once a part of the prompt is left, so short prompts show nothing, and it
        must be gone before the answer begins.
        """
        columns = (TextColumn("Reading"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=self._console, transient=True, disable=not self._moving)
        task = bar.add_task("", total=None)

        def draw(event: PrefillProgress) -> None:
            if event.done < event.total:
                bar.start()
            bar.update(task, completed=event.done, total=event.total)

        try:
            yield draw, bar.stop
        finally:
            bar.stop()


def context_bar(parts: Sequence[Part], width: int = 40) -> str:
    """What fills the context, as a bar and a line for each part.

    >>> print(context_bar([Part("turns", 75), Part("free", 25)], width=8))
    [######..]
    turns      75 tokens  75 %
    free       25 tokens  25 %
    """
    total = sum(part.tokens for part in parts)
    free = parts[-1].tokens
    # Rounded up, so that what is there shows.
    used = -(-(total - free) * width // total)
    longest = max(len(part.name) for part in parts)
    lines = ["[" + "#" * used + "." * (width - used) + "]"]
    lines += [
        f"{part.name:<{longest}}  {part.tokens:>6} tokens  {part.tokens / total:.0%}".replace(
            "%", " %"
        )
        for part in parts
    ]
    return "\n".join(lines)


def timing_line(finished: Finished) -> str:
    """How long an answer took, in one line."""
    timings, usage = finished.timings, finished.usage
    return (
        f"prompt {usage.prompt_tokens} tokens ({usage.cached_tokens} from the cache), "
        f"read at {_rate(timings.prefill_tokens, timings.prefill_seconds)}; "
        f"answer {usage.completion_tokens} tokens, "
        f"written at {_rate(timings.decode_tokens, timings.decode_seconds)}; "
        f"seed {finished.seed}"
    )


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.1f} tokens/s" if seconds > 0 else "no measurable time"
