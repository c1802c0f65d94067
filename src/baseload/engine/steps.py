"""The programs a step is made of, as functions to compile: one decoder layer (decode or prefill), and the head.

A layer at a time keeps programs small (each compiles once, whatever the depth) and leaves every layer's weights
where they were loaded: a scan over stacked layers would copy each layer's slice on the CPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from baseload.engine.attention import attend_batch, attend_tiles
from baseload.engine.config import ModelConfig
from baseload.engine.decoder import merge, project
from baseload.engine.kv_cache import CacheShape, Kept, write
from baseload.engine.layers import Linear, Params, linear, map_rows, mlp, rms_norm
from baseload.engine.moe import combine, moe_sparse, route

ATTENTION_TILE = 16  # query rows per attention tile where bits must not depend on the batch
FAST_ATTENTION_TILE = 128
FAST_EXPERT_TILE = 32


@dataclass(frozen=True, slots=True)
class Mode:
    """How to compute. `tile_rows` > 0: every matrix product has so many rows, so bits never depend on the batch.

    `whole`: all layers are one program, where starting a program costs more than compiling many. `attention`: "walk"
    the cache in a loop, or the GPU's kernels ("pallas"), or these interpreted ("interpret", for tests).
    """

    dtype: str
    tile_rows: int = 0
    whole: bool = False
    attention: str = "walk"

    @staticmethod
    def choose(dtype: str, *, deterministic: bool, platform: str = "cpu") -> "Mode":
        """On a CPU float32 is always tiled, bfloat16 only when asked: it costs speed (decision 0004)."""
        if platform != "cpu":
            tiles = 32 if deterministic else 0
            return Mode(dtype, tiles, whole=True, attention="pallas" if platform == "gpu" and not tiles else "walk")
        if dtype == "float32":
            return Mode(dtype, 32)
        return Mode(dtype, 16 if deterministic else 0)

    @property
    def in_out(self) -> bool:
        """Whether matrices lie [in, out]: twice as fast for small float32 tiles on the CPU, none for bfloat16."""
        return self.dtype == "float32"

    @property
    def dot(self) -> Linear:
        """The linear layer of this mode."""
        return partial(linear, in_out=self.in_out)

    @property
    def smallest_rows(self) -> int:
        """The fewest rows a program may have: a whole tile, or two (one row alone is ten times slower)."""
        return self.tile_rows or 2


Leaf = Any  # a jax.Array, a host array on its way to the device, or only its shape


@dataclass(frozen=True, slots=True)
class Where:
    """Where the rows of a call stand; a pytree. Decode: one table per row. Prefill: one table for all rows."""

    cos: Leaf  # float32[rows, head_dim / 2]
    sin: Leaf
    slots: Leaf  # int32[rows], where keys and values are written
    positions: Leaf  # int32[rows]
    tables: Leaf  # int32[rows, blocks] or int32[blocks]
    active: Leaf  # int32[], rows that are real


jax.tree_util.register_dataclass(
    Where, data_fields=["cos", "sin", "slots", "positions", "tables", "active"], meta_fields=[]
)

LayerStep = Callable[..., tuple[jax.Array, Kept, Kept]]


def layer_step(config: ModelConfig, shape: CacheShape, mode: Mode, *, prefill: bool, sparse: bool) -> LayerStep:
    """One layer: (attn, feed, keys, values, x, where, window) -> (x, keys, values); the caches are donated."""
    dot, eps = mode.dot, config.norm_eps
    attend = partial(_attend_prefill if prefill else _attend_decode, shape, mode)

    def step(
        attn: Params,
        feed: Params,
        keys: Kept,
        values: Kept,
        x: jax.Array,
        where: Where,
        window: jax.Array,
    ) -> tuple[jax.Array, Kept, Kept]:
        rows = partial(map_rows, mode.tile_rows, where.active)
        q, k, v = rows(lambda x, cos, sin: project(config, attn, x, cos, sin, dot), x, where.cos, where.sin)
        keys, values = write(keys, where.slots, k), write(values, where.slots, v)
        mixed = attend(q, keys, values, where, window)
        if not sparse:

            def finish(x: jax.Array, mixed: jax.Array) -> jax.Array:
                x = merge(attn, x, mixed, dot)
                return x + mlp(feed, x, eps, dot)

            return rows(finish, x, mixed), keys, values
        moe = config.moe
        assert moe is not None

        def choose(x: jax.Array, mixed: jax.Array) -> tuple[jax.Array, ...]:
            x = merge(attn, x, mixed, dot)
            normed = rms_norm(x, feed["norm"], eps)
            return x, normed, *route(moe, feed["router"], normed, dot)

        x, normed, chosen, weights = rows(choose, x, mixed)
        tile = mode.tile_rows or min(FAST_EXPERT_TILE, x.shape[0])
        parts = moe_sparse(moe, feed, normed, chosen, where.active, dot, tile_rows=tile)
        return rows(combine, x, parts, weights), keys, values

    return step


def model_step(config: ModelConfig, shape: CacheShape, mode: Mode, *, prefill: bool) -> Callable[..., Any]:
    """All layers: (weights per layer, keys, values, x, where) -> (x, keys, values), lists of one array a layer."""
    steps = {
        sparse: layer_step(config, shape, mode, prefill=prefill, sparse=sparse)
        for sparse in sorted(set(config.is_moe))
    }

    def step(
        weights: Sequence[tuple[Params, Params, jax.Array]],
        keys: Sequence[Kept],
        values: Sequence[Kept],
        x: jax.Array,
        where: Where,
    ) -> tuple[jax.Array, list[Kept], list[Kept]]:
        all_keys, all_values = list(keys), list(values)
        for index, (attn, feed, window) in enumerate(weights):
            one = steps[config.is_moe[index]]
            x, all_keys[index], all_values[index] = one(
                attn, feed, all_keys[index], all_values[index], x, where, window
            )
        return x, all_keys, all_values

    return step


def head_step(config: ModelConfig, mode: Mode) -> Callable[..., jax.Array]:
    """Logits of some rows: (final_norm, head, x[rows, hidden], picks int32[n], active) -> float32[n, vocab]."""

    def step(
        final_norm: jax.Array, weight: jax.Array, x: jax.Array, picks: jax.Array, active: jax.Array
    ) -> jax.Array:
        def logits(rows: jax.Array) -> jax.Array:
            return mode.dot(rms_norm(rows, final_norm, config.norm_eps), weight, None)

        picked = x.at[picks].get(mode="promise_in_bounds")
        out: jax.Array = map_rows(mode.tile_rows, active, logits, picked)
        return out

    return step


def _attend_decode(
    shape: CacheShape, mode: Mode, q: jax.Array, keys: Kept, values: Kept, where: Where, window: jax.Array
) -> jax.Array:
    if mode.attention != "walk":
        # Pallas takes a seventh of a second to import, which a model on the CPU need not wait for.
        from baseload.engine.pallas_attention import attend_decode  # noqa: PLC0415

        interpret = mode.attention == "interpret"
        return attend_decode(shape, q, keys, values, where.tables, where.positions, window, interpret=interpret)
    if not mode.tile_rows:
        return attend_batch(shape, q, keys, values, where.tables, where.positions, window)
    # Each row as the first of a tile of its own: the shape that prefill uses.
    tiles = jnp.pad(q[:, None], ((0, 0), (0, ATTENTION_TILE - 1), (0, 0), (0, 0)))
    at = jnp.repeat(where.positions[:, None], ATTENTION_TILE, axis=1)
    return attend_tiles(shape, tiles, keys, values, where.tables, at, window, where.active)[:, 0]


def _attend_prefill(
    shape: CacheShape, mode: Mode, q: jax.Array, keys: Kept, values: Kept, where: Where, window: jax.Array
) -> jax.Array:
    if mode.attention != "walk":
        from baseload.engine.pallas_attention import attend_prompt  # noqa: PLC0415 - as above

        return attend_prompt(shape, q, keys, values, where.tables, where.positions, window)
    rows = q.shape[0]
    tile = ATTENTION_TILE if mode.tile_rows else min(FAST_ATTENTION_TILE, rows)
    tiles = q.reshape(rows // tile, tile, *q.shape[1:])
    at = where.positions.reshape(rows // tile, tile)
    active = (where.active + tile - 1) // tile
    return attend_tiles(shape, tiles, keys, values, where.tables, at, window, active).reshape(q.shape)
