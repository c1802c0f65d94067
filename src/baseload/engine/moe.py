"""Mixtral and Qwen3-MoE: a router picks a few experts per token."""

import jax
import jax.numpy as jnp

from baseload.engine.config import NO_WINDOW, Fields, ModelConfig, MoeConfig, parse_common, parse_rope
from baseload.engine.layers import Params, linear, rms_norm, swiglu


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
    return ModelConfig(**common, rope=parse_rope(fields, 1_000_000.0), moe=moe)


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
    return ModelConfig(**common, rope=parse_rope(fields), moe=moe, qk_norm=True, qkv_bias=bias, out_bias=bias)


def route(moe: MoeConfig, router: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The chosen experts of each row and their weights: int32 and float32, both [rows, experts_per_token]."""
    probabilities = jax.nn.softmax(linear(x, router), axis=-1)
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
