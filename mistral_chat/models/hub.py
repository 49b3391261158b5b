"""Files of a model hub's repositories: listed, transferred with resuming, checked byte for byte.

The hub is spoken to through ``huggingface_hub``, so its environment holds here too: ``HF_TOKEN``,
``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_HOME``. That library resumes a transfer within a process;
what was interrupted for good is kept here and taken up by the next process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP library
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it says so by __all__ only
    hf_raise_for_status,
    http_stream_backoff,
    validate_repo_id,
)

from mistral_chat import __version__
from mistral_chat.errors import DownloadError, IntegrityError, ModelMissingError
from mistral_chat.models.repositories import (
    RemoteFile,
    Repository,
    cached_file,
    is_commit,
    is_file_name,
    read_repository,
)
from mistral_chat.system.private import is_own_file, own_file
from quant.files import discard

MOST_ANSWER_BYTES = 1 << 26
"""Of a description; the longest real ones, of thousands of files, have some megabytes."""
MOST_FAILURES = 5
"""In a row, without a byte more than before; then a transfer is given up."""

_CHUNK_BYTES = 1 << 20
_PAUSE_SECONDS, _BUSY_SECONDS = 1.0, 15.0


def list_repository(name: str, revision: str | None) -> Repository:
    """The files of ``org/repo`` at a branch, tag or commit (None: the main branch).

    Raises ModelMissingError where it is not there, not allowed, or the hub cannot be reached, and
    DownloadError where the hub's answer is not what it must be.
    """
    with _told(name):
        validate_repo_id(name)
        url = f"{constants.ENDPOINT}/api/models/{name}"
        if revision is not None:
            url += f"/revision/{quote(revision, safe='')}"
        answer = bytearray()
        with _asked(url, {}, {"blobs": "true"}) as response:
            for chunk in response.iter_bytes():
                answer += chunk
                if len(answer) > MOST_ANSWER_BYTES:
                    break
    try:
        if len(answer) > MOST_ANSWER_BYTES:
            raise ValueError("it is too long")
        described = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise DownloadError(
            f"{constants.ENDPOINT} did not answer as a hub does to a request for {name} "
            f"({_reason(error)}); try again later, or check the address in HF_ENDPOINT."
        ) from error
    return read_repository(name, revision, described)


def cached_repository(name: str, revision: str | None) -> Repository | None:
    """What the hub's own cache holds of a repository, as far as it is there; None for nothing."""
    try:
        folder = Path(
            huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True)
        )
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    if not is_commit(folder.name):
        raise DownloadError(
            f"The hub's cache names a commit of {name} that is none ({folder}); remove it there, "
            "or unset HF_HUB_OFFLINE to download."
        )
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [
        cached_file(path.relative_to(folder).as_posix(), path.stat().st_size, path.resolve().name)
        for path in found
    ]
    return Repository(name, folder.name, tuple(file for file in files if is_file_name(file.name)))


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the hub."""
    return constants.is_offline_mode()


def fetch(
    repository: Repository, file: RemoteFile, target: Path, progress: Callable[[int], None]
) -> None:
    """Bring a file to ``target``: from the hub's cache if it is there, else over the network.

    ``target`` lies in a folder of one's own (:func:`~mistral_chat.system.private.own_folder`).
    ``progress`` is told the bytes that are there. What arrived before an interruption lies beside
    the target and is continued, also by another process. A file whose digest is not the published
    one is removed. Raises IntegrityError, and what :func:`list_repository` raises.
    """
    # It has had this name since its digest was found right.
    if is_own_file(target) and target.stat().st_size == file.size:
        progress(file.size)
        return
    discard(target)
    # The digest in the name keeps pieces of two revisions apart.
    partial = target.with_name(f"{target.name}.{file.digest[:16]}.incomplete")
    if not _take_from_cache(repository, file, partial):
        with own_file(partial, keep=True) as stream:
            try:
                _transfer(repository, file, stream, progress)
                _check(repository, file, stream)
            except IntegrityError:
                partial.unlink()
                raise
            # The name says that the content is right, so the content is on the disk first.
            stream.flush()
            os.fsync(stream.fileno())
    partial.rename(target)
    progress(file.size)


def _take_from_cache(repository: Repository, file: RemoteFile, target: Path) -> bool:
    """Whether the hub's own cache has the file, which then lies at ``target``, too."""
    cached = huggingface_hub.try_to_load_from_cache(
        repository.name, file.name, revision=repository.revision
    )
    if not isinstance(cached, str):
        return False
    source = Path(cached).resolve()
    # Under a name of its own: what was transferred of it is not lost where the cache is damaged,
    # and nothing is ever added to a file of the cache.
    taken = target.with_suffix(".cached")
    discard(taken)
    _link(source, taken)
    with taken.open("rb") as stream:
        found = _digest_of(stream, file) == file.digest
    if not found:
        taken.unlink()
        return False
    discard(target)
    taken.rename(target)
    return True


