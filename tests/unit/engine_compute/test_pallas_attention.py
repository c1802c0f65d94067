"""The GPU's attention, its kernel interpreted, against the CPU's over random caches, tables and windows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baseload.domain.model import EngineSpec
from baseload.engine.attention import attend_batch, attend_tiles
from baseload.engine.config import NO_WINDOW, ModelConfig, RopeConfig
from baseload.engine.kv_cache import CacheShape, empty, write
from baseload.engine.pallas_attention import attend_decode, attend_prompt
from baseload.engine.runner import Runner
from baseload.engine.spans import Span
from baseload.engine.steps import Mode
from baseload.engine.weights import random_params


def make(
    rng: np.random.Generator,
    *,
    dtype: str,
    kv_heads: int,
    dim: int,
    block_tokens: int,
    rows: int,
    int8: bool = False,
):
    """A cache full of numbers, and tables of blocks that no two rows share."""
    each = 640 // block_tokens
    shape = CacheShape(1, kv_heads, dim, rows * each, block_tokens, 640, dtype, int8)
    slots = jnp.arange(shape.array_shape[1], dtype=jnp.int32)
    numbers = [rng.standard_normal(shape.array_shape).astype(np.float32) for _ in range(2)]
    stored = [write(jax.tree.map(jnp.asarray, empty(shape)), slots, part.transpose(1, 0, 2)) for part in numbers]
    tables = np.full((rows, shape.table_blocks), shape.blocks, np.int32)
    tables[:, :each] = rng.permutation(rows * each).reshape(rows, each)
    return shape, *stored, jnp.asarray(tables)


CASES = [
    ("float32", False, 2, 2, 16, 16, NO_WINDOW, 1e-5),
    ("float32", False, 1, 1, 32, 1, 7, 1e-5),
    ("float32", True, 2, 2, 16, 16, NO_WINDOW, 1e-5),
    ("bfloat16", False, 2, 4, 64, 16, NO_WINDOW, 2e-2),
    ("bfloat16", False, 1, 3, 64, 32, 100, 2e-2),
    ("bfloat16", True, 1, 3, 64, 32, 100, 2e-2),
]


@pytest.mark.parametrize(("dtype", "int8", "kv_heads", "groups", "dim", "block_tokens", "window", "within"), CASES)
def test_decoding_agrees_with_the_walk_of_the_cpu(
    dtype: str, int8: bool, kv_heads: int, groups: int, dim: int, block_tokens: int, window: int, within: float
) -> None:
    rng = np.random.default_rng(groups)
    positions = np.array([0, 1, 63, 64, 300, 639], np.int32)
    shape, keys, values, tables = make(
        rng, dtype=dtype, kv_heads=kv_heads, dim=dim, block_tokens=block_tokens, rows=len(positions), int8=int8
    )
    q = jnp.asarray(rng.standard_normal((len(positions), kv_heads * groups, dim)), jnp.float32)
    at, span = jnp.asarray(positions), jnp.int32(window)
    ours = attend_decode(shape, q, keys, values, tables, at, span, interpret=True)
    theirs = attend_batch(shape, q, keys, values, tables, at, span)
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=within)
    lone = attend_decode(shape, q[2:3], keys, values, tables[2:3], at[2:3], span, interpret=True)
    assert np.array_equal(np.asarray(lone[0]), np.asarray(ours[2]))  # batch-mates change nothing


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("window", [NO_WINDOW, 50])
def test_prompts_agree_with_the_tiles_of_the_cpu(window: int, int8: bool) -> None:
    rng = np.random.default_rng(1)
    shape, keys, values, tables = make(rng, dtype="float32", kv_heads=2, dim=16, block_tokens=16, rows=1, int8=int8)
    positions = jnp.arange(200, 232, dtype=jnp.int32)
    q = jnp.asarray(rng.standard_normal((32, 4, 16)), jnp.float32)
    span = jnp.int32(window)
    ours = attend_prompt(shape, q, keys, values, tables[0], positions, span)
    tiles = attend_tiles(
        shape, q.reshape(2, 16, 4, 16), keys, values, tables[0], positions.reshape(2, 16), span, jnp.int32(2)
    )
    np.testing.assert_allclose(np.asarray(ours), np.asarray(tiles.reshape(q.shape)), atol=1e-5)


@pytest.mark.parametrize("int8", [False, True])
def test_the_kernel_lowers_for_a_gpu_that_is_not_here(int8: bool) -> None:
    shape = CacheShape(1, 8, 128, 150, 16, 2304, "bfloat16", int8)
    cache = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, empty(shape)))
    q = jax.ShapeDtypeStruct((2, 32, 128), jnp.float32)
    tables = jax.ShapeDtypeStruct((2, shape.table_blocks), jnp.int32)
    positions, window = jax.ShapeDtypeStruct((2,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    traced = jax.jit(partial(attend_decode, shape)).trace(q, cache, cache, tables, positions, window)
    assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(("dtype", "kv_dtype"), [("float32", "auto"), ("bfloat16", "auto"), ("float32", "int8")])
def test_the_runner_of_a_gpu_gives_the_tokens_of_the_cpu(dtype: str, kv_dtype: str) -> None:
    config = ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=64,
        hidden=64,
        intermediate=96,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        norm_eps=1e-5,
        max_context=128,
        rope=RopeConfig(),
        windows=(NO_WINDOW, 40),
        is_moe=(False, False),
    )
    params = random_params(config, 3, dtype, scale=0.2)
    spec = EngineSpec(max_seqs=2, max_step_tokens=32, kv_cache_bytes=1 << 20, kv_dtype=kv_dtype)
    there = Mode(dtype, whole=True, attention="interpret")
    runners = [Runner(config, params, spec=spec, dtype=dtype, mode=mode) for mode in (None, there)]
    prompts = [np.arange(40, dtype=np.int32) % 64, np.arange(7, dtype=np.int32)]
    blocks = [np.arange(8, dtype=np.int32), np.arange(8, 16, dtype=np.int32)]
    logits = []
    for runner in runners:
        got = [runner.run([Span(p, 0, b, True)]) for p, b in zip(prompts, blocks, strict=True)]
        spans = [Span(np.array([5], np.int32), len(p), b, True) for p, b in zip(prompts, blocks, strict=True)]
        logits.append(np.concatenate([*got, runner.run(spans), runner.run(spans)]))
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-4 if dtype == "float32" else 0.15)
    assert runners[1].programs.ready("decode-2-whole")


def test_a_gpu_takes_one_program_and_the_kernels_unless_bits_must_not_vary() -> None:
    assert Mode.choose("bfloat16", deterministic=False, platform="gpu") == Mode("bfloat16", 0, True, "pallas")
    assert Mode.choose("bfloat16", deterministic=True, platform="gpu") == Mode("bfloat16", 32, True, "walk")
    assert Mode.choose("float32", deterministic=False, platform="tpu") == Mode("float32", 0, True, "walk")
