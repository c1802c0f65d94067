"""The parts of a decoder layer as the quantized engine computes it, for whole sequences, in float32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from baseload.engine.config import ModelConfig
from baseload.engine.decoder import causal_attention, split_qkv
from baseload.engine.layers import rms_norm
from baseload.engine.layers import swiglu as gated
from baseload.engine.quantize.transforms import Matrix, hadamard
from baseload.engine.rope import inverse_frequencies, rotate


@jax.jit
def rounded(x: jax.Array) -> jax.Array:
    """What is left of activations x[rows, K] after the engine's rounding to 8 bits with one scale a row."""
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127, 1e-30)
    return jnp.round(x / scale) * scale


@jax.jit
def to_bfloat16(x: jax.Array) -> jax.Array:
    """What is left of activations that enter a matrix in bfloat16."""
    return x.astype(jnp.bfloat16).astype(jnp.float32)


@partial(jax.jit, static_argnums=2)
def norm(x: jax.Array, weight: jax.Array, config: ModelConfig) -> jax.Array:
    """The norm of x[rows, H]."""
    return rms_norm(x, weight, config.norm_eps)


@jax.jit
def dot(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x[rows, K] · weight[N, K]ᵀ in float32; of a weight in bfloat16, x is rounded to that."""
    return _product(x.astype(weight.dtype), weight)


@partial(jax.jit, static_argnums=2)
def gram(x: jax.Array, mask: jax.Array, dtype: str = "float32") -> jax.Array:
    """Σ x xᵀ of the rows of x[rows, K] whose mask[rows, 1] is 1: [K, K]. `dtype` is that of the factors."""
    masked = (x * mask).T.astype(dtype)
    return _product(masked, masked)


@partial(jax.jit, donate_argnums=(0, 1))
def gathered(
    hessian: jax.Array,
    lacks: jax.Array,
    exact: jax.Array,
    rounded: jax.Array,
    mask: jax.Array,
    weight: jax.Array,
    residual: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """`hessian` + Σ x̂ x̂ᵀ and `lacks` + Σ d x̂ᵀ of inputs [rows, K], exact x and rounded x̂, where mask[rows, 1] is 1.

    d is x - x̂ where `lacks` is [K, K], else weight[N, K] · (x - x̂); plus `residual`[rows, N]. All is computed in
    float32 of factors in the type of the weight; the difference is taken before.
    """
    masked = (rounded * mask).T.astype(weight.dtype)
    less = exact - rounded
    if lacks.shape[0] == weight.shape[0]:
        less = dot(less, weight)
    if residual is not None:
        less = less + residual
    return hessian + _product(masked, masked), lacks + _product((less * mask).T.astype(weight.dtype), masked)


@jax.jit
def swiglu(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """silu(gate) · up of x[rows, H] and weight[2 I, H]."""
    return gated(dot(x, weight) + bias)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    """x[rows, K] · y[N, K]ᵀ."""
    return jax.lax.dot_general(x, y, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


@partial(jax.jit, static_argnums=1)
def spread(x: jax.Array, block: int) -> jax.Array:
    """`transforms.hadamard` of x[rows, K]."""
    if not block:
        return x
    matrix = hadamard(np.eye(block, dtype=np.float32), block)
    return (x.reshape(-1, block) @ matrix).reshape(x.shape)


def rows_for(chosen: np.ndarray, expert: int) -> tuple[np.ndarray, int]:
    """Rows of chosen[rows, count] that are routed to an expert, and how many.

    More follow (row 0, again and again) up to a power of two, so that few programs are compiled.
    """
    rows = np.flatnonzero((chosen == expert).any(axis=1))
    size = 1 << max(len(rows) - 1, 0).bit_length()
    return np.concatenate([rows, np.zeros(size - len(rows), rows.dtype)]), len(rows)


def angles(config: ModelConfig, length: int) -> tuple[Matrix, Matrix]:
    """cos and sin, float32[length, head_dim / 2]."""
    turned = np.arange(length, dtype=np.float32)[:, None] * inverse_frequencies(config)
    scale = np.float32(config.rope.attention_factor)
    return np.cos(turned) * scale, np.sin(turned) * scale


@partial(jax.jit, static_argnums=0)
def attention(
    config: ModelConfig,
    weight: jax.Array,
    bias: jax.Array | None,
    norms: tuple[jax.Array, jax.Array] | None,
    normed: jax.Array,
    turns: tuple[jax.Array, jax.Array],
    window: jax.Array,
) -> jax.Array:
    """Attention's result [rows, heads · D] of norms' outputs [rows, H]; rows are sequences as long as `turns`."""
    batch = normed.shape[0] // turns[0].shape[0]
    q, k, v = split_qkv(config, dot(normed, weight) + (0 if bias is None else bias))
    if norms is not None:
        q, k = (rms_norm(x, weight, config.norm_eps) for x, weight in zip((q, k), norms, strict=True))
    cos, sin = (jnp.tile(turn, (batch, 1)) for turn in turns)
    mixed = causal_attention(config, batch, rotate(q, cos, sin), rotate(k, cos, sin), v, window)
    return mixed.reshape(normed.shape[0], -1)


@partial(jax.jit, static_argnums=(2, 3))
def routed(x: jax.Array, router: jax.Array, count: int, normalize: bool) -> tuple[jax.Array, jax.Array]:
    """Each row's experts and their weights, [rows, count], of norms' outputs [rows, H]."""
    weights, chosen = jax.lax.top_k(jax.nn.softmax(x @ router.T, axis=-1), count)
    if normalize:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return chosen, weights
