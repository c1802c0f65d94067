"""The small calls of a step, each with its twin in JAX: rows of the embedding, the choice of experts, the sum of what
they give, and the transform of what enters `down`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from baseload.engine.config import MoeConfig
from baseload.engine.layers import rms_norm
from baseload.engine.moe import route as route_twin
from baseload.engine.native.attention import array_shape, floats_at
from baseload.engine.native.features import XLA
from baseload.engine.native.weights_map import Plain


def embed(tokens: jax.Array, active: jax.Array, blob: jax.Array, *, table: Plain, isa: str) -> jax.Array:
    """float32[rows, hidden]: the rows of `table` that int32[rows] tokens name; those ≥ active may hold anything."""
    vocab, hidden = table.shape
    if isa != XLA:
        out = array_shape((tokens.shape[0], hidden), jnp.float32)
        call = jax.ffi.ffi_call("bl_rows", out)
        found: jax.Array = call(
            tokens,
            active,
            blob,
            offset=np.int64(table.offset),
            vocab=np.int64(vocab),
            bf16=np.int64(table.dtype == "bfloat16"),
        )
        return found
    dtype = jnp.bfloat16 if table.dtype == "bfloat16" else jnp.float32
    raw = jax.lax.slice(blob, (table.offset,), (table.offset + table.bytes,))
    rows = raw.reshape(vocab, -1)[jnp.clip(tokens, 0, vocab - 1)].reshape(tokens.shape[0], hidden, -1)
    return jax.lax.bitcast_convert_type(rows, dtype).astype(jnp.float32)


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts the rows chose. The pairs (row, choice) are sorted by expert; those of idle rows are absent."""

    weights: jax.Array  # float32[rows, experts_per_token]
    pick: jax.Array  # int32[rows · experts_per_token]: the row of each pair
    offsets: jax.Array  # int32[experts + 1]: pairs offsets[e] … offsets[e + 1] are expert e's
    place: jax.Array  # int32[rows, experts_per_token]: where a row's pairs went


def route(
    x: jax.Array,
    active: jax.Array,
    blob: jax.Array,
    *,
    norm: int,
    router: Plain,
    moe: MoeConfig,
    eps: float,
    isa: str,
) -> Routing:
    """The experts that rows x[rows, hidden], before their norm, choose."""
    rows, each = x.shape[0], moe.experts_per_token
    if isa != XLA:
        shapes = (
            array_shape((rows, each), jnp.float32),
            array_shape((rows * each,), jnp.int32),
            array_shape((moe.experts + 1,), jnp.int32),
            array_shape((rows, each), jnp.int32),
        )
        call = jax.ffi.ffi_call("bl_route", shapes)
        attributes = {"norm": np.int64(norm), "router": np.int64(router.offset), "normalize": np.int64(moe.normalize)}
        return Routing(*call(x, active, blob, **attributes, eps=np.float64(eps), isa=isa))
    hidden = x.shape[1]
    matrix = floats_at(blob, router.offset, moe.experts * hidden).reshape(moe.experts, hidden)
    chosen, weights = route_twin(moe, matrix, rms_norm(x, floats_at(blob, norm, hidden), eps))
    real = jnp.arange(rows)[:, None] < active[0]
    expert = jnp.where(real, chosen, moe.experts).reshape(-1)
    order = jnp.argsort(expert, stable=True).astype(jnp.int32)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=jnp.int32))
    counts = jnp.sum(jax.nn.one_hot(expert, moe.experts, dtype=jnp.int32), axis=0)
    offsets = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    return Routing(weights, order // each, offsets, place.reshape(rows, each))


def combine(x: jax.Array, parts: jax.Array, routing: Routing, active: jax.Array, *, isa: str) -> jax.Array:
    """x plus the weighted sum, in the order of choice, of each row's pairs in parts[pairs, hidden]."""
    if isa != XLA:
        call = jax.ffi.ffi_call("bl_combine", array_shape(x.shape, jnp.float32))
        found: jax.Array = call(x, parts, routing.weights, routing.place, active)
        return found
    for index in range(routing.place.shape[1]):
        x = x + parts[routing.place[:, index]] * routing.weights[:, index, None]
    return x


def hadamard(x: jax.Array, active: jax.Array, *, block: int, isa: str) -> jax.Array:
    """Orthonormal Walsh-Hadamard transforms of `block` columns each, of the active rows of x[rows, k]; in place."""
    if isa != XLA:
        call = jax.ffi.ffi_call("bl_hadamard", array_shape(x.shape, jnp.float32), input_output_aliases={0: 0})
        found: jax.Array = call(x, active, block=np.int64(block), isa=isa)
        return found
    parts = x.reshape(x.shape[0], -1, block)
    half = 1
    while half < block:
        pairs = parts.reshape(x.shape[0], -1, 2, half)
        parts = jnp.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        half *= 2
    return parts.reshape(x.shape) * np.float32(block**-0.5)
