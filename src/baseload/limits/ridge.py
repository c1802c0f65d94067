"""Calibration: rates near their priors that explain measured times, shared by what points have in common.

A `Form` says which rates there are, what is believed of them, how far they vary with each kind of trait, and how
they turn counted costs into seconds. Every rate is kept as its logarithm: a global value, and corrections by trait
(the model, the accelerator, both, the software's release, the site). Each is held to zero by a ridge of stated width,
so that a few measured points move what they speak of and nothing else. The loss is a Student distribution's on the
logarithm of the time, for jobs that waited for something the columns do not tell. Solved by damped Gauss-Newton with
numerical derivatives; its curvature gives the expected error of every answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Traits = tuple[tuple[str, str], ...]
"""(kind, name) pairs of a point; ("all", "") is understood."""
Key = tuple[str, str, str]
"""(kind, name, parameter)."""
NUDGE = 1e-4
MEAN_OF_NORMAL = 0.8  # mean of a normal variable's size, in standard deviations


@dataclass(frozen=True, slots=True)
class Form:
    """A model to be calibrated. `time(costs, theta)` gives seconds; `theta` has a row of log rates per point."""

    priors: Mapping[str, float]
    widths: Mapping[str, Mapping[str, float]]  # standard deviations of logarithms, by kind of trait, by rate
    time: Callable[[Floats, Floats], Floats]
    noise: float = 0.05  # usual error of a measured time, relative
    tail: float = 4.0  # degrees of freedom of its Student distribution

    @property
    def names(self) -> tuple[str, ...]:
        """The rates, in the order of theta's columns."""
        return tuple(self.priors)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Corrections found, with their covariance, and the traits they rest on."""

    form: Form
    corrections: dict[Key, float]
    covariance: Floats
    known: frozenset[tuple[str, str]]
    points: int = 0

    def theta(self, traits: Sequence[Traits]) -> Floats:
        """One row of log rates per point."""
        names = self.form.names
        column = {name: i for i, name in enumerate(names)}
        rows = np.tile(np.log([self.form.priors[name] for name in names]), (len(traits), 1))
        for i, of in enumerate(traits):
            for kind, name in (("all", ""), *of):
                for rate in self.form.widths[kind]:
                    rows[i, column[rate]] += self.corrections.get((kind, name, rate), 0.0)
        return rows

    def predict(self, costs: Floats, traits: Sequence[Traits]) -> tuple[Floats, Floats]:
        """(seconds, expected relative error) per point."""
        if not len(traits):
            return np.zeros(0), np.zeros(0)
        theta = self.theta(traits)
        seconds = self.form.time(costs, theta)
        slopes = _slopes(self.form, costs, theta)
        names = self.form.names
        column = {name: i for i, name in enumerate(names)}
        place = {key: i for i, key in enumerate(self.corrections)}
        errors = np.zeros(len(traits))
        for i, of in enumerate(traits):
            row, unknown = np.zeros(len(place)), 0.0
            for kind, name in (("all", ""), *of):
                for rate, width in self.form.widths[kind].items():
                    slope = slopes[column[rate], i]
                    at = place.get((kind, name, rate))
                    if at is None:
                        unknown += (slope * width) ** 2
                    else:
                        row[at] += slope
            variance = unknown + float(row @ self.covariance @ row) if len(place) else unknown
            errors[i] = MEAN_OF_NORMAL * np.sqrt(variance + self.form.noise**2)
        return seconds, errors


def unfitted(form: Form) -> Fitted:
    """What is believed before any measurement."""
    return Fitted(form, {}, np.zeros((0, 0)), frozenset())


def fit(form: Form, costs: Floats, traits: Sequence[Traits], measured_s: Floats, *, rounds: int = 30) -> Fitted:
    """Corrections that explain `measured_s`. No points: the priors."""
    if not len(traits):
        return unfitted(form)
    keys = sorted({(k, n, rate) for of in traits for k, n in (("all", ""), *of) for rate in form.widths[k]})
    widths = np.array([form.widths[kind][rate] for kind, _, rate in keys])
    design = _design(form, traits, keys)
    base = np.tile(np.log([form.priors[name] for name in form.names]), (len(traits), 1))
    target = np.log(measured_s)

    def theta_of(x: Floats) -> Floats:
        return np.asarray(base + (design @ x).T, dtype=np.float64)

    def loss(x: Floats) -> float:
        error = (np.log(form.time(costs, theta_of(x))) - target) / form.noise
        return float(form.tail * np.log1p(error**2 / form.tail).sum() + ((x / widths) ** 2).sum())

    x, damping = np.zeros(len(keys)), 1e-3
    best = loss(x)
    hessian = np.diag(1.0 / widths**2)
    for _ in range(rounds):
        theta = theta_of(x)
        error = (np.log(form.time(costs, theta)) - target) / form.noise
        weight = 1.0 / (1.0 + error**2 / form.tail)
        jacobian = np.einsum("ki,kij->ij", _slopes(form, costs, theta), design, optimize=True) / form.noise
        hessian = jacobian.T @ (weight[:, None] * jacobian) + np.diag(1.0 / widths**2)
        gradient = jacobian.T @ (weight * error) + x / widths**2
        step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), gradient)
        after = loss(x - step)
        if after < best:
            gain, x, best, damping = best - after, x - step, after, max(1e-6, damping / 4)
            if gain < 1e-4 * max(1.0, best):
                break
        else:
            damping *= 8
    known = frozenset(trait for of in traits for trait in of)
    corrections = {key: float(value) for key, value in zip(keys, x, strict=True)}
    return Fitted(form, corrections, np.asarray(np.linalg.inv(hessian), dtype=np.float64), known, len(traits))


def _design(form: Form, traits: Sequence[Traits], keys: Sequence[Key]) -> Floats:
    """[rates, points, keys]: which corrections a point's rates get."""
    place = {key: i for i, key in enumerate(keys)}
    column = {name: i for i, name in enumerate(form.names)}
    design = np.zeros((len(form.names), len(traits), len(keys)))
    for i, of in enumerate(traits):
        for kind, name in (("all", ""), *of):
            for rate in form.widths[kind]:
                design[column[rate], i, place[kind, name, rate]] = 1.0
    return design


def _slopes(form: Form, costs: Floats, theta: Floats) -> Floats:
    """[rates, points]: change of the logarithm of the time with each log rate."""
    now = np.log(form.time(costs, theta))
    slopes = np.empty((theta.shape[1], theta.shape[0]))
    for k in range(theta.shape[1]):
        nudged = theta.copy()
        nudged[:, k] += NUDGE
        slopes[k] = (np.log(form.time(costs, nudged)) - now) / NUDGE
    return slopes
