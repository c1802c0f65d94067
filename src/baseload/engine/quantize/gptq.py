"""Rounding with compensation: GPTQ (Frantar, Ashkboos, Hoefler, Alistarh 2023), with a least-squares start.

Columns are rounded one after the other, those with the largest inputs first; what rounding a column costs is made
good by the columns still to come. The scales are chosen before, so that any order of columns is compatible with
groups (Kim et al.'s and AutoGPTQ's "static groups").
"""

import numpy as np
from numpy.typing import NDArray

from baseload.engine.quantize.levels import Levels

Matrix = NDArray[np.float32]
_BLOCK = 64  # columns whose corrections are gathered before the rest of the matrix is touched


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
        for index in range(first, last):
            group = order[index] // levels.group
            code = np.clip(np.rint((left[index] - offsets[group]) * inverse[group]), low[group], high[group])
            codes[order[index]] = code
            error = errors[index - first]
            np.divide(left[index] - code * steps[group] - offsets[group], upper[index, index], out=error)
            if index + 1 < last:
                left[index + 1 : last] -= upper[index, index + 1 : last, None] * error
        if last < columns:
            left[last:] -= upper[first:last, last:].T @ errors[: last - first]
    return np.ascontiguousarray(codes.T)


def inverse_factor(hessian: NDArray[np.float64], damping: float) -> tuple[Matrix, NDArray[np.intp]]:
    """U, upper triangular float32[K, K] with UᵀU the inverse of the damped Hessian, and the order of its columns.

    `hessian` is the sum of x xᵀ over the calibration's inputs, float64[K, K]; columns with large inputs come first.
    `damping` is relative to the mean of its diagonal. A column that no input touches is rounded for itself.
    """
    order = np.argsort(-np.diag(hessian), kind="stable")
    damped = hessian[np.ix_(order, order)]
    diagonal = np.diag(damped).copy()
    mean = float(np.mean(diagonal)) or 1.0
    dead = np.flatnonzero(diagonal <= 1e-9 * mean)
    damped[dead, dead] = mean
    while True:
        try:
            inverse = np.linalg.inv(damped + np.eye(len(order)) * (damping * mean))
            return np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32), order
        except np.linalg.LinAlgError:
            damping = max(damping, 1e-4) * 10  # too close to singular for its size
            if not damping < 1e3:
                return np.eye(len(order), dtype=np.float32), order


def realigned(weight: Matrix, cross: NDArray[np.float64], inverse: NDArray[np.float64]) -> Matrix:
    """The float weight W* whose W* x̂ is nearest to what the original model computes.

    `cross` is the sum of (y - W x̂) x̂ᵀ, float64[N, K]: what the output of the original model had more than this
    weight gives on the quantized model's inputs. `inverse` is `ridge_inverse` of the same inputs.
    """
    return np.asarray(weight + cross @ inverse, np.float32)


def ridge_inverse(hessian: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    """The inverse of the damped Hessian: regression with it stays near the weight where inputs say little."""
    ridge = hessian + np.eye(len(hessian)) * (damping * np.mean(np.diag(hessian)) + 1e-30)
    return np.asarray(np.linalg.inv(ridge), np.float64)
