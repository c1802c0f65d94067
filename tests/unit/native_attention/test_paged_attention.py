"""The attention kernels against float64, for every instruction set of this machine; and whose bits depend on what."""

import ctypes

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.engine.native import library
from baseload.engine.native.features import XLA

BF16, INT8 = 0.006, 0.012  # of the largest input: rounding of keys, values and weights

SHAPES = [
    {},
    {"heads": 4, "kv_heads": 4, "dim": 64, "norms": True},
    {"heads": 16, "kv_heads": 2, "dim": 64, "window": 100},
    {"heads": 8, "kv_heads": 1, "dim": 128, "block_tokens": 40},
    {"heads": 4, "kv_heads": 2, "dim": 8, "block_tokens": 5, "window": 8},
    {"heads": 6, "kv_heads": 2, "dim": 22, "block_tokens": 24, "norms": True, "window": 33},
]


def rows(shape, count, rng, scale=1.0):
    return (rng.standard_normal((count, shape.width)) * scale).astype(np.float32)


def tables(shape, sequences, tokens, rng):
    each = -(-tokens // shape.block_tokens)
    return np.split(rng.permutation(shape.blocks)[: sequences * each].astype(np.int32), sequences)


def in_pieces(kernel, sequences, blocks, rng, counts):
    """All sequences in steps of random sizes and order; what each row gave."""
    at, found = [0] * len(sequences), [[] for _ in sequences]
    while any(done < len(x) for done, x in zip(at, sequences, strict=True)):
        live = [i for i in rng.permutation(len(sequences)) if at[i] < len(sequences[i])]
        take = [min(int(rng.choice(counts)), len(sequences[i]) - at[i]) for i in live]
        items = [(sequences[i][at[i] : at[i] + n], at[i], blocks[i]) for i, n in zip(live, take, strict=True)]
        for i, n, out in zip(live, take, kernel.run(*items), strict=True):
            found[i].append(out)
            at[i] += n
    return [np.concatenate(parts) for parts in found]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("fields", SHAPES)
def test_prompts_equal_float64_and_pieces_equal_prompts_bit_by_bit(
    shape_type, kernel_of, in_float64, isa, fields, int8
):
    if isa == XLA and fields not in SHAPES[3:5]:
        pytest.skip("two shapes are enough for what is compiled so slowly")
    shape = shape_type(isa=isa, blocks=140, rows=300, int8=int8, **fields)
    rng = np.random.default_rng(1)
    sequences = [rows(shape, count, rng) for count in (140, 1, 67)]
    blocks = tables(shape, 3, 140, rng)
    whole = kernel_of(shape).run(*((x, 0, table) for x, table in zip(sequences, blocks, strict=True)))
    for x, out in zip(sequences, whole, strict=True):
        assert np.abs(out - in_float64(shape, x)).max() <= (INT8 if int8 else BF16) * np.abs(x).max()
    for out, again in zip(whole, in_pieces(kernel_of(shape), sequences, blocks, rng, [1, 1, 2, 7, 33]), strict=True):
        assert np.array_equal(out, again)


@pytest.mark.skipif(library.load() is None, reason="the kernels were not built")
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_shape_table_and_batch(shape_type, kernel_of, in_float64, seed):
    rng = np.random.default_rng(seed)
    kv_heads, groups = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    shape = shape_type(
        isa=str(rng.choice([*library.features().isas, "portable"])),
        heads=kv_heads * groups,
        kv_heads=kv_heads,
        dim=2 * int(rng.integers(1, 40)),
        block_tokens=int(rng.choice([1, 3, 16, 17, 32])),
        blocks=256,
        int8=bool(rng.integers(2)),
        window=int(rng.choice([1, 5, 64, 1 << 30])),
        norms=bool(rng.integers(2)),
    )
    count = int(rng.integers(1, 6))
    longest = min(80, shape.blocks // count * shape.block_tokens)
    sequences = [rows(shape, int(rng.integers(1, longest + 1)), rng, 10 ** rng.uniform(-2, 1)) for _ in range(count)]
    blocks = tables(shape, count, longest, rng)
    found = in_pieces(kernel_of(shape), sequences, blocks, rng, [1, 2, 19, 40])
    for x, out in zip(sequences, found, strict=True):
        expected = in_float64(shape, x)
        # Scores grow with the square of the input, and with them what rounding does to the weights.
        sharp = 1.0 if shape.norms else max(1.0, float(np.abs(x).max()) ** 2)
        assert np.abs(out - expected).max() <= (INT8 if shape.int8 else BF16) * np.abs(x).max() * sharp


@pytest.mark.parametrize("int8", [False, True])
def test_a_long_context_is_split_the_same_alone_and_in_company(shape_type, kernel_of, in_float64, isa, int8):
    if isa == XLA:
        pytest.skip("the twin does not split")
    shape = shape_type(isa=isa, heads=2, kv_heads=1, dim=32, blocks=100, rows=1500, int8=int8)
    rng = np.random.default_rng(2)
    x, mate = rows(shape, 1301, rng), rows(shape, 200, rng)
    blocks = tables(shape, 1, 1301, rng)[0]
    free = np.setdiff1d(np.arange(shape.blocks, dtype=np.int32), blocks)
    alone, company = kernel_of(shape), kernel_of(shape)
    alone.run((x[:1300], 0, blocks))
    company.run((x[:1300], 0, blocks))
    one = alone.run((x[1300:], 1300, blocks))[0]
    many = company.run((mate[:150], 0, free), (x[1300:], 1300, blocks))[1]
    assert np.array_equal(one, many)
    assert np.abs(one - in_float64(shape, x)[1300:]).max() <= (INT8 if int8 else BF16) * np.abs(x).max()


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.4e38])
def test_what_is_not_finite_does_not_reach_neighbours(shape_type, kernel_of, isa, int8, bad):
    if isa == XLA and bad not in (np.nan, np.inf):
        pytest.skip("the twin rounds the largest numbers to infinity")
    shape = shape_type(isa=isa, int8=int8)
    rng = np.random.default_rng(3)
    x, broken = rows(shape, 60, rng), rows(shape, 60, rng)
    broken[7, :: shape.dim] = bad
    broken[20] = bad
    first, second = tables(shape, 2, 60, rng)
    clean = kernel_of(shape).run((x, 0, first))[0]
    kernel = kernel_of(shape)
    sick, well = kernel.run((broken, 0, second), (x, 0, first))
    assert np.array_equal(well, clean)
    # Rows of the broken sequence itself: those that only look back at what was broken still are numbers.
    rest = np.setdiff1d(np.arange(60), [7, 20])
    assert np.isfinite(sick[rest]).all() or bad == 3.4e38  # scores of such keys may overflow
    # The blocks of the broken sequence, used again by another, hold nothing that could hurt it.
    again = kernel.run((x, 0, second))[0]
    assert np.array_equal(again, clean)


