"""Fields of the JSON files around a vocabulary: typed, or one sentence that names file and field.

The libraries that compute with a vocabulary are compiled and raise what they like, down to a panic
of Rust that is no ``Exception``; :func:`library` is the one place that turns it into a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from quant.errors import CheckpointError, QuantError

LARGEST_ID = (1 << 31) - 1
"""Ids are 32-bit numbers in every format of models."""


@dataclass(frozen=True)
class Record:
    """A JSON object; ``place`` names its file, and where in it the object stands.

    Every method raises CheckpointError for a field that is not of its type. Without ``default``
    the field must be there; null counts as not there.

    >>> Record({"id": 7}, "tokenizer.json").whole("id")
    7
    """

    values: Mapping[str, Any]
    place: str

    def fail(self, name: str, kind: str) -> NoReturn:
        """Raise the error for a field that is no ``kind``."""
        raise CheckpointError(f"{self.place} is damaged: {name} is not {kind}; fetch it again.")

    def whole(self, name: str, default: int | None = None, most: int = LARGEST_ID) -> int:
        """A whole number from 0 to ``most``."""
        value = self._value(name, default)
        if not is_whole(value, most):
            self.fail(name, f"a whole number from 0 to {most}")
        return int(value)

    def text(self, name: str, default: str | None = None) -> str:
        """A text of whole characters."""
        value = self._value(name, default)
        if not is_text(value):
            self.fail(name, "a text")
        return str(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            self.fail(name, "true or false")
        return value

    def items(self, name: str, default: list[Any] | None = None) -> list[Any]:
        """A list."""
        value = self._value(name, default)
        if not isinstance(value, list):
            self.fail(name, "a list")
        return value

    def record(self, name: str, default: Mapping[str, Any] | None = None) -> Record:
        """An object."""
        value = self._value(name, default)
        if not isinstance(value, dict):
            self.fail(name, "an object")
        return Record(value, f"{self.place}, {name},")

    def records(self, name: str, default: list[Any] | None = None) -> list[Record]:
        """A list of objects."""
        return [
            Record(entry, f"{self.place}, {name}[{place}],")
            if isinstance(entry, dict)
            else self.fail(f"{name}[{place}]", "an object")
            for place, entry in enumerate(self.items(name, default))
        ]

    def _value(self, name: str, default: object) -> Any:
        value = self.values.get(name)
        return default if value is None else value


def is_whole(value: object, most: int = LARGEST_ID) -> bool:
    """Whether a value is a whole number from 0 to ``most``, as ids and counts are."""
    return type(value) is int and 0 <= value <= most


def is_text(value: object) -> bool:
    r"""Whether a value is a text of whole characters.

    JSON can hold half of a surrogate pair, and so does what was no UTF-8 in a GGUF.

    >>> is_text("a"), is_text("\ud800"), is_text(["a"])
    (True, False, False)
    """
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def are_texts(values: Iterable[object]) -> bool:
    """Whether all values are texts of whole characters; looks at them at once, not one by one."""
    try:
        return is_text("".join(values))  # type: ignore[arg-type] # what else raises TypeError
    except TypeError:
        return False


@contextmanager
def library(doing: str) -> Iterator[None]:
    """Within it whatever a compiled library raises becomes a CheckpointError.

    ``doing`` says what could not be done, such as ``The tokenizer cannot be read``.
    """
    try:
        yield
    except (QuantError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # a panic in Rust is not an Exception
        said = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{doing} ({said[:200]}); fetch the file again.") from error


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write what came out of a JSON file; raises CheckpointError where it is nested too deeply."""
    try:
        text = json.dumps(values)
    except RecursionError as error:
        raise CheckpointError(f"{path.name} is nested too deeply to be written.") from error
    path.write_text(text + "\n", encoding="utf-8")
