"""GGUF's quantized types, each held against the ``gguf`` package, and hostile headers."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quant
from quant.checkpoints import DEFAULT_SPEC, fitting_spec, open_checkpoint
from quant.checkpoints.blocks import BLOCK_TYPES, import_blocks
from quant.checkpoints.gguf import GGUFFile
from quant.checkpoints.native import NativeCheckpoint
from quant.config import from_gguf
from quant.errors import CheckpointError, ConfigError, QuantError, UnsupportedError

from ..models import TINY, gguf_tensors, random_weights, write_gguf
from ..oracle import forward

KINDS = gguf.GGMLQuantizationType
WIDE = replace(TINY, hidden_size=256, intermediate_size=512, head_dim=64)
ERRORS = {"Q4_K": 5e-4, "Q5_K": 5e-4, "Q6_K": 8e-3}
"""Relative errors that importing may leave: of rounding to float16, and of Q6_K to 8 bits."""


def random_blocks(kind: Any, rows: int, columns: int, seed: int = 0) -> Any:
    """Valid blocks of any content, scaled so that weights have a size of some 0.05."""
    random = np.random.default_rng(seed)
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (rows, columns // weights, size), dtype=np.uint8)
    # Where the float16 scales of a block are: at its start, but for Q6_K at its end.
    places = {"Q6_K": [208], "Q4_0": [0], "Q5_0": [0], "Q8_0": [0]}.get(kind.name, [0, 2])
    scale = {"Q4_K": 1e-4, "Q5_K": 5e-5, "Q6_K": 2e-5, "Q8_0": 4e-4}.get(kind.name, 5e-3)
    for place in places:
        halves = (random.uniform(0.5, 1.5, blocks.shape[:2]) * scale).astype("<f2")
        blocks[..., place : place + 2] = halves[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


NAMES = [kind.name for kind in BLOCK_TYPES.values()]


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_what_the_package_reads(name: str) -> None:
    kind = KINDS[name]
    raw = random_blocks(kind, 48, 512)
    expected = gguf.quants.dequantize(raw, kind)
    tensor, error = import_blocks(raw.reshape(-1), (48, 512), BLOCK_TYPES[kind.value], None)
    found = tensor.dequantize()
    if name in ERRORS:
        relative = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error == pytest.approx(float(relative), rel=1e-5)
        assert 0 < error < ERRORS[name]
    else:
        assert error == 0
        np.testing.assert_array_equal(found, expected)
    order = np.random.default_rng(1).permutation(48)
    turned, _ = import_blocks(raw.reshape(-1), (48, 512), BLOCK_TYPES[kind.value], order)
    np.testing.assert_array_equal(turned.dequantize(), found[order])


def write_blocks(path: Path, kind: Any) -> Any:
    """A model whose matrices are random blocks; returns its weights, read by the package."""
    weights = write_gguf(path, WIDE, kind=KINDS.F32)
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_suffix(".new"), arch="llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for seed, tensor in enumerate(reader.tensors):
        if tensor.data.ndim == 2:
            raw = random_blocks(kind, *tensor.data.shape, seed=seed)
            writer.add_tensor(tensor.name, raw, raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    del reader
    path.with_suffix(".new").replace(path)
    return weights


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_each_type(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.gguf"
    write_blocks(path, KINDS[name])
    model = quant.load(path)
    assert model.weights.layers[0].q.spec == BLOCK_TYPES[KINDS[name].value].spec  # type: ignore[union-attr]
    ids = [1, 5, 9, 40, 95, 3]
    logits = model.session(kv="f32").feed(ids, every=True)
    expected = forward(WIDE, model.weights, ids)
    np.testing.assert_allclose(logits, expected, atol=1e-3 * np.abs(expected).max())
    quant.quantize(path, tmp_path / "native")
    native = NativeCheckpoint(tmp_path / "native")
    errors = native.receipt["relative_errors"]
    assert native.receipt["method"] == ("rtn" if name in ERRORS else "lossless")
    assert len(errors) == (16 if name in ERRORS else 0)
    assert all(0 < error < ERRORS[name] for error in errors.values())
    np.testing.assert_array_equal(
        quant.load(tmp_path / "native").session().feed(ids), model.session().feed(ids)
    )


def test_what_is_stored_is_told(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_blocks(path, KINDS.Q4_K)
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "GGUF file"
    assert checkpoint.stored("layers.0.gate") == ("Q4_K", 512 * 144)
    assert checkpoint.stored("norm") == ("F32", 4 * 256)


def test_products_that_float16_cannot_hold(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_blocks(path, KINDS.Q4_K)
    place = GGUFFile(path).tensors["blk.0.ffn_up.weight"]
    with path.open("r+b") as file:
        file.seek(place.start)
        file.write(np.array([60000], "<f2").tobytes() * 2 + b"\xff" * 12)
    with pytest.raises(CheckpointError, match=r"layers.0.up has scales that are no numbers"):
        quant.load(path)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"llama.attention.sliding_window_pattern": 4}, UnsupportedError, "pattern of sliding"),
        ({"llama.rope.dimension_count": 16}, UnsupportedError, "rope.dimension_count is 16"),
        ({"llama.attention.value_length": 16}, UnsupportedError, "value_length is 16"),
    ],
)
def test_what_is_not_computed(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    write_gguf(tmp_path / "m.gguf", change=change)
    with pytest.raises(error, match=said):
        quant.load(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rope_freqs.weight", "rope scaling by tabulated factors"),
        ("blk.0.attn_q.bias", "holds the tensor blk.0.attn_q.bias"),
        ("blk.0.attn_q_norm.weight", "attn_q_norm"),
        ("blk.2.attn_norm.weight", "blk.2.attn_norm"),
    ],
)
def test_tensors_that_no_model_here_has(tmp_path: Path, name: str, said: str) -> None:
    write_gguf(tmp_path / "m.gguf", tensors={name: np.ones(16, np.float32)})
    with pytest.raises(UnsupportedError, match=said):
        quant.load(tmp_path / "m.gguf")


@pytest.mark.parametrize("key", ["bos", "eos", "eot", "eom"])
@pytest.mark.parametrize("value", ["x", [["a"]], -1.5, -2])
def test_ends_of_text_that_are_no_ids(key: str, value: Any) -> None:
    metadata = {
        "general.architecture": "llama",
        **{f"llama.{name}": 32 for name in ("block_count", "context_length")},
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    shapes = {"token_embd.weight": (96, 64)}
    assert from_gguf(metadata, shapes).eos_token_ids == ()
    assert from_gguf({**metadata, "tokenizer.ggml.eot_token_id": 7}, shapes).eos_token_ids == (7,)
    ends = {"tokenizer.ggml.eos_token_id": 3, "tokenizer.ggml.eom_token_id": 8}
    assert from_gguf({**metadata, **ends}, shapes).eos_token_ids == (3, 8)
    with pytest.raises(ConfigError, match="no token ids"):
        from_gguf({**metadata, f"tokenizer.ggml.{key}_token_id": value}, shapes)


def header(tensors: int = 0, values: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + (3).to_bytes(4, "little") + number(tensors) + number(values) + rest


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def text(value: bytes) -> bytes:
    return number(len(value)) + value


def entry(name: bytes, shape: list[int], kind: int, offset: int) -> bytes:
    dimensions = b"".join(map(number, shape))
    return (
        text(name)
        + len(shape).to_bytes(4, "little")
        + dimensions
        + kind.to_bytes(4, "little")
        + number(offset)
    )


HUGE = 1 << 60
STRING, ARRAY, UINT32 = (kind.to_bytes(4, "little") for kind in (8, 9, 4))


@pytest.mark.parametrize(
    "content",
    [
        header(tensors=HUGE),
        header(values=HUGE),
        header(values=1, rest=number(HUGE)),
        header(values=1, rest=text(b"a") + STRING + number(HUGE)),
        header(values=1, rest=text(b"a") + ARRAY + UINT32 + number(HUGE)),
        header(values=1, rest=text(b"a") + ARRAY + UINT32 + number((1 << 64) - 1)),
        header(values=1, rest=text(b"a") + ARRAY + STRING + number(HUGE)),
        header(values=1, rest=text(b"a") + (ARRAY + ARRAY + number(1)) * 5000),
        header(values=1, rest=text(b"a") + (99).to_bytes(4, "little")),
        header(values=2, rest=(text(b"a") + UINT32 + b"\0" * 4) * 2),
        header(values=1, rest=text(b"general.alignment") + UINT32 + b"\0" * 4),
        header(values=1, rest=text(b"general.alignment") + UINT32 + b"\xff" * 4),
        header(tensors=1, rest=entry(b"t", [HUGE, HUGE], 0, 0)),
        header(tensors=1, rest=entry(b"t", [1 << 32, 1 << 32], 0, 0)),
        header(tensors=1, rest=entry(b"t", [4], 0, HUGE)),
        header(tensors=1, rest=entry(b"t", [4], 0, (1 << 64) - 4)),
        header(tensors=1, rest=entry(b"t", [1] * 9, 0, 0)),
        header(tensors=1, rest=entry(b"t", [33], 2, 0) + b"\0" * 999),
        header(tensors=1, rest=entry(b"t", [4], 99, 0)),
        header(tensors=2, rest=entry(b"t", [4], 0, 0) * 2 + b"\0" * 999),
        header(tensors=1, rest=entry(b"\xff\xfe", [0], 0, 0) + b"\0" * 99),
        header(rest=b"\0" * 99),
    ],
)
def test_a_hostile_header(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(QuantError) as caught:
            quant.load(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "m.gguf"
    write_gguf(path, kind=KINDS.Q4_0)
    return path.read_bytes()


EDITS = st.lists(
    st.tuples(st.integers(4, 1600), st.sampled_from([0, 1, 2, 0x20, 0x7F, 0x80, 0xFE, 0xFF])),
    min_size=1,
    max_size=4,
)


@settings(max_examples=300, derandomize=True)
@given(edits=EDITS)
def test_a_damaged_header_is_an_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, edits: list[tuple[int, int]]
) -> None:
    damaged = bytearray(whole)
    for place, value in edits:
        damaged[place] = value
    path = tmp_path_factory.mktemp("damaged") / "m.gguf"
    path.write_bytes(damaged)
    try:
        quant.load(path)
    except QuantError as error:
        assert str(error)  # noqa: PT017 - what matters is that nothing else comes out
    path.unlink()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"general.type": "imatrix"}, "its general.type is 'imatrix'"),
        ({"general.type": "adapter"}, "its general.type is 'adapter'"),
        ({"general.type": "mmproj"}, "its general.type is 'mmproj'"),
        ({"split.count": 2, "split.no": 0}, "part 1 of 2"),
        ({"split.count": 3, "split.no": 2}, "part 3 of 3"),
    ],
)
def test_files_that_hold_no_whole_model(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    write_gguf(tmp_path / "m.gguf", change=change)
    with pytest.raises(UnsupportedError, match=sentence):
        open_checkpoint(tmp_path / "m.gguf")
    write_gguf(tmp_path / "m.gguf", change={"general.type": "model", "split.count": 1})
    open_checkpoint(tmp_path / "m.gguf")


def test_another_byte_order_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    with pytest.raises(UnsupportedError, match="big-endian"):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_vocabulary_alone_is_told(tmp_path: Path) -> None:
    names = dict.fromkeys(gguf_tensors(TINY, random_weights(TINY, None)))
    write_gguf(tmp_path / "m.gguf", tensors=names)
    with pytest.raises(UnsupportedError, match="a vocabulary alone"):
        open_checkpoint(tmp_path / "m.gguf")


def test_a_number_told_for_each_layer(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", change={"llama.attention.head_count_kv": [2, 2]})
    assert open_checkpoint(tmp_path / "m.gguf").config.num_key_value_heads == 2
    for value in ([2, 1], [2], [2, 2, 2]):
        write_gguf(tmp_path / "m.gguf", change={"llama.attention.head_count_kv": value})
        with pytest.raises(ConfigError, match="head_count_kv"):
            open_checkpoint(tmp_path / "m.gguf")


def test_a_folder_of_ggufs_names_them(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=r"name the file: .*m\.gguf\."):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("width", "group_size"), [(64, 64), (96, 32), (288, 32)])
def test_groups_that_fit_a_model(width: int, group_size: int) -> None:
    config = replace(TINY, hidden_size=width)
    assert fitting_spec(config) == replace(DEFAULT_SPEC, group_size=group_size)
