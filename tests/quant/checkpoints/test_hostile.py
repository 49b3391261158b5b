"""Files made to harm: what kernels are given is checked, whatever the files say."""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quant
from quant.checkpoints import open_checkpoint
from quant.checkpoints.gguf import MOST_ENTRIES
from quant.config import from_gguf, from_huggingface
from quant.errors import (
    CheckpointError,
    ConfigError,
    NotFiniteError,
    QuantError,
    SpecError,
    UnsupportedError,
)
from quant.files import read_file
from quant.model import Model
from quant.qtensor import QuantSpec, QuantTensor, packed_shapes
from quant.quantizers import round_to_nearest
from quant.sampling import Sampler, Sampling
from quant.weights import Weights
from tests.quant.models import TINY, random_weights, write_gguf, write_huggingface, write_mistral


@pytest.fixture
def native(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "m.gguf")
    quant.quantize(tmp_path / "m.gguf", tmp_path / "native", QuantSpec(4, 32))
    return tmp_path / "native"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of a native folder's weights; its metadata are objects meanwhile."""
    path = folder / "weights.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    told = header["__metadata__"]
    for key in ("packed", "receipt"):
        told[key] = json.loads(told[key])
    change(header)
    for key in ("packed", "receipt"):
        if not isinstance(told[key], str):
            told[key] = json.dumps(told[key])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_groups_that_do_not_divide_the_columns(native: Path, bits: int, symmetric: bool) -> None:
    spec = QuantSpec(bits, 128, symmetric)

    def change(header: dict[str, Any]) -> None:
        end = 0
        for fields in header.values():
            end = max(end, fields.get("data_offsets", (0, 0))[1])
        for name, fields in header["__metadata__"]["packed"].items():
            fields["spec"] = {"bits": bits, "group_size": 128, "symmetric": symmetric}
            codes, scales = packed_shapes(fields["rows"], fields["columns"], spec)
            for part, shape in (("codes", codes), ("scales", scales), ("minimums", scales)):
                header.pop(f"{name}.{part}", None)
                if part != "minimums" or not symmetric:
                    # Nothing of them is in the file.
                    kind = "U8" if part == "codes" else "F16"
                    entry = {"dtype": kind, "shape": [0, *shape[1:]], "data_offsets": [end, end]}
                    header[f"{name}.{part}"] = entry

    rewrite(native, change)
    with pytest.raises(CheckpointError):
        quant.load(native)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["__metadata__"].update(packed=[]),
        lambda header: header["__metadata__"].update(packed="["),
        lambda header: header["__metadata__"].update(receipt=[]),
        lambda header: header["__metadata__"].update(receipt="[" * 100_000),
        lambda header: header["__metadata__"].pop("digest"),
        lambda header: header["__metadata__"]["packed"]["embedding"].update(rows=float("inf")),
        lambda header: header["__metadata__"]["packed"]["embedding"].update(columns="64"),
        lambda header: header["__metadata__"]["packed"]["embedding"].pop("spec"),
        lambda header: header["__metadata__"]["packed"]["embedding"]["spec"].update(bits=4.0),
        lambda header: header["__metadata__"]["packed"]["embedding"]["spec"].update(
            group_size="32"
        ),
        lambda header: header["__metadata__"]["packed"]["embedding"]["spec"].update(symmetric=1),
        lambda header: header["__metadata__"]["packed"].update(norm={"spec": {}, "rows": 1}),
        lambda header: header["__metadata__"]["packed"].pop("embedding"),
    ],
)
def test_a_description_that_cannot_be(native: Path, change: Callable[[Any], None]) -> None:
    rewrite(native, change)
    with pytest.raises(CheckpointError):
        open_checkpoint(native)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_ids", [[1]]),
        ("eos_token_ids", [True]),
        ("bos_token_id", "1"),
        ("bos_token_id", 1 << 40),
        ("windows", [10**30, 10**30]),
        ("windows", ["4", None]),
        ("windows", 5),
        ("head_dim", True),
        ("hidden_size", 64.0),
        ("rope_theta", float("nan")),
        ("rms_norm_eps", "1e-5"),
        ("tie_word_embeddings", 0),
    ],
)
def test_a_native_configuration_that_cannot_be(native: Path, key: str, value: object) -> None:
    path = native / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ConfigError):
        open_checkpoint(native)


def test_configurations_nested_without_end(native: Path, tmp_path: Path) -> None:
    (native / "config.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="not JSON"):
        open_checkpoint(native)
    write_huggingface(tmp_path / "hf", TINY)
    path = tmp_path / "hf" / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "sliding_window": "1," + "[" * 9999})
    )
    with pytest.raises(ConfigError, match="sliding_window"):
        open_checkpoint(tmp_path / "hf")
    path.write_bytes(b" " * (1 << 24))
    with pytest.raises(ConfigError, match="larger than 8 MB"):
        open_checkpoint(tmp_path / "hf")


