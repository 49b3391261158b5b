"""Progress that nobody watches, a conversion without tensors, and a hub on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mistral_common
import pytest

import quant

from ...quant.models import TINY, write_huggingface
from ..conftest import Result
from ..fakes import tiny_metadata
from ..hub_server import Hub, serve

V3 = Path(mistral_common.__file__).parent / "data/mistral_instruct_tokenizer_240323.model.v3"
WIDE = replace(TINY, vocab_size=32768, hidden_size=128, max_position_embeddings=1024)
KEPT = 10 * 2**20
"""Bytes that huggingface_hub writes at a time; what is beyond them when it is cut is lost."""
ALIAS = "mistral-7b-instruct-v0.3"
REPOSITORY = "mistralai/Mistral-7B-Instruct-v0.3"

Pull = Callable[..., Result]


def silent(label: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def quantize_tiny(
    source: Path,
    target: Path,
    progress: Callable[[int, int], None],
    companions: Callable[[Path], None],
) -> None:
    """A conversion of a file without tensors."""
    target.mkdir()
    companions(target)
    (target / "config.json").write_text("{}", encoding="utf-8")
    progress(1, 1)


@pytest.fixture
def conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are converted as by :func:`quantize_tiny`, for files that hold no tensors."""
    monkeypatch.setattr(quant, "quantize", quantize_tiny)
    monkeypatch.setattr(quant, "read_gguf_metadata", lambda path: tiny_metadata())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A tiny model as a repository has it: sharded, with a second copy that is not wanted."""
    folder = tmp_path_factory.mktemp("source") / "model"
    write_huggingface(folder, WIDE, shards=2)
    (folder / "tokenizer.model.v3").write_bytes(V3.read_bytes())
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    content["consolidated.safetensors"] = bytes(9999)
    content["README.md"] = b"A model."
    content["original/consolidated.00.pth"] = bytes(9999)
    return content


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub on loopback that has that model under two names."""
    with serve(Hub({REPOSITORY: dict(files), "org/tiny": dict(files)})) as server:
        yield server


@pytest.fixture
def environment(hub: Hub, home: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a process for which that hub is the only one."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {**kept, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hub-cache")}


@pytest.fixture
def run(environment: dict[str, str]) -> Pull:
    """The command in a process of its own, since huggingface_hub reads its settings once."""

    def call(*arguments: str, **more: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "mistral_chat", *arguments],
            env={**environment, **more}, stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    return call


def left(home: Path) -> list[str]:
    """What lies among the models, or is left of pulls."""
    folders = [home / "data" / name for name in ("models", "pulls")]
    return sorted(path.name for each in folders if each.exists() for path in each.iterdir())
