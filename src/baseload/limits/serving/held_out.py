"""The held-out examination: the issue's table for serving, by values fitted here without the points that are scored.

Development half and held-out half are dealt by group (accelerator, engine, model family). Values are fitted on the
development half alone (what is shipped was fitted on both); calibration is a seeded sample of at most 20 points per
(accelerator, engine, mode) of the held-out half, and everything else in it is scored. For an accelerator (or model)
never calibrated, values are fitted anew on all other accelerators (models), and the held-out half's points of that
one are scored.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct

from baseload.limits.catalogue.accelerators import Catalogue
from baseload.limits.catalogue.models import Models
from baseload.limits.serving.features import features_of
from baseload.limits.serving.fit import Fitted, fit, priors
from baseload.limits.serving.hidden import measured_s
from baseload.limits.serving.measured import anomalies, distinct, halves, kendall_tau, sample
from baseload.limits.serving.points import Point, check_columns, parse_points
from baseload.limits.serving.predict import Prediction, Predictor
from baseload.limits.serving.stand_in import StandIns
from baseload.limits.serving.traits import traits_of
from baseload.limits.tables import read_table


class Figures(Struct, frozen=True):
    """Errors over scored points: means and medians of |predicted / measured − 1|."""

    points: int
    anomalies: int
    tpot_mean: float
    tpot_clean: float  # mean once anomalies are left out
    tpot_median: float
    ttft_mean: float
    ttft_median: float
    known_tpot_mean: float  # where worker counts are known (disaggregated); NaN where there are none
    tau: float  # Kendall's, over configurations and loads of one deployment's model and lengths, weighted by pairs
    regret: float  # by how much throughput an accelerator of the configuration chosen falls short of the best, mean
    known_points: int = 0  # those of `known_tpot_mean`


class Scored(Struct, frozen=True):
    """Points with their predictions."""

    points: list[Point]
    predictions: list[Prediction]

    def of(self, mode: str) -> "Scored":
        """Those of one mode."""
        some = [i for i, p in enumerate(self.points) if p.mode == mode]
        return Scored([self.points[i] for i in some], [self.predictions[i] for i in some])


def read_points(data: bytes, *, name: str) -> list[Point]:
    """Points of a CSV file; DataError names file and line."""
    columns, rows = read_table(data, name=name, hint="The columns are those of docs/limits.md, section Points.")
    check_columns(columns, name=name)
    return parse_points([row for _, row in rows], name=name)


def known_groups(points: Sequence[Point], predictor: Predictor, *, seed: int = 1) -> Scored:
    """Held-out groups, by values of the development half, calibrated by at most 20 points per (accelerator, engine,
    mode)."""
    once = _once(points)
    develop, held = ([once[i] for i in half] for half in halves(once))
    chosen = set(sample(held, seed=seed))
    alone = fitted_on(develop, predictor, rounds=30)
    calibrated = alone.calibrate([held[i] for i in sorted(chosen)])
    rest = [p for i, p in enumerate(held) if i not in chosen]
    return Scored(rest, calibrated.predict(rest))


def unseen_accelerator(points: Sequence[Point], predictor: Predictor) -> Scored:
    """Each accelerator's held-out points, by values fitted on all the others and its sheet."""
    return left_out(_once(points), _held(points), predictor, lambda p: p.system, calibrate=False)


def unseen_model(points: Sequence[Point], predictor: Predictor, *, seed: int = 1) -> Scored:
    """Each model's held-out points, by values fitted on all others, calibrated by 20 points a group of those."""
    return left_out(_once(points), _held(points), predictor, lambda p: p.family, calibrate=True, seed=seed)


def figures_of(scored: Scored, predictor: Predictor) -> Figures:
    """Errors, order and choice of scored points."""
    points, said = scored.points, scored.predictions
    if not points:
        nothing = float("nan")
        return Figures(0, 0, nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing)
    tpot = np.abs(np.array([s.tpot_ms / p.tpot_ms for s, p in zip(said, points, strict=True)]) - 1.0)
    timed = [i for i, p in enumerate(points) if p.ttft_ms > 0]
    ttft = np.abs(np.array([said[i].ttft_ms / points[i].ttft_ms for i in timed]) - 1.0)
    odd = anomalies(points, features_of(points, predictor.chips, predictor.models))
    known = [i for i, p in enumerate(points) if _stated(p)]
    return Figures(
        points=len(points),
        anomalies=int(odd.sum()),
        tpot_mean=float(tpot.mean()),
        tpot_clean=float(tpot[~odd].mean()),
        tpot_median=float(np.median(tpot)),
        ttft_mean=float(ttft.mean()),
        ttft_median=float(np.median(ttft)),
        known_tpot_mean=float(tpot[known].mean()) if known else float("nan"),
        tau=_order(points, said),
        known_points=len(known),
        regret=_regret(points, said),
    )


