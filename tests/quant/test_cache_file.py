"""A cache in a file: the same logits without reading again, and nothing trusted that is damaged."""

from __future__ import annotations

import errno
import json
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import cache_file
from quant.errors import CacheError
from quant.model import Model
from quant.qtensor import QuantSpec, QuantTensor
from quant.weights import PAGE, PAGES, _arrays

from .models import TINY, random_weights

CONFIG = replace(TINY, max_position_embeddings=512)
IDS = np.random.default_rng(3).integers(0, TINY.vocab_size, 300).tolist()


def model(window: int | None = None) -> Model:
    config = replace(CONFIG, windows=(window,) * CONFIG.num_hidden_layers)
    return Model(config, random_weights(config, None, 0), "tiny", lambda: "digest")


def session(window: int | None = None, context: int = 400, kv: str = "f16") -> Any:
    return model(window).session(max_context=context, kv=kv, backend="numpy")


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
@pytest.mark.parametrize("window", [None, 64])
def test_the_same_logits_as_before(tmp_path: Path, kv: str, window: int | None) -> None:
    first = session(window, kv=kv)
    first.feed(IDS[:200])
    size = first.save(tmp_path / "c", "one")
    assert size == (tmp_path / "c").stat().st_size
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o600
    expected = first.feed(IDS[200:230])
    second = session(window, kv=kv)
    second.restore(tmp_path / "c", "one")
    assert (second.position, second.ids) == (200, IDS[:200])
    assert np.array_equal(second.feed(IDS[200:230]), expected)


