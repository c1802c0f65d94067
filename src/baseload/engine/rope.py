"""Rotary position embedding (Su et al. 2021), with Llama 3's frequency scaling and YaRN (Peng et al. 2023)."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from baseload.engine.config import ModelConfig

_PAGE = 1024  # positions


def inverse_frequencies(config: ModelConfig) -> np.ndarray:
    """float32[head_dim / 2]: the angle per position of each pair of dimensions, scaled as config.json says."""
    rope = config.rope
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    plain: np.ndarray = (1.0 / np.power(np.float32(rope.theta), exponent)).astype(np.float32)
    if rope.kind in ("default", "dynamic"):  # dynamic: nothing is scaled up to max_position_embeddings
        return plain
    if rope.kind == "linear":
        return plain / np.float32(rope.factor)
    if rope.kind == "yarn":
        kept = _kept_by_yarn(config)
        return np.asarray(plain / np.float32(rope.factor) * (1 - kept) + plain * kept, np.float32)
    # Llama 3: long waves are slowed by `factor`, short ones kept, those between are blended.
    wavelength = 2 * math.pi / plain
    long_wave = rope.original_context / rope.low_freq_factor
    short_wave = rope.original_context / rope.high_freq_factor
    blend = (rope.original_context / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    middle = (1 - blend) * plain / rope.factor + blend * plain
    scaled: np.ndarray = np.where(
        wavelength > long_wave, plain / rope.factor, np.where(wavelength < short_wave, plain, middle)
    )
    return np.asarray(scaled, np.float32)


def _kept_by_yarn(config: ModelConfig) -> np.ndarray:
    """float32[head_dim / 2]: 1 where a pair turns so often that it is kept, 0 where it is slowed, a ramp between."""
    rope = config.rope

    def pair_turning(times: float) -> float:
        """Which pair turns so often over the original context, as a real number."""
        turns = rope.original_context / (times * 2 * math.pi)
        return config.head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = pair_turning(rope.beta_fast), pair_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    width = high - low or 0.001
    pairs = np.arange(config.head_dim // 2, dtype=np.float32)
    return np.asarray(1 - np.clip((pairs - low) / np.float32(width), 0, 1), np.float32)


class RopeTable:
    """cos and sin of the angles at any position, from pages of one size made on demand on the host.

    Both are times YaRN's attention factor. One size, and the host, so that neither a bucket's compiled sine nor
    the length of a NumPy call can change bits.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._frequencies = inverse_frequencies(config)
        self._scale = np.float32(config.rope.attention_factor)
        self._cos = np.zeros((0, self._frequencies.size), np.float32)
        self._sin = self._cos

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin, float32[n, head_dim / 2] each, at int positions[n]."""
        while len(self._cos) <= positions.max(initial=0):
            page = np.arange(len(self._cos), len(self._cos) + _PAGE, dtype=np.float32)
            angles = page[:, None] * self._frequencies
            self._cos = np.concatenate([self._cos, np.cos(angles) * self._scale])
            self._sin = np.concatenate([self._sin, np.sin(angles) * self._scale])
        return self._cos[positions], self._sin[positions]


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns x[rows, heads, head_dim] by angles given as [rows, head_dim / 2]; pairs are (i, i + head_dim / 2)."""
    first, second = jnp.split(x, 2, axis=-1)
    c, s = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([first * c - second * s, second * c + first * s], axis=-1)
