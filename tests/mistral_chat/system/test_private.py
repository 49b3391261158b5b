"""Working where others may write: no link is followed, and nothing of another's is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mistral_chat.system import private
from mistral_chat.system.private import is_own_file, own_file
from quant.errors import StorageError
from quant.files import discard, own_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs owners and modes of files")


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file that must stay as it is."""
    folder = tmp_path / "documents"
    folder.mkdir()
    file = folder / "thesis.txt"
    file.write_bytes(b"years of work")
    return file


def test_a_folder_is_made_and_taken_again(tmp_path: Path) -> None:
    folder = own_folder(tmp_path / "work")
    (folder / "half").write_bytes(b"x")
    assert own_folder(folder, keep=False) == folder
    assert [path.name for path in folder.iterdir()] == ["half"]
    assert folder.stat().st_mode & 0o022 == 0


def test_a_folder_that_others_may_write_to_is_closed(tmp_path: Path, precious: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "link").symlink_to(precious.parent)
    assert own_folder(folder).stat().st_mode & 0o777 == 0o755
    folder.chmod(0o777)
    own_folder(folder, keep=False)
    assert list(folder.iterdir()) == []
    assert precious.read_bytes() == b"years of work"


def test_a_link_or_a_file_is_no_folder_to_work_in(tmp_path: Path, precious: Path) -> None:
    link = tmp_path / "work"
    link.symlink_to(precious.parent)
    for place in (link, precious):
        with pytest.raises(StorageError, match="not a folder of your own"):
            own_folder(place)


def test_another_user_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_folder(tmp_path / "work")
    (folder / "file").write_bytes(b"x")
    monkeypatch.setattr(private.os, "geteuid", lambda: os.getuid() + 1)
    assert not is_own_file(folder / "file")
    with pytest.raises(StorageError, match="not a folder of your own"):
        own_folder(folder)


def symlink(place: Path, precious: Path) -> None:
    place.symlink_to(precious)


def hard_link(place: Path, precious: Path) -> None:
    place.hardlink_to(precious)


def dangling(place: Path, precious: Path) -> None:
    place.symlink_to(precious.with_name("new"))


def pipe(place: Path, precious: Path) -> None:
    os.mkfifo(place)


def open_to_all(place: Path, precious: Path) -> None:
    place.write_bytes(b"other")
    place.chmod(0o666)


@pytest.mark.parametrize("put", [symlink, hard_link, dangling, pipe, open_to_all])
@pytest.mark.parametrize("keep", [True, False])
def test_nothing_but_a_file_of_one_s_own_is_written(
    tmp_path: Path, precious: Path, put: Callable[[Path, Path], None], keep: bool
) -> None:
    place = tmp_path / "partial"
    put(place, precious)
    with own_file(place, keep) as stream:
        assert stream.read() == b""
        stream.write(b"new")
    assert place.read_bytes() == b"new"
    assert is_own_file(place)
    assert precious.read_bytes() == b"years of work"
    assert list(precious.parent.iterdir()) == [precious]


def test_what_is_one_s_own_is_continued_where_that_is_wished(tmp_path: Path) -> None:
    place = tmp_path / "partial"
    for keep, content in ((True, b"one"), (True, b"onetwo"), (False, b"two")):
        with own_file(place, keep) as stream:
            stream.seek(0, os.SEEK_END)
            stream.write(b"one" if content == b"one" else b"two")
        assert place.read_bytes() == content


def test_a_link_is_discarded_and_not_what_it_leads_to(tmp_path: Path, precious: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "inner").symlink_to(precious.parent)
    (tmp_path / "outer").symlink_to(precious.parent)
    for path in (folder, tmp_path / "outer", tmp_path / "none"):
        discard(path)
        assert not os.path.lexists(path)
    assert precious.read_bytes() == b"years of work"
