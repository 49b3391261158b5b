"""What a hub says is checked where it is read; what cannot be is one sentence."""

from __future__ import annotations

import copy
import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_chat.errors import DownloadError, IntegrityError, ModelMissingError, sentence
from mistral_chat.models import hub as hub_module
from mistral_chat.models.hub import fetch, list_repository
from mistral_chat.models.repositories import RemoteFile, Repository, is_file_name, read_repository
from mistral_chat.system.private import own_file

from ..hub_server import COMMIT, Hub, git_sha1, serve, sha256

SMALL, LARGE = b"{}", bytes(range(256)) * 20_000
GOOD: dict[str, Any] = {
    "id": "org/tiny",
    "sha": COMMIT,
    "siblings": [
        {"rfilename": "config.json", "size": 2, "blobId": "a" * 40},
        {"rfilename": "model.safetensors", "size": 9, "blobId": "b" * 40,
         "lfs": {"sha256": "d" * 64, "size": 9, "pointerSize": 130}},
    ],
}  # fmt: skip

Place = tuple[str | int, ...]
NAME: Place = ("siblings", 0, "rfilename")
SIZE: Place = ("siblings", 1, "size")
SHA1: Place = ("siblings", 0, "blobId")
SHA256: Place = ("siblings", 1, "lfs", "sha256")
PLACES: list[Place] = [
    (), ("sha",), ("siblings",), ("siblings", 0), ("siblings", 1), NAME, SIZE, SHA1, SHA256,
    ("siblings", 1, "lfs"), ("siblings", 0, "size"), ("siblings", 1, "rfilename"),
]  # fmt: skip

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def with_value(place: Place, value: object) -> Any:
    """A good answer that has ``value`` at a place."""
    answer: Any = copy.deepcopy(GOOD)
    if not place:
        return value
    inner = answer
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return answer


def assert_sound(repository: Repository) -> None:
    """Nothing of it leads anywhere, and every size and digest is one."""
    assert len(repository.revision) == 40
    assert set(repository.revision) <= set("0123456789abcdef")
    names = [file.name for file in repository.files]
    assert len(set(names)) == len(names)
    for file in repository.files:
        inside = os.path.normpath(f"/models/{file.name}")
        assert inside == f"/models/{file.name}"
        assert file.name.isascii() or file.name.encode()
        assert not any(ord(letter) < 32 or ord(letter) == 127 for letter in file.name)
        assert type(file.size) is int
        assert file.size >= 0
        assert len(file.digest) in (40, 64)
        assert int(file.digest, 16) >= 0


