"""Calibration: rates near their priors that explain measured times, shared by what points have in common.

A `Form` says which rates there are, what is believed of them, how far they vary with each kind of trait, and how
they turn counted costs into seconds. Every rate is kept as its logarithm: a global value, and corrections by trait
(the model, the accelerator, both, the software's release, the site). Each is held to zero by a ridge of stated width,
so that a few measured points move what they speak of and nothing else. Values shipped with the package take the place
of zero. The loss is a Student distribution's on the
logarithm of the time, for jobs that waited for something the columns do not tell. Solved by damped Gauss-Newton with
numerical derivatives; its curvature gives the expected error of every answer.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Traits = tuple[tuple[str, str], ...]
"""(kind, name) pairs of a point; ("all", "") is understood."""
Key = tuple[str, str, str]
"""(kind, name, parameter)."""
NUDGE = 1e-4
ENOUGH = 5e-4  # relative gain of a round below which the fit is done
SHIPPED_SHARE = 0.6  # of a correction's width that is left where a shipped value takes the place of zero
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
    known: frozenset[tuple[str, str]]  # traits of the points calibrated by
    points: int = 0
    shipped: Mapping[Key, float] = field(default_factory=dict)
    shipped_basis: str = ""

    def theta(self, traits: Sequence[Traits]) -> Floats:
        """One row of log rates per point."""
        names = self.form.names
        column = {name: i for i, name in enumerate(names)}
        rows = np.tile(np.log([self.form.priors[name] for name in names]), (len(traits), 1))
        for i, of in enumerate(traits):
            for kind, name in (("all", ""), *of):
                for rate in self.form.widths[kind]:
                    key = (kind, name, rate)
                    rows[i, column[rate]] += self.shipped.get(key, 0.0) + self.corrections.get(key, 0.0)
        return rows

    @property
    def shipped_traits(self) -> frozenset[tuple[str, str]]:
        """Traits that shipped values speak of."""
        return frozenset((kind, name) for kind, name, _ in self.shipped)

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
                        known = SHIPPED_SHARE if (kind, name, rate) in self.shipped else 1.0
                        unknown += (slope * width * known) ** 2
                    else:
                        row[at] += slope
            variance = unknown + float(row @ self.covariance @ row) if len(place) else unknown
            errors[i] = MEAN_OF_NORMAL * np.sqrt(variance + self.form.noise**2)
        return seconds, errors


def unfitted(form: Form, *, shipped: Mapping[Key, float] | None = None, basis: str = "") -> Fitted:
    """What is believed before any measurement of the user's."""
    return Fitted(form, {}, np.zeros((0, 0)), frozenset(), 0, shipped or {}, basis)


def fit(start: Fitted, costs: Floats, traits: Sequence[Traits], measured_s: Floats, *, rounds: int = 20) -> Fitted:
    """Corrections on top of what `start` ships that explain `measured_s`; `start` bare where there are no points."""
    form = start.form
    if not len(traits):
        return unfitted(form, shipped=start.shipped, basis=start.shipped_basis)
    keys = sorted({(k, n, rate) for of in traits for k, n in (("all", ""), *of) for rate in form.widths[k]})
    widths = np.array([form.widths[kind][rate] for kind, _, rate in keys])
    design = _design(form, traits, keys)
    base = unfitted(form, shipped=start.shipped).theta(traits)
    target = np.log(measured_s)

    def theta_of(x: Floats) -> Floats:
        return np.asarray(base + (design @ x).T, dtype=np.float64)

    def error_of(x: Floats) -> Floats:
        return np.asarray((np.log(form.time(costs, theta_of(x))) - target) / form.noise, dtype=np.float64)

    x = np.zeros(len(keys))
    hessian = np.diag(1.0 / widths**2)
    for robust in (_soft_l1, _student(form.tail)):  # convex first, so that what is merely far off is not given up
        damping, best = 1e-3, robust(error_of(x))[0] + float(((x / widths) ** 2).sum())
        for _ in range(rounds):
            theta, error = theta_of(x), error_of(x)
            weight = robust(error)[1]
            jacobian = np.einsum("ki,kij->ij", _slopes(form, costs, theta), design, optimize=True) / form.noise
            hessian = jacobian.T @ (weight[:, None] * jacobian) + np.diag(1.0 / widths**2)
            gradient = jacobian.T @ (weight * error) + x / widths**2
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), gradient)
            after = robust(error_of(x - step))[0] + float((((x - step) / widths) ** 2).sum())
            if after < best:
                gain, x, best, damping = best - after, x - step, after, max(1e-6, damping / 4)
                if gain < ENOUGH * max(1.0, best):
                    break
            else:
                damping *= 8
    known = frozenset(trait for of in traits for trait in of)
    corrections = {key: float(value) for key, value in zip(keys, x, strict=True)}
    covariance = np.asarray(np.linalg.inv(hessian), dtype=np.float64)
    return Fitted(form, corrections, covariance, known, len(traits), start.shipped, start.shipped_basis)


