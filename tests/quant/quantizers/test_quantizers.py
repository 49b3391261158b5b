"""Grids, codes and GPTQ against plain NumPy twins and against what they promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.errors import SpecError
from quant.kernels.quantize import half
from quant.qtensor import QuantSpec, pack
from quant.quantizers import (
    InputMoments,
    quantize_gptq,
    relative_error,
    round_searched,
    round_to_nearest,
)
from quant.quantizers.calibration import LayerPass, mean_squares, second_moments
from quant.quantizers.divergence import Divergence
from quant.quantizers.gptq import mending_factor, permuted
from quant.quantizers.recipe import Recipe
from quant.weights import MATRICES

from ..models import TINY, random_weights
from ..oracle import forward, kl_divergence

SPECS = [
    QuantSpec(bits, group, symmetric)
    for bits in (4, 8)
    for group in (32, 64, 128)
    for symmetric in (True, False)
]


def twin(weights: Any, spec: QuantSpec) -> Any:
    """round_to_nearest in plain NumPy."""
    rows, columns = weights.shape
    groups = weights.reshape(rows, -1, spec.group_size)
    levels = (1 << spec.bits) - 1
    if spec.symmetric:
        extreme = np.take_along_axis(groups, np.abs(groups).argmax(2)[..., None], 2)[..., 0]
        scales = (extreme / (-8.0 if spec.bits == 4 else 127.0)).astype(np.float16)
        minimums, base, offset = None, np.float32(0), np.float32(spec.zero)
    else:
        minimums = groups.min(2).astype(np.float16)
        base, offset = minimums.astype(np.float32)[..., None], np.float32(0)
        scales = ((groups.max(2) - base[..., 0]) / levels).astype(np.float16)
    steps = scales.astype(np.float32)[..., None]
    inverse = np.divide(1.0, steps, out=np.zeros_like(steps), where=steps != 0)
    codes = np.clip(np.rint((groups - base) * inverse + offset), 0, levels).astype(np.uint8)
    return pack(codes.reshape(rows, columns), scales, minimums, spec)


def some_weights(seed: int, rows: int = 37, columns: int = 256) -> Any:
    random = np.random.default_rng(seed)
    weights = random.standard_normal((rows, columns)) * 10 ** random.uniform(-7, 3, (rows, 1))
    weights[3], weights[5, :64], weights[6, :3] = 0, 1.5, (2, -2, 2)
    return weights.astype(np.float32)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_rounding_is_its_twin(spec: QuantSpec) -> None:
    for seed in range(3):
        weights = some_weights(seed)
        ours, theirs = round_to_nearest(weights, spec), twin(weights, spec)
        np.testing.assert_array_equal(ours.codes, theirs.codes)
        np.testing.assert_array_equal(ours.scales, theirs.scales)
        if theirs.minimums is not None:
            np.testing.assert_array_equal(ours.minimums, theirs.minimums)


@settings(max_examples=300)
@given(st.floats(-65000, 65000, width=32))
def test_halves_are_the_nearest(value: float) -> None:
    x = np.float32(value)
    assert half(x) == np.float32(np.float16(x))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("weighed", [False, True])
def test_a_search_never_makes_it_worse(spec: QuantSpec, weighed: bool) -> None:
    for seed in range(3):
        weights = some_weights(seed)
        energies = np.random.default_rng(seed).uniform(0, 9, 256).astype(np.float32)
        chosen = energies if weighed else None
        by = energies if weighed else np.ones(256, np.float32)
        plain, searched = round_to_nearest(weights, spec), round_searched(weights, spec, chosen)
        for row in range(len(weights)):
            before, after = (
                float(
                    (by * (weights[row] - tensor.dequantize()[row]).astype(np.float64) ** 2).sum()
                )
                for tensor in (plain, searched)
            )
            assert after <= before * (1 + 1e-5)
    assert relative_error(weights[10:11], round_searched(weights[10:11], spec)) > 0


def correlated_inputs(columns: int = 256, count: int = 2000) -> Any:
    random = np.random.default_rng(5)
    mixing = random.standard_normal((columns, columns)) * random.uniform(0.1, 3, columns)
    return (random.standard_normal((count, 40)) @ mixing[:40] + 0.1).astype(np.float32)


def output_error(weights: Any, tensor: Any, inputs: Any) -> float:
    return float(np.linalg.norm(inputs @ (weights - tensor.dequantize()).T))


@pytest.mark.parametrize("spec", [QuantSpec(4, 64), QuantSpec(4, 32, True), QuantSpec(8, 64)])
def test_gptq_keeps_the_outputs(spec: QuantSpec) -> None:
    inputs = correlated_inputs()
    weights = np.random.default_rng(6).standard_normal((40, 256)).astype(np.float32)
    hessian = inputs.T @ inputs / len(inputs)
    rounded = output_error(weights, round_to_nearest(weights, spec), inputs)
    for search in (False, True):
        for order in (False, True):
            inputs_of = InputMoments.of(hessian.copy(), by_energy=order)
            tensor = quantize_gptq(weights, spec, inputs_of, search=search)
            assert tensor.spec == spec
            assert output_error(weights, tensor, inputs) < 0.5 * rounded


def plain_gptq(weights: Any, spec: QuantSpec, hessian: Any) -> Any:
    """The algorithm of the paper, column by column, on grids that span their groups."""
    grids = twin(weights, spec)
    scales = grids.scales.transpose(0, 2, 1).reshape(-1, grids.scales.shape[1])[: len(weights)]
    lows = grids.minimums.transpose(0, 2, 1).reshape(scales.shape[0] * 0 + -1, scales.shape[1])
    lows = lows[: len(weights)].astype(np.float64)
    h = hessian.astype(np.float64).copy()
    h[np.diag_indices_from(h)] += 0.01 * np.diag(h).mean()
    inverse = np.linalg.inv(h)
    left, codes = weights.astype(np.float64), np.zeros(weights.shape, np.uint8)
    for j in range(weights.shape[1]):
        g = j // spec.group_size
        step = scales[:, g].astype(np.float64)
        codes[:, j] = np.clip(np.rint((left[:, j] - lows[:, g]) / step), 0, 15)
        error = left[:, j] - (codes[:, j] * step + lows[:, g])
        left[:, j:] -= np.outer(error / inverse[0, 0], inverse[0])
        # Gaussian elimination of the column that is done.
        inverse = inverse[1:, 1:] - np.outer(inverse[1:, 0], inverse[0, 1:]) / inverse[0, 0]
    return codes


def test_gptq_is_the_paper_s() -> None:
    inputs = correlated_inputs(192)
    weights = np.random.default_rng(7).standard_normal((24, 192)).astype(np.float32)
    hessian = inputs.T @ inputs / len(inputs)
    spec = QuantSpec(4, 64)
    inputs_of = InputMoments.of(hessian.copy(), by_energy=False)
    ours = quantize_gptq(weights, spec, inputs_of, search=False).unpack()
    theirs = plain_gptq(weights, spec, hessian)
    # A weight that lies between two codes may fall to either side by rounding, and what follows
    # in its row with it.
    assert (ours == theirs).mean() > 0.97


def test_hessians_that_are_not_definite() -> None:
    weights = np.random.default_rng(8).standard_normal((16, 64)).astype(np.float32)
    one_input = np.zeros((64, 64), np.float32)
    one_input[3, 3] = 4
    for hessian in (np.zeros((64, 64), np.float32), one_input, np.ones((64, 64), np.float32)):
        tensor = quantize_gptq(weights, QuantSpec(4, 64), InputMoments.of(hessian))
        assert relative_error(weights, tensor) < 0.3
    broken = np.full((64, 64), np.nan, np.float32)
    with pytest.raises(SpecError, match="too short"):
        mending_factor(broken)


@pytest.mark.parametrize("columns", [64, 128, 300])
@pytest.mark.parametrize("tries", [1, 3])
def test_a_mending_factor_is_cholesky_s(columns: int, tries: int) -> None:
    inputs = np.random.default_rng(8).standard_normal((40, columns)).astype(np.float32)
    hessian = inputs.T @ inputs / len(inputs)  # of rank 40
    dampening = 0.01
    if tries > 1:  # an eigenvalue below zero, until the dampening has grown
        hessian -= 0.2 * np.diag(hessian).mean() * np.eye(columns, dtype=np.float32)
    mean = np.diag(hessian).mean()
    factor = mending_factor(hessian.astype(np.float64), dampening)
    dampened = hessian + dampening * 10 ** (tries - 1) * mean * np.eye(columns)
    r = np.linalg.cholesky(dampened).T
    expected = (r / np.diag(r)[:, None]).T
    np.testing.assert_allclose(np.tril(factor), expected, atol=1e-4)


def test_a_permutation_in_place() -> None:
    random = np.random.default_rng(9)
    for size in (1, 5, 200):
        matrix, order = random.standard_normal((size, size)), random.permutation(size)
        expected = matrix[order][:, order]
        assert permuted(matrix, order) is matrix
        assert np.array_equal(matrix, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6])
@pytest.mark.parametrize("spec", [QuantSpec(4, 64), QuantSpec(8, 64, True)])
def test_weights_that_cannot_be(bad: float, spec: QuantSpec) -> None:
    weights = np.ones((20, 64), np.float32)
    weights[17, 5] = bad
    for method in (round_to_nearest, round_searched):
        with pytest.raises(SpecError, match=r"infinit|too large"):
            method(weights, spec)


def test_a_recipe() -> None:
    wide = QuantSpec(8, 32)
    recipe = Recipe(rules=(("layers.0.*", wide), ("*.down", QuantSpec(8, 128))))
    assert recipe.spec_of("layers.0.down") == wide
    assert recipe.spec_of("layers.1.down").group_size == 128
    assert recipe.spec_of("layers.1.up") == recipe.spec
    assert recipe.spec_of("embedding") == recipe.head
    with pytest.raises(SpecError, match="'best'"):
        Recipe(method="best")


# Calibration.

CONFIG = replace(TINY, windows=(None, 5))
TEXTS = [[1, 5, 9, 40, 95, 3, 17, 2], [7, 7, 30], list(range(20, 40))]


def layer_of(weights: Any, i: int) -> dict[str, Any]:
    names = ("attention_norm", "mlp_norm", *MATRICES)
    return {name: getattr(weights.layers[i], name) for name in names}


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("spec", [None, QuantSpec(4, 32)])
def test_layer_by_layer_is_the_whole_model(backend: str, spec: QuantSpec | None) -> None:
    weights = random_weights(CONFIG, spec, 9)
    table = weights.embedding if spec is None else weights.embedding.dequantize()  # type: ignore[union-attr]
    running = LayerPass(
        CONFIG, lambda ids: table[np.asarray(ids)], TEXTS, kv="f32", backend=backend
    )
    assert running.tokens == 31
    for i in range(CONFIG.num_hidden_layers):
        running.add_attention(layer_of(weights, i), CONFIG.windows[i])
        running.add_mlp(layer_of(weights, i))
    for ids, logits in zip(TEXTS, running.logits(weights.norm, weights.head), strict=True):
        np.testing.assert_allclose(logits, forward(CONFIG, weights, ids), atol=2e-3)


def test_inputs_are_those_of_the_products() -> None:
    weights = random_weights(CONFIG, None, 9)
    table = weights.embedding
    running = LayerPass(
        CONFIG, lambda ids: table[np.asarray(ids)], TEXTS, kv="f32", backend="numpy"
    )
    layer = layer_of(weights, 0)
    x = np.concatenate([table[np.asarray(ids)] for ids in TEXTS])
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * layer["attention_norm"]
    moments = second_moments(running.normed(layer["attention_norm"]))
    np.testing.assert_allclose(moments, normed.T @ normed / len(x), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        mean_squares(running.normed(layer["attention_norm"])), np.diag(moments), rtol=1e-4
    )
    # What o makes of its inputs is what the attention block adds.
    before = [stream.copy() for stream in running._streams]
    mixed = [part.copy() for part in running.attended(layer, None)]
    running.add_attention(layer, None)
    for old, new, inputs in zip(before, running._streams, mixed, strict=True):
        np.testing.assert_allclose(new - old, inputs @ layer["o"].T, atol=1e-4)
    before = [stream.copy() for stream in running._streams]
    gated = [part.copy() for part in running.gated(layer)]
    running.add_mlp(layer)
    for old, new, inputs in zip(before, running._streams, gated, strict=True):
        np.testing.assert_allclose(new - old, inputs @ layer["down"].T, atol=1e-4)


def test_divergence() -> None:
    random = np.random.default_rng(3)
    reference, other = random.standard_normal((2, 50, 20)).astype(np.float32)
    counted = Divergence()
    counted.add(reference[:20], other[:20])
    counted.add(reference[20:], other[20:])
    expected = kl_divergence(reference, other)
    assert counted.tokens == 50
    assert counted.mean == pytest.approx(float(expected.mean()))
    assert counted.median == pytest.approx(float(np.median(expected)))
    assert counted.percentile_99 == pytest.approx(float(np.percentile(expected, 99)))
    assert counted.agreement == (reference.argmax(1) == other.argmax(1)).mean()
    # Rows are compared some at a time, to the same bits as each by itself.
    single = Divergence()
    for one, two in zip(reference, other, strict=True):
        single.add(one[None], two[None])
    assert (single.values, single.agreeing) == (counted.values, counted.agreeing)
    same = Divergence()
    same.add(reference, reference)
    assert (same.mean, same.agreement) == (0, 1)