@pytest.mark.parametrize("kv", ["f16", "int8"])
@pytest.mark.parametrize(("window", "before"), [(None, 70), (64, 70), (64, 130)])
def test_what_was_trimmed_is_not_written(
    tmp_path: Path, kv: str, window: int | None, before: int
) -> None:
    first, clean = session(window, kv=kv), session(window, kv=kv)
    first.feed(IDS[:before])
    clean.feed(IDS[:before])
    first.feed(IDS[200 : 201 if window else 230])  # a ring that has wrapped can take one back
    first.trim(before)
    first.save(tmp_path / "c", "one")
    with safetensors.safe_open(tmp_path / "c", "np") as file:
        for number, layer in enumerate(first.cache.layers):
            slots = np.arange(before, before + (1 if window else 30)) % layer.slots
            keys = file.get_tensor(f"{number}.keys")
            slots = slots[slots < 16 * keys.shape[1]]
            assert slots.size
            assert layer.keys[:, slots // 16, :, slots % 16].any()
            assert not keys[:, slots // 16, :, slots % 16].any()
            assert not file.get_tensor(f"{number}.values")[:, slots].any()
            # All else is there.
            others = np.setdiff1d(np.arange(before) % layer.slots, slots)
            held = clean.cache.layers[number].values[:, others]
            assert np.array_equal(file.get_tensor(f"{number}.values")[:, others], held)


def test_another_context_takes_it_as_long_as_it_fits(tmp_path: Path) -> None:
    first = session(context=400)
    first.feed(IDS[:100])
    first.save(tmp_path / "c", "one")
    expected = first.feed(IDS[100:110])
    larger = session(context=500)
    larger.restore(tmp_path / "c", "one")
    assert np.array_equal(larger.feed(IDS[100:110]), expected)
    smaller = session(context=99)
    with pytest.raises(CacheError, match="does not fit"):
        smaller.restore(tmp_path / "c", "one")
    assert smaller.position == 0
    assert smaller.feed(IDS[:5]).shape == (CONFIG.vocab_size,)


def test_what_was_trimmed_is_left_out(tmp_path: Path) -> None:
    first = session()
    first.feed(IDS[:300])
    whole = first.save(tmp_path / "whole", "one")
    first.trim(10)
    assert first.save(tmp_path / "part", "one") < whole / 3
    expected = first.feed(IDS[:5])
    second = session()
    second.restore(tmp_path / "part", "one")
    assert np.array_equal(second.feed(IDS[:5]), expected)


def test_a_ring_that_wrapped_cannot_go_back_too_far(tmp_path: Path) -> None:
    first = session(64)
    first.feed(IDS[:200])
    first.save(tmp_path / "c", "one")
    second = session(64)
    second.restore(tmp_path / "c", "one")
    with pytest.raises(CacheError, match="overwritten"):
        second.trim(100)


@pytest.mark.parametrize(("kv", "identity", "window"), [
    ("int8", "one", None), ("f16", "two", None), ("f16", "one", 64),
])  # fmt: skip
def test_what_is_of_something_else_is_refused(
    tmp_path: Path, kv: str, identity: str, window: int | None
) -> None:
    first = session()
    first.feed(IDS[:50])
    first.save(tmp_path / "c", "one")
    second = session(window, kv=kv)
    with pytest.raises(CacheError):
        second.restore(tmp_path / "c", identity)
    assert (second.position, second.ids) == (0, [])


def test_damage_is_refused(tmp_path: Path) -> None:
    first = session()
    first.feed(IDS[:50])
    first.save(tmp_path / "c", "one")
    data = (tmp_path / "c").read_bytes()
    second = session()
    for length in (0, 7, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "d").write_bytes(data[:length])
        with pytest.raises(CacheError):
            second.restore(tmp_path / "d", "one")
    with pytest.raises(CacheError):
        second.restore(tmp_path / "none", "one")
    assert second.feed(IDS[:5]).shape == (CONFIG.vocab_size,)


def other_header(data: bytes, change: Any) -> bytes:
    """The file with its header changed."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


HEADERS: list[Any] = [
    lambda header: header["0.keys"].update(dtype="BF16"),
    lambda header: header["0.keys"].update(dtype=5),
    lambda header: header["0.values"].update(data_offsets=[0, 1 << 60]),
    lambda header: header["ids"].update(shape=[49]),
    lambda header: header.pop("1.values"),
    lambda header: header.update({"2.keys": header["1.keys"]}),
    lambda header: header.pop("__metadata__"),
    lambda header: header.update(__metadata__=[]),
    lambda header: header["__metadata__"].update(position="49"),
    lambda header: header["__metadata__"].update(position="x"),
    lambda header: header["__metadata__"].update(position="-1"),
    lambda header: header["__metadata__"].update(furthest="60"),
    lambda header: header["__metadata__"].update(furthest="1" * 40),
    lambda header: header["__metadata__"].update(digest="0" * 64),
    lambda header: header["__metadata__"].update(more="5"),
    lambda header: header["__metadata__"].pop("digest"),
    lambda header: header["__metadata__"].pop("windows"),
    lambda header: header["__metadata__"].update(kind=5),
]


@pytest.mark.parametrize("change", HEADERS, ids=range(len(HEADERS)))
def test_a_damaged_header_is_refused(tmp_path: Path, change: Any) -> None:
    first, second = session(), session()
    first.feed(IDS[:50])
    first.save(tmp_path / "c", "one")
    (tmp_path / "c").write_bytes(other_header((tmp_path / "c").read_bytes(), change))
    with pytest.raises(CacheError):
        second.restore(tmp_path / "c", "one")
    assert (second.position, second.ids) == (0, [])


@pytest.mark.parametrize("text", [b"", b"[]", b"5", b"{", b"\xff", b"[" * 100_000, b'{"a": 1}'])
def test_a_header_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    for length in (len(text), len(text) + 9, 1 << 63):
        (tmp_path / "c").write_bytes(length.to_bytes(8, "little") + text)
        with pytest.raises(CacheError):
            session().restore(tmp_path / "c", "one")


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), length=st.integers(1, 99))
@settings(max_examples=40)
def test_no_byte_can_change(kv: str, place: float, flip: int, length: int) -> None:
    """And what was refused leaves nothing behind: the logits are those of an empty session."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c"
        first = session(64, kv=kv)
        first.feed(IDS[:70])
        first.save(path, "one")
        data = bytearray(path.read_bytes())
        start = int(place * len(data))
        for each in range(start, min(start + length, len(data))):
            data[each] ^= flip
        path.write_bytes(data)
        with pytest.raises(CacheError):
            first.restore(path, "one")
        assert (first.position, first.ids) == (0, [])
        assert np.array_equal(first.feed(IDS[:20]), session(64, kv=kv).feed(IDS[:20]))


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, kv: str, value: float) -> None:
    first, second = session(kv=kv), session(kv=kv)
    first.feed(IDS[:50])
    layer = first.cache.layers[1]
    if kv == "f16":
        layer.values.view(np.float16)[0, 3, 1] = value
    else:
        (layer.value_scales if kv == "int8" else layer.values[:, :, 0])[0, 3] = value
    first.save(tmp_path / "c", "one")
    with pytest.raises(CacheError, match="no numbers"):
        second.restore(tmp_path / "c", "one")
    assert np.isfinite(second.feed(IDS[:20])).all()


def test_the_weights_that_compute_are_its_identity(tmp_path: Path) -> None:
    """Not the file that they came from once: other bits, groups or kinds are other weights."""
    specs = [QuantSpec(4, 32, False), QuantSpec(4, 32, True), QuantSpec(8, 32, False), None]
    models = [Model(CONFIG, random_weights(CONFIG, spec, 0), "t", lambda: "d") for spec in specs]
    models.append(Model(CONFIG, random_weights(CONFIG, specs[0], 1), "t", lambda: "d"))
    theta = replace(CONFIG, rope_theta=CONFIG.rope_theta * 2)
    models.append(Model(theta, random_weights(CONFIG, specs[0], 0), "t", lambda: "d"))
    assert len({each.identity for each in models}) == len(models)
    first = models[0].session(max_context=100, backend="numpy")
    first.feed(IDS[:20])
    first.save(tmp_path / "c", "one")
    for each in models[1:]:
        with pytest.raises(CacheError, match="another model"):
            each.session(max_context=100, backend="numpy").restore(tmp_path / "c", "one")
    same = Model(CONFIG, random_weights(CONFIG, specs[0], 0), "elsewhere", lambda: "other")
    same.session(max_context=100, backend="numpy").restore(tmp_path / "c", "one")


def test_a_change_in_any_tensor_makes_other_weights() -> None:
    """Also where a tensor is too long to be read whole."""
    config = replace(CONFIG, vocab_size=4000)
    weights = random_weights(config, QuantSpec(4, 32, False), 0)
    assert isinstance(weights.embedding, QuantTensor)
    assert weights.embedding.codes.nbytes > 2 * PAGE * PAGES
    known = {weights.fingerprint()}
    for tensor in weights._tensors():
        arrays = _arrays(tensor)
        for array in arrays:
            before = array.copy()
            array.reshape(-1).view(np.uint8)[:] ^= 1
            known.add(weights.fingerprint())
            array[...] = before
    tensors = sum(len(_arrays(tensor)) for tensor in weights._tensors())
    assert len(known) == tensors + 1
    assert weights.fingerprint() in known


def test_a_full_disk_is_told_by_its_number_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = session()
    first.feed(IDS[:50])
    first.save(tmp_path / "c", "one")
    before = (tmp_path / "c").read_bytes()

    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_file, "_write", full)
    with pytest.raises(OSError, match="No space") as error:
        first.save(tmp_path / "c", "one")
    assert error.value.errno == errno.ENOSPC
    assert [each.name for each in tmp_path.iterdir()] == ["c"]
    assert (tmp_path / "c").read_bytes() == before


def test_an_id_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    first, second = session(), session()
    first.feed(IDS[:50])
    first.ids[7] = CONFIG.vocab_size
    first.save(tmp_path / "c", "one")
    with pytest.raises(CacheError, match="ids that the model does not have"):
        second.restore(tmp_path / "c", "one")
    assert (second.position, second.ids) == (0, [])
