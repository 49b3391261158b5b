"""The runner notices whatever a case may do, and goes on with the next one."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from quant.errors import ConfigError, QuantError

from . import runner
from .target import Target, require
from .test_fuzz import ROOT

SEED, COUNT = 5, 60
LITTLE_MEMORY = 64 << 20


def refuse() -> None:
    raise QuantError("no")


def refuse_more() -> None:
    raise ConfigError("no")


def fail() -> None:
    raise ValueError("untyped")


def leave() -> None:
    sys.exit(3)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    for _ in itertools.count():
        pass


def grow() -> None:
    b"x" * (2 * LITTLE_MEMORY)


def be_wrong() -> None:
    require(False, "that is so")


def read_nothing() -> None:
    Path("/nowhere").read_bytes()


def pass_by() -> None:
    pass


CASES: tuple[tuple[Callable[[], None], str], ...] = (
    (pass_by, "passed"),
    (refuse, "refused"),
    (refuse_more, "refused"),
    (fail, "ValueError"),
    (leave, "SystemExit"),
    (crash, "signal SIGSEGV"),
    (hang, "hang"),
    (be_wrong, "WrongResultError"),
    (read_nothing, "FileNotFoundError"),
)
if Path("/proc/self/clear_refs").exists():
    CASES += ((grow, "memory"),)


class Faulty(Target):
    name = "faulty"
    seconds = 0.2

    def case(self, random: Random, scratch: Path) -> None:
        carry_out, _kind = random.choice(CASES)
        require(not list(scratch.iterdir()), "another case left something")
        (scratch / "left").write_text("behind")
        carry_out()


def report() -> None:
    """Print what the runner finds, as JSON."""
    runner.MOST_MEMORY = LITTLE_MEMORY
    with runner.prepared(Faulty) as target:
        found = runner.run(target, SEED, range(COUNT))
    faults = {fault.number: fault.kind for fault in found.faults}
    print(json.dumps([found.passed, found.refused, faults]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_case_is_carried_out_and_every_fault_is_told() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import report; report()"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    passed, refused, faults = json.loads(done.stdout)
    expected = {
        number: runner.random_of(Faulty.name, SEED, number).choice(CASES)[1]
        for number in range(COUNT)
    }
    counts = Counter(expected.values())
    assert len(counts) == len({kind for _, kind in CASES})
    assert (passed, refused) == (counts["passed"], counts["refused"])
    assert {int(number): kind for number, kind in faults.items()} == {
        number: kind for number, kind in expected.items() if kind not in ("passed", "refused")
    }


def test_the_place_of_an_error_is_a_line_of_the_product() -> None:
    def place(carry_out: Callable[[], object]) -> str:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - of any kind
            carry_out()
        return runner.place_of(caught.value.__traceback__)

    from quant.config import read_json

    assert place(lambda: read_json(Path("/nowhere"))).startswith("quant/config/geometry.py:")
    assert place(be_wrong).startswith("tests/fuzz/test_runner.py:")