def _link(source: Path, target: Path) -> None:
    """The same content without taking room, where the disk can; else a copy.

    A file that others may change is copied: it might become another after it was checked.
    """
    if is_own_file(source):
        try:
            os.link(source, target)
        except OSError:  # another disk, or one without links
            pass
        else:
            return
    with source.open("rb") as content, own_file(target) as copy:
        shutil.copyfileobj(content, copy, _CHUNK_BYTES)


def _transfer(
    repository: Repository, file: RemoteFile, stream: BinaryIO, progress: Callable[[int], None]
) -> None:
    """Append to ``stream`` what it has not got of the file, and never more than its size."""
    url = f"{constants.ENDPOINT}/{repository.name}/resolve/{repository.revision}/"
    url += quote(file.name)
    if stream.seek(0, os.SEEK_END) > file.size:
        stream.truncate(stream.seek(0))
    # A hub that cuts each answer is asked on as long as it brings something new.
    most, failures = stream.tell(), 0
    progress(most)
    while stream.tell() < file.size:
        problem, is_busy = None, False
        with _told(repository.name):
            try:
                _receive(url, repository, file, stream, progress)
            except HTTPError as error:
                is_busy = _is_busy(error)
                if failures >= MOST_FAILURES or (
                    isinstance(error, errors.HfHubHTTPError) and not is_busy
                ):
                    raise
                problem = error
        if stream.tell() > most:
            most, failures = stream.tell(), 0
            continue
        failures += 1
        if problem is None and failures > MOST_FAILURES:
            raise _altered(repository, file)
        time.sleep(_BUSY_SECONDS if is_busy else _PAUSE_SECONDS)


def _is_busy(error: HTTPError) -> bool:
    """Whether the hub asks to be asked later."""
    return isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (408, 429)


def _receive(
    url: str,
    repository: Repository,
    file: RemoteFile,
    stream: BinaryIO,
    progress: Callable[[int], None],
) -> None:
    """Append one answer to ``stream``; raises IntegrityError where it is longer than the file."""
    start = stream.tell()
    # Otherwise small files come compressed, and a range would be one of other bytes.
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with _asked(url, headers) as response:
        if response.status_code != 206:  # all of it, whatever was asked for
            stream.truncate(stream.seek(0))
        for chunk in response.iter_bytes(chunk_size=_CHUNK_BYTES):
            if stream.tell() + len(chunk) > file.size:
                raise _altered(repository, file)
            stream.write(chunk)
            stream.flush()
            progress(stream.tell())


def _own_headers() -> dict[str, str]:
    """What every request tells: this program, and the token if there is one.

    The library's own headers tell the versions of Python and torch besides and which other program
    may have started this one, for which it asks the hub for a list.
    """
    headers = {"user-agent": f"mistral-chat/{__version__}"}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else huggingface_hub.get_token()
    return {**headers, "authorization": f"Bearer {token}"} if token else headers


@contextmanager
def _asked(
    url: str, headers: dict[str, str], parameters: dict[str, str] | None = None
) -> Iterator[Any]:
    """The hub's answer to a GET request, to be read piece by piece.

    Raises the errors of ``huggingface_hub`` and of its HTTP library, which follows redirections,
    and does not tell the token to another host.
    """
    # It would print what the hub wants to be printed.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with http_stream_backoff(
        "GET",
        url,
        headers={**_own_headers(), **headers},
        params=parameters,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        retry_on_exceptions=(),
        retry_on_status_codes=(),
    ) as response:
        if response.status_code >= 400:
            # Status and headers say what is wrong; what comes with them may be anything.
            response.close()
        hf_raise_for_status(response)
        if response.status_code not in (200, 206):
            raise DownloadError(_answered(response.status_code, url))
        yield response


def _check(repository: Repository, file: RemoteFile, stream: BinaryIO) -> None:
    if _digest_of(stream, file) != file.digest:
        raise _altered(repository, file)


def _altered(repository: Repository, file: RemoteFile) -> IntegrityError:
    return IntegrityError(
        f"{file.name} of {repository.name} is not the file that was published (its size or digest "
        "differs) and was removed; try again."
    )


def _digest_of(stream: BinaryIO, file: RemoteFile) -> str:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if file.sha256 is None and file.git_sha1 is None:
        return str(size)
    digest = hashlib.sha256()
    if file.sha256 is None:
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _answered(status: int, what: str) -> str:
    return f"{constants.ENDPOINT} answered {status} to a request for {what}; try again later."


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
        raise DownloadError(_answered(error.response.status_code, name)) from error
    except (HTTPError, ValueError) as error:  # the latter for a host's name that is none
        raise ModelMissingError(
            f"{constants.ENDPOINT} could not be reached, or fell silent ({_reason(error)}); "
            "connect to the network and repeat the command, which goes on where it stopped."
        ) from error


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")
