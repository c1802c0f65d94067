"""Calibration: parameters near their priors that explain measured points, by robust ridge least squares on log error.

The unknowns are one global value per parameter and one correction per (trait, parameter) (see `traits`). Each is
held to its prior by a ridge of stated width, so that twenty points move what they speak of and nothing else. The
loss is soft-L1: a tenth of the rows in the wild are not what their columns say.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from baseload.limits.serving.features import Features, Floats
from baseload.limits.serving.step import PARAMETERS, times_of
from baseload.limits.serving.traits import Design

PRIORS = {
    "launch_s": 22e-6,
    "host_s": 1.0e-3,
    "row_s": 12e-6,
    "eager_s": 40e-6,
    "dense_read": 0.75,
    "dense_math": 0.55,
    "expert_read": 0.55,
    "expert_math": 0.3,
    "alike": 0.88,
    "kv_read": 0.6,
    "kv_math": 0.3,
    "link": 0.4,
    "message_s": 7e-6,
    "outside": 3.0,
    "prefill_dense": 0.7,
    "prefill_expert": 0.35,
    "prefill_pairs": 0.35,
    "interference": 0.95,
    "aligned": 0.12,
    "first_s": 0.035,
    "pace": 1.0,
    "pool": 0.2,
}
"""Before any measurement: what published kernels reach of their peaks, tens of microseconds a layer to launch."""

_PRODUCTS = ("dense_math", "expert_math", "prefill_dense", "prefill_expert", "prefill_pairs")
FORMATS = {
    ("dense=bf16", "dense_read"): 0.25,
    ("dense=bf16", "dense_math"): 0.15,
    ("dense=bf16", "prefill_dense"): 0.25,
    ("dense=nvfp4", "dense_read"): -0.2,
    ("dense=nvfp4", "dense_math"): -0.15,
    ("dense=nvfp4", "prefill_dense"): -0.1,
    ("unpacked", "expert_read"): -0.4,
    ("unpacked", "dense_read"): -0.2,
    ("unpacked,generation=blackwell", "expert_read"): -0.5,
    ("unpacked,generation=blackwell", "dense_read"): -0.4,
    **{("generation=cdna3", name): -0.5 for name in _PRODUCTS},
    **{("generation=cdna4", name): -0.24 for name in _PRODUCTS},
    **{(f"generation=cdna{n}", name): -0.1 for n in (3, 4) for name in ("dense_read", "expert_read", "kv_read")},
}
"""The same of formats, in logarithms: narrow ones reach less of their higher peaks; unpacking costs, and more of
Blackwell's bandwidth: its kernels are those of older silicon, as fast there as here. And of silicon never fitted:
the greatest matrix product reached, over the sheet, as measured by others is 51 to 60 % on MI300X and MI325X and 62
% on MI355X where an H100 reaches 80 % (stas00/ml-engineering, compute/accelerator); of memory 81 % where others
reach 90."""

NARROW = {
    "pace": 0.05,
    "interference": 0.08,
    "prefill_dense": 0.2,
    "prefill_pairs": 0.3,
    "dense_read": 0.15,
    "kv_read": 0.3,
}
OWN = {
    "launch_s": 0.2,
    "host_s": 0.4,
    "row_s": 0.3,
    "eager_s": 0.3,
    "dense_read": 0.1,
    "dense_math": 0.15,
    "expert_read": 0.25,
    "expert_math": 0.2,
    "alike": 0.05,
    "kv_read": 0.25,
    "kv_math": 0.2,
    "link": 0.2,
    "message_s": 0.2,
    "outside": 0.1,
    "prefill_dense": 0.25,
    "prefill_expert": 0.3,
    "prefill_pairs": 0.2,
    "interference": 0.3,
    "aligned": 0.6,
    "first_s": 0.5,
    "pool": 0.5,
}
"""How far a group (accelerator, engine, model, mode) departs by itself: schedules do by much, what silicon reaches by
little. What a group alone shows is not believed of others."""

GLOBAL_WIDTH, TRAIT_WIDTH, GROUP_WIDTH = 0.1, 0.08, 0.06  # standard deviations of the logarithms
BUILD_WIDTH = 0.4  # of a build's pace: versions and speculation that no column tells
ALONE = 2  # points of a group that tell as much as all of it: their errors are alike
TPOT_NOISE, TTFT_NOISE = 0.12, 0.25  # errors the loss takes for usual
KNOWN_WIDTH = 0.1  # of a shared trait whose correction is known from other points
DISAGG_NOISE, UNKNOWN_NOISE = 1.5, 7.0  # times as much where disaggregated, with worker counts known and not


@dataclass(frozen=True, slots=True)
class Fitted:
    """Parameters found: logarithms of the global ones, and corrections for the columns of a design."""

    globals_: Floats
    corrections: dict[tuple[str, str], float]

    def theta(self, traits: Sequence[tuple[tuple[str, tuple[str, ...]], ...]]) -> Floats:
        """One row of log parameters per point."""
        design = Design(tuple(self.corrections))
        values = np.array(list(self.corrections.values()))
        return self.globals_ + _spread(design.matrix(traits) * values, design)


def priors() -> Fitted:
    """What is believed before any measurement."""
    return Fitted(np.log([PRIORS[name] for name in PARAMETERS]), dict(FORMATS))


def fit(
    features: Features,
    traits: Sequence[tuple[tuple[str, tuple[str, ...]], ...]],
    tpot_s: Floats,
    ttft_s: Floats,
    *,
    start: Fitted,
    only_groups: bool = False,
    rounds: int = 25,
) -> Fitted:
    """Fit to measured times (0: not measured). `only_groups`: global values stay."""
    every = Design.over(traits)
    known = set(start.corrections)
    columns = every.columns
    design = Design(columns)
    fixed = start.theta(traits)
    old = np.array([start.corrections.get(column, 0.0) for column in columns])
    usual = np.array([FORMATS.get(column, 0.0) for column in columns])
    ones = design.matrix(traits)
    width = np.array([KNOWN_WIDTH if only_groups and c in known else _width(*c) for c in columns])
    n_globals = 0 if only_groups else len(PARAMETERS)
    centre = np.concatenate(
        [
            (np.log([PRIORS[p] for p in PARAMETERS]) - start.globals_)[:n_globals],
            np.where([only_groups and c in known for c in columns], 0.0, usual - old),
        ]
    )
    widths = np.concatenate([[NARROW.get(p, GLOBAL_WIDTH) for p in PARAMETERS[:n_globals]], width])
    noise = np.ones(len(traits)) if only_groups else _alike(traits)
    problem = _Problem(features, fixed, ones, design, n_globals, tpot_s, ttft_s, centre, widths, noise)
    step = _descend(problem, len(widths), rounds=rounds)
    globals_ = start.globals_ + step[:n_globals] if n_globals else start.globals_
    corrections = dict(start.corrections)
    corrections.update(zip(columns, (old + step[n_globals:]).tolist(), strict=True))
    return Fitted(globals_, corrections)


def _descend(problem: "_Problem", size: int, *, rounds: int) -> Floats:
    """The step that brings the sum of squares lowest: Levenberg and Marquardt's method, at most `rounds` slopes."""
    x, damping = np.zeros(size), 1e-3
    errors = problem.errors(x)
    cost = float(errors @ errors)
    for _ in range(rounds):
        slopes = problem.slopes(x)
        hessian, downhill = slopes.T @ slopes, -(slopes.T @ errors)
        for _ in range(8):
            trial = x + np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), downhill)
            trial_errors = problem.errors(trial)
            trial_cost = float(trial_errors @ trial_errors)
            if trial_cost < cost:
                break
            damping *= 8.0
        else:
            return x
        gained, damping = cost - trial_cost, damping / 5.0
        x, errors, cost = trial, trial_errors, trial_cost
        if gained < 1e-4 * cost:
            return x
    return x


