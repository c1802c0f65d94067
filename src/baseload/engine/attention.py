"""Attention over the paged cache with an online softmax (Milakov, Gimelshein 2018) in chunks of fixed size.

A chunk in which a row may see nothing adds exactly nothing to it: its weights are set to zero, its correction
factor is exp(0) = 1. So how many chunks a batch-mate needs does not reach a row's bits.
"""

import jax
import jax.numpy as jnp
from jax import lax

from baseload.engine.kv_cache import CacheShape, Kept, gather
from baseload.engine.layers import barrier

_HIDDEN = -1e30
State = tuple[jax.Array, jax.Array, jax.Array]  # running maximum, sum and weighted values


def attend_batch(
    shape: CacheShape,
    q: jax.Array,
    keys: Kept,
    values: Kept,
    tables: jax.Array,
    positions: jax.Array,
    window: jax.Array,
) -> jax.Array:
    """One row per sequence, all at once: q[rows, heads, head_dim] at positions[rows], tables[rows, blocks]."""
    rows, heads, dim = q.shape
    groups = heads // shape.kv_heads
    tile = q.reshape(rows, shape.kv_heads, groups, dim).transpose(1, 0, 2, 3)
    if groups == 1:  # one row alone takes a slow path in XLA's bfloat16 dot
        tile = jnp.pad(tile, ((0, 0), (0, 0), (0, 1), (0, 0)))
    out = _walk(shape, tile, keys, values, tables, positions[:, None], window)
    return out[:, :, :groups].transpose(1, 0, 2, 3).reshape(rows, heads, dim)


def attend_tiles(
    shape: CacheShape,
    q: jax.Array,
    keys: Kept,
    values: Kept,
    tables: jax.Array,
    positions: jax.Array,
    window: jax.Array,
    active: jax.Array,
) -> jax.Array:
    """Tile after tile: q[tiles, tile_rows, heads, head_dim] at positions[tiles, tile_rows].

    `tables` is [tiles, blocks], or [blocks] where all tiles are of one sequence. Only the first `active` tiles are
    computed; each tile's work has the same shape wherever it comes from, so its bits are the same too.
    """
    count, tile_rows, heads, dim = q.shape
    groups = heads // shape.kv_heads
    grouped = q.reshape(count, tile_rows, shape.kv_heads, groups, dim).transpose(0, 2, 1, 3, 4)
    grouped = grouped.reshape(count, shape.kv_heads, tile_rows * groups, dim)

    def one(index: jax.Array, out: jax.Array) -> jax.Array:
        tile = barrier(lax.dynamic_index_in_dim(grouped, index, keepdims=False))
        table = tables if tables.ndim == 1 else lax.dynamic_index_in_dim(tables, index, keepdims=False)
        at = lax.dynamic_index_in_dim(positions, index, keepdims=False)
        done = barrier(_walk(shape, tile, keys, values, table, at, window))
        updated: jax.Array = lax.dynamic_update_index_in_dim(out, done, index, 0)
        return updated

    out: jax.Array = lax.fori_loop(0, active, one, jnp.zeros(grouped.shape, jnp.float32))
    out = out.reshape(count, shape.kv_heads, tile_rows, groups, dim).transpose(0, 2, 1, 3, 4)
    return out.reshape(count, tile_rows, heads, dim)


def _walk(
    shape: CacheShape,
    q: jax.Array,
    keys: Kept,
    values: Kept,
    table: jax.Array,
    positions: jax.Array,
    window: jax.Array,
) -> jax.Array:
    """q[kv_heads, ..., tile_rows · groups, head_dim] on table[..., blocks], at positions[..., tile_rows]."""
    scaled = (q * shape.head_dim**-0.5).astype(shape.compute)
    batch = tuple(range(q.ndim - 2))
    inner = q.ndim - 1
    repeats = q.shape[-2] // positions.shape[-1]
    at = jnp.repeat(positions, repeats, axis=-1)[None, ..., None]  # the groups of a row share its position

    def chunk(index: jax.Array, state: State) -> State:
        top, total, mixed = state
        blocks = lax.dynamic_slice_in_dim(table, index * shape.chunk_blocks, shape.chunk_blocks, axis=-1)
        (k, of_keys), (v, of_values) = (gather(shape, cache, blocks) for cache in (keys, values))
        scores = lax.dot_general(
            scaled, k, (((inner,), (inner,)), (batch, batch)), preferred_element_type=jnp.float32
        )
        if of_keys is not None:
            scores = scores * of_keys[..., None, :]
        distance = at - (index * shape.chunk_tokens + jnp.arange(shape.chunk_tokens, dtype=jnp.int32))
        seen = (distance >= 0) & (distance < window)
        scores = jnp.where(seen, scores, _HIDDEN)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - new_top), 0.0)
        keep = jnp.exp(top - new_top)
        gained = lax.dot_general(
            (weights if of_values is None else weights * of_values[..., None, :]).astype(shape.compute),
            v,
            (((inner,), (inner - 1,)), (batch, batch)),
            preferred_element_type=jnp.float32,
        )
        return new_top, total * keep + jnp.sum(weights, axis=-1, keepdims=True), mixed * keep + gained

    first = jnp.maximum(jnp.min(positions) - window + 1, 0) // shape.chunk_tokens
    last = jnp.max(positions) // shape.chunk_tokens + 1
    narrow = (*q.shape[:-1], 1)
    start = (jnp.full(narrow, _HIDDEN), jnp.zeros(narrow), jnp.zeros(q.shape, jnp.float32))
    _, total, mixed = lax.fori_loop(first, last, chunk, start)
    out: jax.Array = mixed / jnp.maximum(total, 1e-30)
    return out
