"""What the formulas miss, learnt from calibration points: a Gaussian process over log errors that fades to nothing.

Errors are shared by points that share an engine, a model, an accelerator or a version, and more so where lengths,
concurrency and layout are near. Far from any calibration point (an accelerator or model never measured) the
correction is nil or nearly so, and its variance says how much less is known: the expected error comes from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from baseload.limits.serving.features import Floats
from baseload.limits.serving.points import Point

SHARES: tuple[tuple[str, Callable[[Point], object]], ...] = (
    ("engine", lambda p: p.engine),
    ("family", lambda p: p.family),
    ("engine+family", lambda p: (p.engine, p.family)),
    ("version", lambda p: (p.engine, p.version, p.family)),
    ("accelerator+engine", lambda p: (p.system, p.engine)),
    ("deployment", lambda p: (p.system, p.engine, p.family, p.format)),
    ("build", lambda p: (p.system, p.engine, p.family, p.format, p.version)),
)
"""Groups of points that share an error; each with a part that does not vary within it and one that does smoothly."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """Variances of the constant and of the smooth part per share, length scales of the coordinates, and noise."""

    constant: tuple[float, ...]
    smooth: tuple[float, ...]
    scales: tuple[float, ...]
    noise: float
    disagg_noise: float

    def between(self, a: "Places", b: "Places") -> Floats:
        """Covariance of the errors at a and b."""
        apart = (a.coordinates[:, None, :] - b.coordinates[None, :, :]) / np.array(self.scales)
        near = np.exp(-0.5 * (apart * apart).sum(axis=2))
        total = np.zeros(near.shape)
        for k in range(len(SHARES)):
            shared = (a.shares[:, None, k] == b.shares[None, :, k]).astype(float)
            total += shared * (self.constant[k] + self.smooth[k] * near)
        total *= a.apart[:, None] == b.apart[None, :]
        return total

    def prior(self) -> float:
        """Variance of the error at any one place."""
        return sum(self.constant) + sum(self.smooth)


@dataclass(frozen=True, slots=True)
class Places:
    """Points as the kernel sees them."""

    coordinates: Floats
    shares: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    apart: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class Words:
    """Numbers for the groups points belong to, the same for the same group throughout."""

    def __init__(self) -> None:
        self._ids: dict[object, int] = {}

    def places(self, points: Sequence[Point]) -> Places:
        """Where points lie."""
        shares = [
            [self._ids.setdefault((k, of(p)), len(self._ids)) for k, (_, of) in enumerate(SHARES)] for p in points
        ]
        coordinates = [
            (
                np.log2(p.concurrency),
                np.log2(p.isl),
                np.log2(p.osl),
                np.log2(p.decode.gpus),
                np.log2(p.decode.ep),
                np.log2(p.decode.dp),
                np.log2(p.decode.workers) + (0.0 if p.decode.workers_known else 2.0),
                np.log2(p.prefill.gpus * p.prefill.workers if p.prefill else 1),
            )
            for p in points
        ]
        return Places(
            np.array(coordinates, dtype=float).reshape(len(points), 8),
            np.array(shares, dtype=np.int64).reshape(len(points), len(SHARES)),
            np.array([p.prefill is not None for p in points], dtype=bool),
        )


@dataclass(frozen=True, slots=True)
class Residual:
    """A correction learnt: what to add to a log prediction, and how sure that is."""

    kernel: Kernel
    words: Words
    at: Places
    weights: Floats
    inverse: Floats

    def correct(self, points: Sequence[Point]) -> tuple[Floats, Floats]:
        """(addition to the logarithm, its standard deviation) per point."""
        if not self.at.shares.shape[0]:
            return np.zeros(len(points)), np.full(len(points), np.sqrt(self.kernel.prior()))
        cross = self.kernel.between(self.words.places(points), self.at)
        explained = np.einsum("ij,jk,ik->i", cross, self.inverse, cross, optimize=True)
        spread = np.sqrt(np.maximum(1e-6, self.kernel.prior() - explained))
        return cross @ self.weights, spread


def learn(points: Sequence[Point], errors: Floats, kernel: Kernel) -> Residual:
    """Learn from the log errors (measured − predicted) of calibration points; gross outliers count less."""
    words = Words()
    at = words.places(points)
    if not points:
        return Residual(kernel, words, at, np.zeros(0), np.zeros((0, 0)))
    covariance = kernel.between(at, at)
    noise = np.where(at.apart, kernel.disagg_noise, kernel.noise)
    weights = np.zeros(len(points))
    inverse = covariance
    for _ in range(3):  # reweighting makes the noise of an outlier its own
        inverse = np.linalg.inv(covariance + np.diag(noise))
        weights = inverse @ errors
        left = np.abs(noise * weights)  # the part of the error the process leaves unexplained
        usual = 3.0 * np.sqrt(np.where(at.apart, kernel.disagg_noise, kernel.noise))
        noise = np.where(at.apart, kernel.disagg_noise, kernel.noise) * np.maximum(1.0, left / usual) ** 2
    return Residual(kernel, words, at, weights, inverse)


def evidence(points: Sequence[Point], errors: Floats, kernel: Kernel) -> float:
    """Negative log marginal likelihood, to choose a kernel by."""
    at = Words().places(points)
    covariance = kernel.between(at, at) + np.diag(np.where(at.apart, kernel.disagg_noise, kernel.noise))
    factor = np.linalg.cholesky(covariance)
    whitened = np.linalg.solve(factor, errors)
    return float(0.5 * whitened @ whitened + np.log(np.diag(factor)).sum())
