"""PyTorch's pickles, which are never opened: reading one runs whatever code is in it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ..errors import CheckpointError
from ..files import open_file

_NAMES = ("consolidated*.pth", "pytorch_model*.bin", "*.pt", "*.pth")


def refuse_pickle(path: Path) -> None:
    """Raise :class:`~quant.errors.CheckpointError` for a file that is a pickle by its content."""
    try:
        with open_file(path) as file:
            start = file.read(2)
    except OSError:
        return  # whoever reads it next tells what is wrong with it
    if start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise _refusal(path)
    if start == b"PK" and any(name.endswith("data.pkl") for name in _names_in(path)):
        raise _refusal(path)


def _names_in(path: Path) -> list[str]:
    """The names in a zip archive; none in a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return []


def refuse_pickles(folder: Path) -> None:
    """Raise :class:`~quant.errors.CheckpointError` for a folder whose weights are pickles."""
    for pattern in _NAMES:
        for path in sorted(folder.glob(pattern)):
            raise _refusal(path)


def _refusal(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is a PyTorch pickle, which could run any code when it is opened; fetch the "
        "safetensors files of the same model instead."
    )
