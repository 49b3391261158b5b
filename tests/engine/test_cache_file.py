"""A cache in a file: the same logits without reading again, and nothing trusted that is damaged."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

from quant.errors import CacheError
from quant.model import Model

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