def read_shipped(data: bytes) -> tuple[dict[Key, float], str]:
    """(corrections, what they rest on) from a file that `to_toml` wrote."""
    tables = tomllib.loads(data.decode())
    corrections = {
        (kind, name, rate): float(value)
        for kind, names in tables["corrections"].items()
        for name, rates in names.items()
        for rate, value in rates.items()
    }
    return corrections, str(tables["basis"])


def to_toml(
    fitted: Fitted,
    *,
    basis: str,
    kinds: Sequence[str],
    least: float = 0.02,
    uncorrected_s: Mapping[tuple[str, str], float] | None = None,
) -> str:
    """The corrections of some kinds of trait as a file; those below `least` are left out.

    Three decimals are kept: a thousandth is far below the noise of one measured time and above that of arithmetic, so
    that the same points give the same bytes on any machine. `uncorrected_s` are seconds before any correction, by
    (accelerator, work), which a test holds against the figures of the day.
    """
    lines = [
        "# Written by bench/limits/fit_fleet.py; see docs/limits-training.md. Corrections are natural logarithms.",
        f"basis = {_quoted(basis)}",
        f'form = "{form_mark(fitted.form)}"',
    ]
    by_trait: dict[tuple[str, str], dict[str, float]] = {}
    for (kind, name, rate), value in sorted(fitted.corrections.items()):
        if kind in kinds and abs(value) >= least:
            by_trait.setdefault((kind, name), {})[rate] = value
    for (kind, name), rates in by_trait.items():
        lines += ["", f"[corrections.{kind}.{_quoted(name)}]"]
        lines += [f"{rate} = {value:.3f}" for rate, value in rates.items()]
    if uncorrected_s:
        lines += [
            "",
            "# Seconds before any correction, by accelerator and work: a test says when these figures moved.",
        ]
    of = ""
    for (accelerator, work), seconds in sorted((uncorrected_s or {}).items()):
        if accelerator != of:
            lines += ["", f"[uncorrected_s.{_quoted(accelerator)}]"]
            of = accelerator
        lines.append(f"{_quoted(work)} = {seconds:.4g}")
    return "\n".join(lines) + "\n"


def form_mark(form: Form) -> str:
    """Eight digits that change with a form's rates, priors, widths, noise or tail."""
    widths = {kind: dict(rates) for kind, rates in form.widths.items()}
    return f"{crc32(repr((dict(form.priors), widths, form.noise, form.tail)).encode()):08x}"


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _soft_l1(error: Floats) -> tuple[float, Floats]:
    """(loss, weights) that grow with the error's size, not its square."""
    root = np.sqrt(1.0 + error**2)
    return float(2.0 * (root - 1.0).sum()), 1.0 / root


def _student(tail: float) -> Callable[[Floats], tuple[float, Floats]]:
    """(loss, weights) of a Student distribution with so many degrees of freedom."""

    def loss(error: Floats) -> tuple[float, Floats]:
        return float(tail * np.log1p(error**2 / tail).sum()), 1.0 / (1.0 + error**2 / tail)

    return loss


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
