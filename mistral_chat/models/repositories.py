"""What a hub says of a repository, as typed data: each field is checked here, where it is read.

A hub may be a mirror, or something in between may answer for it. What it says becomes names of
files and folders, sizes and digests; nothing of it is used as it came.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from mistral_chat.errors import DownloadError

MOST_SIZE = 2**53
"""Bytes; JSON carries no larger whole numbers surely, and no disk holds such a file."""
MOST_NAME_BYTES = 200
"""Of each part of a name; file systems allow 255, and working files get endings."""
MOST_PATH_BYTES = 1000

_COMMIT = re.compile("[0-9a-f]{40}")
_SHA1 = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-f]{64}")
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Categories of Unicode: control and format characters, halves of surrogates, separators."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository: its size in bytes, and the digest (hex) that the hub publishes.

    Large files have a SHA-256 digest; small ones have git's own, the SHA-1 of ``blob SIZE NUL``
    and the content. Only a file of the hub's own cache may have neither.
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
    """What a repository held at one commit; ``revision`` is the commit, 40 hex digits."""

    name: str
    revision: str
    files: tuple[RemoteFile, ...]


def is_commit(text: object) -> bool:
    """Whether that is the whole name of a commit.

    >>> is_commit("c" * 40), is_commit("main"), is_commit("../../documents")
    (True, False, False)
    """
    return isinstance(text, str) and _COMMIT.fullmatch(text) is not None


def read_repository(name: str, revision: str | None, answer: object) -> Repository:
    """The repository that a hub's JSON ``answer`` describes, asked for at ``revision``.

    Raises DownloadError, naming the field, where one is missing, is no such thing or cannot be.
    """
    if not isinstance(answer, dict):
        raise _wrong(name, "what it describes", answer)
    commit = answer.get("sha")
    if not is_commit(commit):
        raise _wrong(name, "the commit", commit)
    if is_commit(revision) and commit != revision:
        raise _wrong(name, f"the commit, instead of {revision},", commit)
    listed = answer.get("siblings")
    if not isinstance(listed, list):
        raise _wrong(name, "the list of files", listed)
    files: dict[str, RemoteFile] = {}
    for each in listed:
        file = _read_file(name, each)
        if file.name in files:
            raise _wrong(name, "the name of two files", file.name)
        files[file.name] = file
    return Repository(name, str(commit), tuple(files.values()))


def _read_file(repository: str, entry: object) -> RemoteFile:
    if not isinstance(entry, dict):
        raise _wrong(repository, "a file", entry)
    name = entry.get("rfilename")
    if not isinstance(name, str) or not is_file_name(name):
        raise _wrong(repository, "a file's name", name)
    size = entry.get("size")
    if type(size) is not int or not 0 <= size <= MOST_SIZE:
        raise _wrong(repository, f"the size of {name}", size)
    large = entry.get("lfs")
    if large is None:
        digest = entry.get("blobId")
        if not isinstance(digest, str) or _SHA1.fullmatch(digest) is None:
            raise _wrong(repository, f"the digest of {name}", digest)
        return RemoteFile(name, size, None, digest)
    digest = large.get("sha256") if isinstance(large, dict) else large
    if not isinstance(digest, str) or _SHA256.fullmatch(digest) is None:
        raise _wrong(repository, f"the digest of {name}", digest)
    return RemoteFile(name, size, digest, None)


def is_file_name(name: str) -> bool:
    r"""Whether a file of a repository may be called so: a path inside it, and printable.

    >>> [is_file_name(name) for name in ("a/b.gguf", "../b", "/b", "a//b", "a\x1b[31m", "")]
    [True, False, False, False, False, False]
    """
    if any(unicodedata.category(letter) in _UNPRINTABLE for letter in name) or "\\" in name:
        return False
    if len(name.encode()) > MOST_PATH_BYTES:
        return False
    parts = name.split("/")
    return all(
        part not in ("", ".", "..") and len(part.encode()) <= MOST_NAME_BYTES for part in parts
    )


def cached_file(name: str, size: int, blob: str) -> RemoteFile:
    """A file of the hub's own cache, which names its contents by their digests (``blob``)."""
    return RemoteFile(
        name,
        size,
        blob if _SHA256.fullmatch(blob) else None,
        blob if _SHA1.fullmatch(blob) else None,
    )


def _wrong(repository: str, what: str, value: object) -> DownloadError:
    shown = "nothing" if value is None else ascii(value)
    shown = shown if len(shown) <= 60 else shown[:60] + "..."
    return DownloadError(
        f"The hub's answer about {repository} cannot be right: {what} is {shown}; nothing was "
        "fetched, so try again later, or check the address in HF_ENDPOINT."
    )
