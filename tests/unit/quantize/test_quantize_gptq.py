"""Rounding with compensation: never worse than to the nearest where inputs hang together."""

import numpy as np
import pytest

from baseload.engine.quantize.gptq import compensate, inverse_factor, realigned
from baseload.engine.quantize.levels import choose_w4, choose_w8


def problem(seed: int, *, rows: int = 48, columns: int = 96, tokens: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and inputs whose channels are correlated and of unlike size."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(columns, columns)) * np.exp(rng.normal(size=columns))
    inputs = (rng.normal(size=(tokens, columns)) @ mix).astype(np.float32)
    return rng.standard_t(5, (rows, columns)).astype(np.float32), inputs


def output_error(weight: np.ndarray, other: np.ndarray, inputs: np.ndarray) -> float:
    return float(np.mean(np.square(inputs @ (weight - other).T)))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_compensated_rounding_beats_rounding_to_nearest(bits: int, seed: int) -> None:
    weight, inputs = problem(seed)
    hessian = inputs.T @ inputs
    ones = np.ones(weight.shape[1], np.float32)
    plain = choose_w4(weight, ones, 32) if bits == 4 else choose_w8(weight, ones)
    nearest = output_error(weight, plain.restore(plain.nearest(weight)), inputs)
    importance = np.diag(hessian).astype(np.float32)
    levels = choose_w4(weight, importance, 32) if bits == 4 else choose_w8(weight, importance)
    codes = compensate(weight, *inverse_factor(hessian, 0.01), levels)
    assert np.all((codes >= levels.low.min()) & (codes <= levels.high.max()))
    fresh = problem(seed)[1][::-1] + 0.0
    assert output_error(weight, levels.restore(codes), fresh) < 0.5 * nearest


def test_inputs_that_do_not_hang_together_give_the_nearest_codes() -> None:
    weight, _ = problem(3)
    levels = choose_w8(weight, np.ones(96, np.float32))
    codes = compensate(weight, *inverse_factor(np.eye(96), 0.01), levels)
    assert np.array_equal(codes, levels.nearest(weight))


@pytest.mark.parametrize("hessian", [np.zeros((96, 96)), np.ones((96, 96)), np.diag(np.arange(96.0) ** 8)])
def test_degenerate_inputs_give_finite_codes(hessian: np.ndarray) -> None:
    weight, _ = problem(4)
    levels = choose_w4(weight, np.ones(96, np.float32), 32)
    restored = levels.restore(compensate(weight, *inverse_factor(hessian, 0.01), levels))
    assert np.all(np.isfinite(restored))
    assert np.max(np.abs(restored)) <= 1.1 * np.max(np.abs(weight))


def test_realigned_weights_make_good_what_the_inputs_lost() -> None:
    weight, inputs = problem(5)
    rng = np.random.default_rng(0)
    seen = (inputs * 0.9 + 0.02 * rng.normal(size=inputs.shape) * inputs.std()).astype(np.float32)
    cross = (inputs @ weight.T - seen @ weight.T).T.astype(np.float64) @ seen
    better = realigned(weight, cross.astype(np.float32), seen.T @ seen, 1e-3)
    before = np.mean(np.square(inputs @ weight.T - seen @ weight.T))
    after = np.mean(np.square(inputs @ weight.T - seen @ better.T))
    assert after < 0.5 * before
