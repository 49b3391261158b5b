"""Cases of a target, carried out in a child under limits; whatever it dies of is counted.

A case is a number: its randomness is seeded by the target's name, the seed and the number, so that
each one can be run again alone. Where a child dies, or a case breaks a limit, the next child goes
on with the next case.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import mmap
import os
import re
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType, TracebackType
from typing import Any

from .target import Target, require

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("quant", "mistral_chat")

MOST_ADDRESSES = 12 << 30
"""Bytes of addresses that a child may have."""
MOST_MEMORY = 1 << 30
"""Bytes of memory that a case may take beside what its process has already."""
LONGEST_WAIT = 40.0
"""Seconds that a case may last, waiting included, before its process is killed."""

_CLOCK = struct.Struct("<qd")
_UNREAD = 1 << 16
_CRASHED = re.compile(r'  File "(?P<path>.+)", line (?P<number>\d+) in ')
"""How faulthandler writes a line of a process that died, the innermost first."""


@dataclass(frozen=True)
class Fault:
    """What a case did that none may: ``kind``, where in the product, and the text of the error."""

    number: int
    kind: str
    place: str = ""
    text: str = ""


@dataclass
class Report:
    """What came of the cases of one target with one seed."""

    target: str
    seed: int
    cases: int
    passed: int = 0
    refused: int = 0
    faults: list[Fault] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        """The counts, in one line."""
        return (
            f"{self.target}: seed {self.seed}, {self.cases} cases, {self.passed} passed, "
            f"{self.refused} refused, {len(self.faults)} faults, {self.seconds:.0f} s"
        )

    def kinds(self) -> list[str]:
        """A paragraph for each kind of fault, the most frequent first, and how to run one again."""
        groups: dict[tuple[str, str], list[Fault]] = {}
        for fault in self.faults:
            groups.setdefault((fault.kind, fault.place), []).append(fault)
        return [
            f"{len(faults)} x {kind} at {place or 'an unknown place'}: {faults[0].text}\n"
            f"    python -m tests.fuzz {self.target} --seed {self.seed} --only {faults[0].number}"
            for (kind, place), faults in sorted(groups.items(), key=lambda item: -len(item[1]))
        ]


class _HangError(BaseException):
    """Raised in a case whose processor time is used up; no handler of the product catches it."""


class TargetError(Exception):
    """A target could not be made ready, so nothing was tested."""


def random_of(target: str, seed: int, number: int) -> Random:
    """The randomness of one case."""
    return Random(f"{target}-{seed}-{number}")


@contextlib.contextmanager
def prepared(kind: type[Target]) -> Iterator[Target]:
    """A target whose files are removed at the end."""
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{kind.name}-") as name:
        folder = Path(name)
        (folder / "files").mkdir()
        yield kind(folder / "files")


def run_one(target: Target, seed: int, number: int) -> None:
    """One case in this process, without limits; what it raises comes out."""
    faulthandler.enable()
    target.start()
    target.case(random_of(target.name, seed, number), _emptied(_scratch_of(target)))


def run(target: Target, seed: int, numbers: range) -> Report:
    """The cases of those numbers. Raises TargetError."""
    report = Report(target.name, seed, len(numbers))
    begin = time.monotonic()
    clock = mmap.mmap(-1, _CLOCK.size)
    next_number = numbers.start
    while next_number < numbers.stop:
        last = _run_child(target, report, range(next_number, numbers.stop), clock)
        next_number = last + 1
    report.seconds = time.monotonic() - begin
    return report


def _run_child(target: Target, report: Report, numbers: range, clock: mmap.mmap) -> int:
    """A child for as many cases as it lives; the number of the last that it began."""
    clock[:] = _CLOCK.pack(-1, time.monotonic())
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        # Never back into the caller, whatever happens.
        try:
            _serve(target, report.seed, numbers, clock, writing)
        finally:
            os._exit(1)
    os.close(writing)
    for told in _messages(child, reading, clock):
        if "unprepared" in told:
            os.waitpid(child, 0)
            raise TargetError(told["unprepared"])
        report.passed += told.get("passed", 0)
        report.refused += told.get("refused", 0)
        if "fault" in told:
            report.faults.append(Fault(*told["fault"]))
    _, status = os.waitpid(child, 0)
    last, _begin = _CLOCK.unpack(clock[:])
    if last < 0:
        raise TargetError(f"the process ended with status {status} before the first case")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = "hang" if number == signal.SIGKILL else f"signal {signal.Signals(number).name}"
        report.faults.append(Fault(last, name, *_crash(target)))
    return int(last)


def _messages(child: int, reading: int, clock: mmap.mmap) -> Iterator[dict[str, Any]]:
    """What the child tells, until it ends; it is killed where a case lasts too long."""
    unread = b""
    with os.fdopen(reading, "rb", buffering=0) as stream:
        while True:
            ready, _, _ = select.select([stream], [], [], 1.0)
            if ready:
                data = stream.read(_UNREAD)
                if not data:
                    return
                *lines, unread = (unread + data).split(b"\n")
                yield from map(json.loads, lines)
            _number, begin = _CLOCK.unpack(clock[:])
            if time.monotonic() - begin > LONGEST_WAIT:
                os.kill(child, signal.SIGKILL)


def _serve(target: Target, seed: int, numbers: range, clock: mmap.mmap, writing: int) -> None:
    """Carry out cases in a child, and end it; what it prints goes into a file."""
    with os.fdopen(writing, "w", buffering=1, encoding="utf-8") as stream:
        _limit(target)
        try:
            target.start()
        except BaseException:
            print(json.dumps({"unprepared": traceback.format_exc()}), file=stream)
            return
        for number in numbers:
            scratch = _emptied(_scratch_of(target))
            clock[:] = _CLOCK.pack(number, time.monotonic())
            outcome = _carry_out(target, seed, number, scratch)
            if isinstance(outcome, Fault):
                told = [number, outcome.kind, outcome.place, outcome.text]
                print(json.dumps({"fault": told}), file=stream)
                if outcome.kind in ("hang", "memory"):
                    break  # what it left behind belongs to no other case
            else:
                # Told at once: a child that dies takes no count with it.
                print(json.dumps({outcome: 1}), file=stream)
    os._exit(0)


def _carry_out(target: Target, seed: int, number: int, scratch: Path) -> Fault | str:
    """One case under its limits: ``passed``, ``refused``, or what was wrong."""
    before = _start_of_memory()
    outcome: Fault | str
    try:
        try:
            signal.setitimer(signal.ITIMER_PROF, target.seconds)
            target.case(random_of(target.name, seed, number), scratch)
            outcome = "passed"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except target.refusals():
        outcome = "refused"
    except _HangError as error:
        outcome = Fault(number, "hang", place_of(error.__traceback__))
    except BaseException as error:  # whatever it is, it is a fault, an exit too
        text = " ".join(str(error).split())[:200]
        outcome = Fault(number, type(error).__name__, place_of(error.__traceback__), text)
    taken = _peak_of_memory() - before
    if taken > MOST_MEMORY:
        place = outcome.place if isinstance(outcome, Fault) else ""
        outcome = Fault(number, "memory", place, f"{taken >> 20} MB")
    return outcome


def place_of(trace: TracebackType | None) -> str:
    """The last line of the product in a traceback, else the last line of all."""
    place = ""
    for frame in reversed(traceback.extract_tb(trace)):
        path = Path(frame.filename)
        if frame.name == require.__name__:
            continue
        inside = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        if inside.parts[0] in PRODUCT:
            return f"{inside}:{frame.lineno}"
        place = place or f"{inside}:{frame.lineno}"
    return place


def _scratch_of(target: Target) -> Path:
    return target.folder.parent / "scratch"


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _limit(target: Target) -> None:
    """Put this process under limits, and what it prints into a file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    output = os.open(_output_of(target), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable(2, all_threads=False)

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _HangError

    signal.signal(signal.SIGPROF, stop)


def _output_of(target: Target) -> Path:
    return target.folder.parent / "output"


def _crash(target: Target) -> tuple[str, str]:
    """Place and text of what a child that died has left: Python's own account of it."""
    lines = _output_of(target).read_text(encoding="utf-8", errors="replace").splitlines()
    for frame in filter(None, map(_CRASHED.match, lines[-200:])):
        path = Path(frame["path"])
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PRODUCT:
            return f"{path.relative_to(ROOT)}:{frame['number']}", ""
    return "", " ".join(lines[-3:])[:200]


def _start_of_memory() -> int:
    """Bytes that this process has in memory, from which on its peak is looked for; Linux only."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    return 0


def _peak_of_memory() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) << 10
    return 0
