"""The lines of a batch: counted and digested first, then read one after the other."""

from __future__ import annotations

import codecs
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mistral_chat.errors import UsageError
from mistral_chat.system.files import OTHER_MARKS, TooLong, read_file, read_stream, without_mark

_PIECE = 1 << 20


@dataclass(frozen=True)
class Lines:
    r"""Lines of JSON. ``count`` of them are not blank; ``digest`` is SHA-256 of all, hexadecimal.

    >>> lines = Lines.read(io.BytesIO(b'"one"\n\n"two"'), "standard input")
    >>> lines.count, list(lines.numbered(100, str))
    (2, [(1, b'"one"'), (3, b'"two"')])
    """

    stream: BinaryIO
    count: int
    digest: str

    @classmethod
    def open(cls, path: Path) -> Lines:
        """The lines of a file, which may be larger than memory.

        Raises UsageError for one that cannot be read or has no lines.
        """
        try:
            if path.is_file():
                stream = path.open("rb")
                mark = stream.read(4)
                stream.seek(0)
                if not mark.startswith(OTHER_MARKS):
                    return cls._of(stream, str(path))
                stream.close()
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
        # A pipe, or another encoding, of which a mark at the beginning tells.
        return cls._whole(read_file(path), str(path))

    @classmethod
    def read(cls, stream: BinaryIO, place: str) -> Lines:
        """The lines of standard input, all at once. Raises UsageError where there are none."""
        return cls._whole(read_stream(stream, place), place)

    @classmethod
    def _whole(cls, data: bytes, place: str) -> Lines:
        return cls._of(io.BytesIO(without_mark(data, place)), place)

    def close(self) -> None:
        """Let go of the file."""
        self.stream.close()

    @classmethod
    def _of(cls, stream: BinaryIO, place: str) -> Lines:
        digest, count, blank = hashlib.sha256(), 0, True
        while piece := stream.read(_PIECE):
            digest.update(piece)
            *whole, rest = piece.split(b"\n")
            for part in whole:
                count += not (blank and not part.strip())
                blank = True
            blank = blank and not rest.strip()
        count += not blank
        if count == 0:
            stream.close()
            raise UsageError(f"{place} is empty; give it a line of JSON for each question.")
        return cls(stream, count, digest.hexdigest())

    def numbered(self, most: int, refused: TooLong) -> Iterator[tuple[int, bytes | Exception]]:
        """Each line that is not blank, with its number from 1 on.

        Of one that is longer than ``most`` bytes the error of ``refused`` stands in its place.
        """
        self.stream.seek(0)
        number = 0
        while line := self.stream.readline(most + 1):
            number += 1
            if len(line) > most and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = self.stream.readline(_PIECE)
                yield number, refused("The line")
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            line = line.rstrip(b"\r\n")
            if line.strip():
                yield number, line
