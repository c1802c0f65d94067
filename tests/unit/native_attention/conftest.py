"""One call of the attention kernel over sequences given as rows of queries, keys and values."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baseload.engine.config import NO_WINDOW, ModelConfig, RopeConfig
from baseload.engine.native import library
from baseload.engine.native.attention import Inputs, PagedCache, attention, new_cache
from baseload.engine.native.features import XLA
from baseload.engine.rope import RopeTable

THETA = 10_000.0
EPS = 1e-6
Item = tuple[np.ndarray, int, np.ndarray]  # rows float32[n, (heads + 2 kv_heads) · dim], first position, block table


@dataclass(frozen=True)
class Shape:
    """What a call is compiled for."""

    isa: str
    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    block_tokens: int = 16
    blocks: int = 64
    int8: bool = False
    window: int = NO_WINDOW
    norms: bool = False
    rows: int = 256
    spans: int = 8

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.dim


class Kernel:
    """The compiled call with a cache of its own; norms' weights are those of `norm_weights`."""

    def __init__(self, shape: Shape) -> None:
        self.shape = s = shape
        config = ModelConfig(
            architecture="LlamaForCausalLM",
            vocab_size=8,
            hidden=s.heads * s.dim,
            intermediate=8,
            layers=1,
            heads=s.heads,
            kv_heads=s.kv_heads,
            head_dim=s.dim,
            norm_eps=EPS,
            max_context=s.blocks * s.block_tokens,
            rope=RopeConfig(theta=THETA),
            windows=(s.window,),
            is_moe=(False,),
            qk_norm=s.norms,
        )
        cache = PagedCache(1, s.heads, s.kv_heads, s.dim, s.blocks, s.block_tokens, s.int8)
        self._rope = RopeTable(config)
        self.blob = norm_weights(s.dim).reshape(-1).view(np.uint8)
        at = (0, 4 * s.dim) if s.norms else (-1, -1)
        call = partial(attention, config=config, cache=cache, layer=0, q_norm=at[0], k_norm=at[1], isa=s.isa)
        self._call = jax.jit(call, donate_argnums=(3,))
        self.kept: Any = jax.jit(lambda: new_cache(cache, s.isa))()

    def run(self, *items: Item) -> list[np.ndarray]:
        """float32[n, heads · dim] of each item."""
        s = self.shape
        rows = sum(len(x) for x, _, _ in items)
        qkv = np.full((s.rows, s.width), np.nan, np.float32)  # idle rows must reach nobody
        spans, tables = np.zeros((s.spans + 1, 4), np.int32), np.zeros((s.spans, s.blocks), np.int32)
        angles = np.zeros((s.rows, s.dim), np.float32)
        at = 0
        for index, (x, start, table) in enumerate(items):
            qkv[at : at + len(x)] = x
            spans[index + 1] = at, len(x), start, index
            tables[index, : len(table)] = table
            cos, sin = self._rope.at(start + np.arange(len(x)))
            angles[at : at + len(x)] = np.concatenate([cos, sin], axis=1)
            at += len(x)
        spans[0] = len(items), rows, 0, 0
        one = np.array([rows], np.int32)
        inputs = Inputs(one, one, spans, tables, angles, one, one)
        out, self.kept = self._call(jnp.asarray(qkv), inputs, jnp.asarray(self.blob), self.kept)
        split = np.cumsum([len(x) for x, _, _ in items])[:-1]
        return np.split(np.asarray(out)[:rows].copy(), split)


def norm_weights(dim: int) -> np.ndarray:
    """float32[2, dim] of queries and keys."""
    return np.random.default_rng(dim).normal(1, 0.2, (2, dim)).astype(np.float32)


def reference(shape: Shape, qkv: np.ndarray) -> np.ndarray:
    """A whole sequence in float64, rounded nowhere."""
    s, count = shape, len(qkv)
    x = qkv.astype(np.float64).reshape(count, -1, s.dim)
    q, k, v = np.split(x, [s.heads, s.heads + s.kv_heads], axis=1)
    if s.norms:
        of_q, of_k = norm_weights(s.dim)
        q, k = (a / np.sqrt((a**2).mean(-1, keepdims=True) + EPS) * w for a, w in ((q, of_q), (k, of_k)))
    angles = np.arange(count)[:, None, None] * THETA ** -(np.arange(0, s.dim, 2) / s.dim)
    turn = np.exp(1j * angles)

    def turned(a: np.ndarray) -> np.ndarray:
        both = (a[..., : s.dim // 2] + 1j * a[..., s.dim // 2 :]) * turn
        return np.concatenate([both.real, both.imag], axis=-1)

    q, k = turned(q), np.repeat(turned(k), s.heads // s.kv_heads, axis=1)
    v = np.repeat(v, s.heads // s.kv_heads, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(s.dim)
    distance = np.arange(count)[:, None] - np.arange(count)[None]
    scores = np.where((distance >= 0) & (distance < s.window), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), v).reshape(count, -1)


def available() -> list[str]:
    """Every instruction set there is here, the portable one and the twin."""
    return [XLA] if library.load() is None else [*library.features().isas, "emulated", "portable", XLA]


@pytest.fixture(scope="session")
def kernel_of() -> Callable[[Shape], Kernel]:
    """kernel_of(shape): a compiled call with an empty cache."""
    return Kernel


@pytest.fixture(scope="session")
def shape_type() -> type[Shape]:
    """The sizes of a call."""
    return Shape


@pytest.fixture(scope="session")
def in_float64() -> Callable[[Shape, np.ndarray], np.ndarray]:
    """in_float64(shape, rows): a whole sequence's attention, rounded nowhere."""
    return reference


@pytest.fixture(params=available())
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set of this machine, forced."""
    return str(request.param)
