"""Rounding with compensation: GPTQ (Frantar, Ashkboos, Hoefler, Alistarh 2023), with a least-squares start.

Columns are rounded one after the other, those with the largest inputs first; what rounding a column costs is made
good by the columns still to come. The scales are chosen before, so that any order of columns is compatible with
groups (Kim et al.'s and AutoGPTQ's "static groups").
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from baseload.engine.quantize.levels import Levels

Matrix = NDArray[np.float32]
_BLOCK = 64  # columns whose corrections are gathered before the others are touched
_FACTORED = 256  # columns of a factor made at a time; of more than 4,096 columns a sixteenth


def compensate(weight: Matrix, upper: Matrix, order: NDArray[np.intp], levels: Levels) -> NDArray[np.int16]:
    """Codes int16[N, K] of weight[N, K], such that the restored weight times x is near weight · x.

    `upper` and `order` are what `inverse_factor` made of the inputs. Rows are independent of each other: a large
    matrix can be done in pieces.
    """
    columns = weight.shape[1]
    groups = (order // levels.group).astype(np.int32)
    arrays = (levels.scale, levels.step, levels.offset, levels.low, levels.high)
    codes = np.empty((columns, len(weight)), np.int16)
    codes[order] = np.asarray(_rounded(weight[:, order], upper, groups, *arrays))
    return np.ascontiguousarray(codes.T)


@jax.jit
def _rounded(
    weight: jax.Array,
    upper: jax.Array,
    groups: jax.Array,
    scale: jax.Array,
    step: jax.Array,
    offset: jax.Array,
    low: jax.Array,
    high: jax.Array,
) -> jax.Array:
    """Codes int16[K, N] of columns in order; groups[K] says whose step each has."""
    columns, rows = weight.shape[1], weight.shape[0]
    more = -columns % _BLOCK
    left = jnp.pad(weight.T, ((0, more), (0, 0)))  # [K, N]: a column of the weight is contiguous
    upper = jnp.pad(upper, ((0, more), (0, more))) + jnp.diag(
        jnp.pad(jnp.zeros(columns), (0, more), constant_values=1)
    )
    groups = jnp.pad(groups, (0, more))
    steps, offsets = ((each * scale[:, None]).T for each in (step, offset))  # [G, N]
    inverse = 1 / jnp.maximum(steps, 1e-30)
    lowest, highest = (each.T.astype(jnp.float32) for each in (low, high))

    def block(number: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, codes = carry
        first = number * _BLOCK
        factors = jax.lax.dynamic_slice(upper, (first, 0), (_BLOCK, len(upper)))
        near = jax.lax.dynamic_slice(factors, (0, first), (_BLOCK, _BLOCK))

        def column(at: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            here, errors, found = carry
            group = groups[first + at]
            code = jnp.rint((here[at] - offsets[group]) * inverse[group])
            code = jnp.clip(code, lowest[group], highest[group])
            error = (here[at] - code * steps[group] - offsets[group]) / near[at, at]
            return (
                here - near[at][:, None] * error,
                errors.at[at].set(error),
                found.at[at].set(code.astype(jnp.int16)),
            )

        here = jax.lax.dynamic_slice(left, (first, 0), (_BLOCK, rows))
        start = (here, jnp.zeros((_BLOCK, rows)), jnp.zeros((_BLOCK, rows), jnp.int16))
        _, errors, found = jax.lax.fori_loop(0, _BLOCK, column, start)
        return left - factors.T @ errors, jax.lax.dynamic_update_slice(codes, found, (first, 0))

    start = (left, jnp.zeros((columns + more, rows), jnp.int16))
    codes: jax.Array = jax.lax.fori_loop(0, (columns + more) // _BLOCK, block, start)[1]
    return codes[:columns]


def inverse_factor(hessian: Matrix, damping: float) -> tuple[Matrix, NDArray[np.intp]]:
    """U, upper triangular float32[K, K] with UᵀU the inverse of the damped Hessian, and the order of its columns.

    `hessian` is the sum of x xᵀ over the calibration's inputs, [K, K]; columns with large inputs come first.
    `damping` is relative to the mean of its diagonal. A column that no input touches is rounded for itself.
    With the order of rows and columns reversed, the Cholesky factor L of the Hessian is the inverse of U, reversed.
    """
    diagonal = np.diag(hessian)
    order = np.argsort(-diagonal, kind="stable")
    mean = np.float32(np.mean(diagonal)) or np.float32(1)
    dead = np.flatnonzero(diagonal[order] <= 1e-9 * mean)
    while True:
        more = np.full(len(order), np.float32(damping) * mean, np.float32)
        more[dead] += mean
        inverse = np.asarray(_inverse_of_factor(hessian.astype(np.float32, copy=False), order[::-1], more[::-1]))
        if np.all(np.isfinite(inverse)):
            return np.ascontiguousarray(
                inverse[::-1, ::-1]
            ), order  # by XLA, with the rest, it ends the process (JAX 0.10)
        damping = max(damping, 1e-4) * 10  # too close to singular for its size
        if not damping < 1e3:
            return np.eye(len(order), dtype=np.float32), order


@jax.jit
def _inverse_of_factor(hessian: jax.Array, order: jax.Array, more: jax.Array) -> jax.Array:
    """Of the Cholesky factor of the Hessian in this order, more[K] on its diagonal."""
    factor = _factor(hessian[order][:, order] + jnp.diag(more))
    return _solved(factor, jnp.eye(len(order)))


def realigned(weight: Matrix, cross: Matrix, hessian: Matrix, damping: float) -> Matrix:
    """The float weight W* whose W* x̂ is nearest to what the original model computes.

    `cross` is the sum of (y - W x̂) x̂ᵀ, float32[N, K]: what the output of the original model had more than this
    weight gives on the quantized model's inputs. `hessian` is the sum of x̂ x̂ᵀ, [K, K]; damped, the regression stays
    near the weight where inputs say little.
    """
    more = np.float32(damping * np.mean(np.diag(hessian)) + 1e-30)
    found = np.asarray(_realigned(weight, cross, hessian.astype(np.float32, copy=False), more))
    return found if np.all(np.isfinite(found)) else weight  # nothing can be said


@jax.jit
def _realigned(weight: jax.Array, cross: jax.Array, hessian: jax.Array, more: jax.Array) -> jax.Array:
    factor = _factor(hessian + more * jnp.eye(len(hessian)))
    return weight + _solved_back(factor, _solved(factor, cross.T)).T


Factor = tuple[jax.Array, list[jax.Array]]  # L[K, K] below its diagonal blocks, and the inverses of those


def _factor(matrix: jax.Array) -> Factor:
    """The Cholesky factor L of a matrix, L Lᵀ; not finite where it is not positive.

    Made some columns at a time out of JAX's products, without LAPACK: its factor of a whole matrix reaches a
    twentieth of what products do, and where others want the cores OpenBLAS's threads take many times as long.
    """
    lower, inverses = jnp.zeros_like(matrix), []
    for first, last in _blocks(len(matrix)):
        panel = matrix[first:, first:last]
        if first:  # a product of nothing ends the process (JAX 0.10)
            panel = panel - lower[first:, :first] @ lower[first:last, :first].T
        corner, inverse = _corner(panel[: last - first])
        lower = lower.at[first:last, first:last].set(corner)
        if last < len(matrix):
            lower = lower.at[last:, first:last].set(panel[last - first :] @ inverse.T)
        inverses.append(inverse)
    return lower, inverses


def _corner(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The factor of a small matrix and its inverse, row by row of [matrix, 1]."""
    size = len(matrix)

    def row(at: jax.Array, rest: jax.Array) -> jax.Array:
        found = rest[at] / jnp.sqrt(rest[at, at])
        column = jnp.where(jnp.arange(size) > at, found[:size], 0)
        return (rest - column[:, None] * found).at[at].set(found)

    both = jax.lax.fori_loop(0, size, row, jnp.concatenate([matrix, jnp.eye(size)], axis=1))
    return jnp.triu(both[:, :size]).T, both[:, size:]


def _solved(factor: Factor, right: jax.Array) -> jax.Array:
    """X with L · X = right[K, any]."""
    lower, inverses = factor
    found = jnp.zeros_like(right)
    for (first, last), inverse in zip(_blocks(len(lower)), inverses, strict=True):
        rest = right[first:last]
        if first:
            rest = rest - lower[first:last, :first] @ found[:first]
        found = found.at[first:last].set(inverse @ rest)
    return found


def _solved_back(factor: Factor, right: jax.Array) -> jax.Array:
    """X with Lᵀ · X = right[K, any]."""
    lower, inverses = factor
    found = jnp.zeros_like(right)
    for (first, last), inverse in zip(reversed(_blocks(len(lower))), reversed(inverses), strict=True):
        rest = right[first:last]
        if last < len(lower):
            rest = rest - lower[last:, first:last].T @ found[last:]
        found = found.at[first:last].set(inverse.T @ rest)
    return found


def _blocks(size: int) -> list[tuple[int, int]]:
    each = max(_FACTORED, -(-size // 16))
    return [(first, min(first + each, size)) for first in range(0, size, each)]
