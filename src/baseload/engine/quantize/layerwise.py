"""Layer after layer: what reaches each matrix in the original and in the quantized model, and the codes that follow.

Two streams of hidden states walk through the model together. The exact one is the original's; the rounded one is what
the quantized model will see, roundings of activations included. Each matrix is fitted to turn the rounded inputs into
the exact outputs (as GPTAQ, Li et al. 2025, and Qronos do), and the matrices that write to the residual stream also
make good what the stream has lost before them.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from baseload.engine.config import ModelConfig
from baseload.engine.quantize import blocks, equalize, transforms
from baseload.engine.quantize.calibrate import Calibration
from baseload.engine.quantize.gptq import compensate, inverse_factor, realigned
from baseload.engine.quantize.levels import Fitted, Kept, Matrix, Rounded, Value, joined
from baseload.engine.quantize.schemes import Scheme
from baseload.engine.quantize.source import ModelSource
from baseload.engine.quantize.transforms import Layer

DAMPING = 0.01
REALIGN_DAMPING = 0.05
FINE_PARAMETERS = 200_000_000  # of a larger model, products of the streams are of factors in bfloat16
_CHUNK_TOKENS = 2048
_STEADY = 0.1  # of an expert's Hessian comes from the rows of all experts
_LOOKED_CHUNKS = 4  # of the calibration, to choose factors by
_PIECE = 1 << 22  # weights of a matrix rounded at a time by one core
Array = jax.Array | NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Fit:
    """How hard to try; the defaults are what was measured best (docs/decisions)."""

    compensate: bool = True
    realign: bool = True
    rotate: bool = False
    hadamard: bool = True
    equalize: bool = True
    keep: tuple[str, ...] = ()  # matrices that stay in bfloat16, by their full names


def quantize_layers(
    source: ModelSource, scheme: Scheme, calibration: Calibration, *, fit: Fit, seed: int = 0
) -> Iterator[tuple[str, Value]]:
    """Every tensor of the packed model by name, in order, computed as it is asked for.

    Memory: one layer in float32, one Hessian and its factors, two streams of hidden states, and of one layer what
    enters `down` in both.
    """
    config, top = source.config, source.top()
    walk = _Walk(config, scheme, calibration, fit)
    turn = None
    if fit.rotate:
        turn = transforms.orthogonal(config.hidden, seed)
        top = transforms.rotate_top(top, turn)
    yield "embed", top["embed"]
    walk.begin(top["embed"])
    for index in range(config.layers):
        layer = source.layer(index)
        if turn is not None:
            layer = transforms.rotate_layer(layer, turn)
        for name, value in walk.layer(layer, index):
            yield f"layers.{index}.{name}", value
    if fit.equalize:
        top = walk.equal_head(top)
    yield "final_norm", top["final_norm"]
    yield "lm_head", walk.head(top)


class _Sums:
    """Σ x̂ x̂ᵀ of the rounded inputs of a matrix W[N, K], and Σ (W (x - x̂) + r) x̂ᵀ: what its outputs should have more.

    r is what the residual stream has lost before. Where N > K, Σ (x - x̂) x̂ᵀ is gathered instead and W comes last.
    """

    def __init__(self, weight: jax.Array, *, residual: bool = False) -> None:
        rows, columns = weight.shape
        self.count = 0
        self.hessian = jnp.zeros((columns, columns), jnp.float32)
        self._weight, self._direct = weight, residual or rows <= columns
        self._lacks = jnp.zeros((rows if self._direct else columns, columns), jnp.float32)

    def add(self, mask: Array, exact: Array, rounded: Array, residual: Array | None = None) -> None:
        """Some rows more, those whose mask[rows, 1] is 1."""
        self.count += int(mask.sum())
        self.hessian, self._lacks = blocks.gathered(
            self.hessian, self._lacks, exact, rounded, mask, self._weight, residual
        )

    @property
    def cross(self) -> Matrix:
        """Σ (W (x - x̂) + r) x̂ᵀ, float32[N, K]."""
        return np.asarray(
            self._lacks if self._direct else blocks.dot(self._weight.astype(jnp.float32), self._lacks.T)
        )


class _Walk:
    def __init__(self, config: ModelConfig, scheme: Scheme, calibration: Calibration, fit: Fit) -> None:
        self._config, self._scheme, self._fit = config, scheme, fit
        self._tokens = calibration.tokens
        self._mask = calibration.mask.reshape(-1, 1)
        rows, length = self._tokens.shape
        each = max(_CHUNK_TOKENS // length, 1)
        self._chunks = [slice(at * length, min(at + each, rows) * length) for at in range(0, rows, each)]
        self._turns = blocks.angles(config, length)
        self._exact = self._rounded = np.zeros((0, 0), np.float32)
        self._cores = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._cores)
        self._dtype = "float32" if config.parameters <= FINE_PARAMETERS else "bfloat16"

    def begin(self, embed: Matrix) -> None:
        self._exact = embed[self._tokens.reshape(-1)]
        self._rounded = self._exact.copy()

    # -- one layer --------------------------------------------------------------------------------------------

    def layer(self, layer: Layer, index: int) -> Iterator[tuple[str, Value]]:
        """Rounds the layer's matrices in the order in which data meets them, and moves both streams through it."""
        window = self._config.windows[index]
        if self._fit.equalize:
            layer = self._equal_attention(layer, window)
        yield "attn_norm", layer["attn_norm"]
        base = f"layers.{index}."
        qkv = self._fit_one(base + "qkv", layer["qkv"], self._norm_sums(layer, "attn_norm", base, "qkv"))
        yield "qkv", qkv
        exact, rounded = self._attend(layer, qkv, window, self._entering(base + "qkv"))
        entering, held = self._entering(base + "out"), self._held(layer["out"])
        sums = _Sums(held, residual=True)
        for at in self._chunks:
            sums.add(self._mask[at], exact[at], entering(rounded[at]), self._exact[at] - self._rounded[at])
        out = self._fit_one(base + "out", layer["out"], sums)
        yield "out", out
        for name in ("qkv_bias", "q_norm", "k_norm", "out_bias"):
            if name in layer:
                yield name, layer[name]
        out_bias = layer.get("out_bias", np.float32(0))
        weight = self._held(out.restore())
        for at in self._chunks:
            self._exact[at] += np.asarray(blocks.dot(exact[at], held)) + out_bias
            self._rounded[at] += np.asarray(blocks.dot(entering(rounded[at]), weight)) + out_bias
        if self._fit.equalize:
            layer = self._equal_feed(layer)
        yield "feed_norm", layer["feed_norm"]
        yield from self._experts(layer, base) if "router" in layer else self._dense(layer, base)

    def _dense(self, layer: Layer, base: str) -> Iterator[tuple[str, Value]]:
        block = transforms.down_block(self._config) if self._fit.hadamard else 0
        gate_up = self._fit_one(
            base + "gate_up", layer["gate_up"], self._norm_sums(layer, "feed_norm", base, "gate_up")
        )
        yield "gate_up", gate_up
        down = transforms.hadamard(layer["down"], block)
        bias = layer.get("gate_up_bias", np.zeros(len(layer["gate_up"]), np.float32))
        held, restored = self._held(layer["gate_up"]), self._held(gate_up.restore())
        before, entering = self._entering(base + "gate_up"), self._entering(base + "down")

        def hidden(at: slice) -> tuple[jax.Array, jax.Array]:
            exact, rounded = self._normed(layer["feed_norm"], at, before)
            return (
                blocks.spread(blocks.swiglu(exact, held, bias), block),
                entering(blocks.spread(blocks.swiglu(rounded, restored, bias), block)),
            )

        reader = self._held(down)
        sums = _Sums(reader, residual=True)
        inner: list[tuple[jax.Array, jax.Array]] = []
        for at in self._chunks:
            exact, rounded = hidden(at)
            sums.add(self._mask[at], exact, rounded, self._exact[at] - self._rounded[at])
            inner.append((exact.astype(self._dtype), rounded.astype(self._dtype)))
        fitted = self._fit_one(base + "down", down, sums)
        yield "down", fitted
        for name in ("gate_up_bias", "down_bias"):
            if name in layer:
                yield name, layer[name]
        down_bias, weight = layer.get("down_bias", np.float32(0)), self._held(fitted.restore())
        for at, (exact, rounded) in zip(self._chunks, inner, strict=True):
            self._exact[at] += np.asarray(blocks.dot(exact, reader)) + down_bias
            self._rounded[at] += np.asarray(blocks.dot(rounded, weight)) + down_bias

    def _experts(self, layer: Layer, base: str) -> Iterator[tuple[str, Value]]:
        """Each expert with the rows routed to it; the shared part of the Hessian steadies those with few."""
        moe = self._config.moe
        assert moe is not None
        block = transforms.down_block(self._config) if self._fit.hadamard else 0
        yield "router", layer["router"]
        exact, rounded = (np.concatenate(parts) for parts in zip(*self._both(layer["feed_norm"]), strict=True))
        routes = [
            [np.asarray(part) for part in blocks.routed(x, layer["router"], moe.experts_per_token, moe.normalize)]
            for x in self._streams(layer["feed_norm"])
        ]
        gate_ups, downs = [], []
        exact_out, rounded_out = np.zeros_like(self._exact), np.zeros_like(self._rounded)
        shared = np.asarray(blocks.gram(rounded, self._mask)) / max(int(self._mask.sum()), 1)
        none = np.zeros(2 * moe.intermediate, np.float32)
        for expert in range(moe.experts):
            gate_up = layer["experts.gate_up"][expert]
            down = transforms.hadamard(layer["experts.down"][expert], block)
            rows, count = blocks.rows_for(routes[1][0], expert)
            mask = self._mask[rows] * (np.arange(len(rows)) < count)[:, None]
            sums = _Sums(self._held(gate_up))
            sums.add(mask, exact[rows], rounded[rows])
            sums.hessian += shared * np.float32(_STEADY * max(sums.count, 1))
            gate_ups.append(self._fit_one(base + "experts.gate_up", gate_up, sums))
            inner_exact = blocks.spread(blocks.swiglu(exact[rows], gate_up, none), block)
            inner = blocks.spread(blocks.swiglu(rounded[rows], gate_ups[-1].restore(), none), block)
            inner = blocks.rounded(inner)
            sums = _Sums(self._held(down))
            sums.add(mask, inner_exact, inner)
            downs.append(self._fit_one(base + "experts.down", down, sums))
            given = np.asarray(blocks.dot(inner, downs[-1].restore())) * _weight_of(routes[1], expert)[rows]
            rounded_out[rows[:count]] += given[:count]
            rows, count = blocks.rows_for(routes[0][0], expert)
            inner_exact = blocks.spread(blocks.swiglu(exact[rows], gate_up, none), block)
            given = np.asarray(blocks.dot(inner_exact, down)) * _weight_of(routes[0], expert)[rows]
            exact_out[rows[:count]] += given[:count]
        self._exact += exact_out
        self._rounded += rounded_out
        yield "experts.gate_up", gate_ups
        yield "experts.down", downs

    def head(self, top: Layer) -> Fitted:
        """The projection to the vocabulary."""
        return self._fit_one("lm_head", top["lm_head"], self._norm_sums(top, "final_norm", "", "lm_head"))

    # -- the streams ------------------------------------------------------------------------------------------

    def _streams(self, norm: Matrix) -> Iterator[NDArray[np.float32]]:
        """Both streams' norms, unrounded: what a router sees."""
        for stream in (self._exact, self._rounded):
            yield np.concatenate([np.asarray(blocks.norm(stream[at], norm, self._config)) for at in self._chunks])

    def _held(self, weight: Matrix) -> jax.Array:
        """A matrix as the streams are multiplied by it."""
        return jnp.asarray(weight, self._dtype)

    def _entering(self, name: str) -> Callable[[Array], jax.Array]:
        """How the engine rounds what enters the matrix of this full name."""
        return blocks.to_bfloat16 if name in self._fit.keep else blocks.rounded

    def _normed(self, norm: Matrix, at: slice, entering: Callable[[Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
        return (
            blocks.norm(self._exact[at], norm, self._config),
            entering(blocks.norm(self._rounded[at], norm, self._config)),
        )

    def _both(self, norm: Matrix) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        for at in self._chunks:
            exact, rounded = self._normed(norm, at, blocks.rounded)
            yield np.asarray(exact), np.asarray(rounded)

    def _norm_sums(self, layer: Layer, norm: str, base: str, name: str) -> _Sums:
        sums = _Sums(self._held(layer[name]))
        for at in self._chunks:
            sums.add(self._mask[at], *self._normed(layer[norm], at, self._entering(base + name)))
        return sums

    def _attention(self, layer: Layer, weight: jax.Array, normed: jax.Array, window: int) -> jax.Array:
        norms = (layer["q_norm"], layer["k_norm"]) if self._config.qk_norm else None
        mixed: jax.Array = blocks.attention(
            self._config, weight, layer.get("qkv_bias"), norms, normed, self._turns, np.int32(window)
        )
        return mixed

    def _attend(
        self, layer: Layer, qkv: Fitted, window: int, entering: Callable[[Array], jax.Array]
    ) -> tuple[Matrix, Matrix]:
        held, weight = self._held(layer["qkv"]), self._held(qkv.restore())
        exact, rounded = [], []
        for at in self._chunks:
            first, second = self._normed(layer["attn_norm"], at, entering)
            exact.append(np.asarray(self._attention(layer, held, first, window)))
            rounded.append(np.asarray(self._attention(layer, weight, second, window)))
        return np.concatenate(exact), np.concatenate(rounded)

    # -- factors exchanged ------------------------------------------------------------------------------------

    def _looked_at(self, norm: Matrix, then: Callable[[jax.Array], jax.Array] = lambda x: x) -> Matrix:
        """What follows the norm of the exact stream, for some rows of the calibration; 0 where they are padding."""
        found = []
        for at in self._chunks[:: -(-len(self._chunks) // _LOOKED_CHUNKS)]:
            given = then(blocks.norm(self._exact[at], norm, self._config))
            found.append(np.asarray(given) * self._mask[at])
        return np.concatenate(found)

    def _equal_attention(self, layer: Layer, window: int) -> Layer:
        """Factors between the norm and qkv, and between values and the columns of `out`."""
        c = self._config
        scale = equalize.factors(self._looked_at(layer["attn_norm"]), layer["qkv"])
        layer = equalize.read_by(layer, "attn_norm", ("qkv",), scale)
        held = self._held(layer["qkv"])
        mixed = self._looked_at(layer["attn_norm"], lambda x: self._attention(layer, held, x, window))
        each = c.heads // c.kv_heads
        scale = equalize.factors(mixed, layer["out"], heads=(c.kv_heads, each))
        wide = np.repeat(scale.reshape(c.kv_heads, 1, -1), each, axis=1).reshape(-1)
        return equalize.after_rows(layer, "qkv", (c.heads + c.kv_heads) * c.head_dim, "out", (scale, wide))

    def _equal_feed(self, layer: Layer) -> Layer:
        """Factors between the norm and gate_up, and between the rows of up and the columns of `down`."""
        inputs, experts = self._looked_at(layer["feed_norm"]), layer.get("experts.gate_up")
        readers = layer["gate_up"] if experts is None else experts.reshape(-1, experts.shape[-1])
        scale = equalize.factors(inputs, readers)
        layer = equalize.read_by(layer, "feed_norm", ("gate_up", "router", "experts.gate_up"), scale)
        if experts is not None:
            return layer
        bias = layer.get("gate_up_bias", np.zeros(len(layer["gate_up"]), np.float32))
        held = self._held(layer["gate_up"])
        hidden = self._looked_at(layer["feed_norm"], lambda x: blocks.swiglu(x, held, bias))
        block = transforms.down_block(self._config) if self._fit.hadamard else 0
        scale = equalize.factors(hidden, layer["down"], block=block)
        return equalize.after_rows(layer, "gate_up", len(scale), "down", (scale, scale))

    def equal_head(self, top: Layer) -> Layer:
        """Factors between the last norm and the head."""
        scale = equalize.factors(self._looked_at(top["final_norm"]), top["lm_head"])
        return equalize.read_by(top, "final_norm", ("lm_head",), scale)

    # -- one matrix -------------------------------------------------------------------------------------------

    def _fit_one(self, name: str, weight: Matrix, sums: _Sums) -> Fitted:
        """The codes of one matrix for these inputs. Rows are independent: some at a time, on all cores."""
        scale = np.float32(1 / max(sums.count, 1))
        hessian = np.asarray(sums.hessian * scale)
        importance = np.diag(hessian) + np.float32(1e-6 * np.mean(np.diag(hessian)) + 1e-20)
        if self._fit.realign and sums.count > 0:
            weight = realigned(weight, sums.cross * scale, hessian, REALIGN_DAMPING)
        if name in self._fit.keep:
            return Kept(weight)
        factor = inverse_factor(hessian, DAMPING) if self._fit.compensate else None

        def fitted(part: Matrix) -> Rounded:
            levels = self._scheme.choose(name, part, importance)
            return Rounded(levels, levels.nearest(part) if factor is None else compensate(part, *factor, levels))

        pieces = max(min(self._cores, len(weight)), -(-weight.size // _PIECE))
        done = list(self._pool.map(fitted, np.array_split(weight, pieces)))
        return Rounded(joined([each.levels for each in done]), np.concatenate([each.codes for each in done]))


def _weight_of(route: list[NDArray[np.generic]], expert: int) -> Matrix:
    """The weight of one expert in each row, [rows, 1]."""
    weight: Matrix = np.asarray(np.sum(np.where(route[0] == expert, route[1], 0), axis=1, keepdims=True), np.float32)
    return weight