def test_a_good_answer() -> None:
    repository = read_repository("org/tiny", None, GOOD)
    assert repository == Repository(
        "org/tiny",
        COMMIT,
        (
            RemoteFile("config.json", 2, None, "a" * 40),
            RemoteFile("model.safetensors", 9, "d" * 64, None),
        ),
    )
    assert read_repository("org/tiny", COMMIT, GOOD) == repository
    assert read_repository("org/tiny", "main", GOOD) == repository


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        *(((), value, "what it describes is") for value in (None, [], "x", 3)),
        ((), {}, "the commit is nothing"),
        *(
            (("sha",), value, "the commit is")
            for value in ("", "..", "../..", "/etc", "main", "c" * 39, "C" * 40, "c" * 41, 7, None,
                          "c" * 40 + "\n", "\uff43" * 40)
        ),
        *((("siblings",), value, "the list of files is") for value in (None, {}, "abc", 3)),
        *((("siblings", 0), value, "a file is") for value in (None, [], "config.json")),
        *(
            (NAME, value, "a file's name is")
            for value in (None, 5, "", ".", "..", "../x", "a/../x", "/etc/passwd", "a//b", "a/",
                          "a\0b", "a\x1b[31m", "a\nb", "a\u202eb", "\ud800", "a\\b", "a" * 300,
                          "a/" * 900 + "a")
        ),
        (NAME, "model.safetensors", "the name of two files is 'model.safetensors'"),
        *(
            (SIZE, value, "the size of model.safetensors is")
            for value in (None, -1, "9", 9.0, True, 10**30, float("nan"), [])
        ),
        *(
            (SHA1, value, "the digest of config.json is")
            for value in (None, "", "../../../x", "a" * 39, "a" * 64, "g" * 40, 5)
        ),
        *(
            (SHA256, value, "the digest of model.safetensors is")
            for value in (None, "", "../../../x", "a" * 40, "g" * 64, 5)
        ),
        (("siblings", 1, "lfs"), [], "the digest of model.safetensors is"),
        (("siblings", 1, "lfs"), {}, "the digest of model.safetensors is nothing"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be(place: Place, value: object, said: str) -> None:
    with pytest.raises(DownloadError) as caught:
        read_repository("org/tiny", None, with_value(place, value))
    told = sentence(caught.value)
    assert f"The hub's answer about org/tiny cannot be right: {said}" in told
    assert told.isascii()
    assert told.isprintable()
    assert len(told) < 400


def test_another_commit_than_was_asked_for() -> None:
    with pytest.raises(DownloadError, match="instead of dddd"):
        read_repository("org/tiny", "d" * 40, GOOD)


@given(st.sampled_from(PLACES), values)
def test_any_answer_is_sound_or_refused(place: Place, value: object) -> None:
    told = ""
    try:
        repository = read_repository("org/tiny", None, with_value(place, value))
    except DownloadError as error:
        told = sentence(error)
    if told:
        assert "cannot be right" in told
        assert told.isprintable()
    else:
        assert_sound(repository)


@given(st.lists(st.sampled_from(["a", "..", ".", "", "/", "\\", "\0", "b.gguf", " "]), max_size=6))
def test_a_name_leads_nowhere(parts: list[str]) -> None:
    name = "/".join(parts)
    if is_file_name(name):
        assert ".." not in PurePosixPath(name).parts
        assert os.path.normpath(name) == name
        assert not name.startswith("/")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process asks; between two tries it does not wait."""
    content = {"config.json": SMALL, "model.safetensors": LARGE}
    with serve(Hub({"org/tiny": content})) as server:
        monkeypatch.setattr(hub_module.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(hub_module.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(hub_module, "_PAUSE_SECONDS", 0)
        monkeypatch.setattr(hub_module, "_BUSY_SECONDS", 0)
        yield server


REPOSITORY = Repository(
    "org/tiny",
    COMMIT,
    (
        RemoteFile("config.json", len(SMALL), None, git_sha1(SMALL)),
        RemoteFile("model.safetensors", len(LARGE), sha256(LARGE), None),
    ),
)


def bring(folder: Path) -> Path:
    """The large file of the repository, fetched into a folder."""
    target = folder / "model.safetensors"
    fetch(REPOSITORY, REPOSITORY.files[1], target, lambda here: None)
    return target


def test_what_is_listed_is_fetched(hub: Hub, tmp_path: Path) -> None:
    assert list_repository("org/tiny", None) == REPOSITORY
    assert bring(tmp_path).read_bytes() == LARGE
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    "body",
    [b"<html><body>Please log in.</body></html>", b"", b"\xff\xfe", b"[" * 200_000, b"1" * 9000],
    ids=["html", "empty", "bytes", "deep", "long"],
)
def test_an_answer_that_is_not_a_hub_s(hub: Hub, body: bytes) -> None:
    hub.page = (200, {"Content-Type": "text/html"}, body)
    with pytest.raises(DownloadError, match="did not answer as a hub does") as caught:
        list_repository("org/tiny", None)
    assert len(sentence(caught.value)) < 400


def test_a_description_without_end(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "MOST_ANSWER_BYTES", 100_000)
    hub.page = (200, {}, json.dumps({"sha": "c" * 200_000}).encode())
    with pytest.raises(DownloadError, match="too long"):
        list_repository("org/tiny", None)


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "http://[::bad", "http://a..b/", "http://127.0.0.1:99999/", "//", "ftp://x/",
     "http://127.0.0.1:1/", "javascript:1", "data:,x", "/api/models/org/tiny"],
)  # fmt: skip
def test_a_redirection_to_nowhere(hub: Hub, tmp_path: Path, location: str) -> None:
    hub.page = (302, {"Location": location}, b"")
    with pytest.raises((ModelMissingError, DownloadError)):
        list_repository("org/tiny", None)
    with pytest.raises((ModelMissingError, DownloadError)):
        bring(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("status", [204, 300, 304, 400, 403, 404, 408, 416, 418, 429, 500, 503])
@pytest.mark.parametrize("body", [b"[1]", b"\xff", b'{"error": "\\u001b[31m"}'])
def test_an_odd_status(hub: Hub, tmp_path: Path, status: int, body: bytes) -> None:
    hub.page = (status, {"X-Error-Message": "odd"}, b"" if status in (204, 304) else body)
    ask: list[Callable[[], object]] = [
        lambda: list_repository("org/tiny", None),
        lambda: bring(tmp_path),
    ]
    for each in ask:
        with pytest.raises((DownloadError, ModelMissingError)) as caught:
            each()
        assert "\x1b" not in str(caught.value)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("length", ["abc", "-5", "5, 6", "99999999999999999999999"])
def test_an_odd_length(hub: Hub, tmp_path: Path, length: str) -> None:
    hub.page = (200, {"Content-Length": length}, b"x")
    with pytest.raises((ModelMissingError, DownloadError, IntegrityError)):
        bring(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_more_bytes_than_were_said(hub: Hub, tmp_path: Path) -> None:
    hub.endless = "model.safetensors"
    with pytest.raises(IntegrityError, match="not the file that was published"):
        bring(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", [b"<html>Please log in.</html>", b"", LARGE[:-1]])
def test_fewer_bytes_than_were_said(hub: Hub, tmp_path: Path, page: bytes) -> None:
    hub.page = (200, {}, page)
    with pytest.raises(IntegrityError, match="not the file that was published"):
        bring(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(hub.requests) < 20


def test_a_part_that_begins_elsewhere(hub: Hub, tmp_path: Path) -> None:
    hub.page = (206, {}, bytes(len(LARGE)))
    with pytest.raises(IntegrityError):
        bring(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_in_the_middle(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 2 * 2**20

    @contextmanager
    def small_disk(path: Path, keep: bool = False) -> Iterator[Any]:
        with own_file(path, keep) as stream:

            class Full:
                def __getattr__(self, name: str) -> Any:
                    return getattr(stream, name)

                def write(self, data: bytes) -> int:
                    if stream.tell() + len(data) > room:
                        raise OSError(errno.ENOSPC, "No space left on device")
                    return stream.write(data)

            yield Full()

    monkeypatch.setattr(hub_module, "own_file", small_disk)
    with pytest.raises(OSError, match="No space") as caught:
        bring(tmp_path)
    assert "The disk is full" in sentence(caught.value)
    assert not (tmp_path / "model.safetensors").exists()
    monkeypatch.setattr(hub_module, "own_file", own_file)
    hub.requests.clear()
    assert bring(tmp_path).read_bytes() == LARGE
    assert hub.sent("model.safetensors") == [f"bytes={room}-"]
