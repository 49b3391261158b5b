"""``pull``: where it writes, what it leaves when it is cut, and what it replaces."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from ..hub_server import COMMIT, Hub, sha256
from .conftest import KEPT, Pull, left


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
