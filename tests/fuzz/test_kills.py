"""Processes that are killed at any moment leave nothing half done that is trusted.

MISTRAL_CHAT_KILLS says how many moments each test tries (20 where it is not set).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import quant
from mistral_chat.talk.sessions import (
    SessionFile,
    find_session,
    list_sessions,
    read_session,
    remove_session,
    sweep,
)
from quant.errors import CacheError
from quant.files import put_back
from quant.model import Model, Session
from quant.qtensor import QuantSpec

from ..quant.models import TINY, random_model, write_gguf

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")

MOMENTS = int(os.environ.get("MISTRAL_CHAT_KILLS", "20"))
LONGEST = 20.0
"""Seconds after which a child counts as one that hangs."""


def kill_at_random(
    work: Callable[[], None], check: Callable[[], None], moments: int, seed: int
) -> int:
    """Run ``work`` in a child, kill the child (SIGKILL), and ``check``; again and again.

    The moments are spread over the time that ``work`` takes when nobody kills it, which is tried
    first. ``check`` runs in this process and raises where something is not as it must be; what
    ``work`` confirms must be noted in a file (see Ledger). How many children were killed before
    they were done. An error in ``work`` fails the test.
    """
    chance = random.Random(seed)
    started = time.monotonic()
    assert not _killed(work, LONGEST)
    check()
    taken = time.monotonic() - started
    killed = 0
    for _ in range(moments):
        killed += _killed(work, chance.random() * taken)
        check()
    return killed


def _killed(work: Callable[[], None], seconds: float) -> bool:
    """Whether a child that does ``work`` had to be killed after some seconds."""
    with warnings.catch_warnings():
        # That other threads hold locks: what the children do here needs none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, "the work itself failed"
            return False
        time.sleep(0.0002)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), "the work itself failed"
    return status != 0


class Ledger:
    """What a child has confirmed; each line is there although the child is killed after it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, line: str) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode() + b"\n")
        os.close(descriptor)

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []


@pytest.fixture
def read() -> tuple[Model, Session]:
    """A model, and a session with it in which 200 ids were read."""
    model = random_model(replace(TINY, max_position_embeddings=512))
    session = model.session(backend="numpy")
    session.feed([each % 90 for each in range(200)])
    return model, session


def left_over(folder: Path) -> list[str]:
    """Files that are neither sessions nor caches of sessions."""
    whole = {each.name for each in folder.glob("*.jsonl")}
    caches = {f"{name.removesuffix('.jsonl')}.cache" for name in whole}
    return sorted({each.name for each in folder.iterdir()} - whole - caches)


def test_every_confirmed_turn_is_there(tmp_path: Path) -> None:
    """Turns are recorded, and recorded anew: large ones, which the system writes in pieces."""
    folder, ledger = tmp_path / "sessions", Ledger(tmp_path / "ledger")
    path = folder / "s.jsonl"

    def work() -> None:
        session = SessionFile.open(path)
        number = len(session.talk.turns)
        for each in range(number, number + 5):
            turn = {"event": "turn", "user": f"{each}", "assistant": "old " * 5000}
            session.record_all([turn])
            ledger.note(f"{each} old")
            again = {**turn, "assistant": "new " * 5000}
            session.record("together", events=[{"event": "undo"}, again])
            ledger.note(f"{each} new")
        session.close()

    def check() -> None:
        sweep(folder)
        reading = read_session(path) if path.exists() else None
        turns = [] if reading is None else reading.talk.turns
        assert reading is None or reading.damaged is None
        assert [turn.user for turn in turns] == [f"{each}" for each in range(len(turns))]
        confirmed = dict(line.split() for line in ledger.lines())
        assert len(turns) >= len(confirmed)
        for user, kind in confirmed.items():
            said = {turns[int(user)].assistant}
            # What came after the last confirmation may be there, too.
            assert said <= {f"{kind} " * 5000, "new " * 5000}
        session = SessionFile.open(path)
        assert len(session.talk.turns) == len(turns)
        session.close()
        assert left_over(folder) == []

    kill_at_random(work, check, MOMENTS, 1)


