"""A terminal with the prompt on it, and an editor that a person may have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from ..pseudo_terminal import OpenTerminal, Terminal


@pytest.fixture
def terminal(
    fake_environment: Callable[..., Mapping[str, str]],
) -> Iterator[OpenTerminal]:
    """Opens the prompt with these answers waiting."""
    opened: list[Terminal] = []

    def open_terminal(
        *answers: str, arguments: Sequence[str] = (), columns: int = 80, **more: str
    ) -> Terminal:
        environment = fake_environment(*answers, **more)
        opened.append(Terminal(environment, arguments, columns))
        opened[-1].ready()
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.process.close(force=True)


def write_editor(folder: Path, script: str) -> str:
    """An editor that is a shell script; the file's name is ``$1``."""
    path = folder / "editor.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)
