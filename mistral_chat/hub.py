"""Files of a model hub's repositories: listed, transferred with resuming, checked byte for byte.

The hub is spoken to through ``huggingface_hub``, so its environment holds here too: ``HF_TOKEN``,
``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_HOME``. That library resumes a transfer within a process;
what was interrupted for good is kept here and taken up by the next process.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP library
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it says so by __all__ only
    build_hf_headers,
    disable_progress_bars,
)

from mistral_chat.errors import DownloadError, IntegrityError, ModelMissingError

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository: its size in bytes, and the digest (hex) that the hub publishes.

    Large files have a SHA-256 digest; small ones have git's own, the SHA-1 of ``blob SIZE NUL``
    and the content.
    """

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None

    @property
    def digest(self) -> str:
        """What tells this content from any other."""
        return self.sha256 or self.git_sha1 or str(self.size)


@dataclass(frozen=True, slots=True)
class Repository:
    """What a repository held at one commit."""

    name: str
    revision: str
    files: tuple[RemoteFile, ...]


def list_repository(name: str, revision: str | None) -> Repository:
    """The files of ``org/repo`` at a branch, tag or commit (None: the main branch).

    Raises ModelMissingError where it is not there, not allowed, or the hub cannot be reached.
    """
    with _told(name):
        info = huggingface_hub.HfApi().model_info(name, revision=revision, files_metadata=True)
    files = tuple(
        RemoteFile(
            file.rfilename,
            file.size or 0,
            file.lfs.sha256 if file.lfs else None,
            None if file.lfs else file.blob_id,
        )
        for file in info.siblings or ()
    )
    return Repository(name, info.sha or revision or constants.DEFAULT_REVISION, files)


def cached_repository(name: str, revision: str | None) -> Path | None:
    """The folder of a repository in the hub's own cache, as far as it is there."""
    try:
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True)
        )
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub."""
    return constants.is_offline_mode()


def fetch(
    repository: Repository, file: RemoteFile, target: Path, progress: Callable[[int], None]
) -> None:
    """Bring a file to ``target``: from the hub's cache if it is there, else over the network.

    ``progress`` is told the bytes that are there. What arrived before an interruption lies beside
    the target and is continued, also by another process. A file whose digest is not the published
    one is removed. Raises IntegrityError, and ModelMissingError as :func:`list_repository`.
    """
    if target.exists():
        progress(file.size)
        return
    cached = huggingface_hub.try_to_load_from_cache(
        repository.name, file.name, revision=repository.revision
    )
    # The digest in the name keeps pieces of two revisions apart.
    partial = target.with_name(f"{target.name}.{file.digest[:16]}.incomplete")
    target.parent.mkdir(parents=True, exist_ok=True)
    found = False
    if isinstance(cached, str):
        _link(Path(cached).resolve(), partial)
        found = _digest_of(partial, file) == file.digest
        if not found:  # the cache is damaged
            partial.unlink()
    if not found:
        _transfer(repository, file, partial, progress)
        found = _digest_of(partial, file) == file.digest
    if not found:
        partial.unlink()
        raise IntegrityError(
            f"{file.name} of {repository.name} is not the file that was published (its digest "
            "differs) and was removed; try again."
        )
    partial.rename(target)
    progress(file.size)


def _transfer(
    repository: Repository, file: RemoteFile, partial: Path, progress: Callable[[int], None]
) -> None:
    if partial.exists() and partial.stat().st_size > file.size:
        partial.unlink()
    url = huggingface_hub.hf_hub_url(
        repository.name, file.name, revision=repository.revision, endpoint=constants.ENDPOINT
    )
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with _told(repository.name), partial.open("ab") as stream:
        start = stream.tell()
        progress(start)
        where = huggingface_hub.get_hf_file_metadata(url).location
        headers = build_hf_headers()
        if urlsplit(where).netloc != urlsplit(url).netloc:
            # The token is for the hub, not for the storage that it sends us to.
            headers.pop("authorization", None)
        http_get(
            where,
            _Counted(stream, progress),  # type: ignore[arg-type]  # all that it uses of a file
            resume_size=start,
            headers=headers,
            expected_size=file.size,
        )


class _Counted:
    """A file that tells how long it has become."""

    def __init__(self, stream: IO[bytes], progress: Callable[[int], None]) -> None:
        self._stream = stream
        self._progress = progress
        self.tell = stream.tell
        self.seek = stream.seek
        self.truncate = stream.truncate

    def write(self, data: bytes) -> int:
        written = self._stream.write(data)
        self._progress(self._stream.tell())
        return written


def _link(source: Path, target: Path) -> None:
    """The same content without taking room, where the disk can; else a copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _digest_of(path: Path, file: RemoteFile) -> str:
    if file.sha256 is None and file.git_sha1 is None:
        return str(path.stat().st_size)
    digest = hashlib.sha256()
    if file.sha256 is None:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Errors of the hub within it become sentences that say what to do."""
    place = f"{constants.ENDPOINT}/{name}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelMissingError(
            f"The repository {name} is gated: accept its conditions at {place}, make a token at "
            f"{constants.ENDPOINT}/settings/tokens, and set HF_TOKEN to it."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelMissingError(f"The repository {name} has no such revision.") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelMissingError(
            f"There is no repository {name} at {constants.ENDPOINT}, or it is private; check the "
            "name, or set HF_TOKEN to a token that may read it."
        ) from error
    except errors.HFValidationError as error:
        raise ModelMissingError(
            f"{name!r} is not the name of a repository; those are like org/name."
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise ModelMissingError(
            f"{name} is not on this computer, and HF_HUB_OFFLINE is set; unset it to download."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise DownloadError(
            f"{constants.ENDPOINT} answered {status} to a request for {name}; try again later."
        ) from error
    except HTTPError as error:
        raise ModelMissingError(
            f"{constants.ENDPOINT} could not be reached, or fell silent ({_reason(error)}); "
            "connect to the network and repeat the command, which goes on where it stopped."
        ) from error


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")