def test_no_half_written_cache_is_trusted(tmp_path: Path, read: tuple[Model, Session]) -> None:
    model, full = read
    folder = tmp_path / "sessions"
    session = SessionFile.open(folder / "s.jsonl")
    session.record("turn", user="a", assistant="b")
    session.close()
    cache = session.cache_path
    again = model.session(backend="numpy")

    def work() -> None:
        for _ in range(20):
            opened = SessionFile.open(folder / "s.jsonl")
            full.save(opened.cache_path, "one")
            opened.close()

    def check() -> None:
        sweep(folder)
        assert left_over(folder) == []
        if cache.exists():
            again.restore(cache, "one")
            assert again.ids == full.ids

    kill_at_random(work, check, MOMENTS, 2)
    assert cache.exists()
    cache.write_bytes(cache.read_bytes()[:-1])
    with pytest.raises(CacheError):
        again.restore(cache, "one")


def test_renaming_and_removing_leave_all_or_nothing(
    tmp_path: Path, read: tuple[Model, Session]
) -> None:
    _, full = read
    folder, ledger = tmp_path / "sessions", Ledger(tmp_path / "ledger")

    def work() -> None:
        for _ in range(4):
            number = len(ledger.lines())
            name = f"talk-{number}"
            ledger.note(name)
            session = SessionFile.open(folder / f"{name}.jsonl")
            for each in range(3):
                session.record("turn", user=name, assistant=f"{each}")
            session.record("evict", turns=1, summary="a summary")
            full.save(session.cache_path, "one")
            session.rename(f"{name}.renamed")
            session.close()
            ledger.note(f"{name} renamed")
            remove_session(folder, f"{name}.renamed")
            ledger.note(f"{name} removed")

    def check() -> None:
        sweep(folder)
        assert left_over(folder) == []
        lines = ledger.lines()
        removed = {line.split()[0] for line in lines if line.endswith("removed")}
        renamed = {line.split()[0] for line in lines if line.endswith("renamed")}
        for entry in list_sessions(folder, tell=pytest.fail):
            talk = read_session(entry.path).talk
            begun = talk.turns[0].user
            assert entry.name in (begun, f"{begun}.renamed")
            assert begun not in removed
            assert begun not in renamed or (entry.turns, talk.evicted) == (3, 1)
        for begun in renamed - removed:
            # Confirmed as renamed: there, or being removed, never half.
            path = folder / f"{begun}.renamed.jsonl"
            assert not path.exists() or len(read_session(path).talk.turns) == 3
        for entry in list_sessions(folder):
            remove_session(folder, entry.name)
        for path in folder.glob("*"):
            pytest.fail(f"{path} is left")

    kill_at_random(work, check, MOMENTS, 3)
    with pytest.raises(Exception, match="There is no session"):
        find_session(folder, "talk-0")


def test_a_model_is_whole_while_another_takes_its_place(tmp_path: Path) -> None:
    """Quantizing, resumed where it was killed, and replacing: the old model or the new one."""
    source, target = tmp_path / "m.gguf", tmp_path / "native"
    weights = target / "weights.safetensors"
    write_gguf(source)
    whole = set()

    def make(bits: int) -> None:
        quant.quantize(source, target, QuantSpec(bits, 32), force=True, resume=True)

    for bits in (4, 8):
        make(bits)
        whole.add(weights.read_bytes())

    def work() -> None:
        for bits in (4, 8):
            make(bits)

    def check() -> None:
        put_back(target)
        assert weights.read_bytes() in whole
        quant.load(target)

    killed = kill_at_random(work, check, MOMENTS, 5)
    assert killed > MOMENTS // 4
    make(8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "native"]
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "weights.safetensors"]


def test_the_check_sees_what_is_half_done(tmp_path: Path) -> None:
    """A file that is written in place is found half written: the harness can fail."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)

    def work() -> None:
        with path.open("wb", buffering=0) as file:
            for _ in range(1000):
                file.write(b"x")

    def check() -> None:
        assert path.stat().st_size == 1000

    with pytest.raises(AssertionError):
        kill_at_random(work, check, 200, 4)
