"""Every instruction set's products against the twin in plain JAX, over random and ragged shapes and values."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baseload.engine.native import matmul, packing
from baseload.engine.native.library import Library
from baseload.engine.native.limits import Alone, Limits
from baseload.engine.native.matmul import Weight, weight_of
from baseload.engine.native.packing import Packed

SCHEMES = ("w8", "w4", "bf16")
EPS = 1e-5


@pytest.fixture(params=["portable", "emulated", "avx2", "avxvnni", "avx512vnni", "avx512", "amx"])
def isa(request: pytest.FixtureRequest, library: Library) -> str:
    if request.param not in ("portable", "emulated", *library.features.isas):
        pytest.skip(f"this processor has no {request.param}")
    return request.param


def pack(scheme: str, weight: np.ndarray, group: int = 32) -> Packed:
    if scheme == "w8":
        return packing.quantize_w8(weight)
    return packing.quantize_w4(weight, group) if scheme == "w4" else packing.pack_bf16(weight)


def whole(rng: np.random.Generator, rows: int, k: int) -> np.ndarray:
    """Rows that quantize to themselves: integers whose largest is 127."""
    x = rng.integers(-127, 128, (rows, k)).astype(np.float32)
    x[:, rng.integers(0, k)] = 127
    return x


def close(scheme: str, ours: np.ndarray, twin: np.ndarray, k: int) -> None:
    """Integers agree to rounding; bfloat16 products differ by the order of their sums, rounding by one code."""
    assert ours.shape == twin.shape
    if not ours.size:
        return
    scale = np.sqrt(np.mean(np.square(np.where(np.isfinite(twin), twin, 0)))) + 1e-6
    np.testing.assert_allclose(
        ours, twin, rtol=1e-5, atol=float(scale) * (2e-5 if scheme != "bf16" else 5e-5 * k**0.5)
    )


def exact(packed: Packed, x: np.ndarray) -> np.ndarray:
    """The product in float64, of rows that quantize to themselves."""
    return x.astype(np.float64) @ packing.dequantize(packed).astype(np.float64).T


@pytest.mark.parametrize("scheme", SCHEMES)
def test_products_of_whole_numbers_are_exact(isa: str, scheme: str, library: Library) -> None:
    rng = np.random.default_rng(0)
    for turn in range(12):
        n, k = int(rng.integers(1, 90)), int(rng.integers(1, 300))
        packed = pack(scheme, rng.normal(size=(n, k)), group=(32, 64, 128)[turn % 3])
        alone = Alone(library, isa, packed)
        for rows in (0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 16, 17, 31, 32, 33, 50):
            x = whole(rng, rows, k)
            close(scheme, alone.product(x), exact(packed, x), k)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_rows_bits_do_not_depend_on_its_batch(isa: str, scheme: str, library: Library) -> None:
    rng = np.random.default_rng(3)
    alone = Alone(library, isa, pack(scheme, rng.normal(size=(80, 320))))
    x = rng.normal(size=(130, 320)).astype(np.float32)
    singly = np.concatenate([alone.product(x[i : i + 1], eps=EPS) for i in range(130)])
    for rows in (2, 3, 7, 12, 13, 31, 64, 97, 130):
        np.testing.assert_array_equal(alone.product(x[:rows], eps=EPS), singly[:rows])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_twin_is_the_same_product(scheme: str, library: Library) -> None:
    rng = np.random.default_rng(1)
    packed = pack(scheme, rng.normal(size=(37, 250)), group=64)
    x = whole(rng, 9, 250)
    twin = matmul.norm_matmul(jnp.asarray(x), jnp.asarray(packed.data), weight_of(packed, 0), isa="xla")
    close(scheme, np.asarray(twin), exact(packed, x), 250)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_norm_residual_and_picked_rows(isa: str, scheme: str) -> None:
    rng = np.random.default_rng(4)
    packed = pack(scheme, rng.normal(size=(50, 200)))
    blob, at = matmul.join([packed, rng.normal(size=200)])
    weight, blob = weight_of(packed, at[0], norm=at[1]), jnp.asarray(blob)
    x = jnp.asarray(rng.normal(size=(20, 200)).astype(np.float32) * 7)
    residual = jnp.asarray(rng.normal(size=(20, 50)).astype(np.float32))
    pick, active = jnp.asarray([19, 0, 0, 7, 3]), jnp.asarray(3)
    for rows, function in (
        (20, partial(matmul.norm_matmul, x, blob, weight, eps=EPS)),
        (3, partial(matmul.norm_matmul, x, blob, weight, eps=EPS, rows=pick, active=active)),
        (20, partial(matmul.matmul_residual, x, residual, blob, weight)),
        (11, partial(matmul.matmul_residual, x, residual, blob, weight, active=jnp.asarray(11))),
    ):
        ours, twin = (np.asarray(jax.jit(partial(function, isa=one))())[:rows] for one in (isa, "xla"))
        # A value that lies between two codes may fall to either side: one code of 127 in one of 200 products.
        np.testing.assert_allclose(ours, twin, atol=0.02 * np.std(twin) + 1e-6)
        assert np.mean(np.abs(ours - twin)) < 2e-3 * np.std(twin) + 1e-7


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("intermediate", [1, 40])
def test_gate_and_up_end_in_their_product(isa: str, scheme: str, intermediate: int) -> None:
    rng = np.random.default_rng(5)
    mixed = packing.interleave_gate_up(rng.normal(size=(2 * intermediate, 96)).astype(np.float32), intermediate)
    packed = pack(scheme, mixed * 0.2)
    bias = packing.interleave_gate_up(rng.normal(size=2 * intermediate).astype(np.float32), intermediate)
    blob, at = matmul.join([packed, bias])
    weight, blob = weight_of(packed, at[0], bias=at[1]), jnp.asarray(blob)
    for rows in (1, 40):
        x = jnp.asarray(rng.normal(size=(rows, 96)).astype(np.float32))
        call = partial(matmul.norm_gate_up, x, blob, weight, intermediate=intermediate, eps=EPS)
        ours, twin = (np.asarray(call(isa=one)) for one in (isa, "xla"))
        np.testing.assert_allclose(ours, twin, atol=0.03 * np.std(twin) + 1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_experts_take_their_own_rows(isa: str, scheme: str) -> None:
    rng = np.random.default_rng(6)
    experts = [pack(scheme, rng.normal(size=(64, 128))) for _ in range(5)]
    blob, at = matmul.join(list(experts))
    weight, blob = weight_of(experts[0], at[0], experts=5), jnp.asarray(blob)
    x = jnp.asarray(whole(rng, 9, 128))
    pick = jnp.asarray(rng.integers(0, 9, 24))
    for offsets in ([0, 0, 7, 7, 20, 24], [0, 24, 24, 24, 24, 24], [2, 3, 3, 9, 9, 21]):
        where = jnp.asarray(offsets)
        for call in (
            partial(matmul.expert_gate_up, x * 0.02, pick, where, blob, weight, intermediate=32),
            partial(matmul.expert_matmul, x, where, blob, weight, pick=pick),
        ):
            ours, twin = (
                np.asarray(jax.jit(partial(call, isa=one))())[offsets[0] : offsets[-1]] for one in (isa, "xla")
            )
            np.testing.assert_allclose(ours, twin, rtol=1e-4, atol=0.02 * np.std(twin))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_broken_row_breaks_nothing_but_itself(isa: str, scheme: str) -> None:
    rng = np.random.default_rng(7)
    packed = pack(scheme, rng.normal(size=(33, 100)))
    blob = jnp.asarray(matmul.join([packed])[0])
    x = rng.normal(size=(15, 100)).astype(np.float32)
    good = np.asarray(matmul.norm_matmul(jnp.asarray(x), blob, weight_of(packed, 0), isa=isa))
    x[2, 5], x[4, 99], x[6, 0] = np.nan, np.inf, -np.inf
    ours = np.asarray(matmul.norm_matmul(jnp.asarray(x), blob, weight_of(packed, 0), isa=isa))
    broken = [2, 4, 6]
    assert not np.isfinite(ours[broken]).any()
    kept = [row for row in range(15) if row not in broken]
    np.testing.assert_array_equal(ours[kept], good[kept])


@pytest.mark.parametrize("scheme", ["w8", "w4"])
def test_extreme_values(isa: str, scheme: str) -> None:
    packed = pack(scheme, np.full((20, 4096), 1.0, np.float32))
    blob = jnp.asarray(matmul.join([packed])[0])
    rows = np.ones((6, 4096), np.float32)
    rows *= np.asarray([1, -1, 0, 1e-38, 1e30, -1e25], np.float32)[:, None]
    ours, twin = (
        np.asarray(matmul.norm_matmul(jnp.asarray(rows), blob, weight_of(packed, 0), isa=one)) for one in (isa, "xla")
    )
    np.testing.assert_allclose(ours, twin, rtol=1e-6)
    np.testing.assert_allclose(ours[:, 0], [4096, -4096, 0, 0, 4.096e33, -4.096e28], rtol=1e-4)


def test_limits_are_measured(library: Library) -> None:
    limits = Limits(library, read_bytes=32 << 20)
    assert limits.bandwidth_gb_s(rounds=1) > 0.1
    assert limits.int8_tops() > 0.001
    assert limits.bf16_tflops() > 0.001


def test_rows_unpack_to_what_they_stand_for(library: Library) -> None:
    rng = np.random.default_rng(8)
    for scheme in SCHEMES:
        packed = pack(scheme, rng.normal(size=(70, 90)))
        blob = jnp.asarray(matmul.join([packed])[0])
        tokens = jnp.asarray([0, 69, 33, 33, 16])
        expected = packing.dequantize(packed)[np.asarray(tokens)]
        for isa in ("avx2", "xla"):
            np.testing.assert_array_equal(matmul.unpack_rows(tokens, blob, weight_of(packed, 0), isa=isa), expected)


def test_what_lies_outside_is_refused(library: Library) -> None:
    packed = pack("w8", np.ones((16, 64), np.float32))
    blob, x = jnp.asarray(packed.data), jnp.ones((2, 64))
    weight = weight_of(packed, 0)
    for bad, why in (
        (weight_of(packed, 64), "outside of their buffer"),
        (Weight("w8", 16, 64, 0, norm=1 << 20), "outside of its buffer"),
        (Weight("w8", 16, 60, 0), "not"),
    ):
        with pytest.raises(Exception, match=why):
            jax.block_until_ready(matmul.norm_matmul(x, blob, bad, isa="portable", eps=EPS))
    with pytest.raises(Exception, match="picked row"):
        jax.block_until_ready(matmul.norm_matmul(x, blob, weight, isa="portable", rows=jnp.asarray([2])))


def test_a_mapped_file_is_not_copied(library: Library, tmp_path) -> None:
    packed = pack("w8", np.random.default_rng(9).normal(size=(64, 64)))
    path = tmp_path / "weights"
    packed.data.tofile(path)
    mapped = np.memmap(path, np.uint8, mode="r")
    array = jax.device_put(mapped, may_alias=True)
    assert array.unsafe_buffer_pointer() == mapped.ctypes.data
    np.testing.assert_array_equal(matmul.device_bytes(path), packed.data)
