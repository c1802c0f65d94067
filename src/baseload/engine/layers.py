"""The layers all families share. Activations are float32; weights keep their type."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Params = dict[str, jax.Array]
# (x[rows, in], weight, bias or None) -> float32[rows, out]
Linear = Callable[[jax.Array, jax.Array, "jax.Array | None"], jax.Array]


def linear(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """x[rows, in] · weight[out, in]ᵀ (+ bias[out]) → float32[rows, out].

    Inputs are rounded to the weight's type, sums are float32: on the CPU this form of a bfloat16 dot is the only
    one that reaches the matrix units.
    """
    return _add(_dot(x, weight, 1), bias)


def tiled_linear(tile_rows: int, *, in_out: bool) -> Linear:
    """A linear layer that always multiplies `tile_rows` rows at a time, so that a row's bits depend on nothing else.

    How a library splits and orders its sums depends on the shapes it is given; here every call has one shape.
    With `in_out` weights lie [in, out] (faster for float32 on the CPU). Rows must be a multiple of the tile.
    """
    contracted = 0 if in_out else 1

    def apply(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        rows = x.shape[0]
        assert rows % tile_rows == 0
        if rows == tile_rows:
            return _add(_dot(x, weight, contracted), bias)
        tiles = x.reshape(rows // tile_rows, tile_rows, -1)
        out = lax.map(lambda tile: _dot(tile, weight, contracted), tiles)
        return _add(out.reshape(rows, -1), bias)

    return apply


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


def _dot(x: jax.Array, weight: jax.Array, contracted: int) -> jax.Array:
    dims = (((x.ndim - 1,), (contracted,)), ((), ()))
    return lax.dot_general(x.astype(weight.dtype), weight, dims, preferred_element_type=jnp.float32)


def _add(out: jax.Array, bias: jax.Array | None) -> jax.Array:
    return out if bias is None else out + bias.astype(jnp.float32)
