"""``--device`` and ``--gpu-layers`` from the command line, on a GPU or under the simulator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from mistral_chat import doctor
from mistral_chat.terminal import bench
from quant.backends import devices

from ..quant.backends.simulator import quick_simulator
from ..quant.models import TINY, write_gguf
from .conftest import HERE, Command
from .fakes import tiny_metadata

METADATA = tiny_metadata()
SMALL = replace(
    TINY,
    vocab_size=len(METADATA["tokenizer.ggml.tokens"]),
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=16,
    windows=(None,),
)


@pytest.fixture
def gpu() -> Iterator[None]:
    """A GPU, or Numba's simulator of one."""
    if devices.missing() is not None:
        pytest.skip("there is neither a GPU nor the simulator")
    from quant.backends.cuda.jit import SIMULATED

    with quick_simulator() if SIMULATED else nullcontext():
        yield


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.gguf"
    write_gguf(path, SMALL, change=METADATA)
    return str(path)


def test_both_devices_write_the_same(command: Command, model: str, gpu: None) -> None:
    flags = "hi", "-m", model, "--context", "64", "--max-tokens", "6", "--seed", "7", "--json", "-q"
    told = [
        command(*flags, *more)
        for more in (
            ("--device", "cpu"),
            ("--device", "cuda"),
            ("--device", "auto", "--gpu-layers", "0"),
        )
    ]
    assert [(each.code, each.stderr) for each in told] == [(0, "")] * 3
    texts = [json.loads(each.stdout)["text"] for each in told]
    assert texts[0]
    assert texts[0] == texts[1] == texts[2]


def test_bench(command: Command, model: str, gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "copy_bandwidth", lambda: 64.0)
    flags = "bench", "-m", model, "--device", "cuda", "--rounds", "1", "--prefill", "3", "-q"
    result = command(*flags, "--depth", "2", "--json")
    assert (result.code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert report["device"] == devices.describe().name
    assert report["read_gigabytes_per_second"] == 64.0
    assert [(row["test"], row["depth"]) for row in report["results"]] == [
        ("prefill", 0),
        ("prefill", 0),
        ("decode", 2),
    ]


def test_bench_of_sequences_at_once(
    command: Command, model: str, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "copy_bandwidth", lambda: 64.0)
    flags = "bench", "-m", model, "--device", "cuda", "--rounds", "1", "--depth", "0", "-q"
    result = command(*flags, "--at-once", "2", "--json")
    assert (result.code, result.stderr) == (0, "")
    rows = json.loads(result.stdout)["at_once"]
    assert [(row["sequences"], row["precision"]) for row in rows] == [
        (1, "exact"),
        (2, "exact"),
        (2, "fast"),
    ]
    assert [row["roofline_share"] for row in rows] == [None] * 3  # nothing probes a GPU's products
    shown = command(*flags, "--at-once", "2").stdout
    assert "times one" in shown
    assert "of what reading" not in shown


def test_the_table_of_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    bench.Report("m", 10**6, 2000.0, 0.0, (), "A fine GPU").print(Console())
    shown = capsys.readouterr().out
    assert "1 MB of weights, A fine GPU" in shown
    assert "copies 2000.0 GB/s" in shown
    assert "billion bytes" not in shown


def test_doctor(command: Command, gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "copy_bandwidth", lambda size: 1234.0)
    assert json.loads(command("doctor", "--json").stdout)["gpu"] == "not asked for (--device cuda)"
    monkeypatch.setenv("MISTRAL_CHAT_DEVICE", "auto")
    told = json.loads(command("doctor", "--json").stdout)["gpu"]
    for fact in (devices.describe().name, "GB free", "CUDA", "copies 1234 GB/s"):
        assert fact in told


def test_doctor_tells_what_is_missing(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(devices, "find_spec", find)
    monkeypatch.setenv("MISTRAL_CHAT_DEVICE", "cuda")
    told = json.loads(command("doctor", "--json").stdout)
    assert "pip install 'mistral-chat[cuda]'" in told["gpu"]
    assert told["gpu"] in told["problems"]


def test_copying_is_measured(gpu: None) -> None:
    assert devices.copy_bandwidth(1 << 16) > 0


@pytest.mark.skipif(
    Path("/dev/nvidiactl").exists() or not devices.find_spec("numba_cuda"),
    reason="there is a GPU, or no compiler for one",
)
@pytest.mark.parametrize(
    ("device", "expected"), [("cuda", (1, "")), ("auto", (0, "text")), ("cpu", (0, "text"))]
)
def test_without_a_gpu(device: str, expected: tuple[int, str], model: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mistral_chat", "hi", "-m", model, "-q", "--device", device,
         "--max-tokens", "2", "--context", "64"],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "0"},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, "text" if done.stdout else "") == expected
    if device == "cuda":
        assert done.stderr == (
            "No NVIDIA GPU was found, or its driver does not work; see nvidia-smi, or use "
            "--device cpu.\n"
        )
    else:
        assert done.stderr == ""
