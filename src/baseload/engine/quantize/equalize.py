"""Factors that a matrix and what enters it exchange, so that the rounding of both costs least.

A factor per channel, taken out of the norm's weight or of the rows of the matrix before and put into the columns of
the matrix that reads it, leaves the model as it is. SmoothQuant (Xiao et al. 2023) sets such factors by a rule; here
they are descended to, on the error that both roundings are expected to cause.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from baseload.engine.quantize import blocks
from baseload.engine.quantize.transforms import Layer

Matrix = NDArray[np.float32]
MOST_ROWS, MOST_VALUES = 2048, 1 << 19  # of tokens, and of a matrix, that are looked at
_STEPS, _RATE = 120, 0.05
_LIMIT = 3.0  # of a factor's logarithm
_COMPENSATED = 0.3  # of the error of rounded weights is left after compensation, about


def factors(inputs: Matrix, weight: Matrix, *, heads: tuple[int, int] = (1, 1), block: int = 0) -> Matrix:
    """By what to divide the channels of inputs[rows, K], and to multiply the columns of weight[N, K]; float32.

    `heads`: K is (first, second, rest), and channels that differ in the second only share a factor: there are
    first · rest of them. `block`: that of the transform that follows the division (transforms.hadamard).
    """
    rows = inputs[np.any(inputs != 0, axis=1)]
    if not len(rows):
        return np.ones(weight.shape[1] // heads[1], np.float32)
    return np.asarray(_descend(_some(rows), _some(weight), heads, block), np.float32)


def read_by(layer: Layer, norm: str, readers: tuple[str, ...], scale: Matrix) -> Layer:
    """The layer with `scale` moved out of a norm's weight into the columns of what reads it."""
    changed = {name: layer[name] * scale for name in readers if name in layer}
    return {**layer, norm: layer[norm] / scale, **changed}


def after_rows(layer: Layer, before: str, first: int, after: str, scales: tuple[Matrix, Matrix]) -> Layer:
    """The layer with rows of `before` from `first` on (and their bias) divided by one scale, `after` multiplied."""
    less, more = scales
    rows = layer[before].copy()
    rows[first:] /= less[:, None]
    out = {**layer, before: rows, after: layer[after] * more}
    if f"{before}_bias" in layer:
        bias = layer[f"{before}_bias"].copy()
        bias[first:] /= less
        out[f"{before}_bias"] = bias
    return out


def _some(rows: Matrix) -> Matrix:
    most = min(MOST_ROWS, max(MOST_VALUES // rows.shape[1], 128))
    some: Matrix = rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)]
    return some


@partial(jax.jit, static_argnums=(2, 3))
def _descend(x: jax.Array, w: jax.Array, heads: tuple[int, int], block: int) -> jax.Array:
    """Adam on the logarithms of the factors; the best seen, of geometric mean 1."""
    first, second = heads
    rest = x.shape[1] // (first * second)

    def error(logs: jax.Array) -> jax.Array:
        """Of the products, up to a factor: a rounding's variance goes with the square of its row's largest value."""
        scale = jnp.exp(jnp.repeat(logs.reshape(first, 1, rest), second, axis=1).reshape(-1))
        divided, multiplied = (jnp.square(blocks.spread(each, block)) for each in (x / scale, w * scale))
        entering = jnp.mean(jnp.max(divided, axis=1)) * jnp.sum(jnp.mean(multiplied, axis=0))
        weights = jnp.mean(jnp.max(multiplied, axis=1)) * jnp.sum(jnp.mean(divided, axis=0))
        return jnp.log(entering + _COMPENSATED * weights + 1e-30)

    def step(at: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        logs, mean, square, best, least = carry
        value, slope = jax.value_and_grad(error)(logs)
        best = jnp.where(value < least, logs, best)
        mean, square = 0.9 * mean + 0.1 * slope, 0.99 * square + 0.01 * slope**2
        unbiased = jnp.sqrt(square / (1 - 0.99 ** (at + 1))) + 1e-12
        move = _RATE * (1 - at / _STEPS) * (mean / (1 - 0.9 ** (at + 1))) / unbiased
        return jnp.clip(logs - move, -_LIMIT, _LIMIT), mean, square, best, jnp.minimum(value, least)

    zero = jnp.zeros(first * rest)
    best = jax.lax.fori_loop(0, _STEPS, step, (zero, zero, zero, zero, jnp.inf))[3]
    scale: jax.Array = jnp.exp(best - jnp.mean(best))
    return scale
