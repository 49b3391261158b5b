"""GGUF files in, native folders out.

Nothing is lost, nothing half-written, nothing believed blindly.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import quant
from quant.checkpoints import writing
from quant.checkpoints.gguf import GGUFFile, half_split_order
from quant.checkpoints.native import NativeCheckpoint
from quant.errors import CheckpointError, ConfigError, SpecError, StorageError, UnsupportedError
from quant.qtensor import QuantSpec, QuantTensor

from ..models import TINY, gguf_tensors, write_gguf
from ..oracle import forward

KINDS = gguf.GGMLQuantizationType
IDS = [1, 5, 9, 40, 95, 3]
WIDE = replace(TINY, hidden_size=256, intermediate_size=256, head_dim=64)


@pytest.mark.parametrize(
    "kind", [KINDS.F32, KINDS.F16, KINDS.BF16, KINDS.Q4_0, KINDS.Q4_1, KINDS.Q8_0]
)
def test_every_type_is_read_without_loss(tmp_path: Path, kind: Any) -> None:
    weights = write_gguf(tmp_path / "m.gguf", kind=kind)
    model = quant.load(tmp_path / "m.gguf")
    assert model.config == TINY
    layer = model.weights.layers[1]
    for name, ours in (("attn_q", layer.q), ("attn_v", layer.v), ("ffn_down", layer.down)):
        stored = gguf_tensors(TINY, weights)[f"blk.1.{name}.weight"]
        expected = gguf.quants.dequantize(gguf.quants.quantize(stored, kind), kind).reshape(
            stored.shape
        )
        if name == "attn_q":
            expected = expected[half_split_order(expected.shape[0], TINY.head_dim)]
        if isinstance(ours, QuantTensor):
            assert (
                ours.spec
                == {
                    KINDS.Q4_0: QuantSpec(4, 32, symmetric=True),
                    KINDS.Q4_1: QuantSpec(4, 32, symmetric=False),
                    KINDS.Q8_0: QuantSpec(8, 32, symmetric=True),
                }[kind]
            )
            ours = ours.dequantize()
        np.testing.assert_array_equal(ours, expected)
    logits = model.session(kv="f32").feed(IDS, every=True)
    np.testing.assert_allclose(logits, forward(TINY, model.weights, IDS), atol=3e-3)


def test_floats_are_quantized_when_a_spec_is_given(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    spec = QuantSpec(8, 32, symmetric=True)
    model = quant.load(tmp_path / "m.gguf", spec)
    assert isinstance(model.weights.layers[0].gate, QuantTensor)
    assert model.weights.layers[0].gate.spec == spec
    assert isinstance(model.weights.norm, np.ndarray)
    with pytest.raises(SpecError, match=r"embedding .*Groups of 128 do not divide 64"):
        quant.load(tmp_path / "m.gguf", QuantSpec(4, 128))


def test_tied_embeddings_and_windows_come_from_the_file(tmp_path: Path) -> None:
    write_gguf(
        tmp_path / "m.gguf",
        change={"llama.attention.sliding_window": 7, "llama.rope.freq_base": None},
        tensors={"output.weight": None},
    )
    model = quant.load(tmp_path / "m.gguf")
    assert model.config.windows == (7, 7)
    assert model.config.rope_theta == 10000.0
    assert model.config.tie_word_embeddings
    assert model.weights.head is model.weights.embedding


def test_a_native_folder_holds_the_same_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", kind=KINDS.Q4_1)
    seen: list[tuple[int, int]] = []
    quant.quantize(
        tmp_path / "m.gguf",
        tmp_path / "native",
        progress=lambda done, total: seen.append((done, total)),
        companions=lambda folder: (folder / "tokenizer.json").write_text("{}") and None,
    )
    assert seen == [(i + 1, 21) for i in range(21)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "native"]
    names = sorted(path.name for path in (tmp_path / "native").iterdir())
    assert names == ["config.json", "tokenizer.json", "weights.safetensors"]
    source, mapped = quant.load(tmp_path / "m.gguf"), quant.load(tmp_path / "native")
    assert mapped.config == source.config
    assert (mapped.source, mapped.digest) == ("m.gguf", source.digest)
    codes = mapped.weights.layers[0].q.codes  # type: ignore[union-attr]
    assert isinstance(codes.base, np.memmap) or isinstance(codes, np.memmap)
    assert not codes.flags.writeable
    assert codes.ctypes.data % 64 == 0
    np.testing.assert_array_equal(mapped.session().feed(IDS), source.session().feed(IDS))


def test_floats_leave_a_receipt(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    quant.quantize(tmp_path / "m.gguf", tmp_path / "native", QuantSpec(4, 32, symmetric=False))
    checkpoint = NativeCheckpoint(tmp_path / "native")
    assert checkpoint.receipt["method"] == "rtn"
    errors = checkpoint.receipt["relative_errors"]
    assert set(errors) == {name for name in errors if "norm" not in name}
    assert len(errors) == 16
    assert all(0.02 < value < 0.12 for value in errors.values())


def test_safetensors_own_reader_reads_the_file(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    write_gguf(tmp_path / "m.gguf", kind=KINDS.Q8_0)
    quant.quantize(tmp_path / "m.gguf", tmp_path / "native")
    tensors = load_file(tmp_path / "native" / "weights.safetensors")
    model = quant.load(tmp_path / "m.gguf")
    codes = model.weights.layers[0].up.codes  # type: ignore[union-attr]
    np.testing.assert_array_equal(tensors["layers.0.up.codes"], codes)


# Bad input.


def changed(**change: Any) -> Callable[[Path], None]:
    return lambda path: (
        write_gguf(path, change=change.get("keys"), tensors=change.get("tensors")) and None
    )


def foreign(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (foreign(b""), CheckpointError, "cannot be read"),
        (foreign(b"GG"), CheckpointError, "is not a GGUF file"),
        (foreign(b"PK\x03\x04" + b"x" * 99), CheckpointError, "is not a GGUF file"),
        (foreign(b"GGUF\x01\0\0\0" + b"\0" * 99), UnsupportedError, "version 1"),
        (foreign(b"GGUF\x03\0\0\0" + b"\xff" * 16), CheckpointError, "damaged or cut off"),
        (
            changed(keys={"general.architecture": "gpt2"}),
            UnsupportedError,
            "architecture is 'gpt2'; supported are llama, mistral",
        ),
        (
            changed(keys={"llama.rope.scaling.type": "yarn"}),
            UnsupportedError,
            "rope.scaling.type = 'yarn'",
        ),
        (changed(keys={"llama.expert_count": 8}), UnsupportedError, "mixture of experts"),
        (
            changed(keys={"llama.block_count": None}),
            ConfigError,
            "does not say the model's block_count",
        ),
        (changed(keys={"llama.attention.head_count": 0}), ConfigError, "num_attention_heads is 0"),
        (changed(keys={"llama.attention.head_count_kv": 3}), ConfigError, "cannot share 3"),
        (changed(keys={"llama.attention.key_length": 20}), UnsupportedError, "multiples of 16"),
        (changed(keys={"llama.embedding_length": "x"}), ConfigError, "embedding_length"),
        (
            changed(tensors={"blk.1.ffn_up.weight": np.zeros((128, 32), np.float32)}),
            CheckpointError,
            r"blk.1.ffn_up.weight has the shape \(128, 32\)",
        ),
        (changed(tensors={"blk.0.attn_k.weight": None}), CheckpointError, "no tensor blk.0.attn_k"),
        (changed(tensors={"token_embd.weight": None}), ConfigError, "token_embd"),
    ],
)
def test_what_cannot_be_read(
    tmp_path: Path, make: Callable[[Path], None], error: type[Exception], sentence: str
) -> None:
    make(tmp_path / "m.gguf")
    with pytest.raises(error, match=sentence) as caught:
        quant.load(tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)
    with pytest.raises(error, match=sentence):
        quant.quantize(tmp_path / "m.gguf", tmp_path / "native")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_unknown_quantization_type(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", kind=KINDS.TQ2_0, config=WIDE)
    with pytest.raises(UnsupportedError, match=r"type TQ2_0; supported are F32, .*Q8_0"):
        quant.load(tmp_path / "m.gguf")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no file"):
        quant.load(tmp_path / "none.gguf")
    with pytest.raises(CheckpointError, match="holds no model"):
        quant.load(tmp_path)


def test_cut_off_anywhere(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", kind=KINDS.Q4_0)
    whole = (tmp_path / "m.gguf").read_bytes()
    header = whole.index(b"output_norm.weight")
    cuts = [*range(5, 1200, 37), header, len(whole) // 2, len(whole) - 64]
    for cut in cuts:
        (tmp_path / "cut.gguf").write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="cut off"):
            quant.load(tmp_path / "cut.gguf")


def test_scales_that_are_no_numbers(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", kind=KINDS.Q8_0)
    info = GGUFFile(tmp_path / "m.gguf").tensors["blk.0.ffn_up.weight"]
    with (tmp_path / "m.gguf").open("r+b") as file:
        file.seek(info.start)
        file.write(b"\xff\xff")
    with pytest.raises(CheckpointError, match=r"layers.0.up has scales that are no numbers"):
        quant.load(tmp_path / "m.gguf")


def native_folder(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "m.gguf", kind=KINDS.Q4_0)
    quant.quantize(tmp_path / "m.gguf", tmp_path / "native")
    return tmp_path / "native"


def test_a_damaged_native_folder(tmp_path: Path) -> None:
    folder = native_folder(tmp_path)
    weights = folder / "weights.safetensors"
    whole = weights.read_bytes()
    for cut in (0, 7, 100, 5000, len(whole) - 1):
        weights.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="missing or damaged"):
            quant.load(folder)
    weights.write_bytes(whole.replace(b'"format_version": "1"', b'"format_version": "9"'))
    with pytest.raises(CheckpointError, match="convert it again"):
        quant.load(folder)
    weights.write_bytes(whole.replace(b'rows\\": 128', b'rows\\": 999'))
    with pytest.raises(CheckpointError, match="contradicts config"):
        quant.load(folder)
    weights.write_bytes(whole.replace(b"layers.1.down.codes", b"layers.1.dawn.codes"))
    with pytest.raises(CheckpointError, match=r"no tensor layers.1.down.codes"):
        quant.load(folder)
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    for content in (
        "",
        "[]",
        json.dumps({**config, "head_dim": "x"}),
        json.dumps({**config, "new": 1}),
    ):
        (folder / "config.json").write_text(content)
        with pytest.raises(ConfigError):
            quant.load(folder)


def test_no_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageError, match="only 0 MB are free"):
        quant.quantize(tmp_path / "m.gguf", tmp_path / "native")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


class FullDisk:
    """A file that can take ``room`` bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: Any) -> int:
        self._room -= memoryview(data).nbytes
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 20000])
def test_a_disk_that_fills_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    write_gguf(tmp_path / "m.gguf")
    real = writing._write_tensors
    monkeypatch.setattr(
        writing, "_write_tensors", lambda stream, *rest: real(FullDisk(stream, room), *rest)
    )
    with pytest.raises(StorageError, match="No space left on device"):
        quant.quantize(tmp_path / "m.gguf", tmp_path / "native", QuantSpec(4, 32))
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")

    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quant.quantize(tmp_path / "m.gguf", tmp_path / "native", QuantSpec(4, 32), interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        quant.quantize(tmp_path / "m.gguf", tmp_path / "file" / "native")


def test_metadata_for_the_application(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", change={"general.name": "Tïny"})
    metadata = quant.read_gguf_metadata(tmp_path / "m.gguf")
    assert metadata["general.name"] == "Tïny"
    assert metadata["llama.attention.head_count"] == 4
