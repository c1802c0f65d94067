"""Which values a row of a matrix may take: a scale of the row times small integers, chosen by search.

The integers are those of native/LAYOUT.md: in 8 bits the code itself, in 4 bits step · code + offset with a step and
an offset for each group of columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from baseload.engine.native.packing import MAX_STEP

Matrix = NDArray[np.float32]
Codes = NDArray[np.int16]
_TINY = np.float32(1e-30)
_PIECE = 1 << 16  # weights searched at a time: what is computed of them stays in a core's cache
_REACH = 120  # integers that the largest weight of a row in 4 bits is worth: the steps next to it stay in bounds


@dataclass(frozen=True, slots=True)
class Levels:
    """W[n, k] = scale[n] · (step[n, g] · code[n, k] + offset[n, g]), g = k // group; code from low to high.

    scale is float32[N]; step, offset, low and high are int16[N, G].
    """

    scale: Matrix
    step: Codes
    offset: Codes
    low: Codes
    high: Codes
    group: int
    scheme: str  # "w8" | "w4"

    def restore(self, codes: NDArray[np.integer]) -> Matrix:
        """The weight float32[N, K] of codes[N, K]."""
        columns = codes.shape[1]
        wide = self._spread(self.step, columns) * codes.astype(np.float32) + self._spread(self.offset, columns)
        weight: Matrix = wide * self.scale[:, None]
        return weight

    def nearest(self, weight: Matrix) -> Codes:
        """Codes of weight[N, K], each rounded for itself."""
        columns = weight.shape[1]
        scaled = weight / np.maximum(self.scale, _TINY)[:, None] - self._spread(self.offset, columns)
        codes = np.rint(scaled / self._spread(self.step, columns))
        low, high = self._spread(self.low, columns), self._spread(self.high, columns)
        return np.clip(codes, low, high).astype(np.int16)

    def _spread(self, values: Codes, columns: int) -> Matrix:
        if values.shape[1] == 1:
            return values.astype(np.float32)
        return np.repeat(values.astype(np.float32), self.group, axis=1)[:, :columns]


@dataclass(frozen=True, slots=True)
class Rounded:
    """A matrix in its levels."""

    levels: Levels
    codes: NDArray[np.int16]

    def restore(self) -> Matrix:
        """The float32 matrix it stands for."""
        return self.levels.restore(self.codes)


@dataclass(frozen=True, slots=True)
class Kept:
    """A matrix that is not rounded to integers but to bfloat16, and so are its inputs."""

    weight: Matrix

    def restore(self) -> Matrix:
        """The float32 matrix it stands for."""
        return self.weight.astype(ml_dtypes.bfloat16).astype(np.float32)


Fitted = Rounded | Kept
Value = Matrix | Fitted | list[Fitted]  # experts


def choose_w8(weight: Matrix, importance: Matrix) -> Levels:
    """One scale a row, codes from -127 to 127: the clipping with the least error weighted by importance[K]."""
    return _in_pieces(weight, lambda part: _clipped(part, importance))


def choose_w4(weight: Matrix, importance: Matrix, group: int) -> Levels:
    """Steps and offsets of groups of 32, 64 or 128 columns, those with the least error weighted by importance[K]."""
    return _in_pieces(weight, lambda part: _stepped(part, importance, group))


def joined(pieces: list[Levels]) -> Levels:
    """The levels of rows that follow each other."""
    if len(pieces) == 1:
        return pieces[0]
    scale, step, offset, low, high = (
        np.concatenate([getattr(piece, name) for piece in pieces])
        for name in ("scale", "step", "offset", "low", "high")
    )
    return Levels(scale, step, offset, low, high, pieces[0].group, pieces[0].scheme)


def _in_pieces(weight: Matrix, choose: Callable[[Matrix], Levels]) -> Levels:
    each = max(_PIECE // max(weight.shape[1], 1), 1)
    return joined([choose(weight[first : first + each]) for first in range(0, max(len(weight), 1), each)])


def _clipped(weight: Matrix, importance: Matrix) -> Levels:
    rows, columns = weight.shape
    reach = np.maximum(np.max(np.abs(weight), axis=1, initial=0.0), _TINY)
    best, least = reach / np.float32(127), np.full(rows, np.inf, np.float32)
    for ratio in np.linspace(1.0, 0.8, 11):
        scale = reach * np.float32(ratio / 127)
        rounded = np.clip(np.rint(weight / scale[:, None]), -127, 127) * scale[:, None]
        error = np.square(weight - rounded) @ importance
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    one = np.ones((rows, 1), np.int16)
    return Levels(best.astype(np.float32), one, one * 0, one * -127, one * 127, columns, "w8")


def _stepped(weight: Matrix, importance: Matrix, group: int) -> Levels:
    rows, columns = weight.shape
    count = -(-columns // group)
    scale = np.maximum(np.max(np.abs(weight), axis=1, initial=0.0), _TINY) / np.float32(_REACH)
    padding = ((0, 0), (0, count * group - columns))
    parts = np.pad(weight / scale[:, None], padding, mode="edge").reshape(rows, count, group)
    weights = np.pad(np.maximum(importance, _TINY), padding[1]).reshape(count, group)
    weights = weights / np.maximum(np.max(weights, axis=1, keepdims=True), _TINY)
    low, high = np.min(parts, axis=2), np.max(parts, axis=2)
    ideal = (high - low) / 15
    best = (np.ones((rows, count), np.float32), np.rint((low + high) / 2 - 7.5).astype(np.float32))
    least = np.full((rows, count), np.inf, np.float32)
    first = np.clip(np.ceil(ideal), 1, MAX_STEP)
    for lower in range(6):
        step = np.maximum(first - lower, 1)
        offset = np.rint((low + high) / 2 - 7.5 * step)
        for _ in range(2):
            offset = np.clip(offset, -128, 127)
            codes = _round(parts, step, offset)
            error = np.einsum("ngk,gk->ng", np.square(parts - codes * step[..., None] - offset[..., None]), weights)
            better = error < least
            best = (np.where(better, step, best[0]), np.where(better, offset, best[1]))
            least = np.minimum(error, least)
            rest = np.einsum("ngk,gk->ng", parts - codes * step[..., None], weights)
            offset = np.rint(rest / np.maximum(np.sum(weights, axis=1), _TINY))
    step, offset = best[0].astype(np.int16), best[1].astype(np.int16)
    lowest, highest = bounds_of(step, offset)
    return Levels(scale, step, offset, lowest, highest, group, "w4")


def _round(parts: Matrix, step: Matrix, offset: Matrix) -> Matrix:
    low, high = bounds_of(step, offset)
    rounded: Matrix = np.clip(np.rint((parts - offset[..., None]) / step[..., None]), low[..., None], high[..., None])
    return rounded


def bounds_of(step: NDArray[np.generic], offset: NDArray[np.generic]) -> tuple[Codes, Codes]:
    """The codes from 0 to 15 with which step · code + offset is an 8-bit integer."""
    wide, at = step.astype(np.int32), offset.astype(np.int32)
    low = np.clip(-((128 + at) // wide), 0, 15)
    high = np.clip((127 - at) // wide, 0, 15)
    return low.astype(np.int16), high.astype(np.int16)
