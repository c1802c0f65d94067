"""Packing and its inverse, over shapes that fit the panels and shapes that do not."""

import numpy as np
import pytest

from baseload.engine.native import packing
from baseload.engine.native.packing import Packed

SHAPES = [(1, 1), (16, 64), (17, 65), (48, 192), (5, 200), (33, 31), (0, 64)]


def weights(n: int, k: int) -> np.ndarray:
    return np.random.default_rng(n * 1000 + k).normal(size=(n, k)).astype(np.float32)


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_w8_comes_back_as_it_was(n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (n, k)).astype(np.int8)
    scale = rng.random(n).astype(np.float32)
    packed = packing.pack_w8(codes, scale)
    assert packed.data.nbytes == packing.packed_bytes("w8", n, k)
    assert packed.data.nbytes % 64 == 0
    back = packing.unpack_w8(packed)
    np.testing.assert_array_equal(back[0], codes)
    np.testing.assert_array_equal(back[1], scale)


@pytest.mark.parametrize("group", packing.GROUPS)
@pytest.mark.parametrize(("n", "k"), [(1, 256), (17, 300), (48, 512), (16, 1024)])
def test_w4_comes_back_as_it_was(n: int, k: int, group: int) -> None:
    rng = np.random.default_rng(1)
    groups = -(-k // group)
    codes = rng.integers(0, 16, (n, k)).astype(np.uint8)
    step = rng.integers(0, 17, (n, groups)).astype(np.uint8)
    offset = rng.integers(-128, 128 - 15 * step.astype(np.int16)).astype(np.int16)
    packed = packing.pack_w4(codes, step, offset, np.ones(n, np.float32))
    assert packed.group == group
    back = packing.unpack_w4(packed)
    for one, other in zip(back[:3], (codes, step, offset), strict=True):
        np.testing.assert_array_equal(one, other)


def test_w4_refuses_integers_that_do_not_fit() -> None:
    codes = np.full((1, 32), 15, np.uint8)
    one = np.ones((1, 1), np.uint8)
    with pytest.raises(ValueError, match="127"):
        packing.pack_w4(codes, one * 17, np.zeros((1, 1), np.int16), np.ones(1, np.float32))
    with pytest.raises(ValueError, match="steps"):
        packing.pack_w4(codes * 0, one * 18, np.zeros((1, 1), np.int16), np.ones(1, np.float32))


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_bf16_comes_back_rounded(n: int, k: int) -> None:
    weight = weights(n, k)
    packed = packing.pack_bf16(weight)
    back = packing.dequantize(packed)
    np.testing.assert_array_equal(packing.pack_bf16(back).data, packed.data)
    np.testing.assert_allclose(back, weight, rtol=2**-8)


@pytest.mark.parametrize(("quantize", "most"), [(packing.quantize_w8, 0.0001), (packing.quantize_w4, 0.012)])
def test_quantized_weights_are_near(quantize, most: float) -> None:
    weight = weights(40, 320)
    packed: Packed = quantize(weight)
    error = np.mean((packing.dequantize(packed) - weight) ** 2) / np.mean(weight**2)
    assert error < most


def test_one_layout_is_what_the_page_says() -> None:
    codes = np.arange(-64, 64, dtype=np.int8).repeat(16).reshape(128, 16).T.copy()  # [16, 128]: value = k − 64
    codes += np.arange(16, dtype=np.int8)[:, None]
    stored = packing.pack_w8(codes, np.ones(16, np.float32)).part("codes").reshape(1, 32, 16, 4)
    assert stored[0, 3, 5, 2] == 128 + (4 * 3 + 2 - 64) + 5


@pytest.mark.parametrize("intermediate", [1, 16, 40])
def test_gate_and_up_alternate_by_panels(intermediate: int) -> None:
    stacked = np.arange(2 * intermediate * 3).reshape(2 * intermediate, 3) + 1
    mixed = packing.interleave_gate_up(stacked, intermediate)
    assert mixed.shape[0] % 32 == 0
    np.testing.assert_array_equal(mixed[0], stacked[0])
    np.testing.assert_array_equal(mixed[16], stacked[intermediate])
    np.testing.assert_array_equal(packing.split_gate_up(mixed, intermediate), stacked)
