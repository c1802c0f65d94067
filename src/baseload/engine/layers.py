"""The layers all families share. Activations are float32; weights keep their type and lie [out, in]."""

import jax
import jax.numpy as jnp
from jax import lax

Params = dict[str, jax.Array]


def linear(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """x[rows, in] · weight[out, in]ᵀ (+ bias[out]) → float32[rows, out].

    Inputs are rounded to the weight's type, sums are float32: on the CPU this form of a bfloat16 dot is the only
    one that reaches the matrix units.
    """
    dims = (((x.ndim - 1,), (1,)), ((), ()))
    out = lax.dot_general(x.astype(weight.dtype), weight, dims, preferred_element_type=jnp.float32)
    return out if bias is None else out + bias.astype(jnp.float32)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / sqrt(mean(x²) + eps) · weight over the last axis, in float32."""
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * lax.rsqrt(mean_square + eps) * weight.astype(jnp.float32)


def swiglu(gate_up: jax.Array) -> jax.Array:
    """silu(gate) · up of the two halves of the last axis."""
    gate, up = jnp.split(gate_up, 2, axis=-1)
    return jax.nn.silu(gate) * up


def mlp(layer: Params, x: jax.Array, eps: float) -> jax.Array:
    """The dense feed-forward block with its norm; returns what is added to the residual."""
    hidden = swiglu(linear(rms_norm(x, layer["norm"], eps), layer["gate_up"], layer.get("gate_up_bias")))
    return linear(hidden, layer["down"], layer.get("down_bias"))
