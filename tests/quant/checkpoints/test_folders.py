"""Hugging Face's and Mistral's folders: the same model as a GGUF, and every way to be broken."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import quant
from quant.checkpoints import open_checkpoint
from quant.checkpoints.native import NativeCheckpoint
from quant.config import ModelConfig, from_huggingface, from_params, windows_of
from quant.errors import CheckpointError, ConfigError, QuantError, UnsupportedError

from ..models import (
    TINY,
    huggingface_config,
    mistral_params,
    to_bfloat16,
    write_gguf,
    write_huggingface,
    write_mistral,
)
from ..oracle import forward

IDS = [1, 5, 9, 40, 95, 3, 17, 2]
WIDE = replace(TINY, hidden_size=96, head_dim=16)  # heads * head_dim is not hidden_size
TIED = replace(TINY, tie_word_embeddings=True, rope_theta=1e6)
NARROW = replace(TINY, windows=(4, 4))
MIXED = replace(TINY, num_hidden_layers=4, windows=(None, 4, None, 4))


def logits(path: Path, backend: str = "numpy") -> Any:
    return quant.load(path).session(kv="f32", backend=backend).feed(IDS, every=True)


@pytest.mark.parametrize("config", [TINY, WIDE, TIED, NARROW], ids="plain wide tied narrow".split())
@pytest.mark.parametrize("backend", ["numpy", "cpu"])
def test_three_formats_one_model(tmp_path: Path, config: ModelConfig, backend: str) -> None:
    weights = write_huggingface(tmp_path / "hf", config, seed=4)
    write_huggingface(tmp_path / "shards", config, seed=4, shards=3)
    write_mistral(tmp_path / "mistral", config, seed=4)
    window = {"llama.attention.sliding_window": config.windows[0]}
    head = {"output.weight": None} if config.tie_word_embeddings else {}
    write_gguf(tmp_path / "m.gguf", config, seed=4, change=window, tensors=head)
    first = logits(tmp_path / "hf", backend)
    for name in ("shards", "mistral", "m.gguf"):
        loaded = quant.load(tmp_path / name)
        assert replace(loaded.config, bos_token_id=1, eos_token_ids=(2,)) == config
        np.testing.assert_allclose(logits(tmp_path / name, backend), first, atol=1e-5)
    np.testing.assert_allclose(first, forward(config, weights, IDS), atol=1e-4)


def test_interleaved_windows(tmp_path: Path) -> None:
    weights = write_huggingface(tmp_path / "hf", MIXED)
    write_mistral(tmp_path / "mistral", MIXED)
    write_mistral(tmp_path / "pattern", MIXED, change={"sliding_window": [None, 4]})
    types = ["full_attention", "sliding_attention"] * 2
    change = {"model_type": "ministral", "sliding_window": 4, "layer_types": types}
    write_huggingface(tmp_path / "types", MIXED, change=change)
    expected = forward(MIXED, weights, IDS)
    for name in ("hf", "mistral", "pattern", "types"):
        assert quant.load(tmp_path / name).config.windows == MIXED.windows
        np.testing.assert_allclose(logits(tmp_path / name), expected, atol=1e-4)


@pytest.mark.parametrize("write", [write_huggingface, write_mistral])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_halves_are_read_as_they_are(tmp_path: Path, write: Any, dtype: str) -> None:
    weights = write(tmp_path / "m", dtype=dtype)
    model = quant.load(tmp_path / "m")
    for name in ("q", "k", "down", "attention_norm"):
        stored = getattr(weights.layers[1], name)
        if dtype == "F16":
            expected = stored.astype(np.float16).astype(np.float32)
        else:
            expected = (to_bfloat16(stored).astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(getattr(model.weights.layers[1], name), expected)


def test_a_model_passes_through_in_slabs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mistral(tmp_path / "m", WIDE, dtype="BF16")
    spec = quant.QuantSpec(4, 32)
    quant.quantize(tmp_path / "m", tmp_path / "whole", spec)
    monkeypatch.setattr("quant.checkpoints.conversion.SLAB_WEIGHTS", 1000)
    asked: list[int] = []
    real = quant.checkpoints.folders.FolderCheckpoint.read_rows

    def read_rows(self: Any, name: str, start: int, stop: int) -> Any:
        if "norm" not in name:
            asked.append((stop - start) * real(self, name, start, stop).shape[1])
        return real(self, name, start, stop)

    monkeypatch.setattr(quant.checkpoints.folders.FolderCheckpoint, "read_rows", read_rows)
    quant.quantize(tmp_path / "m", tmp_path / "slabs", spec)
    assert max(asked) <= 16 * WIDE.intermediate_size
    whole, slabs = (NativeCheckpoint(tmp_path / name) for name in ("whole", "slabs"))
    for name in ("embedding", "layers.0.q", "layers.1.down", "head"):
        np.testing.assert_array_equal(whole.read(name).dequantize(), slabs.read(name).dequantize())
    errors = slabs.receipt["relative_errors"]
    assert errors == pytest.approx(whole.receipt["relative_errors"])
    assert slabs.digest() == open_checkpoint(tmp_path / "m").digest()
    np.testing.assert_array_equal(
        quant.load(tmp_path / "m", spec).session().feed(IDS),
        quant.load(tmp_path / "slabs").session().feed(IDS),
    )


def test_hugging_face_first_where_a_folder_has_both(tmp_path: Path) -> None:
    write_huggingface(tmp_path)
    write_mistral(tmp_path)
    assert open_checkpoint(tmp_path).format == "Hugging Face folder"
    (tmp_path / "model.safetensors").unlink()
    assert open_checkpoint(tmp_path).format == "Mistral folder"


def test_what_is_stored_is_told(tmp_path: Path) -> None:
    write_huggingface(tmp_path / "m", dtype="BF16")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.stored("layers.0.q") == ("BF16", 2 * 128 * 64)
    assert checkpoint.source == "m"
    assert len(checkpoint.digest()) == 64


def test_tensors_that_follow_from_others_may_be_there(tmp_path: Path) -> None:
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(16, np.float32)}
    write_huggingface(tmp_path / "m", TIED, tensors={**more, "lm_head.weight": np.ones((96, 64))})
    model = quant.load(tmp_path / "m")
    assert model.weights.head is model.weights.embedding


# Configurations.


def hf(**change: Any) -> ModelConfig:
    values = {**huggingface_config(TINY), **change}
    return from_huggingface({k: v for k, v in values.items() if v is not ...})


def test_absent_is_not_null() -> None:
    assert hf(sliding_window=...).windows == (4096, 4096)
    assert hf(sliding_window=None).windows == (None, None)
    assert hf(rms_norm_eps=...).rms_norm_eps == 1e-6
    assert hf(num_key_value_heads=..., num_attention_heads=8).num_key_value_heads == 8
    assert hf(model_type="llama", num_key_value_heads=None).num_key_value_heads == 4
    assert hf(model_type="llama", sliding_window=7).windows == (None, None)
    assert hf(head_dim=None).head_dim == hf(head_dim=...).head_dim == 16
    with pytest.raises(ConfigError, match="rms_norm_eps is None"):
        hf(rms_norm_eps=None)


def test_rope_bases() -> None:
    assert hf(rope_theta=...).rope_theta == 1e4
    parameters = {"rope_theta": 5e5, "rope_type": "default"}
    assert hf(rope_theta=..., rope_parameters=parameters).rope_theta == 5e5
    nested = {"full_attention": parameters, "sliding_attention": parameters}
    assert hf(rope_theta=..., rope_parameters=nested).rope_theta == 5e5
    nested = {"full_attention": parameters, "sliding_attention": {"rope_theta": 1e4}}
    with pytest.raises(UnsupportedError, match="different rope_theta"):
        hf(rope_theta=..., rope_parameters=nested)
    assert hf(rope_scaling={"type": "linear", "factor": 1.0}) == hf()
    assert params(rope_theta=..., sliding_window=8).rope_theta == 1e4
    assert params(rope_theta=..., sliding_window=None).rope_theta == 1e6
    assert params(rope_theta=None, sliding_window=None).rope_theta == 1e6


def params(**change: Any) -> ModelConfig:
    values = {**mistral_params(TINY), **change}
    return from_params({k: v for k, v in values.items() if v is not ...}, 96)


def test_ends_of_text() -> None:
    assert hf(eos_token_id=[2, 7]).eos_token_ids == (2, 7)
    assert hf(eos_token_id=None).eos_token_ids == ()
    values = {**huggingface_config(TINY), "eos_token_id": 2}
    assert from_huggingface(values, {"eos_token_id": [2, 9]}).eos_token_ids == (2, 9)


def test_params_of_every_kind() -> None:
    assert params(vocab_size=-1).vocab_size == params(vocab_size=...).vocab_size == 96
    assert params(_sliding_window=[None, 8], sliding_window=None).windows == (None, 8)
    assert params(sliding_window="8").windows == (8, 8)
    assert params(n_kv_heads=...).num_key_value_heads == 4
    assert params(head_dim=...).head_dim == 16
    assert params(max_seq_len=...).max_position_embeddings == 32768
    assert params(moe=None, lora=None).num_hidden_layers == 2


@pytest.mark.parametrize(
    ("window", "layers", "expected"),
    [
        (None, 2, (None, None)),
        (8, 2, (8, 8)),
        ([None, 8, 8, 8], 8, (None, 8, 8, 8) * 2),
        ("null", 1, (None,)),
        ("None", 1, (None,)),
        (" 8 ", 1, (8,)),
        ("[null, 8]", 4, (None, 8, None, 8)),
        ("null,8", 2, (None, 8)),
    ],
)
def test_windows(window: Any, layers: int, expected: tuple[int | None, ...]) -> None:
    assert windows_of(window, layers) == expected


@pytest.mark.parametrize(
    "window", ["local", "", "[]", [], [8, 8, 8], 0, -1, True, 1.5, [None, "8"], {"a": 1}]
)
def test_windows_that_mean_nothing(window: Any) -> None:
    with pytest.raises(ConfigError, match="sliding_window"):
        windows_of(window, 2)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"model_type": "qwen2"}, UnsupportedError, "'qwen2'; supported are mistral"),
        ({"model_type": ...}, UnsupportedError, "None"),
        ({"hidden_act": "gelu"}, UnsupportedError, "activation is 'gelu'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, UnsupportedError, "'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 1.0}}, UnsupportedError, "'llama3'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, UnsupportedError, "'yarn'"),
        ({"rope_scaling": "dynamic"}, ConfigError, "not an object"),
        ({"attention_bias": True}, UnsupportedError, "attention_bias"),
        ({"mlp_bias": True}, UnsupportedError, "mlp_bias"),
        ({"num_local_experts": 8}, UnsupportedError, "mixture of experts"),
        ({"quantization_config": {"quant_method": "awq"}}, UnsupportedError, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor"),
        ({"use_qk_norm": True}, UnsupportedError, "use_qk_norm"),
        ({"layer_types": ["full_attention", "linear"]}, UnsupportedError, "'linear'"),
        ({"layer_types": ["full_attention"]}, ConfigError, "layer_types"),
        ({"hidden_size": "64"}, ConfigError, "hidden_size is '64'"),
        ({"hidden_size": True}, ConfigError, "hidden_size is True"),
        ({"num_hidden_layers": -2}, ConfigError, "num_hidden_layers"),
        ({"num_attention_heads": 0}, ConfigError, "num_attention_heads"),
        ({"vocab_size": 1 << 40}, ConfigError, "vocab_size"),
        ({"rms_norm_eps": float("nan")}, ConfigError, "rms_norm_eps"),
        ({"rope_theta": -1}, ConfigError, "rope_theta"),
        ({"eos_token_id": "x"}, ConfigError, "no token ids"),
        ({"num_key_value_heads": 3}, ConfigError, "cannot share"),
        ({"hidden_size": 60}, UnsupportedError, "multiples of 16"),
    ],
)
def test_a_config_that_cannot_be(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    write_huggingface(tmp_path / "m", change=change)
    with pytest.raises(error, match=said) as caught:
        quant.load(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"moe": {"num_experts": 8}}, UnsupportedError, "'moe'"),
        ({"vision_encoder": {"image_size": 1024}}, UnsupportedError, "'vision_encoder'"),
        ({"yarn": {"factor": 2}}, UnsupportedError, "'yarn'"),
        ({"quantization": {"qformat": "fp8"}}, UnsupportedError, "'quantization'"),
        ({"model_type": "mamba"}, UnsupportedError, "'mamba'"),
        ({"something_new": 3}, UnsupportedError, "'something_new'"),
        ({"dim": ...}, ConfigError, "dim is None"),
        ({"norm_eps": "x"}, ConfigError, "norm_eps"),
        ({"vocab_size": 97}, CheckpointError, r"shape \(96, 64\).*\(97, 64\)"),
    ],
)
def test_params_that_cannot_be(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    write_mistral(tmp_path / "m", change=change)
    with pytest.raises(error, match=said) as caught:
        quant.load(tmp_path / "m")
    assert "\n" not in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)
HF_KEYS = [*huggingface_config(TINY), "rope_scaling", "rope_parameters", "layer_types", "_x"]


@given(st.dictionaries(st.sampled_from(HF_KEYS), VALUES, max_size=3))
def test_no_config_raises_anything_else(change: dict[str, Any]) -> None:
    for values in ({**huggingface_config(TINY), **change}, change):
        try:
            from_huggingface(values)
        except QuantError as error:
            assert str(error)  # noqa: PT017 - what matters is that nothing else comes out


@given(st.dictionaries(st.sampled_from(list(mistral_params(TINY))), VALUES, max_size=3))
def test_no_params_raise_anything_else(change: dict[str, Any]) -> None:
    for values in ({**mistral_params(TINY), **change}, change):
        try:
            from_params(values, 96)
        except QuantError as error:
            assert str(error)  # noqa: PT017 - as above


# Files.


def test_a_missing_shard(tmp_path: Path) -> None:
    write_huggingface(tmp_path / "m", shards=3)
    (tmp_path / "m" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard model-00002-of-00003.safetensors is missing"):
        quant.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.norm.weight": "model-00001-of-00002.safetensors"}, "holds model.norm.weight, but"),
        ({"model.new.weight": "model-00001-of-00002.safetensors"}, "holds model.new.weight, but"),
        ({"model.norm.weight": "../m/model-00001-of-00002.safetensors"}, "outside the folder"),
        ({"model.norm.weight": 3}, "no weight_map"),
    ],
)
def test_an_index_that_is_wrong(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write_huggingface(tmp_path / "m", shards=2)
    index = tmp_path / "m" / "model.safetensors.index.json"
    weights = json.loads(index.read_text())["weight_map"]
    if weights["model.norm.weight"] == "model-00001-of-00002.safetensors":
        change = {k: v.replace("00001", "00002") if v != 3 else v for k, v in change.items()}
    index.write_text(json.dumps({"weight_map": {**weights, **change}}))
    with pytest.raises(QuantError, match=said):
        quant.load(tmp_path / "m")


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("tensors", "error", "said"),
    [
        ({Q: ...}, CheckpointError, f"no tensor {Q}"),
        ({Q: np.zeros((64, 64))}, CheckpointError, rf"{Q} has the shape \(64, 64\)"),
        ({"model.layers.0.self_attn.q_proj.bias": np.zeros(128)}, CheckpointError, "q_proj.bias"),
        ({"model.layers.2.input_layernorm.weight": np.zeros(64)}, CheckpointError, "layers.2"),
        ({"lm_head.weight": ...}, CheckpointError, "no tensor lm_head.weight"),
    ],
)
def test_tensors_that_do_not_fit(
    tmp_path: Path, tensors: dict[str, Any], error: type[Exception], said: str
) -> None:
    write_huggingface(tmp_path / "m", tensors=tensors)
    with pytest.raises(error, match=said):
        quant.load(tmp_path / "m")


def test_a_wrong_type_is_named(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    write_huggingface(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    tensors[Q] = tensors[Q].astype(np.int8)
    save_file(tensors, file)
    with pytest.raises(UnsupportedError, match=rf"{Q} is stored as I8; supported are F32"):
        quant.load(tmp_path / "m")


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_file_cut_off(tmp_path: Path, cut: int) -> None:
    write_mistral(tmp_path / "m")
    file = tmp_path / "m" / "consolidated.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="missing or damaged"):
        quant.load(tmp_path / "m")


def test_headers_that_lie(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    write_mistral(folder)
    file = folder / "consolidated.safetensors"
    whole = file.read_bytes()
    for change in (
        (b"\xff" * 8) + whole[8:],
        whole.replace(b'"shape": [96, 64]', b'"shape": [99, 64]'),
        whole.replace(b'"dtype": "F32"', b'"dtype": "F64"'),
        whole.replace(b'"data_offsets": [0,', b'"data_offsets": [4,'),
    ):
        file.write_bytes(change)
        with pytest.raises(CheckpointError, match="missing or damaged"):
            quant.load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_byte_order_mark_is_no_part_of_a_json_file(tmp_path: Path, name: str) -> None:
    write_huggingface(tmp_path / "m", shards=2)
    plain = open_checkpoint(tmp_path / "m").config
    file = tmp_path / "m" / name
    file.write_text("\ufeff" + file.read_text())
    assert open_checkpoint(tmp_path / "m").config == plain


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", "\xff", "[" * 100_000])
def test_a_json_file_that_is_none(tmp_path: Path, name: str, content: str) -> None:
    write_huggingface(tmp_path / "m")
    (tmp_path / "m" / name).write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match=f"{name} is not"):
        quant.load(tmp_path / "m")


def torch_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("consolidated/data.pkl", b"\x80\x02.")


PICKLES: list[tuple[str, Callable[[Path], Any]]] = [
    ("consolidated.00.pth", torch_zip),
    ("pytorch_model.bin", lambda path: path.write_bytes(pickle.dumps({}, protocol=2))),
    ("model.pt", torch_zip),
]


@pytest.mark.parametrize(("name", "write"), PICKLES)
def test_pickles_are_refused(tmp_path: Path, name: str, write: Callable[[Path], Any]) -> None:
    write(tmp_path / name)
    (tmp_path / "params.json").write_text(json.dumps(mistral_params(TINY)))
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError, match=r"is a PyTorch pickle, .* safetensors"):
            quant.load(path)


def test_a_folder_with_only_a_part(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config(TINY)))
    with pytest.raises(CheckpointError, match="holds no model"):
        quant.load(tmp_path)


def test_nothing_is_left_of_a_source_that_cannot_be_read(tmp_path: Path) -> None:
    write_huggingface(tmp_path / "m", tensors={Q: np.full((128, 64), np.nan)})
    with pytest.raises(QuantError, match=r"layers.1.q cannot be quantized: .*NaN"):
        quant.quantize(tmp_path / "m", tmp_path / "native", quant.QuantSpec(4, 32))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
