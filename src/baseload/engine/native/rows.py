"""The small calls of a step: rows of the embedding, picked rows, the choice of experts. Each with its twin in JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from baseload.engine.config import MoeConfig
from baseload.engine.layers import rms_norm
from baseload.engine.moe import route as route_twin
from baseload.engine.native.attention import floats_at
from baseload.engine.native.weights_map import Plain


def embed(tokens: jax.Array, active: jax.Array, blob: jax.Array, *, table: Plain, isa: str) -> jax.Array:
    """float32[rows, hidden]: the rows of `table` that int32[rows] tokens name; those ≥ active may hold anything."""
    vocab, hidden = table.shape
    if isa:
        out = _shape((tokens.shape[0], hidden), jnp.float32)
        call = jax.ffi.ffi_call("bl_embed", out)
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


def pick(x: jax.Array, picks: jax.Array, picked: jax.Array, *, isa: str) -> jax.Array:
    """x[picks], float32[m, hidden]; those ≥ picked may hold anything."""
    if not isa:
        return x[jnp.clip(picks, 0, x.shape[0] - 1)]
    found: jax.Array = jax.ffi.ffi_call("bl_pick", _shape((picks.shape[0], x.shape[1]), jnp.float32))(x, picks, picked)
    return found


def route(
    x: jax.Array, active: jax.Array, blob: jax.Array, *, norm: int, router: Plain, moe: MoeConfig, eps: float, isa: str
) -> tuple[jax.Array, jax.Array]:
    """The experts each row chooses and their weights, int32 and float32[rows, experts_per_token], of x before its norm."""
    if isa:
        shape = (x.shape[0], moe.experts_per_token)
        call = jax.ffi.ffi_call("bl_route", (_shape(shape, jnp.int32), _shape(shape, jnp.float32)))
        chosen, weights = call(
            x,
            active,
            blob,
            norm=np.int64(norm),
            router=np.int64(router.offset),
            count=np.int64(moe.experts),
            normalize=np.int64(moe.normalize),
            eps=np.float64(eps),
            isa=isa,
        )
        return chosen, weights
    hidden = x.shape[1]
    matrix = floats_at(blob, router.offset, moe.experts * hidden).reshape(moe.experts, hidden)
    return route_twin(moe, matrix, rms_norm(x, floats_at(blob, norm, hidden), eps))


def _shape(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]