def test_a_header_of_safetensors_that_is_too_long(native: Path) -> None:
    with (native / "weights.safetensors").open("r+b") as file:
        file.write((1 << 25).to_bytes(8, "little"))
        file.truncate((1 << 25) + 8)
    with pytest.raises(CheckpointError, match="its header has"):
        open_checkpoint(native)


PACKED = round_to_nearest(np.ones((20, 64), np.float32), QuantSpec(4, 32))


@pytest.mark.parametrize(
    "fields",
    [
        {"columns": 128},
        {"rows": 40},
        {"spec": QuantSpec(4, 64)},
        {"spec": QuantSpec(4, 128)},
        {"spec": QuantSpec(8, 32)},
        {"spec": QuantSpec(4, 32, symmetric=True)},
        {"minimums": None},
        {"scales": PACKED.scales[:1]},
        {"scales": PACKED.scales.astype(np.float32)},
        {"codes": PACKED.codes[:, :4]},
        {"codes": PACKED.codes.astype(np.int8)},
        {"codes": np.asfortranarray(PACKED.codes)},
    ],
)
def test_a_packed_matrix_is_what_it_says(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        replace(PACKED, **fields)


def damaged(weights: Weights, name: str, value: float) -> Weights:
    """``weights`` with one number replaced: of a norm, a float matrix, or a matrix's scales."""

    def spoilt(tensor: Any) -> Any:
        if isinstance(tensor, QuantTensor):
            scales = tensor.scales.copy()
            scales[-1, -1, 0] = value
            return replace(tensor, scales=scales)
        copy = tensor.copy()
        copy[(-1,) * copy.ndim] = value
        return copy

    if name in ("embedding", "norm", "head"):
        return replace(weights, **{name: spoilt(getattr(weights, name))})
    layer = replace(weights.layers[1], **{name: spoilt(getattr(weights.layers[1], name))})
    return replace(weights, layers=(weights.layers[0], layer))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spec", [None, QuantSpec(4, 32), QuantSpec(8, 64, symmetric=True)])
@pytest.mark.parametrize(
    "name", ["embedding", "norm", "head", "attention_norm", "mlp_norm", "down"]
)
def test_numbers_that_are_not_finite(name: str, spec: QuantSpec | None, value: float) -> None:
    weights = damaged(random_weights(TINY, spec), name, value)
    with pytest.raises(CheckpointError, match=rf"tensor (layers\.1\.)?{name} holds numbers that"):
        Model(TINY, weights, "damaged", lambda: "")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["gguf", "hf", "mistral"])
def test_norms_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, kind: str, value: float
) -> None:
    norm = np.full(TINY.hidden_size, value, np.float32)
    path = tmp_path / kind
    if kind == "gguf":
        write_gguf(path, tensors={"blk.1.ffn_norm.weight": norm})
    elif kind == "hf":
        write_huggingface(
            path, TINY, tensors={"model.layers.1.post_attention_layernorm.weight": norm}
        )
    else:
        write_mistral(path, TINY, tensors={"layers.1.ffn_norm.weight": norm})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp_norm holds numbers"):
        quant.load(path, QuantSpec(4, 32))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp_norm holds numbers"):
        quant.quantize(path, tmp_path / "native", QuantSpec(4, 32))
    assert not (tmp_path / "native").exists()


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_no_token_follows_from_what_is_not_finite(backend: str) -> None:
    weights = random_weights(TINY, QuantSpec(8, 32))
    # Finite by themselves, but not what is computed with them.
    large = replace(weights, norm=np.full(TINY.hidden_size, 3e38, np.float32))
    model = Model(TINY, large, "large", lambda: "")
    with np.errstate(all="ignore"):
        with pytest.raises(NotFiniteError):
            model.session(backend=backend).feed([1, 2, 3])
        for temperature in (0.0, 0.7):
            sampler = Sampler(Sampling(temperature=temperature))
            with pytest.raises(NotFiniteError):
                model.session(backend=backend).next_token([1, 2, 3], sampler)


