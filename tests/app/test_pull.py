"""``pull``, ``models`` and ``rm``, against a hub on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import mistral_common
import pytest

from mistral_chat.errors import ModelMissingError
from mistral_chat.hub import RemoteFile, Repository
from mistral_chat.pulling import Reference, chosen_files

from ..engine.models import TINY, write_gguf, write_huggingface
from .conftest import Result
from .hub_server import COMMIT, Hub, serve, sha256

V3 = Path(mistral_common.__file__).parent / "data/mistral_instruct_tokenizer_240323.model.v3"
WIDE = replace(TINY, vocab_size=32768, hidden_size=128, max_position_embeddings=1024)
KEPT = 10 * 2**20
"""Bytes that huggingface_hub writes at a time; what is beyond them when it is cut is lost."""
ALIAS = "mistral-7b-instruct-v0.3"
REPOSITORY = "mistralai/Mistral-7B-Instruct-v0.3"

Pull = Callable[..., Result]


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
    with serve(Hub({REPOSITORY: dict(files), "org/tiny": dict(files)})) as server:
        yield server


@pytest.fixture
def environment(hub: Hub, home: Path, tmp_path: Path) -> dict[str, str]:
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


def test_a_short_name(hub: Hub, run: Pull, home: Path, files: dict[str, bytes]) -> None:
    result = run("pull", ALIAS, "--json")
    assert result.code == 0, result.stderr
    told = json.loads(result.stdout)
    folder = home / "data" / "models" / ALIAS
    assert (told["name"], told["path"]) == (ALIAS, str(folder))
    assert f"Downloading {REPOSITORY} ..." in result.stderr
    left_out = {"README.md", "consolidated.safetensors", "original/consolidated.00.pth"}
    assert {path.name for path in folder.iterdir()} == {*files, "origin.json"} - left_out
    origin = json.loads((folder / "origin.json").read_text())
    assert (origin["repository"], origin["revision"]) == (REPOSITORY, COMMIT)
    shards = [name for name in origin["files"] if name.startswith("model-")]
    assert len(shards) == 2
    assert all(origin["files"][name] == sha256(files[name]) for name in shards)
    assert not list((home / "data" / "pulls").iterdir())
    asked = len(hub.requests)
    assert run("pull", ALIAS).code == 0
    assert len(hub.requests) == asked  # it is here
    entries = {row["name"]: row for row in json.loads(run("models", "--json").stdout)}
    assert entries[ALIAS]["installed"]
    assert not entries["mistral-7b-instruct-v0.1"]["installed"]
    answer = run("-m", ALIAS, "-q", "-t", "0", "-n", "3", "--json", "Hi")
    assert json.loads(answer.stdout)["template"] == "v3"
    removed = run("rm", ALIAS)
    assert (removed.code, removed.stdout) == (0, "")
    assert "is removed" in removed.stderr
    assert list((home / "data" / "models").iterdir()) == []
    assert run("rm", ALIAS).code == 5


def test_straight_to_four_bits(run: Pull, home: Path) -> None:
    result = run("pull", "org/tiny", "--quantize", "4", "--method", "rtn", "--no-check")
    assert result.code == 0, result.stderr
    assert "method rtn" in result.stdout
    assert "mistral-chat -m org/tiny" in result.stdout
    folder = home / "data" / "models" / "org--tiny"
    assert (folder / "weights.safetensors").exists()
    assert not list((home / "data" / "pulls").iterdir())
    told = json.loads(run("info", "org/tiny", "--json").stdout)
    assert told["tensors"]["int4 asymmetric in groups of 64"] == 14
    assert "already" not in run("pull", "org/tiny", "--quantize", "4").stderr


def test_a_cut_connection_is_continued(hub: Hub, run: Pull, files: dict[str, bytes]) -> None:
    hub.cut_after, hub.cuts = KEPT + 100_000, 1
    result = run("pull", "org/tiny")
    assert (result.code, result.stderr.count("\n")) == (0, 1), result.stderr
    ranges = [span for name in files for span in hub.sent(name)]
    assert ranges.count(f"bytes={KEPT}-") == 1
    assert ranges.count(None) == len(files) - 3


def test_killed_in_the_middle(
    hub: Hub, run: Pull, environment: dict[str, str], home: Path, files: dict[str, bytes]
) -> None:
    # Every answer is cut, so that the process is busy trying when it is killed.
    hub.cut_after, hub.cuts = KEPT + 100_000, 10**9
    with subprocess.Popen(
        [sys.executable, "-m", "mistral_chat", "pull", "org/tiny"],
        env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        while not list(home.rglob("*.incomplete")) or not any(hub.sent(name)[1:] for name in files):
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    work = home / "data" / "pulls" / "org--tiny" / COMMIT
    (partial,) = work.glob("*.incomplete")
    size = partial.stat().st_size
    assert size >= KEPT
    assert not (home / "data" / "models").exists()
    assert run("info", "org/tiny").code == 5
    hub.cuts = 0
    hub.requests.clear()
    assert run("pull", "org/tiny").code == 0
    name = partial.name.removesuffix(".incomplete").rsplit(".", 1)[0]
    assert hub.sent(name) == [f"bytes={size}-"]
    here = home / "data" / "models" / "org--tiny" / name
    assert here.read_bytes() == files[name]


def test_other_bytes_than_published(hub: Hub, run: Pull, home: Path) -> None:
    hub.forge = "tokenizer.model.v3"
    result = run("pull", "org/tiny")
    assert (result.code, result.stdout) == (1, "")
    assert "tokenizer.model.v3 of org/tiny is not the file that was published" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (home / "data" / "models").exists()
    hub.forge = None
    assert run("pull", "org/tiny").code == 0


def test_a_gated_repository(hub: Hub, run: Pull) -> None:
    hub.gated.add("org/tiny")
    result = run("pull", "org/tiny", "-q")
    assert (result.code, result.stdout) == (5, "")
    assert f"accept its conditions at {hub.address}/org/tiny" in result.stderr
    assert "HF_TOKEN" in result.stderr
    assert result.stderr.count("\n") == 1
    assert run("pull", "org/tiny", HF_TOKEN=hub.token).code == 0


def fill_the_cache(environment: dict[str, str], files: dict[str, bytes]) -> None:
    """What another program that uses the hub leaves."""
    script = "import sys; from huggingface_hub import hf_hub_download as get\n"
    script += "for name in sys.argv[1:]: get('org/tiny', name)"
    arguments = [sys.executable, "-c", script, *files]
    subprocess.run(arguments, env=environment, check=True, capture_output=True)


def test_offline_takes_what_the_hub_s_cache_holds(
    hub: Hub, run: Pull, environment: dict[str, str], home: Path, files: dict[str, bytes]
) -> None:
    result = run("pull", "org/tiny", "-q", HF_HUB_OFFLINE="1")
    assert (result.code, result.stdout) == (5, "")
    assert "HF_HUB_OFFLINE is set" in result.stderr
    assert hub.requests == []
    fill_the_cache(environment, files)
    hub.requests.clear()
    assert run("pull", "org/tiny", HF_HUB_OFFLINE="1").code == 0
    assert hub.requests == []
    # The same content, which takes no room a second time and stays when the model is removed.
    shard = next((home / "data" / "models" / "org--tiny").glob("model-00001*"))
    assert shard.stat().st_nlink == 2
    assert "0 MB are free again" in run("rm", "org/tiny").stderr


def test_what_the_hub_s_cache_holds_is_not_fetched_again(
    hub: Hub, run: Pull, environment: dict[str, str], files: dict[str, bytes]
) -> None:
    fill_the_cache(environment, files)
    hub.requests.clear()
    assert run("pull", "org/tiny").code == 0
    assert [path for method, path, _ in hub.requests if "/resolve/" in path] == []


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


def test_a_path(run: Pull, tmp_path: Path, home: Path, files: dict[str, bytes]) -> None:
    own = tmp_path / "mine"
    own.mkdir()
    for name, content in files.items():
        if "/" not in name:
            (own / name).write_bytes(content)
    told = run("pull", str(own), "-q")
    assert (told.code, told.stdout) == (2, "")
    assert "is on this computer already" in told.stderr
    asked = ("--quantize", "8", "--method", "rtn", "--no-check", "-q")
    assert run("pull", str(own), *asked).code == 0
    assert (home / "data" / "models" / "mine" / "weights.safetensors").exists()
    assert own.exists()


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


def test_nobody_answers(run: Pull) -> None:
    result = run("pull", "org/tiny", "-q", HF_ENDPOINT="http://127.0.0.1:9")
    assert (result.code, result.stdout) == (5, "")
    assert "could not be reached" in result.stderr
    assert result.stderr.count("\n") == 1


def test_no_room(hub: Hub, run: Pull, files: dict[str, bytes]) -> None:
    class Endless(bytes):
        def __len__(self) -> int:
            return 10**15

    hub.repositories["org/tiny"]["model-00001-of-00002.safetensors"] = Endless(b"x")
    result = run("pull", "org/tiny", "-q")
    assert (result.code, result.stdout) == (1, "")
    assert "The disk has" in result.stderr


def test_a_model_of_the_list_that_is_not_here(run: Pull) -> None:
    result = run("-m", "mistral-7b-instruct-v0.1", "-q", "Hi")
    assert (result.code, result.stdout) == (5, "")
    assert "mistral-chat pull mistral-7b-instruct-v0.1 --quantize 4" in result.stderr


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
        return [file.name for file in chosen_files(held(*names), None)]

    mistral = ("params.json", "consolidated.safetensors", "tekken.json")
    assert chosen(*mistral, "tokenizer.json")[:2] == ["params.json", "consolidated.safetensors"]
    single = ("config.json", "model.safetensors")
    assert chosen(*mistral, *single) == [*single, "tekken.json"]
    with pytest.raises(ModelMissingError, match="no weights in safetensors"):
        chosen("config.json", "pytorch_model.bin")
