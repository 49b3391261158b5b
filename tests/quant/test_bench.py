"""Measuring: what is counted, and what a measurement leaves behind; no test asserts a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from quant.batch import Batch, SessionOptions
from quant.bench import (
    MOST_PASSES,
    Pass,
    PassTimer,
    Probes,
    Roofline,
    dot_products,
    measure_passes,
    pretend,
    random_model,
    read_bandwidth,
)
from quant.errors import ConfigError, ContextFullError, InputError
from quant.qtensor import QuantSpec

from .models import TINY
from .models import random_model as tiny_model

SPEC = QuantSpec(4, 32, symmetric=True)


def test_the_roofline_of_mistral_7b() -> None:
    roofline = Roofline.of(random_model("mistral-7b", 1, SPEC).weights)
    layer = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    head = 4096 * 32000
    assert roofline.multiply_adds == layer + head
    # Half a byte a weight, two bytes for each 32, and two norms and the last one in float32.
    assert roofline.weight_bytes == (layer + head) // 2 + (layer + head) // 16 + 3 * 4096 * 4


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_the_embedding_is_read(tied: bool) -> None:
    model = tiny_model(replace(TINY, tie_word_embeddings=tied), SPEC)
    roofline = Roofline.of(model.weights)
    left_out = 0 if tied else model.weights.embedding.nbytes
    assert roofline.weight_bytes == model.weight_bytes - left_out
    assert roofline.multiply_adds == sum(
        rows * columns for rows, columns in TINY.matrices().values()
    ) * TINY.num_hidden_layers + TINY.vocab_size * (TINY.hidden_size)


def test_the_roofline_is_the_slower_of_reading_and_multiplying() -> None:
    roofline = Roofline(weight_bytes=10**9, multiply_adds=2 * 10**9)
    assert roofline.seconds(1, 2, 50, 400) == pytest.approx(1 / 50)
    assert roofline.seconds(8, 1, 50, 400) == pytest.approx(8 * 2 / 400)
    assert roofline.seconds(8, 2, 50, 400) == pytest.approx(8 * 2 * 2 / 400)


def test_a_single_token_has_two_planes() -> None:
    assert [Pass().planes(name) for name in ("exact", "fast")] == [2, 2]
    assert [Pass(2, 3).planes(name) for name in ("exact", "fast")] == [2, 1]
    assert Pass(2, 3).width == 6


def test_probes() -> None:
    probes = Probes(threads=2, size=1 << 20, rounds=10)
    found = [probes.read_bandwidth(), probes.dot_products()]
    found += [read_bandwidth(1, size=1 << 20), dot_products(3, rounds=10)]
    assert all(np.isfinite(found))
    assert min(found) > 0


@pytest.mark.parametrize("windows", [(None, None), (64, None)])
@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
def test_sequences_that_were_made_up(windows: tuple[int | None, ...], kv: str) -> None:
    model = tiny_model(replace(TINY, windows=windows))
    options = SessionOptions(200, kv=kv)
    batch = Batch(model.config, model.weights, model.on_device, options, 3)
    for depth in (0, 150, 40):  # a ring that was overwritten, and then one that was not
        pretend(batch, depth, sequences=2)
        assert [cache.position for cache in batch.caches] == [depth, depth, 0]
        assert batch.ids == ([], [], [])
    # What was made up is the same for both, and nothing else was touched.
    first, second, third = (cache.layers[0] for cache in batch.caches)
    assert first.keys.all()
    assert (first.keys == second.keys).all()
    assert not third.keys.any()
    session = model.session(200, kv=kv)
    pretend(session, 150)
    assert session.position == 150
    assert (session.cache.layers[0].values == first.values).all()
    for text in (session, batch):
        with pytest.raises(ContextFullError):
            pretend(text, 201)


def test_a_pass_is_timed_between_the_probes() -> None:
    model = tiny_model(spec=SPEC)
    timer = PassTimer(model, 60, 100, 60, threads=2, probes=Probes(2, 1 << 20, 10))
    roofline = Roofline.of(model.weights)
    for one in (Pass(), Pass(sequences=60), Pass(tokens=60), Pass(4, 3)):
        sample = timer.sample(one, 100)
        share = sample.share(roofline, one, "exact")
        assert share is not None
        assert min(sample.seconds, sample.read or 0, sample.dots or 0, share) > 0
    sample = PassTimer(model, 1, 0).sample(Pass(), 0)
    assert (sample.read, sample.dots, sample.share(roofline, Pass(), "exact")) == (None, None, None)
    with pytest.raises(InputError):
        timer.sample(Pass(tokens=61), 0)
    with pytest.raises(ContextFullError):
        timer.sample(Pass(), 200)


def test_each_kind_of_pass_is_told() -> None:
    model = tiny_model(spec=SPEC)
    kinds = [Pass(), Pass(sequences=3), Pass(tokens=2)]
    results = list(measure_passes(model, kinds, [0, 20], kv="int8", threads=2, rounds=2))
    assert [(each.precision, each.depth, each.sequences, each.tokens) for each in results] == [
        *[("exact", depth, *kind) for depth in (0, 20) for kind in ((1, 1), (3, 1), (1, 2))],
        *[("fast", depth, *kind) for depth in (0, 20) for kind in ((3, 1), (1, 2))],
    ]
    for each in results:
        width = each.sequences * each.tokens
        assert each.tokens_per_second == pytest.approx(1e3 * width / each.milliseconds)
        assert (each.bits, each.kv, each.threads) == (4, "int8", 2)
        assert each.roofline_share is not None
    assert {each.times_one for each in results if each.sequences * each.tokens == 1} == {1.0}


def test_passes_that_cannot_be() -> None:
    model = tiny_model(spec=SPEC)
    assert list(measure_passes(model, [], [0])) == []
    assert list(measure_passes(model, [Pass(4)], [])) == []
    with pytest.raises(ConfigError, match="1 to 256"):
        list(measure_passes(model, [Pass(40)], [257 - MOST_PASSES]))
    assert list(measure_passes(model, [Pass(40)], [256 - MOST_PASSES], rounds=1))