def test_a_cached_prefix_is_read_not_written(shape_type, kernel_of, isa):
    shape = shape_type(isa=isa)
    rng = np.random.default_rng(4)
    x = rows(shape, 50, rng)
    first, second = tables(shape, 2, 64, rng)
    kernel = kernel_of(shape)
    whole = kernel.run((x, 0, first))[0]
    shared = np.concatenate([first[:2], second[2:]])
    tail = kernel.run((x[32:], 32, shared))[0]
    assert np.array_equal(whole[32:], tail)
    assert np.array_equal(kernel.run((x[49:], 49, first))[0], whole[49:])


def test_8_bits_mean_the_same_to_the_twin_as_to_the_reference(shape_type, kernel_of):
    """Half the error of 8 bits against float64 is shared: the codes and scales are the same ones."""
    if library.load() is None:
        pytest.skip("the kernels were not built")
    rng = np.random.default_rng(6)
    fields = {"heads": 4, "kv_heads": 2, "dim": 64, "norms": True}
    twin, ours, plain = (
        shape_type(isa=isa, int8=int8, **fields)
        for isa, int8 in ((XLA, True), ("portable", True), ("portable", False))
    )
    x = rows(twin, 70, rng)
    table = tables(twin, 1, 70, rng)[0]
    found, expected, exact = (kernel_of(shape).run((x, 0, table))[0] for shape in (twin, ours, plain))
    assert np.abs(found - expected).mean() < 0.5 * np.abs(exact - expected).mean()


@pytest.mark.skipif(library.load() is None, reason="the kernels were not built")
@pytest.mark.parametrize("int8", [0, 1])
def test_more_work_takes_more_time_when_attention_is_measured_alone(int8):
    call = library.load().c.bl_attention_speed
    call.restype = ctypes.c_double
    call.argtypes = [ctypes.c_char_p, *[ctypes.c_int64] * 3, ctypes.c_int32, *[ctypes.c_int64] * 4]
    isa = library.features().isas[0].encode() if library.features().isas else b"portable"
    little, much = (call(isa, 4, 2, 64, int8, 1, rows, 64, 3) for rows in (1, 512))
    assert 0 < little < much


@pytest.mark.skipif(library.load() is None, reason="the kernels were not built")
def test_spans_outside_of_the_step_are_refused(shape_type, kernel_of):
    shape = shape_type(isa="portable", rows=8)
    kernel = kernel_of(shape)
    x = rows(shape, 4, np.random.default_rng(5))
    with pytest.raises(jax.errors.JaxRuntimeError, match="a span lies outside"):
        kernel.run((x, shape.blocks * shape.block_tokens, np.zeros(1, np.int32)))