def patched(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def test_a_gguf_whose_embedding_has_no_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    content = path.read_bytes()
    at = content.find(b"token_embd.weight") + len(b"token_embd.weight")
    path.write_bytes(content[:at] + b"\0\0\0\0" + content[at + 4 + 16 :])
    with pytest.raises(QuantError):
        open_checkpoint(path)


def gguf_with(*entries: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries)


def entry(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


@pytest.mark.parametrize("kind", [0, 4, 8, 12])
def test_arrays_longer_than_any_vocabulary(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "m.gguf"
    head = struct.pack("<IQ", kind, MOST_ENTRIES + 1)
    path.write_bytes(gguf_with(entry(b"a", 9, head)) + bytes(8 * (MOST_ENTRIES + 1)))
    with pytest.raises(CheckpointError, match="more than any vocabulary"):
        open_checkpoint(path)


def test_headers_longer_than_any_models(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    size = 50_000_000
    text = struct.pack("<Q", size) + bytes(size)
    path.write_bytes(gguf_with(*(entry(name, 8, text) for name in (b"a", b"b", b"c"))))
    with pytest.raises(CheckpointError, match="a header of more than"):
        open_checkpoint(path)


def test_a_damaged_archive_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    with pytest.raises(CheckpointError, match="pickle"):
        open_checkpoint(path)
    patched(path, b"PK\x01\x02", b"XXXX")
    with pytest.raises(CheckpointError, match="not a GGUF"):
        open_checkpoint(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_in_the_place_of_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="not an ordinary file"):
        open_checkpoint(tmp_path / "m.gguf")
    for file in ("config.json", "model.safetensors"):
        folder = tmp_path / file.replace(".", "-")
        write_huggingface(folder, TINY)
        (folder / file).unlink()
        os.mkfifo(folder / file)
        with pytest.raises(QuantError, match="not an ordinary file"):
            open_checkpoint(folder)
    with pytest.raises(OSError, match="not an ordinary file"):
        read_file(tmp_path / "m.gguf", 1)


def test_tensors_that_lie_anywhere_in_a_file(native: Path) -> None:
    expected = quant.load(native).session(max_context=64).feed([1, 2, 3])
    rewrite(native, lambda header: None)  # the new header's length is no multiple of anything
    path = native / "weights.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    for blanks in range(4):
        header = raw[8 : 8 + length] + b" " * blanks
        path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
        session = quant.load(native).session(max_context=64)
        np.testing.assert_array_equal(session.feed([1, 2, 3]), expected)


@pytest.mark.parametrize(
    ("key", "value", "fine"),
    [
        ("rope.scaling.factor", 8.0, False),
        ("rope.scaling.factor", 1.0, True),
        ("rope.scaling.factor", 0.0, True),
        ("rope.scaling.type", "linear", True),
        ("rope.scaling.type", "none", True),
        ("rope.scaling.type", "longrope", False),
        ("rope.scaling.attn_factor", 1.2, False),
        ("rope.scaling.yarn_log_multiplier", 0.1, False),
        ("rope.scaling.original_context_length", 4096, True),
        ("rope.scale_linear", 4.0, False),
        ("attention.causal", False, False),
        ("attention.causal", True, True),
        ("attention.scale", 0.5, False),
        ("attention.scale", 32**-0.5, True),
        ("attention.clamp_kqv", 8.0, False),
        ("attention.temperature_scale", 0.1, False),
        ("attention.max_alibi_bias", 8.0, False),
        ("logit_scale", 0.0625, False),
        ("logit_scale", 1.0, True),
        ("final_logit_softcapping", 30.0, False),
        ("embedding_scale", 12.0, False),
        ("residual_scale", 0.22, False),
        ("use_parallel_residual", True, False),
    ],
)
def test_what_changes_the_mathematics_of_a_gguf(
    tmp_path: Path, key: str, value: Any, fine: bool
) -> None:
    metadata = {"general.architecture": "llama", **GGUF_METADATA, f"llama.{key}": value}
    shapes = {"token_embd.weight": (96, 64)}
    if fine:
        from_gguf(metadata, shapes)
    else:
        with pytest.raises(UnsupportedError, match=re.escape(f"{key} = {value!r}")):
            from_gguf(metadata, shapes)


@pytest.mark.parametrize("length", [0, -16, 0.0, -1.5, float("nan"), float("inf"), 24])
def test_heads_of_a_gguf_that_cannot_be(length: float) -> None:
    told = {"general.architecture": "llama", **GGUF_METADATA, "llama.attention.key_length": length}
    for more in ({}, {"llama.attention.scale": 0.25}):
        with pytest.raises((ConfigError, UnsupportedError)):
            from_gguf({**told, **more}, {"token_embd.weight": (96, 64)})


@pytest.mark.parametrize(
    "file", ["x" * 300 + ".safetensors", "\x00", "\ud800", "", ".", "..", "é" * 200]
)
def test_an_index_of_shards_that_names_no_file(tmp_path: Path, file: str) -> None:
    write_huggingface(tmp_path / "hf", TINY, shards=2)
    path = tmp_path / "hf" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = file
    path.write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"is missing in|outside the folder|no safetensors file"
    ):
        open_checkpoint(tmp_path / "hf")


GGUF_METADATA = {
    "llama.block_count": 2,
    "llama.context_length": 256,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"rope_scaling": {"factor": 8.0}}, "factor"),
        ({"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}}, "llama_4"),
        (
            {"rope_parameters": {"full": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}},
            "partial",
        ),
        ({"attention_multiplier": 0.0078}, "attention_multiplier"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
        ({"final_logit_softcapping": 30.0}, "softcapping"),
        ({"is_causal": False}, "is_causal"),
        ({"rope_scaling": {"type": None, "factor": 1.0}}, None),
        ({"rope_scaling": {}, "residual_multiplier": 1.0, "is_causal": True}, None),
        ({"temperature": 0.6, "logits_scaling": 1}, None),
    ],
)
def test_what_changes_the_mathematics_of_a_folder(values: dict[str, Any], name: str | None) -> None:
    if name is None:
        from_huggingface({"model_type": "mistral", **values})
    else:
        with pytest.raises(UnsupportedError, match=name):
            from_huggingface({"model_type": "mistral", **values})
