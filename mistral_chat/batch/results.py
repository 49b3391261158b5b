"""Where the records of a batch go: to a stream, or to a file that is whole or can be gone on with.

While a batch runs, ``NAME.part`` beside the file takes each record as it comes, a line each, after
a first one that tells what they belong to. So whatever ends the program loses nothing that was
finished; a line that was being written is cut off when the batch goes on. When all is there, the
records are written to the file in order, and the part is removed.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, TextIO

from mistral_chat.batch.records import Record
from mistral_chat.errors import UsageError
from mistral_chat.printable import printable_json
from mistral_chat.system.locks import FileLock
from quant.files import write_pieces

FORMAT = "mistral-chat batch 1"


class Results(Protocol):
    """Takes records as they come. ``done`` are the lines of which there are some already."""

    @property
    def done(self) -> set[int]:
        """Numbers of lines."""

    def records(self) -> Iterator[Record]:
        """The records that were there already."""

    def expect(self, line: int) -> None:
        """Say that a record for that line will come; lines are told in order."""

    def put(self, line: int, record: Record) -> None:
        """Take the record of a line. Raises OSError."""

    def close(self, complete: bool, /) -> None:
        """No more records come; ``complete`` says that all are there. Raises OSError."""


class Printed:
    """Records printed to a stream, in the order of the lines, or as they come."""

    def __init__(self, stream: TextIO, ordered: bool) -> None:
        self._stream = stream
        self._ordered = ordered
        self._expected: deque[int] = deque()
        self._ready: dict[int, Record] = {}

    @property
    def done(self) -> set[int]:
        return set()

    def records(self) -> Iterator[Record]:
        return iter(())

    def expect(self, line: int) -> None:
        self._expected.append(line)

    def put(self, line: int, record: Record) -> None:
        if not self._ordered:
            self._print(record)
            return
        self._ready[line] = record
        while self._expected and self._expected[0] in self._ready:
            self._print(self._ready.pop(self._expected.popleft()))

    def close(self, _complete: bool, /) -> None:
        """What is there is printed, also where something before it is missing."""
        for line in sorted(self._ready):
            self._print(self._ready.pop(line))

    def _print(self, record: Record) -> None:
        self._stream.write(printable_json(_json(record)) + "\n")
        self._stream.flush()


def part_of(path: Path) -> Path:
    """The file in which the records are while they are not all there."""
    return path.with_name(path.name + ".part")


def check_output(path: Path, resume: bool) -> None:
    """Raise UsageError for a file that is there, or a part that nobody asked to go on with."""
    if path.exists():
        raise UsageError(f"{path} is there already; give --output another name, or remove it.")
    if part_of(path).exists() and not resume:
        raise UsageError(
            f"{part_of(path)} holds what an earlier run has done; go on with --resume, or remove "
            "it."
        )


class Kept:
    """Records kept in a file. ``done`` are those of an earlier run, by the number of their line.

    Raises UsageError for a file that is there already, for a part that belongs to something else
    or that nobody asked to go on with, and where another process writes it; OSError where nothing
    can be written there.
    """

    def __init__(self, path: Path, digest: str, settings: str, ordered: bool, resume: bool) -> None:
        self.path = path
        self.part = part_of(path)
        self._ordered = ordered
        self._told = {"format": FORMAT, "input": digest, "settings": settings}
        lock = FileLock.take(path.with_name(f".{path.name}.lock"))
        if lock is None:
            raise UsageError(f"{path} is being written by another process.")
        self._lock = lock
        try:
            check_output(path, resume)
            self._offsets: dict[int, int] = {}
            self._file = self._open()
        except BaseException:
            lock.release()
            raise

    @property
    def done(self) -> set[int]:
        """The lines of which there are records."""
        return set(self._offsets)

    def records(self) -> Iterator[Record]:
        """The records that are there, as they came."""
        return self._at(list(self._offsets.values()))

    def expect(self, line: int) -> None:
        """Nothing: they are put in order at the end."""

    def put(self, line: int, record: Record) -> None:
        self._append({"line": line, "record": record}, line)

    def close(self, complete: bool, /) -> None:
        try:
            self._file.close()
            if complete:
                self._write_whole()
                self.part.unlink()
        finally:
            self._lock.release()

    def _open(self) -> BinaryIO:
        there = self.part.exists()
        file = self.part.open("r+b" if there else "x+b", buffering=0)
        try:
            end = self._read_part(file) if there else 0
            # What was being written when the program ended.
            file.truncate(end)
            file.seek(end)
            if end == 0:
                file.write((json.dumps(self._told) + "\n").encode())
        except BaseException:
            file.close()
            raise
        return file

    def _read_part(self, file: BinaryIO) -> int:
        """Note where the records of a part are; where the last whole one ends."""
        end = 0
        reader = os.fdopen(os.dup(file.fileno()), "rb")
        with reader:
            for place, line in enumerate(reader):
                if not line.endswith(b"\n"):
                    break
                try:
                    value = json.loads(line)
                    number = value["line"] if place else 0
                except (ValueError, KeyError, TypeError):
                    raise UsageError(
                        f"{self.part} is damaged in line {place + 1}; remove it and begin anew."
                    ) from None
                if place == 0:
                    self._check(value)
                else:
                    self._offsets[number] = end
                end += len(line)
        return end

    def _check(self, told: object) -> None:
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise UsageError(f"{self.part} is not what a batch has written; remove it.")
        for key, what in (("input", "another input"), ("settings", "another model or settings")):
            if told.get(key) != self._told[key]:
                raise UsageError(
                    f"{self.part} belongs to {what}; give --output another name, or remove it."
                )

    def _append(self, value: Record, line: int) -> None:
        offset = self._file.seek(0, os.SEEK_END)
        data = (_json(value) + "\n").encode()
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:]) or 0
        except BaseException:
            self._file.truncate(offset)  # half a record is none
            raise
        self._offsets[line] = offset

    def _at(self, offsets: Iterable[int]) -> Iterator[Record]:
        """The records that begin there."""
        with self.part.open("rb") as file:
            for offset in offsets:
                file.seek(offset)
                yield json.loads(file.readline())["record"]

    def _write_whole(self) -> None:
        lines = sorted(self._offsets) if self._ordered else list(self._offsets)
        records = self._at(self._offsets[line] for line in lines)
        write_pieces(self.path, (f"{_json(record)}\n".encode() for record in records))


def _json(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False)
