"""Files that a person names: their paths, their bytes, and their text without a byte-order mark."""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mistral_chat.errors import UsageError
from quant.errors import QuantError
from quant.files import is_waited_for

MOST_BYTES = 1 << 28
"""What is read of one file at most: more is a mistake, and would fill the memory."""

_PIECE = 1 << 20

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, which its own begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte-order marks, and what follows them."""

OTHER_MARKS = tuple(mark for mark, encoding in _MARKS if encoding != "utf-8")
"""Those of what is not UTF-8."""

TooLong = Callable[[str], QuantError]
"""The error for a place that holds more than may be read."""


def longer_than(most: int) -> TooLong:
    """The error for what holds more than ``most`` bytes.

    >>> print(longer_than(16_000_000)("a.txt"))
    a.txt holds more than 16 MB, more than is read at once; give a part of it.
    """
    size = f"{most / 1e6:.0f} MB, more than is read at once; give a part of it."
    return lambda place: UsageError(f"{place} holds more than {size}")


def expanded(name: str | Path) -> Path:
    """The path of that name, with the home folder in place of a ``~``.

    Raises UsageError for the ``~`` of a user that there is not.

    >>> expanded("model.gguf").name
    'model.gguf'
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        user = str(name).split("/")[0]
        raise UsageError(
            f"{name} names the home folder of a user, and {user} is none here; write the path "
            "without '~'."
        ) from error


def read_file(file: Path, most: int = MOST_BYTES, refused: TooLong | None = None) -> bytes:
    """The bytes of a file, or what comes out of a pipe; raises UsageError where there are none.

    Devices, and pipes that nobody writes to, are refused: reading them might never end. Of a file
    of more than ``most`` bytes no more than that is read, and the error of ``refused`` is raised,
    by default UsageError.
    """
    try:
        # Without waiting for somebody who writes into a pipe, who may never come.
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as stream:  # noqa: PTH123 - a descriptor, no path
            first = _first_bytes(file, descriptor)
            return read_stream(stream, str(file), most, refused, first)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "that is no path"
        raise UsageError(f"{file} cannot be read: {reason}.") from error


def _first_bytes(file: Path, descriptor: int) -> bytes:
    """The first bytes of an open file that may be waited for; raises UsageError for others."""
    what = os.fstat(descriptor)
    is_input = _is_standard_input(what)
    # The one device that ends at once, by which people say that there is nothing.
    is_empty = os.path.samestat(what, Path(os.devnull).stat())
    first = b""
    if stat.S_ISFIFO(what.st_mode):
        try:
            first = os.read(descriptor, _PIECE)
        except BlockingIOError:  # somebody is going to write
            os.set_blocking(descriptor, True)
            return first
        if not first and not is_input:
            raise UsageError(f"Nobody writes into the pipe {file}; name a file.")
    elif stat.S_ISREG(what.st_mode):
        if is_waited_for(descriptor):
            raise UsageError(f"Nobody writes into {file} at this moment; name a file.")
        return first
    elif not (stat.S_ISDIR(what.st_mode) or is_input or is_empty):
        raise UsageError(f"{file} is a device, not a file; name a file.")
    os.set_blocking(descriptor, True)
    return first


def _is_standard_input(what: os.stat_result) -> bool:
    try:
        return os.path.samestat(what, os.fstat(0))
    except OSError:  # it is closed
        return False


def read_stream(
    stream: BinaryIO, place: str, most: int = MOST_BYTES, refused: TooLong | None = None,
    first: bytes = b"",
) -> bytes:  # fmt: skip
    """All bytes of a stream, after those that were read already.

    Where there are more than ``most`` the rest is left, and the error of ``refused`` is raised, by
    default UsageError.
    """
    pieces, size = [first], len(first)
    while size <= most:
        piece = stream.read(_PIECE)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        size += len(piece)
    raise (refused or longer_than(most))(place)


def decode(data: bytes, place: str) -> str:
    r"""The text of a file: UTF-8, or what its byte-order mark says, which is left out.

    Raises UsageError, naming ``place``, for anything else.

    >>> decode(b"\xef\xbb\xbfHi", "a.txt"), decode(b"\xff\xfeH\0i\0", "b.txt")
    ('Hi', 'Hi')
    """
    marked = (each for each in _MARKS if data.startswith(each[0]))
    mark, encoding = next(marked, (b"", "utf-8"))
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{place} is not {encoding[:6].upper()} text (byte {len(mark) + error.start}); "
            "convert it first, for example with iconv."
        ) from error


def without_mark(data: bytes, place: str) -> bytes:
    """The bytes of a text in UTF-8; another byte-order mark than UTF-8's says what they are."""
    marked = any(data.startswith(mark) for mark, _ in _MARKS)
    return decode(data, place).encode("utf-8") if marked else data


def read_text(file: Path, most: int = MOST_BYTES, refused: TooLong | None = None) -> str:
    """The text of a file; raises UsageError where it cannot be read or is none."""
    return decode(read_file(file, most, refused), str(file))


def is_missing(path: Path) -> bool:
    """Whether there is nothing at a path; false where that cannot be told."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for what is no path
        return True
    except OSError:
        return False
    return False


def check_waits_for_nobody(path: Path) -> None:
    """Raise UsageError for a file, or a folder with a file, that is none on a disk.

    A pipe, a socket or a device in its place would be waited for without end.
    """
    inside = path.iterdir() if path.is_dir() else ()
    for each in (path, *inside):
        if each.exists() and not (each.is_file() or each.is_dir()):
            raise UsageError(f"{each} is a pipe or a device; put a file in its place.")
