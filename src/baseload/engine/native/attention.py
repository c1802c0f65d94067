"""Rope, cache write and paged attention of all rows of a step in one call; and the same in JAX alone.

The kernel keeps keys and values in one byte array, laid out in native/attention/layout.h. The twin, which runs where
there is no kernel, keeps keys and values of each layer as engine/kv_cache.py describes them, in bfloat16 or in 8 bits
as the kernel does; it is the reference in meaning, not in bits.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from baseload.engine.attention import attend_tiles
from baseload.engine.config import ModelConfig
from baseload.engine.decoder import split_qkv
from baseload.engine.kv_cache import CacheShape, empty, write
from baseload.engine.layers import rms_norm
from baseload.engine.native.features import XLA
from baseload.engine.rope import rotate

TILE = 16  # positions of one head that lie together


@dataclass(frozen=True, slots=True)
class PagedCache:
    """The sizes of one model's cache. `int8` keeps keys and values in 8 bits with a scale per position and head."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    blocks: int
    block_tokens: int
    int8: bool = False

    @property
    def tile_bytes(self) -> int:
        """Of 16 positions of one head, keys and values."""
        keys = _up(self.head_dim, 4 if self.int8 else 2)
        values = _up(self.head_dim, TILE)
        return TILE * (keys + values) * (1 if self.int8 else 2) + (2 * TILE * 4 if self.int8 else 0)

    @property
    def block_bytes(self) -> int:
        """Of one block over all layers."""
        return self.layers * self.kv_heads * -(-self.block_tokens // TILE) * self.tile_bytes

    @property
    def nbytes(self) -> int:
        """Of the whole cache."""
        return self.blocks * self.block_bytes


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one step is about; a pytree. Rows ≥ `active`, picks ≥ `picked` and spans beyond the first are padding."""

    tokens: Any  # int32[rows]
    active: Any  # int32[1]
    spans: Any  # int32[1 + n, 4]: (how many, rows, 0, 0), then (first row, rows, first position, row of `tables`)
    tables: Any  # int32[n, blocks]: the block of positions i · block_tokens …
    angles: Any  # float32[rows, head_dim]: cos, then sin, at the row's position
    picks: Any  # int32[m]: rows whose logits are wanted
    picked: Any  # int32[1]


jax.tree_util.register_dataclass(
    Inputs, data_fields=["tokens", "active", "spans", "tables", "angles", "picks", "picked"], meta_fields=[]
)


def new_cache(cache: PagedCache, isa: str) -> Any:
    """An empty cache, as a function to compile. Native: bytes that cost no memory before they are written."""
    if isa != XLA:
        return jax.ffi.ffi_call("bl_new_cache", array_shape((cache.nbytes,), jnp.uint8))()
    one = empty(_twin_shape(cache, 1))

    def zeros() -> Any:
        return jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), one)

    return tuple((zeros(), zeros()) for _ in range(cache.layers))


def attention(
    qkv: jax.Array,
    inputs: Inputs,
    blob: jax.Array,
    kept: Any,
    *,
    config: ModelConfig,
    cache: PagedCache,
    layer: int,
    q_norm: int,
    k_norm: int,
    isa: str,
) -> tuple[jax.Array, Any]:
    """Attention's result float32[rows, heads · head_dim] of qkv float32[rows, …] before norm and rotation.

    Writes the rows' keys and values into `kept`, which is given back (in place where it is donated). `q_norm` and
    `k_norm` are byte offsets in `blob`, -1 where the family has none. A row's bits depend on nothing but its own
    sequence; values that are not finite are kept as 0.
    """
    if isa == XLA:
        return _twin(qkv, inputs, blob, kept, config, cache, layer, q_norm, k_norm)
    out = array_shape((qkv.shape[0], cache.heads * cache.head_dim), jnp.float32)
    same = array_shape(kept.shape, kept.dtype)
    call = jax.ffi.ffi_call("bl_attention", (out, same), input_output_aliases={5: 1})
    mixed, kept = call(
        qkv,
        inputs.angles,
        inputs.spans,
        inputs.tables,
        blob,
        kept,
        heads=np.int64(cache.heads),
        kv_heads=np.int64(cache.kv_heads),
        block_tokens=np.int64(cache.block_tokens),
        layers=np.int64(cache.layers),
        layer=np.int64(layer),
        int8=np.int64(cache.int8),
        window=np.int64(config.windows[layer]),
        q_norm=np.int64(q_norm),
        k_norm=np.int64(k_norm),
        eps=np.float64(config.norm_eps),
        isa=isa,
    )
    return mixed, kept


def array_shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """The shape and type of an array to come."""
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def floats_at(blob: jax.Array, offset: int, count: int) -> jax.Array:
    """float32[count] at a byte offset of uint8[n]."""
    raw = jax.lax.slice(blob, (offset,), (offset + 4 * count,)).reshape(count, 4)
    return jax.lax.bitcast_convert_type(raw, jnp.float32)


def _twin(
    qkv: jax.Array,
    inputs: Inputs,
    blob: jax.Array,
    kept: Any,
    config: ModelConfig,
    cache: PagedCache,
    layer: int,
    q_norm: int,
    k_norm: int,
) -> tuple[jax.Array, Any]:
    rows, half = qkv.shape[0], cache.head_dim // 2
    q, k, v = split_qkv(config, qkv)
    if q_norm >= 0:
        q = rms_norm(q, floats_at(blob, q_norm, cache.head_dim), config.norm_eps)
        k = rms_norm(k, floats_at(blob, k_norm, cache.head_dim), config.norm_eps)
    cos, sin = inputs.angles[:, :half], inputs.angles[:, half:]
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    index = jnp.arange(rows, dtype=jnp.int32)
    live = inputs.spans[1:, 1] > 0
    owner = jnp.sum((inputs.spans[None, 1:, 0] <= index[:, None]) & live[None], axis=1) - 1
    span = inputs.spans[1:][owner]
    real = index < inputs.active[0]
    positions = jnp.where(real, span[:, 2] + index - span[:, 0], 0)
    shape = _twin_shape(cache, inputs.tables.shape[1])
    wide = jnp.full((inputs.tables.shape[0], shape.table_blocks), cache.blocks, jnp.int32)
    tables = wide.at[:, : inputs.tables.shape[1]].set(inputs.tables)[span[:, 3]]
    block = jnp.take_along_axis(tables, (positions // cache.block_tokens)[:, None], axis=1)[:, 0]
    slots = jnp.where(real, block, cache.blocks) * cache.block_tokens + positions % cache.block_tokens
    keys, values = kept[layer]
    keys, values = write(keys, slots, k), write(values, slots, v)
    # Each row as the first of a tile of two: one row alone takes a slow path in XLA's bfloat16 dot.
    tiles = jnp.pad(q[:, None], ((0, 0), (0, 1), (0, 0), (0, 0)))
    at = jnp.repeat(positions[:, None], 2, axis=1)
    window = jnp.int32(config.windows[layer])
    mixed = attend_tiles(shape, tiles, keys, values, tables, at, window, inputs.active[0])[:, 0]
    return mixed.reshape(rows, -1), (*kept[:layer], (keys, values), *kept[layer + 1 :])


def _twin_shape(cache: PagedCache, table_blocks: int) -> CacheShape:
    return CacheShape(
        layers=cache.layers,
        kv_heads=cache.kv_heads,
        head_dim=cache.head_dim,
        blocks=cache.blocks,
        block_tokens=cache.block_tokens,
        max_context=table_blocks * cache.block_tokens,
        dtype="bfloat16",
        int8=cache.int8,
    )


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