def _width(trait: str, parameter: str) -> float:
    if trait.startswith("group="):
        return OWN[parameter]
    if trait.startswith("build="):
        return BUILD_WIDTH
    return GROUP_WIDTH if trait.startswith("system=") else TRAIT_WIDTH


def _alike(traits: Sequence[tuple[tuple[str, tuple[str, ...]], ...]]) -> Floats:
    """How many times as noisy a point of a large group is: all of it tells as much as ALONE points."""
    groups = [next((name for name, _ in row if name.startswith("group=")), "") for row in traits]
    count = Counter(groups)
    return np.array([max(1.0, count[group] / ALONE) ** 0.5 for group in groups])


def _spread(weighted: Floats, design: Design) -> Floats:
    """Sum columns that correct the same parameter: points × PARAMETERS."""
    total = np.zeros((weighted.shape[0], len(PARAMETERS)))
    np.add.at(total.T, design.parameter, weighted.T)
    return total


class _Problem:
    """Residuals and their slopes, for steps away from where the fit starts."""

    def __init__(
        self,
        features: Features,
        fixed: Floats,
        ones: Floats,
        design: Design,
        n_globals: int,
        tpot_s: Floats,
        ttft_s: Floats,
        centre: Floats,
        widths: Floats,
        alike: Floats,
    ) -> None:
        self.features, self.fixed, self.ones, self.design = features, fixed, ones, design
        self.n_globals, self.centre, self.widths = n_globals, centre, widths
        self.tpot, self.ttft = np.flatnonzero(tpot_s > 0), np.flatnonzero(ttft_s > 0)
        apart = np.where(features["disagg"] > 0, DISAGG_NOISE, 1.0)
        apart = np.where(features["workers_known"] > 0, apart, UNKNOWN_NOISE) * alike
        self.tpot_noise, self.ttft_noise = TPOT_NOISE * apart[self.tpot], TTFT_NOISE * apart[self.ttft]
        self.log_tpot, self.log_ttft = np.log(tpot_s[self.tpot]), np.log(ttft_s[self.ttft])

    def theta(self, x: Floats) -> Floats:
        moved = self.fixed + _spread(self.ones * x[self.n_globals :], self.design)
        return moved + x[: self.n_globals] if self.n_globals else moved

    def raw(self, theta: Floats) -> Floats:
        times = times_of(self.features, theta)
        tpot = (np.log(times.tpot_s[self.tpot]) - self.log_tpot) / self.tpot_noise
        ttft = (np.log(times.ttft_s[self.ttft]) - self.log_ttft) / self.ttft_noise
        return np.concatenate([tpot, ttft])

    def errors(self, x: Floats) -> Floats:
        return np.concatenate([_soften(self.raw(self.theta(x))), (x - self.centre) / self.widths])

    def slopes(self, x: Floats) -> Floats:
        theta = self.theta(x)
        base = self.raw(theta)
        soft = _soften_slope(base)
        by_parameter = np.empty((len(base), len(PARAMETERS)))
        for k in range(len(PARAMETERS)):
            nudged = theta.copy()
            nudged[:, k] += 1e-4
            by_parameter[:, k] = soft * (self.raw(nudged) - base) / 1e-4
        rows = np.concatenate([self.tpot, self.ttft])
        by_column = by_parameter[:, self.design.parameter] * self.ones[rows]
        data = np.concatenate([by_parameter, by_column], axis=1) if self.n_globals else by_column
        return np.concatenate([data, np.diag(1.0 / self.widths)])


def _soften(z: Floats) -> Floats:
    """A residual whose square is the soft-L1 loss of z."""
    result: Floats = np.sign(z) * np.sqrt(2.0 * (np.sqrt(1.0 + z * z) - 1.0))
    return result


def _soften_slope(z: Floats) -> Floats:
    root = np.sqrt(1.0 + z * z)
    small = np.abs(z) < 1e-6
    safe = np.where(small, 1.0, np.sqrt(2.0 * (root - 1.0)))
    result: Floats = np.where(small, 1.0, np.abs(z) / root / safe)
    return result
