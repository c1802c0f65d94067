"""One step of the whole model as one program: five fused calls a layer, and the head on the rows that want it.

The program has one size, the most rows a step may have; how many are real is an input. It holds no addresses and no
weights: those come as one array of bytes, and each call knows by offsets what of them is its own. So one program
serves every batch, is small, and loads in milliseconds. With isa "" the calls are their twins in plain JAX.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from baseload.engine.config import ModelConfig
from baseload.engine.native import ops
from baseload.engine.native.attention import Inputs, PagedCache, attention
from baseload.engine.native.rows import embed, pick, route
from baseload.engine.native.weights_map import WeightsMap

Step = Callable[[jax.Array, Any, Inputs], tuple[jax.Array, Any]]


@dataclass(frozen=True, slots=True)
class NativeModel:
    """What a step is compiled for. `hadamard` is the block of the transform before `down`, 0 for none."""

    config: ModelConfig
    weights: WeightsMap
    cache: PagedCache
    isa: str
    hadamard: int = 0


def build_step(model: NativeModel) -> Step:
    """(blob, cache, inputs) -> (logits float32[picks, vocab], cache); rows beyond the picked ones hold anything."""
    weights, isa, eps = model.weights, model.isa, model.config.norm_eps

    def step(blob: jax.Array, kept: Any, inputs: Inputs) -> tuple[jax.Array, Any]:
        x = embed(inputs.tokens, inputs.active, blob, table=weights.plain("embed"), isa=isa)
        for layer in range(model.config.layers):
            x, kept = _layer(model, layer, blob, kept, inputs, x)
        picked = pick(x, inputs.picks, inputs.picked, isa=isa)
        norm, head = weights.at("final_norm"), weights.matrix("lm_head")
        logits = ops.norm_matmul(picked, inputs.picked, blob, norm=norm, matrix=head, bias=-1, eps=eps, isa=isa)
        return logits, kept

    return step


def _layer(
    model: NativeModel, layer: int, blob: jax.Array, kept: Any, inputs: Inputs, x: jax.Array
) -> tuple[jax.Array, Any]:
    config, weights, active = model.config, model.weights, inputs.active
    eps, isa = config.norm_eps, model.isa
    name = f"layers.{layer}."

    def at(leaf: str) -> int:
        return weights.at(name + leaf)

    qkv = ops.norm_matmul(
        x,
        active,
        blob,
        norm=at("attn_norm"),
        matrix=weights.matrix(name + "qkv"),
        bias=at("qkv_bias"),
        eps=eps,
        isa=isa,
    )
    mixed, kept = attention(
        qkv,
        inputs,
        blob,
        kept,
        config=config,
        cache=model.cache,
        layer=layer,
        q_norm=at("q_norm"),
        k_norm=at("k_norm"),
        isa=isa,
    )
    out = weights.matrix(name + "out")
    x = ops.matmul_residual(mixed, x, active, blob, matrix=out, bias=at("out_bias"), hadamard=0, isa=isa)
    if config.is_moe[layer]:
        return _experts(model, name, blob, active, x), kept
    gate_up, down = weights.matrix(name + "gate_up"), weights.matrix(name + "down")
    h = ops.norm_gate_up(
        x, active, blob, norm=at("feed_norm"), matrix=gate_up, bias=at("gate_up_bias"), columns=down.k, eps=eps, isa=isa
    )
    x = ops.matmul_residual(
        h, x, active, blob, matrix=down, bias=at("down_bias"), hadamard=model.hadamard, isa=isa
    )
    return x, kept


def _experts(model: NativeModel, name: str, blob: jax.Array, active: jax.Array, x: jax.Array) -> jax.Array:
    config, weights, isa = model.config, model.weights, model.isa
    assert config.moe is not None
    norm, eps = weights.at(name + "feed_norm"), config.norm_eps
    router = weights.plain(name + "router")
    chosen, shares = route(x, active, blob, norm=norm, router=router, moe=config.moe, eps=eps, isa=isa)
    gate_up, down = weights.matrix(name + "experts.gate_up"), weights.matrix(name + "experts.down")
    h = ops.experts_gate_up(
        x, chosen, active, blob, norm=norm, matrix=gate_up, columns=down.k, eps=eps, isa=isa
    )
    return ops.experts_down(h, x, chosen, shares, active, blob, matrix=down, hadamard=model.hadamard, isa=isa)
