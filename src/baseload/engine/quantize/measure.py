"""How faithful a packed model is: its perplexity and its KL divergence from the float32 original, on given tokens.

The packed model is computed as the engine computes it (weights as packed, activations rounded to 8 bits per row, the
transform before `down`), but in whole sequences and without a cache. In bf16, activations are rounded to bfloat16.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from baseload.engine.config import ModelConfig
from baseload.engine.native.weights_map import Matrix
from baseload.engine.packed import PackedModel
from baseload.engine.quantize import blocks
from baseload.engine.quantize.source import ModelSource
from baseload.engine.quantize.transforms import Layer

Tokens = NDArray[np.int32]
Floats = NDArray[np.float32]
Round = Callable[[jax.Array], jax.Array]
Progress = Callable[[int, int], None]  # (done, of)
Rounding = Callable[[str], Round]  # by the full name of a matrix
_CHUNK_TOKENS = 2048
_HEAD_TOKENS = 128


class Fidelity(Struct, frozen=True):
    """Against float32. `kl` is in nats per token, `agreement` how often both choose the same likeliest token."""

    tokens: int
    perplexity_float32: float
    perplexity: float
    kl: float
    agreement: float

    @property
    def ratio(self) -> float:
        """Perplexity over that of float32."""
        return self.perplexity / self.perplexity_float32


def measure(
    source: ModelSource,
    packed: PackedModel,
    tokens: Tokens,
    weights: Floats | None = None,
    *,
    progress: Progress = lambda done, total: None,
) -> Fidelity:
    """Both models on int32[rows, row_tokens]; the prediction of a token counts where `weights`[rows, row_tokens] > 0.

    Without weights every token but a row's first counts. Memory: one layer of each in float32, and both streams.
    """
    layers = source.config.layers

    def seen(done: int) -> Callable[[int], None]:
        return lambda index: progress(done + index, 2 * layers + 1)

    exact = final_states(source.config, source.layer, source.top(), tokens, seen=seen(0))
    found = _against(exact, source, packed, tokens, weights, rounding_of(packed), seen=seen(layers))
    progress(1, 1)
    return found


def relief(source: ModelSource, packed: PackedModel, tokens: Tokens, weights: Floats) -> dict[str, float]:
    """By how much the KL divergence falls where the inputs of one matrix only are not rounded, for each of 8 bits."""
    exact = final_states(source.config, source.layer, source.top(), tokens)
    usual = rounding_of(packed)
    whole = _against(exact, source, packed, tokens, weights, usual).kl
    found = {}
    for name, entry in packed.weights.entries.items():
        if isinstance(entry, Matrix) and entry.scheme == "w8" and not entry.count:

            def spared(other: str, name: str = name) -> Round:
                return _as_it_is if other == name else usual(other)

            found[name] = whole - _against(exact, source, packed, tokens, weights, spared).kl
    return found


def _against(
    exact: Floats,
    source: ModelSource,
    packed: PackedModel,
    tokens: Tokens,
    weights: Floats | None,
    rounding: Rounding,
    *,
    seen: Callable[[int], None] = lambda index: None,
) -> Fidelity:
    rounded = final_states(
        packed.config, packed.layer, packed.top(), tokens, rounding=rounding, block=packed.down_hadamard, seen=seen
    )
    exact_head, rounded_head = (jnp.asarray(top["lm_head"]) for top in (source.top(), packed.top()))
    counts = np.ones(tokens.shape, np.float32) if weights is None else weights
    rows, places = np.nonzero(counts[:, 1:] > 0)
    at, targets = rows * tokens.shape[1] + places, tokens[rows, places + 1]
    sums = np.zeros(4)
    for first in range(0, len(at), _HEAD_TOKENS):
        part = slice(first, first + _HEAD_TOKENS)
        sums += np.asarray(_compare(exact[at[part]], exact_head, rounded[at[part]], rounded_head, targets[part]))
    float_loss, loss, kl, same = (float(value) / max(len(at), 1) for value in sums)
    return Fidelity(len(at), math.exp(float_loss), math.exp(loss), max(kl, 0.0), same)


def rounding_of(packed: PackedModel) -> Rounding:
    """How the engine rounds what enters each matrix."""
    entries = packed.weights.entries

    def of(name: str) -> Round:
        entry = entries[name]
        return blocks.to_bfloat16 if isinstance(entry, Matrix) and entry.scheme == "bf16" else blocks.rounded

    return of


def final_states(
    config: ModelConfig,
    layer_of: Callable[[int], Layer],
    top: Layer,
    tokens: Tokens,
    *,
    rounding: Rounding | None = None,
    block: int = 0,
    seen: Callable[[int], None] = lambda index: None,
) -> Floats:
    """What enters the head, float32[rows · row_tokens, H]; with `rounding`, as the packed model has it.

    `seen` hears of each layer before it is done.
    """
    entering: Rounding = rounding if rounding is not None else _not_at_all
    rows, length = tokens.shape
    each = max(_CHUNK_TOKENS // length, 1) * length
    turns = blocks.angles(config, length)
    x = top["embed"][tokens.reshape(-1)].astype(np.float32)
    parts = [slice(at, at + each) for at in range(0, rows * length, each)]
    for index in range(config.layers):
        seen(index)
        layer = {name: jnp.asarray(value) for name, value in layer_of(index).items()}
        for part in parts:
            x[part] = _layer(config, layer, index, jnp.asarray(x[part]), turns, entering, block)
    normed = [np.asarray(entering("lm_head")(blocks.norm(x[part], top["final_norm"], config))) for part in parts]
    return np.concatenate(normed)


def _layer(
    config: ModelConfig,
    layer: Mapping[str, jax.Array],
    index: int,
    x: jax.Array,
    turns: tuple[Floats, Floats],
    entering: Rounding,
    block: int,
) -> NDArray[np.float32]:
    base, window = f"layers.{index}.", config.windows[index]
    normed = entering(base + "qkv")(blocks.norm(x, layer["attn_norm"], config))
    norms = (layer["q_norm"], layer["k_norm"]) if config.qk_norm else None
    mixed = blocks.attention(config, layer["qkv"], layer.get("qkv_bias"), norms, normed, turns, np.int32(window))
    x = x + blocks.dot(entering(base + "out")(mixed), layer["out"]) + layer.get("out_bias", np.float32(0))
    plain = blocks.norm(x, layer["feed_norm"], config)
    if "router" in layer:
        return np.asarray(x) + _experts(config, layer, base, plain, entering, block)
    bias = layer.get("gate_up_bias", np.zeros(len(layer["gate_up"]), np.float32))
    hidden = blocks.spread(blocks.swiglu(entering(base + "gate_up")(plain), layer["gate_up"], bias), block)
    return np.asarray(
        x + blocks.dot(entering(base + "down")(hidden), layer["down"]) + layer.get("down_bias", np.float32(0))
    )


def _experts(
    config: ModelConfig, layer: Mapping[str, jax.Array], base: str, plain: jax.Array, entering: Rounding, block: int
) -> Floats:
    moe = config.moe
    assert moe is not None
    chosen, weights = (
        np.asarray(part) for part in blocks.routed(plain, layer["router"], moe.experts_per_token, moe.normalize)
    )
    normed, out = np.asarray(entering(base + "experts.gate_up")(plain)), np.zeros(plain.shape, np.float32)
    none = np.zeros(2 * moe.intermediate, np.float32)
    for expert in range(moe.experts):
        rows, count = blocks.rows_for(chosen, expert)
        hidden = blocks.spread(blocks.swiglu(normed[rows], layer["experts.gate_up"][expert], none), block)
        weight = np.sum(np.where(chosen[rows] == expert, weights[rows], 0), axis=1, keepdims=True)
        given = (
            np.asarray(blocks.dot(entering(base + "experts.down")(hidden), layer["experts.down"][expert])) * weight
        )
        out[rows[:count]] += given[:count]
    return out


@jax.jit
def _compare(
    exact: jax.Array, exact_head: jax.Array, rounded: jax.Array, rounded_head: jax.Array, targets: jax.Array
) -> jax.Array:
    """Sums over rows: both cross-entropies, the divergence, and how often both choose the same token."""
    first = jax.nn.log_softmax(exact @ exact_head.T, axis=-1)
    second = jax.nn.log_softmax(rounded @ rounded_head.T, axis=-1)
    at = targets[:, None]
    losses = [-jnp.sum(jnp.take_along_axis(each, at, axis=-1)) for each in (first, second)]
    divergence = jnp.sum(jnp.exp(first) * (first - second))
    same = jnp.sum(jnp.argmax(first, axis=-1) == jnp.argmax(second, axis=-1))
    return jnp.stack([*losses, divergence, same.astype(jnp.float32)])


def _not_at_all(name: str) -> Round:
    return _as_it_is


def _as_it_is(x: jax.Array) -> jax.Array:
    return x
