"""Levels keep within the integers of the layout, and are at least as near as the plain ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.engine.native.packing import dequantize, pack_w4, pack_w8, quantize_w4
from baseload.engine.quantize.levels import choose_w4, choose_w8


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 150),
    group=st.sampled_from([32, 64, 128]),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_four_bits_fit_the_layout_whatever_the_weights(
    rows: int, columns: int, group: int, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(2, (rows, columns)) * scale).astype(np.float32)
    weight[rng.random(weight.shape) < 0.1] = 0
    levels = choose_w4(weight, rng.random(columns).astype(np.float32), group)
    codes = levels.nearest(weight)
    packed = pack_w4(
        codes.astype(np.uint8), levels.step.astype(np.uint8), levels.offset, levels.scale, group=group
    )  # raises where an integer does not fit
    assert np.array_equal(dequantize(packed), levels.restore(codes))
    assert np.max(np.abs(levels.restore(codes) - weight)) <= 0.5 * np.max(np.abs(weight))


@pytest.mark.parametrize("fill", [0.0, 1.0, -3.5])
def test_constant_rows_are_kept(fill: float) -> None:
    weight = np.full((3, 70), fill, np.float32)
    ones = np.ones(70, np.float32)
    for levels in (choose_w4(weight, ones, 32), choose_w8(weight, ones)):
        assert np.allclose(levels.restore(levels.nearest(weight)), weight, atol=abs(fill) * 0.01)


def test_searched_steps_are_nearer_than_plain_ones() -> None:
    weight = np.random.default_rng(1).standard_t(4, (64, 256)).astype(np.float32)
    levels = choose_w4(weight, np.ones(256, np.float32), 32)
    searched = np.mean(np.square(levels.restore(levels.nearest(weight)) - weight))
    plain = np.mean(np.square(dequantize(quantize_w4(weight, 32)) - weight))
    assert searched < 0.97 * plain


def test_eight_bits_round_trip_through_the_packed_form() -> None:
    weight = np.random.default_rng(2).normal(size=(33, 100)).astype(np.float32)
    levels = choose_w8(weight, np.ones(100, np.float32))
    codes = levels.nearest(weight)
    assert np.array_equal(dequantize(pack_w8(codes.astype(np.int8), levels.scale)), levels.restore(codes))
    assert np.max(np.abs(levels.restore(codes) - weight) / np.max(np.abs(weight), axis=1, keepdims=True)) < 0.21
