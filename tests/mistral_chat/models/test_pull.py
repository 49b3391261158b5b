"""``pull``, ``models`` and ``rm``, against a hub on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mistral_chat import __version__

from ..hub_server import COMMIT, Hub, serve, sha256
from .conftest import ALIAS, KEPT, REPOSITORY, Pull


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


def test_another_revision_than_is_here(hub: Hub, run: Pull) -> None:
    assert run("pull", "org/tiny", "-q").code == 0
    assert run("pull", "org/tiny@main", "-q").code == 0
    hub.change = lambda record: {**record, "sha": "d" * 40}
    result = run("pull", "org/tiny@v2", "-q")
    assert (result.code, result.stderr.count("\n")) == (2, 1)
    assert "--force replaces it" in result.stderr
