"""Rounding with compensation: GPTQ (Frantar, Ashkboos, Hoefler, Alistarh 2023), with a least-squares start.

Columns are rounded one after the other, those with the largest inputs first; what rounding a column costs is made
good by the columns still to come. The scales are chosen before, so that any order of columns is compatible with
groups (Kim et al.'s and AutoGPTQ's "static groups").
"""

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas

from baseload.engine.quantize.levels import Levels

Matrix = NDArray[np.float32]
_BLOCK, _NEAR = 256, 16  # columns whose corrections are gathered before the rest (of the block) is touched


def compensate(weight: Matrix, upper: Matrix, order: NDArray[np.intp], levels: Levels) -> NDArray[np.int16]:
    """Codes int16[N, K] of weight[N, K], such that the restored weight times x is near weight · x.

    `upper` and `order` are what `inverse_factor` made of the inputs. Rows are independent of each other: a large
    matrix can be done in pieces.
    """
    rows, columns = weight.shape
    left = np.ascontiguousarray(weight.T[order])  # [K, N]: a column of the weight is contiguous
    steps = np.ascontiguousarray((levels.step * levels.scale[:, None]).T.astype(np.float32))  # [G, N]
    offsets = np.ascontiguousarray((levels.offset * levels.scale[:, None]).T.astype(np.float32))
    low, high = np.ascontiguousarray(levels.low.T), np.ascontiguousarray(levels.high.T)
    inverse = 1 / np.maximum(steps, np.float32(1e-30))
    codes = np.empty((columns, rows), np.int16)
    errors = np.empty((_BLOCK, rows), np.float32)
    for first in range(0, columns, _BLOCK):
        last = min(first + _BLOCK, columns)
        for near in range(first, last, _NEAR):
            end = min(near + _NEAR, last)
            for index in range(near, end):
                group = order[index] // levels.group
                code = np.clip(np.rint((left[index] - offsets[group]) * inverse[group]), low[group], high[group])
                codes[order[index]] = code
                error = errors[index - first]
                np.divide(left[index] - code * steps[group] - offsets[group], upper[index, index], out=error)
                if index + 1 < end:
                    left[index + 1 : end] -= upper[index, index + 1 : end, None] * error
            if end < last:
                left[end:last] -= upper[near:end, end:last].T @ errors[near - first : end - first]
        if last < columns:
            left[last:] -= upper[first:last, last:].T @ errors[: last - first]
    return np.ascontiguousarray(codes.T)


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
        damped = hessian[np.ix_(order[::-1], order[::-1])].astype(np.float32)
        last = len(order) - 1 - dead
        damped[last, last] = mean
        damped[np.diag_indices_from(damped)] += np.float32(damping) * mean
        lower = cholesky(damped)
        if np.all(np.isfinite(lower)):
            inverse = blas.strsm(1.0, lower, np.eye(len(order), dtype=np.float32, order="F"), lower=True)
            return np.ascontiguousarray(np.tril(inverse)[::-1, ::-1]), order
        damping = max(damping, 1e-4) * 10  # too close to singular for its size
        if not damping < 1e3:
            return np.eye(len(order), dtype=np.float32), order


def realigned(weight: Matrix, cross: Matrix, hessian: Matrix, damping: float) -> Matrix:
    """The float weight W* whose W* x̂ is nearest to what the original model computes.

    `cross` is the sum of (y - W x̂) x̂ᵀ, float32[N, K]: what the output of the original model had more than this
    weight gives on the quantized model's inputs. `hessian` is the sum of x̂ x̂ᵀ, [K, K]; damped, the regression stays
    near the weight where inputs say little.
    """
    ridge = hessian.astype(np.float32)
    ridge[np.diag_indices_from(ridge)] += np.float32(damping * np.mean(np.diag(hessian)) + 1e-30)
    lower = cholesky(ridge)
    if not np.all(np.isfinite(lower)):
        return weight  # nothing can be said
    half = blas.strsm(1.0, lower, np.asfortranarray(cross.T), lower=True)
    more = blas.strsm(1.0, lower, half, lower=True, trans_a=True)
    return np.asarray(weight + more.T, np.float32)


def cholesky(matrix: Matrix) -> Matrix:
    """L, lower triangular, with L Lᵀ the matrix, in the order of Fortran; not finite where it is not positive.

    JAX's: where other processes want the cores, OpenBLAS's threads took fifteen times as long.
    """
    return np.asfortranarray(np.asarray(jnp.linalg.cholesky(matrix), np.float32))
