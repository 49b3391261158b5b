"""``pull``, ``models`` and ``rm``, against a hub on loopback."""

from __future__ import annotations

import json
import os
import random
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

from mistral_chat import __version__
from mistral_chat.errors import ModelMissingError
from mistral_chat.models.choosing import Reference, chosen_files
from mistral_chat.models.hub import RemoteFile, Repository

from ...quant.models import TINY, write_gguf, write_huggingface
from ..conftest import Result
from ..hub_server import COMMIT, Hub, serve, sha256

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


def test_a_quantized_one_takes_the_place_of_what_was_pulled(run: Pull, home: Path) -> None:
    models = home / "data" / "models"
    quantized = ("org/tiny", "--quantize", "4", "--method", "rtn", "--no-check", "--force")
    assert run("pull", "org/tiny").code == 0
    told = json.loads(run("pull", *quantized, "--json").stdout)
    folder = models / "org--tiny"
    assert told["path"] == told["quantized"]["target"] == str(folder)
    assert (folder / "weights.safetensors").is_file()
    assert not (folder / "origin.json").exists()
    assert run("pull", *quantized).code == 0
    assert [path.name for path in models.iterdir()] == ["org--tiny"]
    assert run("pull", "org/tiny", "--force").code == 0
    assert (folder / "origin.json").is_file()
    assert [path.name for path in models.iterdir()] == ["org--tiny"]


def test_the_token_is_for_the_hub_alone(hub: Hub, run: Pull, files: dict[str, bytes]) -> None:
    hub.gated.add("org/tiny")
    with serve(Hub({"org/tiny": dict(files)})) as storage:
        hub.storage = storage.address
        assert run("pull", "org/tiny", HF_TOKEN=hub.token).code == 0
    assert f"Bearer {hub.token}" in hub.tokens
    assert storage.sent("tokenizer.model.v3")
    assert set(storage.tokens) == {None}


def test_requests_tell_the_program_and_nothing_besides(hub: Hub, run: Pull) -> None:
    assert run("pull", "org/tiny", AI_AGENT="some-program", HF_TOKEN="").code == 0
    assert hub.agents == {f"mistral-chat/{__version__}"}
    assert set(hub.tokens) == {None}
    assert all("/org/tiny" in path for _, path, _ in hub.requests)


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


def left(home: Path) -> list[str]:
    """What lies among the models, or is left of pulls."""
    folders = [home / "data" / name for name in ("models", "pulls")]
    return sorted(path.name for each in folders if each.exists() for path in each.iterdir())


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


