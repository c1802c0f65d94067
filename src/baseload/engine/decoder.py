"""The decoder all families share: one layer, and the whole sequence at once (for training and for reference)."""

from typing import Any

import jax
import jax.numpy as jnp

from baseload.engine.config import ModelConfig
from baseload.engine.layers import Linear, Params, linear, mlp, rms_norm
from baseload.engine.moe import moe_dense
from baseload.engine.rope import inverse_frequencies, rotate

Tree = dict[str, Any]


def project(
    config: ModelConfig, layer: Params, x: jax.Array, cos: jax.Array, sin: jax.Array, dot: Linear = linear
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Norm, projections and rotation of x[rows, hidden]: q[rows, heads, head_dim], k, v[rows, kv_heads, head_dim]."""
    normed = rms_norm(x, layer["norm"], config.norm_eps)
    q, k, v = split_qkv(config, dot(normed, layer["qkv"], layer.get("qkv_bias")))
    if config.qk_norm:
        q = rms_norm(q, layer["q_norm"], config.norm_eps)
        k = rms_norm(k, layer["k_norm"], config.norm_eps)
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def merge(layer: Params, x: jax.Array, mixed: jax.Array, dot: Linear = linear) -> jax.Array:
    """x[rows, hidden] plus the output projection of attention's result, mixed[rows, heads, head_dim]."""
    return x + dot(mixed.reshape(x.shape[0], -1), layer["out"], layer.get("out_bias"))


def split_qkv(config: ModelConfig, qkv: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The fused projection as q[rows, heads, head_dim], k and v[rows, kv_heads, head_dim]."""
    heads = qkv.reshape(qkv.shape[0], -1, config.head_dim)
    middle = config.heads + config.kv_heads
    return heads[:, : config.heads], heads[:, config.heads : middle], heads[:, middle:]


def forward_full(
    config: ModelConfig,
    params: Tree,
    tokens: jax.Array,
    *,
    segments: jax.Array | None = None,
    at: jax.Array | None = None,
    remat: bool = False,
) -> jax.Array:
    """Logits float32[batch, seq, vocab] of int tokens[batch, seq], without a cache; differentiable.

    `segments`, int[batch, seq], hides tokens of different segments of a packed row from each other. `at`, int[n],
    asks for logits[n, vocab] of these places of the flattened batch only. `remat` recomputes each layer in the
    backward pass instead of keeping its activations.
    """
    batch, seq = tokens.shape
    angles = jnp.arange(seq, dtype=jnp.float32)[:, None] * inverse_frequencies(config)
    scale = config.rope.attention_factor
    cos, sin = (jnp.tile(f(angles) * scale, (batch, 1)) for f in (jnp.cos, jnp.sin))
    x = params["embed"][tokens.reshape(-1)].astype(jnp.float32)

    def layer(x: jax.Array, attn: Params, feed: Params, window: jax.Array, is_moe: bool) -> jax.Array:
        q, k, v = project(config, attn, x, cos, sin)
        x = merge(attn, x, causal_attention(config, batch, q, k, v, window, segments))
        if is_moe:
            assert config.moe is not None
            return x + moe_dense(config.moe, feed, x, config.norm_eps)
        return x + mlp(feed, x, config.norm_eps)

    step = jax.checkpoint(layer, static_argnums=(4,)) if remat else layer
    windows = jnp.asarray(config.windows, dtype=jnp.int32)
    if len(set(config.is_moe)) == 1:
        sparse = config.is_moe[0]
        stacked = (params["attn"], params["moe" if sparse else "mlp"], windows)
        x, _ = jax.lax.scan(lambda x, one: (step(x, *one, sparse), None), x, stacked)
    else:
        for index in range(config.layers):
            x = step(x, *layer_params(config, params, index), windows[index], config.is_moe[index])
    if at is not None:
        return head(config, params, x[at])
    return head(config, params, x).reshape(batch, seq, -1)


def layer_params(config: ModelConfig, params: Tree, index: int) -> tuple[Params, Params]:
    """Layer `index` of the stacked tree: its attention's and its feed-forward's weights."""
    sparse = config.is_moe[index]
    among = sum(kind == sparse for kind in config.is_moe[:index])
    feed = params["moe" if sparse else "mlp"]
    return (
        {name: value[index] for name, value in params["attn"].items()},
        {name: value[among] for name, value in feed.items()},
    )


def head(config: ModelConfig, params: Tree, x: jax.Array) -> jax.Array:
    """Final norm and projection to the vocabulary: float32[rows, vocab] of x[rows, hidden]."""
    weight = params["embed"] if config.tied else params["lm_head"]
    return linear(rms_norm(x, params["final_norm"], config.norm_eps), weight)


def causal_attention(
    config: ModelConfig,
    batch: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    window: jax.Array,
    segments: jax.Array | None = None,
) -> jax.Array:
    """Attention of whole sequences within themselves. Rows are batch × seq; a window hides older keys.

    `segments[batch, seq]` hides other segments' keys.
    """
    seq, groups = q.shape[0] // batch, config.heads // config.kv_heads
    q = q.reshape(batch, seq, config.kv_heads, groups, config.head_dim)
    k, v = (a.reshape(batch, seq, config.kv_heads, config.head_dim) for a in (k, v))
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", q, k) * config.head_dim**-0.5
    distance = jnp.arange(seq)[:, None] - jnp.arange(seq)[None, :]
    visible = (distance >= 0) & (distance < window)
    if segments is not None:
        visible = visible & (segments[:, None, None, :, None] == segments[:, None, None, None, :])
    weights = jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1)
    return jnp.einsum("bhgqk,bkhd->bqhgd", weights, v).reshape(-1, config.heads, config.head_dim)
