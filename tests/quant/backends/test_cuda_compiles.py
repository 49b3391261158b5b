"""What is launched on a GPU compiles for one, though there is none here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quant.backends import devices

ROOT = Path(__file__).resolve().parents[3]
SHARED_MEMORY = 48 << 10
"""Bytes that every GPU gives to a block."""


@pytest.mark.skipif(not devices.find_spec("numba_cuda"), reason="the compiler is an extra")
@pytest.mark.parametrize("capability", [(7, 5), (9, 0)], ids=["dp4a", "tensor cores"])
def test_every_launch_compiles(capability: tuple[int, int]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.quant.backends.dry_run", *map(str, capability)],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)
    by_name: dict[str, list[dict[str, int]]] = {}
    for each in kernels:
        assert each["failed"] == ""
        assert each["shared"] <= SHARED_MEMORY
        # Arrays of a thread lie in registers; only large angles of RoPE are reduced in a table.
        assert each["stack"] == 0 or each["kernel"] == "rope_angles"
        by_name.setdefault(each["kernel"], []).append(each)
    # Kernels that lie on the disk under one name differ in what they were made of, or in types.
    assert len({(str(each["made_of"]), each["types"]) for each in kernels}) == len(kernels)
    # The products know no float64, and are made of what they were written for.
    products = by_name["matvec"] + by_name["matmul"]
    assert len(by_name["matvec"]) == len(by_name["matmul"]) == 2
    assert not any(each["doubles"] for each in products + by_name["attention"])
    assert all(each["wide_loads"] for each in by_name["matvec"])
    cores = [each["tensor_cores"] > 0 for each in by_name["matmul"]]
    assert cores == [capability >= (8, 0)] * 2
