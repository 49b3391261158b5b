"""The packed layout and rounding to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.errors import SpecError
from quant.qtensor import QuantSpec, pack
from quant.quantizers import relative_error, round_to_nearest

SPECS = [
    QuantSpec(bits, group, symmetric)
    for bits in (4, 8)
    for group in (32, 64, 128)
    for symmetric in (True, False)
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@given(rows=st.integers(1, 40), groups=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_unpacking_gives_the_codes_back(spec: QuantSpec, rows: int, groups: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 1 << spec.bits, (rows, groups * spec.group_size), np.uint8)
    scales = random.standard_normal((rows, groups)).astype(np.float16)
    minimums = None if spec.symmetric else random.standard_normal((rows, groups)).astype(np.float16)
    packed = pack(codes, scales, minimums, spec)
    assert packed.codes.shape[2] == 64
    np.testing.assert_array_equal(packed.unpack(), codes)
    wide = np.repeat(scales.astype(np.float32), spec.group_size, axis=1)
    low = 0 if minimums is None else np.repeat(minimums.astype(np.float32), spec.group_size, axis=1)
    expected = (codes.astype(np.float32) - spec.zero) * wide + low
    np.testing.assert_array_equal(packed.dequantize(), expected)


def test_a_line_holds_what_its_drawing_says() -> None:
    codes = np.zeros((16, 32), np.uint8)
    codes[3, 2], codes[3, 6] = 5, 9
    line = pack(codes, np.ones((16, 1), np.float16), None, QuantSpec(4, 32, True)).codes[0, 0]
    assert line[4 * 3 + 2] == 5 | 9 << 4
    assert np.count_nonzero(line) == 1
    codes = np.zeros((16, 32), np.uint8)
    codes[15, 5] = 200
    lines = pack(codes, np.ones((16, 1), np.float16), None, QuantSpec(8, 32, True)).codes[0]
    assert lines[1, 4 * 15 + 1] == 200


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_rounding_is_within_half_a_step_or_clipped_within_one(spec: QuantSpec) -> None:
    weights = np.random.default_rng(1).standard_normal((33, 256)).astype(np.float32)
    packed = round_to_nearest(weights, spec)
    steps = np.abs(packed._rows_of(packed.scales))
    clipped = spec.symmetric and spec.bits == 4
    # float16 scales and minimums move the ends of the range a little.
    assert (
        np.abs(packed.dequantize() - weights) <= steps * (1.01 if clipped else 0.51) + 2e-3
    ).all()
    assert relative_error(weights, packed) < (0.12 if spec.bits == 4 else 0.008)


def test_the_worked_example() -> None:
    weights = np.zeros((1, 32), np.float32)
    weights[0, :3] = -1, 0, 2
    packed = round_to_nearest(weights, QuantSpec(4, 32, symmetric=False))
    assert packed.unpack()[0, :3].tolist() == [0, 5, 15]


def test_all_zero_and_constant_groups() -> None:
    weights = np.zeros((2, 64), np.float32)
    weights[1, 32:] = 0.75
    for spec in (QuantSpec(4, 32, True), QuantSpec(4, 32, False), QuantSpec(8, 32, True)):
        packed = round_to_nearest(weights, spec)
        np.testing.assert_allclose(packed.dequantize(), weights, atol=1e-3)
        assert relative_error(np.zeros((2, 64), np.float32), packed) == 0


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e9])
def test_numbers_that_cannot_be_packed_are_refused(value: float) -> None:
    weights = np.zeros((1, 32), np.float32)
    weights[0, 7] = value
    with pytest.raises(SpecError, match=r"infinities|too large"):
        round_to_nearest(weights, QuantSpec(4, 32, True))


def test_what_does_not_fit_together_is_refused() -> None:
    halves = np.ones((1, 1), np.float16)
    codes = np.zeros((1, 32), np.uint8)
    with pytest.raises(SpecError, match="4 or 8 bits"):
        QuantSpec(bits=5)
    with pytest.raises(SpecError, match="32, 64 or 128"):
        QuantSpec(group_size=48)
    with pytest.raises(SpecError, match="do not divide"):
        pack(codes, halves, None, QuantSpec(4, 64, True))
    with pytest.raises(SpecError, match="does not fit into 4 bits"):
        pack(codes + 16, halves, None, QuantSpec(4, 32, True))
    with pytest.raises(SpecError, match="asymmetric"):
        pack(codes, halves, halves, QuantSpec(4, 32, True))


def test_bits_per_weight() -> None:
    assert QuantSpec(4, 32, True).bits_per_weight == 4.5
    assert QuantSpec(4, 64, False).bits_per_weight == 4.5
    assert QuantSpec(4, 128, True).bits_per_weight == 4.125