def _stated(point: Point) -> bool:
    prefill, decode = point.prefill, point.decode
    return prefill is not None and prefill.workers_known and decode.workers_known and not decode.total


def _once(points: Sequence[Point]) -> list[Point]:
    return distinct([p for p in points if p.tpot_ms > 0])


def _held(points: Sequence[Point]) -> list[Point]:
    once = _once(points)
    return [once[i] for i in halves(once)[1]]


def left_out(
    points: Sequence[Point],
    scored: Sequence[Point],
    predictor: Predictor,
    of: Callable[[Point], str],
    *,
    calibrate: bool,
    seed: int = 1,
) -> Scored:
    """Each group of the scored points (`of` names it) by values fitted on all points of the others."""
    held: list[Point] = []
    said: list[Prediction] = []
    for name in sorted({of(p) for p in scored}):
        others = [p for p in points if of(p) != name]
        alone = fitted_on(others, predictor)
        if calibrate:
            alone = alone.calibrate([others[i] for i in sample(others, seed=seed)])
        mine = [p for p in scored if of(p) == name]
        held += mine
        said += alone.predict(mine)
    return Scored(held, said)


def fitted_on(points: Sequence[Point], predictor: Predictor, *, rounds: int = 12) -> Predictor:
    """A predictor of these points alone: none of what `predictor` was fitted to but its residual kernels."""
    fitted = fit_points(points, predictor.chips, predictor.models, rounds=rounds)
    return Predictor(
        catalogue=predictor.catalogue, models=predictor.models, defaults=predictor.defaults, fitted=fitted
    )


def fit_points(
    points: Sequence[Point], catalogue: Catalogue | StandIns, models: Models, *, rounds: int = 12
) -> Fitted:
    """Values fitted to measured points, from the priors alone."""
    tpot_s, ttft_s = measured_s(points, models)
    traits = [traits_of(p, models.find(p.model)[0]) for p in points]
    return fit(features_of(points, catalogue, models), traits, tpot_s, ttft_s, start=priors(), rounds=rounds)


def _questions(points: Sequence[Point]) -> list[list[int]]:
    """Points that answer one question: which layout and load for this model, lengths, accelerator and engine."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, p in enumerate(points):
        groups[(p.system, p.engine, p.family, p.format, p.mode, p.isl, p.osl)].append(i)
    return [group for _, group in sorted(groups.items(), key=lambda item: str(item[0])) if len(group) >= 4]


def _order(points: Sequence[Point], said: Sequence[Prediction]) -> float:
    taus, weights = [], []
    for group in _questions(points):
        taus.append(
            kendall_tau(np.array([said[i].tpot_ms for i in group]), np.array([points[i].tpot_ms for i in group]))
        )
        weights.append(len(group))
    return float(np.average(taus, weights=weights)) if taus else float("nan")


def _regret(points: Sequence[Point], said: Sequence[Prediction]) -> float:
    """Choose, among the layouts run at one load, the one with most tokens per second and accelerator."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, p in enumerate(points):
        groups[(p.system, p.engine, p.family, p.format, p.mode, p.isl, p.osl, p.concurrency)].append(i)
    short = []
    for group in groups.values():
        layouts = {points[i].decode for i in group}
        if len(layouts) < 2:
            continue
        measured = np.array([_speed(points[i], points[i].ttft_ms, points[i].tpot_ms) for i in group])
        guessed = np.array([_speed(points[i], said[i].ttft_ms, said[i].tpot_ms) for i in group])
        short.append(1.0 - measured[int(np.argmax(guessed))] / measured.max())
    return float(np.mean(short)) if short else float("nan")


def _speed(point: Point, ttft_ms: float, tpot_ms: float) -> float:
    gpus = point.decode.gpus * point.decode.workers + (
        point.prefill.gpus * point.prefill.workers if point.prefill else 0
    )
    return point.concurrency * point.osl / (ttft_ms + point.osl * tpot_ms) / gpus
