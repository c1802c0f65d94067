"""Mixtral and Qwen3-MoE: a router picks a few experts per token."""

import jax
import jax.numpy as jnp

from baseload.engine.config import NO_WINDOW, Fields, ModelConfig, MoeConfig, parse_common
from baseload.engine.layers import Linear, Params, barrier, linear, rms_norm, swiglu
from baseload.engine.rope_settings import positions


def parse_mixtral(fields: Fields) -> ModelConfig:
    """MixtralForCausalLM."""
    common = parse_common(fields, "MixtralForCausalLM", kv_heads=8)
    layers = common["layers"]
    common["windows"] = (fields.raw.get("sliding_window") or NO_WINDOW,) * layers
    common["is_moe"] = (True,) * layers
    moe = MoeConfig(
        experts=fields.integer("num_local_experts", 8),
        experts_per_token=fields.integer("num_experts_per_tok", 2),
        intermediate=common["intermediate"],
        normalize=True,
        layout="mixtral",
    )
    return ModelConfig(**common, **positions(fields, 1_000_000.0), moe=moe)


def parse_qwen3_moe(fields: Fields) -> ModelConfig:
    """Qwen3MoeForCausalLM; layers named in `mlp_only_layers` or off the sparse step are dense."""
    common = parse_common(fields, "Qwen3MoeForCausalLM", kv_heads=4)
    layers = common["layers"]
    window = (fields.raw.get("sliding_window") or NO_WINDOW) if fields.flag("use_sliding_window") else NO_WINDOW
    dense = fields.raw.get("mlp_only_layers") or []
    step = fields.integer("decoder_sparse_step", 1)
    experts = fields.integer("num_experts", fields.integer("num_local_experts", 128))  # transformers 4, 5
    common["windows"] = (window,) * layers
    common["is_moe"] = tuple(index not in dense and (index + 1) % step == 0 for index in range(layers))
    moe = MoeConfig(
        experts=experts,
        experts_per_token=fields.integer("num_experts_per_tok", 8),
        intermediate=fields.integer("moe_intermediate_size", 768),
        normalize=fields.flag("norm_topk_prob"),
        layout="qwen",
    )
    bias = fields.flag("attention_bias")
    return ModelConfig(**common, **positions(fields), moe=moe, qk_norm=True, qkv_bias=bias, out_bias=bias)


def route(moe: MoeConfig, router: jax.Array, x: jax.Array, dot: Linear = linear) -> tuple[jax.Array, jax.Array]:
    """The chosen experts of each row and their weights: int32 and float32, both [rows, experts_per_token]."""
    probabilities = jax.nn.softmax(dot(x, router, None), axis=-1)
    weights, chosen = jax.lax.top_k(probabilities, moe.experts_per_token)
    if moe.normalize:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return chosen, weights


def moe_dense(moe: MoeConfig, layer: Params, x: jax.Array, eps: float) -> jax.Array:
    """All experts on all rows, unchosen ones weighted 0: differentiable, for training. x is [rows, hidden]."""
    normed = rms_norm(x, layer["norm"], eps)
    chosen, weights = route(moe, layer["router"], normed)
    gates = jnp.sum(jax.nn.one_hot(chosen, moe.experts) * weights[..., None], axis=-2)

    def add_expert(total: jax.Array, expert: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        gate_up, down, gate = expert
        return total + linear(swiglu(linear(normed, gate_up)), down) * gate[..., None], None

    total, _ = jax.lax.scan(add_expert, jnp.zeros_like(x), (layer["gate_up"], layer["down"], gates.T))
    return total


def moe_sparse(
    moe: MoeConfig,
    layer: Params,
    normed: jax.Array,
    chosen: jax.Array,
    active: jax.Array,
    dot: Linear,
    *,
    tile_rows: int,
) -> jax.Array:
    """Outputs of the chosen experts only, float32[rows, experts_per_token, hidden], of normed[rows, hidden].

    Rows are sorted by expert and each expert's rows are cut into tiles of one shape, so a row's bits do not depend
    on who else chose its expert. As many tiles are computed as the first `active` rows need, so idle experts'
    weights are not read.
    """
    rows, hidden = normed.shape
    real = jnp.arange(rows)[:, None] < active
    expert_of = jnp.where(real, chosen, moe.experts).reshape(-1)
    order = jnp.argsort(expert_of, stable=True)
    counts = jnp.sum(jax.nn.one_hot(expert_of, moe.experts, dtype=jnp.int32), axis=0)
    index = jnp.arange(moe.experts)
    earlier = index[None, :] < index[:, None]
    first_row = jnp.sum(jnp.where(earlier, counts, 0), axis=1)
    tiles = (counts + tile_rows - 1) // tile_rows
    first_tile = jnp.sum(jnp.where(earlier, tiles, 0), axis=1)

    def one_tile(tile: jax.Array, out: jax.Array) -> jax.Array:
        expert = jnp.sum(first_tile + tiles <= tile)
        at = first_row[expert] + (tile - first_tile[expert]) * tile_rows + jnp.arange(tile_rows, dtype=jnp.int32)
        valid = at < first_row[expert] + counts[expert]
        pair = order[jnp.minimum(at, order.size - 1)]
        gate_up, down = (expert_weight(layer[name], expert) for name in ("gate_up", "down"))
        given = barrier(normed[pair // moe.experts_per_token])
        done = barrier(dot(swiglu(dot(given, gate_up, None)), down, None))
        updated: jax.Array = out.at[jnp.where(valid, pair, order.size)].set(done, mode="drop")
        return updated

    outputs: jax.Array = jnp.zeros((rows * moe.experts_per_token, hidden), jnp.float32)
    outputs = jax.lax.fori_loop(0, jnp.sum(tiles), one_tile, outputs)
    return outputs.reshape(rows, moe.experts_per_token, hidden)


def expert_weight(stacked: jax.Array, expert: jax.Array) -> jax.Array:
    """One expert's matrix of stacked[experts, ...]; bfloat16 is stacked as its bits in uint16.

    XLA's CPU compiler converts all of a bfloat16 array it slices in a loop (measured: 19 ms a slice, not 0.17).
    """
    weight = jax.lax.dynamic_index_in_dim(stacked, expert, keepdims=False)
    return jax.lax.bitcast_convert_type(weight, jnp.bfloat16) if weight.dtype == jnp.uint16 else weight


def combine(x: jax.Array, parts: jax.Array, weights: jax.Array) -> jax.Array:
    """x[rows, hidden] plus the experts' outputs, weighted and summed in the order they were chosen."""
    for index in range(parts.shape[1]):
        x = x + parts[:, index] * weights[:, index, None]
    return x
