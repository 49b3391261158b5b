"""A model in the place of another: nothing else ever gives way, and no moment loses both."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import quant
from quant import files
from quant.checkpoints.native import NativeCheckpoint
from quant.checkpoints.writing import JOURNAL
from quant.errors import StorageError
from quant.files import UNFINISHED, new_folder, open_file, own_folder, put_back, put_in_place, sweep
from quant.qtensor import QuantSpec
from tests.quant.models import write_gguf

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
OLD, NEW = QuantSpec(8, 32), QuantSpec(4, 32)


def make(folder: Path, spec: QuantSpec, force: bool = False, target: str = "native") -> None:
    quant.quantize(folder / "m.gguf", folder / target, spec, force=force, resume=True)


def bits(folder: Path) -> int:
    spec = NativeCheckpoint(folder).describe("embedding")[1]
    assert spec is not None
    return spec.bits


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a float model in a file, and an older model that was made of it."""
    write_gguf(tmp_path / "m.gguf")
    make(tmp_path, OLD)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_gives_way_when_that_is_asked_for(place: Path) -> None:
    with pytest.raises(StorageError, match="exists already"):
        make(place, NEW)
    assert bits(place / "native") == 8
    make(place, NEW, force=True)
    assert bits(place / "native") == 4
    assert names(place) == ["m.gguf", "native"]
    assert JOURNAL not in names(place / "native")


@pytest.mark.parametrize("what", ["photographs", "empty", "a file", "a link", "a model of others"])
def test_nothing_else_gives_way(place: Path, what: str) -> None:
    target = place / "target"
    if what == "a file":
        target.write_text("mine")
    elif what == "a link":
        target.symlink_to(place / "native")
    else:
        target.mkdir()
    if what == "photographs":
        (target / "2024").mkdir()
        (target / "2024" / "a.jpg").write_text("precious")
    if what == "a model of others":
        (target / "config.json").write_text("{}")
        (target / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    before = sorted(place.rglob("*"))
    with pytest.raises(StorageError, match="not replaced"):
        make(place, NEW, force=True, target="target")
    assert sorted(place.rglob("*")) == before
    assert bits(place / "native") == 8


def test_what_a_person_put_into_a_model_is_not_lost(place: Path) -> None:
    (place / "native" / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"holds notes.txt, which is no part"):
        make(place, NEW, force=True)
    assert (place / "native" / "notes.txt").read_text() == "mine"
    assert bits(place / "native") == 8
    assert names(place) == ["m.gguf", "native"]


@pytest.mark.parametrize("target", [".", "..", "", "/"])
def test_the_working_folder_does_not_give_way(
    place: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.chdir(place / "native")
    before = sorted(place.rglob("*"))
    for path in (target, str(place / "native")):
        with pytest.raises(StorageError):
            quant.quantize(place / "m.gguf", path, NEW, force=True, resume=True)
    assert sorted(place.rglob("*")) == before


def unsupported(one: Path, other: Path) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@needs_fork
@pytest.mark.parametrize("exchange", [True, False])
def test_killed_at_each_step_of_replacing(
    place: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", unsupported)

    def killed_at(step: int) -> bool:
        """Replace in a child that dies before a step; whether it died."""
        child = os.fork()
        if child == 0:
            left = step

            def dying(real: Callable[..., Any]) -> Callable[..., Any]:
                def call(*arguments: Any, **options: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*arguments, **options)

                return call

            files._exchange = dying(files._exchange)
            shutil.rmtree = dying(shutil.rmtree)
            for name in ("rename", "unlink", "rmdir", "mkdir", "chmod"):
                setattr(Path, name, dying(getattr(Path, name)))
            make(place, NEW, force=True)
            os._exit(0)
        return bool(os.waitpid(child, 0)[1])

    step = 0
    while killed_at(step):
        put_back(place / "native")
        assert bits(place / "native") in (4, 8)
        quant.load(place / "native")
        step += 1
    assert step > 5
    make(place, OLD, force=True)
    assert bits(place / "native") == 8
    assert names(place) == ["m.gguf", "native"]


@needs_fork
def test_a_finished_model_that_did_not_get_its_name_is_not_made_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = os.fork()
    if child == 0:
        files._exchange = lambda one, other: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore
        make(place, NEW, force=True)
        os._exit(0)
    os.waitpid(child, 0)
    assert bits(place / "native") == 8
    from quant.checkpoints import conversion

    def nothing(self: Any, name: str) -> Any:
        raise RuntimeError(f"{name} was made again")

    monkeypatch.setattr(conversion.Conversion, "make", nothing)
    make(place, NEW, force=True)
    assert bits(place / "native") == 4


@pytest.mark.skipif(os.name == "nt", reason="needs links and modes")
def test_a_working_folder_of_others_is_not_used(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precious = place / "precious"
    precious.write_text("mine")
    partial = place / ".target.partial"
    partial.mkdir(mode=0o777)
    partial.chmod(0o777)
    (partial / "weights.safetensors").symlink_to(precious)
    # This user's own, but open to others: closed, and what is in it is not trusted.
    make(place, NEW, target="target")
    assert precious.read_text() == "mine"
    assert not (place / "target" / "weights.safetensors").is_symlink()
    assert bits(place / "target") == 4
    shutil.rmtree(place / "target")
    partial.symlink_to(place / "native")
    with pytest.raises(StorageError, match="not a folder of your own"):
        make(place, NEW, target="target")
    partial.unlink()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    partial.mkdir()
    with pytest.raises(StorageError, match="not a folder of your own"):
        make(place, NEW, target="target")
    assert bits(place / "native") == 8


def test_only_what_nobody_works_in_is_swept(tmp_path: Path) -> None:
    left = new_folder(tmp_path / "model")
    (left / "weights.safetensors").write_bytes(b"half")
    busy = new_folder(tmp_path / "model")
    (tmp_path / f".file{UNFINISHED}").write_text("not a folder")
    with files.alone_in(busy):
        sweep(tmp_path)
        assert names(tmp_path) == sorted([busy.name, f".file{UNFINISHED}"])


def test_an_own_folder_stays(tmp_path: Path) -> None:
    own_folder(tmp_path / "own")
    (tmp_path / "own" / "file").write_text("kept")
    own_folder(tmp_path / "own")
    assert (tmp_path / "own" / "file").read_text() == "kept"
    assert not (tmp_path / "own").stat().st_mode & 0o022 or os.name == "nt"


@pytest.mark.parametrize("exchange", [True, False])
def test_two_folders_change_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", unsupported)
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    put_in_place(tmp_path / "new", tmp_path / "target")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "target",
        "target/new",
    ]


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.toml"
    files.write_whole(path, b"one")
    files.write_whole(path, b"two")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_whole(path, b"three")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["result.toml"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_folders_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"content")
    with open_file(tmp_path / "file") as file:
        assert file.read() == b"content"
    for path, reason in ((tmp_path / "pipe", "not an ordinary file"), (tmp_path, "a folder")):
        with pytest.raises(OSError, match=reason):
            open_file(path)
    with pytest.raises(OSError, match="larger than 0 MB"):
        files.read_file(tmp_path / "file", 3)
