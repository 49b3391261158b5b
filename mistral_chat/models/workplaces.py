"""Folders that models are pulled into, which last from one process to the next."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mistral_chat.errors import UsageError
from mistral_chat.models.names import folder_name
from mistral_chat.settings import Paths
from quant.errors import CheckpointError, ConfigError, StorageError
from quant.files import alone_in, discard, own_folder

PULLS = "pulls"
MOST_LABEL_BYTES = 230
"""Of the name of an installed model's folder; file systems allow 255, and some get endings."""
USEFUL_SECONDS = 30 * 24 * 3600
"""What was interrupted longer ago is not going to be continued."""
BEGINNING_SECONDS = 3600


def place_of(label: str, paths: Paths) -> Path:
    """Where the model of that name is pulled, whether or not it is."""
    return paths.data / PULLS / folder_name(label)


@contextmanager
def workplace(label: str, paths: Paths) -> Iterator[Path]:
    """A folder for what is fetched of a model, for nobody else.

    It is gone when all went well, and stays where something in it can be continued.
    """
    if len(os.fsencode(folder_name(label))) > MOST_LABEL_BYTES:
        raise UsageError(
            f"The name {label} is too long for a folder here; fetch it by other means, and name "
            "its path."
        )
    paths.data.mkdir(parents=True, exist_ok=True)
    own_folder(paths.data / PULLS)
    work = own_folder(place_of(label, paths), keep=False)
    with alone_in(work):
        try:
            yield work
        except (CheckpointError, ConfigError):  # it would fail again
            discard(work)
            raise
        except BaseException:
            if not _holds_files(work):
                discard(work)
            raise
        discard(work)


def sweep_workplaces(paths: Paths) -> None:
    """Remove what was left of earlier pulls that nobody is going to continue."""
    pulls = paths.data / PULLS
    if not pulls.is_dir():
        return
    for work in own_folder(pulls).iterdir():
        newest = max(path.lstat().st_mtime for path in (work, *work.rglob("*")))
        # A folder without files may be that of a pull that begins at this moment.
        useful = USEFUL_SECONDS if _holds_files(work) else BEGINNING_SECONDS
        if time.time() - newest > useful:
            discard_unused(work)


def discard_unused(work: Path) -> None:
    """Remove the workplace of a pull, unless a process works there."""
    # What cannot be tidied up does no harm.
    with suppress(OSError, StorageError):
        if work.is_symlink() or not work.is_dir():
            discard(work)
            return
        with alone_in(work):
            discard(work)


def _holds_files(folder: Path) -> bool:
    return any(path.is_symlink() or not path.is_dir() for path in folder.rglob("*"))
