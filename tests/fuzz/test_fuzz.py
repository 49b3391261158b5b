"""A short run of each target; ``python -m tests.fuzz`` has the long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .targets import NAMES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", NAMES)
def test_a_short_run_finds_no_fault(name: str) -> None:
    # In a process of its own: a fork carries over no threads that other tests have begun.
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", name],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
