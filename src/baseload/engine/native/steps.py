"""One step of the whole model as one program: five fused calls a layer, and the head on the rows that want it.

The program has one size, the most rows a step may have; how many are real is an input. It holds no addresses and no
weights: those come as one array of bytes, and each call knows by offsets what of them is its own. So one program
serves every batch, is small, and loads in milliseconds. With isa "xla" the calls are their twins in plain JAX.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from baseload.engine.config import ModelConfig
from baseload.engine.native.attention import Inputs, PagedCache, attention
from baseload.engine.native.matmul import (
    Weight,
    expert_gate_up,
    expert_matmul,
    matmul_residual,
    norm_gate_up,
    norm_matmul,
)
from baseload.engine.native.rows import combine, embed, hadamard, route
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

    def weight(self, name: str, *, bias: str = "", norm: str = "") -> Weight:
        """The packed matrix of this name with what is done before (norm) and after it (bias)."""
        matrix, at = self.weights.matrix(name), self.weights.at
        return Weight(
            matrix.scheme,
            matrix.n,
            matrix.k,
            matrix.offset,
            matrix.group,
            bias=at(bias) if bias else -1,
            norm=at(norm) if norm else -1,
            experts=max(1, matrix.count),
        )


def build_step(model: NativeModel) -> Step:
    """(blob, cache, inputs) -> (logits float32[picks, vocab], cache); rows beyond the picked ones hold anything."""
    weights, isa, eps = model.weights, model.isa, model.config.norm_eps

    def step(blob: jax.Array, kept: Any, inputs: Inputs) -> tuple[jax.Array, Any]:
        x = embed(inputs.tokens, inputs.active, blob, table=weights.plain("embed"), isa=isa)
        for layer in range(model.config.layers):
            x, kept = _layer(model, layer, blob, kept, inputs, x)
        head = model.weight("lm_head", norm="final_norm")
        return norm_matmul(x, blob, head, isa=isa, eps=eps, active=inputs.picked, rows=inputs.picks), kept

    return step


def _layer(
    model: NativeModel, layer: int, blob: jax.Array, kept: Any, inputs: Inputs, x: jax.Array
) -> tuple[jax.Array, Any]:
    config, isa, active = model.config, model.isa, inputs.active
    eps, name = config.norm_eps, f"layers.{layer}."
    project = model.weight(name + "qkv", bias=name + "qkv_bias", norm=name + "attn_norm")
    qkv = norm_matmul(x, blob, project, isa=isa, eps=eps, active=active)
    mixed, kept = attention(
        qkv,
        inputs,
        blob,
        kept,
        config=config,
        cache=model.cache,
        layer=layer,
        q_norm=model.weights.at(name + "q_norm"),
        k_norm=model.weights.at(name + "k_norm"),
        isa=isa,
    )
    x = matmul_residual(mixed, x, blob, model.weight(name + "out", bias=name + "out_bias"), isa=isa, active=active)
    if config.is_moe[layer]:
        return _experts(model, name, blob, active, x), kept
    gate_up = model.weight(name + "gate_up", bias=name + "gate_up_bias", norm=name + "feed_norm")
    down = model.weight(name + "down", bias=name + "down_bias")
    h = norm_gate_up(x, blob, gate_up, isa=isa, intermediate=down.k, eps=eps, active=active)
    if model.hadamard:
        h = hadamard(h, active, block=model.hadamard, isa=isa)
    return matmul_residual(h, x, blob, down, isa=isa, active=active), kept


def _experts(model: NativeModel, name: str, blob: jax.Array, active: jax.Array, x: jax.Array) -> jax.Array:
    config, isa, eps = model.config, model.isa, model.config.norm_eps
    assert config.moe is not None
    norm, router = model.weights.at(name + "feed_norm"), model.weights.plain(name + "router")
    routing = route(x, active, blob, norm=norm, router=router, moe=config.moe, eps=eps, isa=isa)
    gate_up = model.weight(name + "experts.gate_up", norm=name + "feed_norm")
    down = model.weight(name + "experts.down")
    pick, offsets = routing.pick, routing.offsets
    h = expert_gate_up(x, pick, offsets, blob, gate_up, isa=isa, intermediate=down.k, eps=eps)
    if model.hadamard:
        h = hadamard(h, offsets[-1:], block=model.hadamard, isa=isa)
    parts = expert_matmul(h, offsets, blob, down, isa=isa)
    return combine(x, parts, routing, active, isa=isa)
