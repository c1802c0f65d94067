"""Attention over the paged cache on a GPU: decoding by a Pallas kernel, prompts by one masked product.

XLA alone walks the cache in a loop whose length it learns on the device, and asks the host before each round; so one
row's attention costs more in waiting than in reading. The kernel gives each (row, head of the cache, part of the
context) a program of its own that follows the block table, and joins the parts after it: flash decoding (Dao et al.
2023) with the online softmax of `attention.py`. The same mathematics, not the same bits.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from baseload.engine.kv_cache import CacheShape, Kept, gather

_HIDDEN = -1e30
_LEAST_ROWS = 16  # of a product on tensor cores; the queries of one head group are padded to it
_CHUNK_TOKENS = 64  # keys in one product
_SPLIT_TOKENS = 256  # context of one program, unless that makes more than _MOST_SPLITS
_MOST_SPLITS = 16


def attend_decode(
    shape: CacheShape,
    q: jax.Array,
    keys: Kept,
    values: Kept,
    tables: jax.Array,
    positions: jax.Array,
    window: jax.Array,
    *,
    interpret: bool = False,
) -> jax.Array:
    """One row per sequence: q[rows, heads, head_dim] at positions[rows], tables[rows, blocks] -> the same shape.

    Position p of a row sees positions max(0, p - window + 1) … p. `interpret` runs the kernel's steps without a GPU.
    """
    rows, heads, dim = q.shape
    groups = heads // shape.kv_heads
    padded = max(_LEAST_ROWS, pl.next_power_of_2(groups))
    tokens = tables.shape[1] * shape.block_tokens
    splits = max(1, min(_MOST_SPLITS, tokens // _SPLIT_TOKENS))
    span = _round_up(pl.cdiv(tokens, splits), _CHUNK_TOKENS)
    scaled = (q * dim**-0.5).astype(shape.compute).reshape(rows, shape.kv_heads, groups, dim)
    scaled = jnp.pad(scaled, ((0, 0), (0, 0), (0, padded - groups), (0, 0)))
    parts = (rows, shape.kv_heads, splits, padded)
    kept = jax.tree.leaves((keys, values))  # with 8 bits: codes and scales of keys, codes and scales of values
    mixed, top, total = pl.pallas_call(
        partial(_part, span=span, block_tokens=shape.block_tokens),
        grid=(rows, shape.kv_heads, splits),
        in_specs=[
            pl.BlockSpec((None, None, padded, dim), lambda row, head, _: (row, head, 0, 0)),
            *(_of_head(array) for array in kept),
            pl.BlockSpec((None, tables.shape[1]), lambda row, _, __: (row, 0)),
            pl.BlockSpec((1,), lambda row, _, __: (row,)),
            pl.BlockSpec((1,), lambda _, __, ___: (0,)),
        ],
        out_specs=[
            pl.BlockSpec((None, None, None, padded, dim), lambda row, head, split: (row, head, split, 0, 0)),
            pl.BlockSpec((None, None, None, padded), lambda row, head, split: (row, head, split, 0)),
            pl.BlockSpec((None, None, None, padded), lambda row, head, split: (row, head, split, 0)),
        ],
        out_shape=[
            _floats(*parts, dim),
            _floats(*parts),
            _floats(*parts),
        ],
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
    )(scaled, *kept, tables, positions, window.reshape(1))
    share = jnp.exp(top - jnp.max(top, axis=2, keepdims=True))  # of a part that saw nothing: 0, its sum is 0 as well
    out = jnp.sum(mixed * share[..., None], axis=2) / jnp.sum(total * share, axis=2)[..., None]
    return out[:, :, :groups].reshape(rows, heads, dim)


def _of_head(array: jax.Array) -> Any:
    """All slots of one head of the cache."""
    rest = array.ndim - 1
    return pl.BlockSpec((None, *array.shape[1:]), lambda _, head, __: (head, *(0,) * rest))


def _part(*refs: Any, span: int, block_tokens: int) -> None:
    """One part of one row's context for the queries of one head of the cache: q[groups, dim]."""
    q_ref, *kept, table_ref, position_ref, window_ref, mixed_ref, top_ref, total_ref = refs
    keys_ref, values_ref = kept[0], kept[len(kept) // 2]
    of_keys, of_values = (kept[1], kept[3]) if len(kept) == 4 else (None, None)
    q, position, split = q_ref[...], position_ref[0], pl.program_id(2)
    first = jnp.maximum(position - window_ref[0] + 1, 0)
    begin = jnp.maximum(split * span, first // _CHUNK_TOKENS * _CHUNK_TOKENS)
    end = jnp.minimum((split + 1) * span, position + 1)
    most = table_ref.shape[0] - 1

    def chunk(index: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        top, total, mixed = state
        at = begin + index * _CHUNK_TOKENS + jnp.arange(_CHUNK_TOKENS, dtype=jnp.int32)
        slots = table_ref[jnp.minimum(at // block_tokens, most)] * block_tokens + at % block_tokens
        k, v = _numbers(keys_ref[slots], q.dtype), _numbers(values_ref[slots], q.dtype)
        seen = ((at >= first) & (at < end))[None, :]
        scores = lax.dot_general(q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        if of_keys is not None:
            scores = scores * of_keys[slots][None, :]
        scores = jnp.where(seen, scores, _HIDDEN)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.where(seen, jnp.exp(scores - new_top[:, None]), 0.0)
        keep = jnp.exp(top - new_top)
        scaled = weights if of_values is None else weights * of_values[slots][None, :]
        gained = lax.dot_general(
            scaled.astype(v.dtype), v, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        return new_top, total * keep + jnp.sum(weights, axis=1), mixed * keep[:, None] + gained

    rows, dim = q.shape
    start = (jnp.full(rows, _HIDDEN, jnp.float32), jnp.zeros(rows, jnp.float32), jnp.zeros((rows, dim), jnp.float32))
    chunks = jnp.maximum(end - begin + _CHUNK_TOKENS - 1, 0) // _CHUNK_TOKENS
    top, total, mixed = lax.fori_loop(0, chunks, chunk, start)
    mixed_ref[...], top_ref[...], total_ref[...] = mixed, top, total


def attend_prompt(
    shape: CacheShape,
    q: jax.Array,
    keys: Kept,
    values: Kept,
    table: jax.Array,
    positions: jax.Array,
    window: jax.Array,
) -> jax.Array:
    """Rows of one sequence: q[rows, heads, head_dim] at positions[rows], table[blocks] -> the same shape.

    All of the table's tokens at once: right where there are thousands of units to fill, and memory for the scores.
    """
    rows, heads, dim = q.shape
    groups = heads // shape.kv_heads
    (k, of_keys), (v, of_values) = (
        gather(shape, cache, table) for cache in (keys, values)
    )  # [kv_heads, tokens, dim]
    grouped = (q * dim**-0.5).astype(k.dtype).reshape(rows, shape.kv_heads, groups, dim)
    grouped = grouped.transpose(1, 2, 0, 3).reshape(shape.kv_heads, groups * rows, dim)
    scores = lax.dot_general(grouped, k, (((2,), (2,)), ((0,), (0,))), preferred_element_type=jnp.float32)
    if of_keys is not None:
        scores = scores * of_keys[:, None, :]
    distance = jnp.tile(positions, groups)[:, None] - jnp.arange(k.shape[1], dtype=jnp.int32)[None, :]
    seen = (distance >= 0) & (distance < window)
    weights = jax.nn.softmax(jnp.where(seen, scores, _HIDDEN), axis=-1)
    if of_values is not None:
        weights = weights * of_values[:, None, :]
    out = lax.dot_general(
        weights.astype(v.dtype), v, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32
    )
    return out.reshape(shape.kv_heads, groups, rows, dim).transpose(2, 0, 1, 3).reshape(rows, heads, dim)


def _numbers(stored: jax.Array, dtype: Any) -> jax.Array:
    """What to compute with: bfloat16 from the bits it is kept as, see kv_cache; codes as whole numbers of `dtype`."""
    return lax.bitcast_convert_type(stored, jnp.bfloat16) if stored.dtype == jnp.uint16 else stored.astype(dtype)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)  # type: ignore[no-untyped-call]
