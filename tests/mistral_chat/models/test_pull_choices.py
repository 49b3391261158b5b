"""``pull``: what a name means, and which files of a repository are fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from mistral_chat.errors import ModelMissingError
from mistral_chat.models.choosing import Reference, chosen_files
from mistral_chat.models.hub import RemoteFile, Repository

from ...quant.models import write_gguf
from ..hub_server import COMMIT, Hub
from .conftest import ALIAS, REPOSITORY, V3, WIDE, Pull, left


def test_a_gguf_file(hub: Hub, run: Pull, tmp_path: Path, home: Path) -> None:
    import sentencepiece

    library = sentencepiece.SentencePieceProcessor(model_file=str(V3))
    vocabulary: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [library.id_to_piece(i) for i in range(32768)],
        "tokenizer.ggml.scores": [library.get_score(i) for i in range(32768)],
        "tokenizer.ggml.token_type": [
            6 if library.is_byte(i) else 3 if library.is_control(i) else 2 if i == 0 else 1
            for i in range(32768)
        ],
    }
    path = tmp_path / "m.gguf"
    write_gguf(path, WIDE, kind=gguf.GGMLQuantizationType.Q4_0, change=vocabulary)
    content = path.read_bytes()
    hub.repositories["org/ggufs"] = {"tiny.Q4_0.gguf": content, "tiny.Q8_0.gguf": b"other"}
    none_named = run("pull", "org/ggufs", "-q")
    assert none_named.code == 5
    assert "tiny.Q4_0.gguf, tiny.Q8_0.gguf" in none_named.stderr
    assert run("pull", "org/ggufs:q4_0").code == 0
    folder = home / "data" / "models" / "org--ggufs--tiny.Q4_0.gguf"
    assert (folder / "tiny.Q4_0.gguf").read_bytes() == content
    told = json.loads(run("info", "org/ggufs/tiny.Q4_0.gguf", "--json").stdout)
    assert told["format"] == "GGUF file"
    refused = run("pull", "org/ggufs/tiny.Q4_0.gguf", "--quantize", "4")
    assert refused.code == 2
    assert "here already, not quantized" in refused.stderr or "--force" in refused.stderr


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("org/none", 5, "no repository org/none"),
        ("org/tiny@nothing", 5, "no such revision"),
        ("org/tiny:Q4_0", 5, "no GGUF file named like 'Q4_0'; it has none"),
        ("what is this", 2, "neither a model's short name"),
        ("smollm2 --quantize 4", 2, "comes quantized"),
        ("org/tiny --quantize 5", 2, "4 or 8 bits, not 5"),
    ],
)
def test_what_cannot_be_pulled(run: Pull, name: str, code: int, said: str) -> None:
    arguments = name.split(" --quantize ")
    more = ("--quantize", arguments[1]) if len(arguments) > 1 else ()
    result = run("pull", arguments[0], *more, "-q")
    assert (result.code, result.stdout) == (code, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_names_and_addresses() -> None:
    assert Reference.parse(ALIAS) == Reference(REPOSITORY)
    assert Reference.parse("org/repo@abc/m.gguf") == Reference("org/repo", "abc", "m.gguf")
    assert Reference.parse("org/repo:m.gguf") == Reference("org/repo", None, "m.gguf")
    assert Reference.parse("nothing") is None
    assert Reference.parse("https://huggingface.co/org/repo") == Reference("org/repo")


def test_what_a_repository_is_made_of() -> None:
    def held(*names: str) -> Repository:
        return Repository("org/repo", COMMIT, tuple(RemoteFile(n, 1, None, None) for n in names))

    def chosen(*names: str) -> list[str]:
        return [file.name for file in chosen_files(held(*names), lambda: index)]

    index = {"weight_map": {"a": "weights-1.safetensors", "b": "weights-2.safetensors"}}

    mistral = ("params.json", "consolidated.safetensors", "tekken.json")
    assert chosen(*mistral, "tokenizer.json")[:2] == ["params.json", "consolidated.safetensors"]
    single = ("config.json", "model.safetensors")
    assert chosen(*mistral, *single) == [*single, "tekken.json"]
    sharded = ("config.json", "model.safetensors.index.json")
    shards = ("weights-1.safetensors", "weights-2.safetensors")
    others = ("model-00001-of-00002.safetensors", "README.md")
    assert chosen(*sharded, *shards, *others) == [*sharded, *shards]
    # The one file counts before an index of an earlier save.
    assert chosen(*sharded, *shards, "model.safetensors") == list(single)
    with pytest.raises(ModelMissingError, match=r"names weights-2.safetensors, which is not"):
        chosen(*sharded, shards[0])
    with pytest.raises(ModelMissingError, match="no weights in safetensors"):
        chosen("config.json", "pytorch_model.bin")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (None, "no weight_map"), ({}, "no weight_map"), ([], "no weight_map"),
        ({"a": 3}, "no weight_map"), ({"a": "../w.safetensors"}, "outside the folder"),
        ({"a": "/w.safetensors"}, "outside the folder"), ({"a": ".."}, "no safetensors file"),
        ({"a": ""}, "no safetensors file"), ({"a": "config.json"}, "no safetensors file"),
    ],
)  # fmt: skip
def test_an_index_that_cannot_be(
    hub: Hub, run: Pull, home: Path, files: dict[str, bytes], weights: object, said: str
) -> None:
    index = json.dumps({"weight_map": weights}).encode()
    hub.repositories["org/tiny"] = {**files, "model.safetensors.index.json": index}
    result = run("pull", "org/tiny", "-q")
    assert (result.code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert said in result.stderr
    assert left(home) == []


def test_the_files_that_the_index_names(
    hub: Hub, run: Pull, home: Path, files: dict[str, bytes]
) -> None:
    content = {name.replace("model-0", "weights-0"): data for name, data in files.items()}
    index = "model.safetensors.index.json"
    content[index] = content[index].replace(b"model-0", b"weights-0")
    content["model-00001-of-00002.safetensors"] = b"of an earlier save"
    hub.repositories["org/tiny"] = content
    assert run("pull", "org/tiny", "-q").code == 0
    here = {path.name for path in (home / "data" / "models" / "org--tiny").iterdir()}
    assert {f"weights-0000{n}-of-00002.safetensors" for n in (1, 2)} <= here
    assert "model-00001-of-00002.safetensors" not in here
    assert json.loads(run("info", "org/tiny", "--json").stdout)["format"] == "Hugging Face folder"


@pytest.mark.parametrize("asked", ["/m-00001-of-00002.gguf", ":m-0000", ":00002"])
def test_a_gguf_file_in_parts(hub: Hub, run: Pull, home: Path, asked: str) -> None:
    parts = {f"m-0000{n}-of-00002.gguf": b"GGUF" for n in (1, 2)}
    hub.repositories["org/parts"] = {**parts, "whole-00001-of-00001.gguf": b"GGUF"}
    result = run("pull", f"org/parts{asked}", "-q")
    assert (result.code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "of 2" in result.stderr
    assert "llama-gguf-split --merge" in result.stderr
    assert not any("/resolve/" in path for _, path, _ in hub.requests)
    assert left(home) == []
