"""The layers all families share. Activations are float32; weights keep their type."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Params = dict[str, jax.Array]
# (x[rows, in], weight, bias or None) -> float32[rows, out]
Linear = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]


def linear(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None, *, in_out: bool = False) -> jax.Array:
    """x[rows, in] · weight[out, in]ᵀ (+ bias[out]) → float32[rows, out]; `in_out` weights lie [in, out].

    Inputs are rounded to the weight's type, sums are float32: on the CPU this form of a bfloat16 dot, with weights
    [out, in], is the only one that reaches the matrix units.
    """
    dims = (((x.ndim - 1,), (0 if in_out else 1,)), ((), ()))
    out = lax.dot_general(x.astype(weight.dtype), weight, dims, preferred_element_type=jnp.float32)
    return out if bias is None else out + bias.astype(jnp.float32)


def map_rows(tile_rows: int, active: jax.Array, function: Callable[..., Any], *arrays: jax.Array) -> Any:
    """`function` of arrays that share their first axis, applied to `tile_rows` rows at a time (0: to all at once).

    How a compiler fuses and a library orders its sums depends on the shapes it is given. Here every application has
    one shape, inside a loop whose length is unknown when compiling, between barriers no fusion crosses; so a row's
    bits depend on nothing but the row. Only tiles with some of the first `active` rows are computed; others are 0.
    """
    if not tile_rows:
        return function(*arrays)
    rows = arrays[0].shape[0]
    assert rows % tile_rows == 0
    tiles = [array.reshape(rows // tile_rows, tile_rows, *array.shape[1:]) for array in arrays]
    shapes = jax.eval_shape(function, *(tile[0] for tile in tiles))
    outputs = jax.tree.map(lambda leaf: jnp.zeros((rows // tile_rows, *leaf.shape), leaf.dtype), shapes)

    def one(index: jax.Array, outputs: Any) -> Any:
        given = barrier([lax.dynamic_index_in_dim(tile, index, keepdims=False) for tile in tiles])
        done = barrier(function(*given))
        return jax.tree.map(lambda all_, new: lax.dynamic_update_index_in_dim(all_, new, index, 0), outputs, done)

    outputs = lax.fori_loop(0, (active + tile_rows - 1) // tile_rows, one, outputs)
    return jax.tree.map(lambda leaf: leaf.reshape(rows, *leaf.shape[2:]), outputs)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x²) + eps) · weight over the last axis, in float32."""
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(mean_square + eps) * weight.astype(jnp.float32)


def swiglu(gate_up: jax.Array) -> jax.Array:
    """silu(gate) · up of the two halves of the last axis."""
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return jax.nn.silu(gate) * up


def mlp(layer: Params, x: jax.Array, eps: float, dot: Linear = linear) -> jax.Array:
    """The dense feed-forward block with its norm; returns what is added to the residual."""
    hidden = swiglu(dot(rms_norm(x, layer["norm"], eps), layer["gate_up"], layer.get("gate_up_bias")))
    return dot(hidden, layer["down"], layer.get("down_bias"))


def barrier(arrays: Any) -> Any:
    """The same arrays; no fusion crosses this point."""
    return lax.optimization_barrier(arrays)  # type: ignore[no-untyped-call]