def test_a_commit_that_is_a_path(hub: Hub, run: Pull, home: Path, tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "thesis.txt").write_text("years of work")
    for commit in (str(documents), "../../../../documents", "..", ""):
        hub.change = lambda record, commit=commit: {**record, "sha": commit}
        result = run("pull", "org/tiny", "-q")
        assert (result.code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        assert "the commit is" in result.stderr
    assert [path.name for path in documents.iterdir()] == ["thesis.txt"]
    assert left(home) == []


def test_a_workplace_that_is_not_one_s_own(run: Pull, home: Path, tmp_path: Path) -> None:
    outside = tmp_path / "documents"
    outside.mkdir()
    (outside / "thesis.txt").write_text("years of work")
    pulls = home / "data" / "pulls"
    work = pulls / "org--tiny"
    for place in (work / COMMIT, work, pulls):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(outside)
        result = run("pull", "org/tiny", "-q")
        # The link is refused, or removed where it is in a folder of one's own.
        assert (result.code, result.stderr.count("\n")) in ((1, 1), (0, 0)), result.stderr
        assert [path.name for path in outside.iterdir()] == ["thesis.txt"]
        if place.is_symlink():
            place.unlink()
        run("rm", "org/tiny")
        for folder in (work, pulls):
            if folder.exists():
                folder.rmdir()


def test_pieces_that_are_links(
    hub: Hub, run: Pull, home: Path, tmp_path: Path, files: dict[str, bytes]
) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("years of work")
    work = home / "data" / "pulls" / "org--tiny" / COMMIT
    work.mkdir(parents=True)
    shard = "model-00001-of-00002.safetensors"
    (work / f"{shard}.{sha256(files[shard])[:16]}.incomplete").symlink_to(precious)
    (work / "origin.json").hardlink_to(precious)
    (work / "config.json").symlink_to(precious)
    (work / "stray").write_text("left by something else")
    assert run("pull", "org/tiny", "-q").code == 0
    assert precious.read_text() == "years of work"
    folder = home / "data" / "models" / "org--tiny"
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert not (folder / "stray").exists()
    assert (folder / shard).read_bytes() == files[shard]
    assert left(home) == ["org--tiny"]


def test_a_damaged_file_of_the_cache_is_not_added_to(
    hub: Hub, run: Pull, environment: dict[str, str], home: Path, files: dict[str, bytes]
) -> None:
    fill_the_cache(environment, files)
    shard = "model-00001-of-00002.safetensors"
    (cached,) = Path(environment["HF_HOME"]).rglob(shard)
    blob = cached.resolve()
    blob.write_bytes(files[shard][:1000])
    partial = home / "data" / "pulls" / "org--tiny" / COMMIT
    partial.mkdir(parents=True)
    # As if a process had been killed between taking and checking it.
    (partial / f"{shard}.{sha256(files[shard])[:16]}.incomplete").hardlink_to(blob)
    assert run("pull", "org/tiny", "-q").code == 0
    here = home / "data" / "models" / "org--tiny" / shard
    assert here.read_bytes() == files[shard]
    assert blob.read_bytes() == files[shard][:1000]


def test_a_file_of_the_cache_that_others_may_change_is_copied(
    hub: Hub, run: Pull, environment: dict[str, str], home: Path, files: dict[str, bytes]
) -> None:
    fill_the_cache(environment, files)
    shard = "model-00001-of-00002.safetensors"
    (cached,) = Path(environment["HF_HOME"]).rglob(shard)
    cached.resolve().chmod(0o666)
    assert run("pull", "org/tiny", "-q").code == 0
    here = home / "data" / "models" / "org--tiny" / shard
    assert here.read_bytes() == files[shard]
    assert here.stat().st_nlink == 1


def test_force_replaces_by_renaming(
    hub: Hub, run: Pull, home: Path, files: dict[str, bytes]
) -> None:
    assert run("pull", "org/tiny", "-q").code == 0
    folder = home / "data" / "models" / "org--tiny"
    hub.forge = "model-00002-of-00002.safetensors"
    assert run("pull", "org/tiny", "-q", "--force").code == 1
    assert run("info", "org/tiny").code == 0  # the old one is still there
    hub.forge = None
    (folder / "generation_config.json").write_text("{}")
    assert run("pull", "org/tiny", "-q", "--force").code == 0
    assert not (folder / "generation_config.json").exists()
    assert left(home) == ["org--tiny"]


def test_force_replaces_no_folder_of_another_s_making(run: Pull, home: Path) -> None:
    folder = home / "data" / "models" / "org--tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    result = run("pull", "org/tiny", "-q", "--force")
    assert (result.code, result.stderr.count("\n")) == (2, 1)
    assert "was not made by this program" in result.stderr
    assert {path.name for path in folder.iterdir()} == {"config.json", "notes.txt"}


def test_another_revision_than_is_here(hub: Hub, run: Pull) -> None:
    assert run("pull", "org/tiny", "-q").code == 0
    assert run("pull", "org/tiny@main", "-q").code == 0
    hub.change = lambda record: {**record, "sha": "d" * 40}
    result = run("pull", "org/tiny@v2", "-q")
    assert (result.code, result.stderr.count("\n")) == (2, 1)
    assert "--force replaces it" in result.stderr


def test_what_old_pulls_left_is_swept(run: Pull, home: Path) -> None:
    pulls = home / "data" / "pulls"
    for name, age in (("old", 40), ("new", 1), ("empty", 1)):
        folder = pulls / name / COMMIT
        folder.mkdir(parents=True)
        if name != "empty":
            (folder / "m.incomplete").write_bytes(b"x")
        for path in (*folder.iterdir(), folder, folder.parent):
            os.utime(path, (time.time() - age * 86400,) * 2)
    assert run("pull", "org/tiny", "-q").code == 0
    assert left(home) == ["new", "org--tiny"]
    # What was killed after the model had got its name, too.
    (pulls / "org--tiny" / COMMIT).mkdir(parents=True)
    (pulls / "org--tiny" / COMMIT / "m.safetensors").write_bytes(b"x")
    assert run("pull", "org/tiny", "-q").code == 0
    assert left(home) == ["new", "org--tiny"]


def test_killed_at_any_moment(
    hub: Hub, run: Pull, environment: dict[str, str], home: Path, files: dict[str, bytes]
) -> None:
    moments = int(os.environ.get("MISTRAL_CHAT_KILLS", "5"))
    rng = random.Random(moments)
    command = [sys.executable, "-m", "mistral_chat", "pull", "org/tiny", "-q"]

    def start(*more: str) -> subprocess.Popen[bytes]:
        hub.requests.clear()
        process = subprocess.Popen([*command, *more], env=environment, stdin=subprocess.DEVNULL)
        while not hub.requests and process.poll() is None:
            time.sleep(0.002)
        return process

    with start() as process:
        began = time.monotonic()
    assert process.returncode == 0
    seconds = time.monotonic() - began
    killed = 0
    for number in range(moments):
        force = ("--force",) if number % 2 else ()
        if not force:
            assert run("rm", "org/tiny", "-q").code == 0
        with start(*force) as process:
            time.sleep(rng.uniform(0, seconds))
            killed += process.poll() is None
            process.kill()
        if force:  # the old one, or the new one
            assert run("info", "org/tiny").code == 0
        done = run("pull", "org/tiny", "-q", *force)
        assert done.code == 0, done.stderr
        folder = home / "data" / "models" / "org--tiny"
        origin = json.loads((folder / "origin.json").read_text())
        assert {path.name for path in folder.iterdir()} == {*origin["files"], "origin.json"}
        for name in origin["files"]:
            assert (folder / name).read_bytes() == files[name]
        assert left(home) == ["org--tiny"]
    assert killed > 0
