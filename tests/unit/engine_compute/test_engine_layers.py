"""What invariance rests on: within a tile, a row's place and its neighbours do not change its bits."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from baseload.engine.config import NO_WINDOW, ModelConfig, RopeConfig
from baseload.engine.kv_cache import write
from baseload.engine.layers import map_rows
from baseload.engine.rope import RopeTable
from baseload.engine.steps import Mode


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 50), (1024, 1024), (3328, 256), (8192, 64), (64, 4096)])
def test_a_row_has_the_same_bits_anywhere_in_a_tile(dtype, inputs, outputs):
    mode = Mode.choose(dtype, deterministic=True)
    rng = np.random.default_rng(0)
    shape = (inputs, outputs) if mode.in_out else (outputs, inputs)
    weight = rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    rows = rng.standard_normal((4 * mode.tile_rows, inputs), np.float32)
    apply = jax.jit(lambda x, w, n: map_rows(mode.tile_rows, n, lambda tile: mode.dot(tile, w, None), x))
    expected = np.asarray(apply(rows, weight, np.int32(rows.shape[0])))
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(rows.shape[0])
        found = np.asarray(apply(rows[order], weight, np.int32(rows.shape[0])))
        assert np.array_equal(found, expected[order])
    lonely = np.zeros_like(rows)
    lonely[5] = rows[9]
    assert np.array_equal(np.asarray(apply(lonely, weight, np.int32(6)))[5], expected[9])


def test_only_active_tiles_are_computed():
    x = np.ones((64, 3), np.float32)
    found = np.asarray(jax.jit(lambda x, n: map_rows(16, n, lambda tile: tile + 1, x))(x, np.int32(17)))
    assert (found[:32] == 2).all()
    assert (found[32:] == 0).all()


@pytest.mark.parametrize("storage", [jnp.uint16, jnp.float32])
def test_what_is_not_finite_does_not_reach_the_cache(storage):
    rows = np.full((2, 1, 4), 3.0, np.float32)
    rows[0, 0, 1:] = np.nan, np.inf, -np.inf
    cache = np.asarray(jax.jit(write)(jnp.ones((1, 8, 4), storage), np.array([2, 5], np.int32), rows))
    found = cache.view(ml_dtypes.bfloat16).astype(np.float32) if storage == jnp.uint16 else cache
    assert found[0, 2].tolist() == [3, 0, 0, 0]
    assert found[0, 5].tolist() == [3, 3, 3, 3]
    assert (cache[0, [0, 1, 3, 4, 6, 7]] == 1).all()


def test_angles_do_not_depend_on_what_else_is_asked_for():
    config = ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=8,
        hidden=8,
        intermediate=8,
        layers=1,
        heads=1,
        kv_heads=1,
        head_dim=8,
        norm_eps=1e-5,
        max_context=1 << 17,
        rope=RopeConfig(theta=5e5),
        windows=(NO_WINDOW,),
        is_moe=(False,),
    )
    table, fresh = RopeTable(config), RopeTable(config)
    table.at(np.array([5], np.int32))
    for positions in ([100_000], [1023, 1024, 1025], [7, 100_000]):
        for found, again in zip(table.at(np.array(positions)), fresh.at(np.array(positions[::-1])), strict=True):
            assert np.array_equal(found, again[::-1])
