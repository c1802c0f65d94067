"""The held-out examination of power under load: each (model, accelerators) group scored by a curve of the others.

A row whose average is far below the power its own peak and token time imply (below 0.4 of its peak) did not
measure decoding: it is an anomaly, by this rule.
"""

from collections.abc import Sequence

import numpy as np

from baseload.limits.goals import Row as Figure
from baseload.limits.serving.power import Draw, Floats
from baseload.limits.serving.power_points import PowerPoint, PowerPredictor, parse_power
from baseload.limits.tables import read_table

FILE = "splitwise_perf/perf_model.csv"
ODD = 0.4
UNFITTED = Draw(gain=0.8, bend=0.6, prompt_weight=1.5, decode_weight=1.5)  # the shipped curve saw all of this table


def read_power(data: bytes, *, name: str) -> list[PowerPoint]:
    """Points of a CSV file; DataError names file and line."""
    _, rows = read_table(data, name=name, hint="The columns are those of docs/limits.md, section Power.")
    return [parse_power(row, line=line, name=name) for line, row in rows]


def score(table: bytes, *, name: str = FILE, predictor: PowerPredictor | None = None) -> list[Figure]:
    """The rows of `baseload validate` for a table of powers measured by phase."""
    start = predictor or PowerPredictor(draw=UNFITTED)
    points = [p for p in read_power(table, name=name) if p.average > 0]
    said_average: list[float] = []
    said_peak: list[float] = []
    scored: list[PowerPoint] = []
    for group in sorted({(p.model, p.gpus) for p in points}):
        mine = [p for p in points if (p.model, p.gpus) == group]
        answers = start.calibrate([p for p in points if (p.model, p.gpus) != group]).predict(mine)
        scored += mine
        said_average += [answer.average for answer in answers]
        said_peak += [answer.peak for answer in answers]
    average = np.abs(np.array(said_average) / np.array([p.average for p in scored]) - 1.0)
    peak = np.abs(np.array(said_peak) / np.array([p.peak for p in scored]) - 1.0)
    sound = np.array([p.average >= ODD * p.peak for p in scored])
    energy = _energy(scored, said_average)
    split = "each (model, accelerators) group scored by the other groups' curve"
    count = len(scored)
    return [
        Figure(what="power under load, median", reached=_median(average), goal=0.08, points=count, split=split),
        Figure(what="power of the peak, median", reached=_median(peak), points=count, split=split),
        Figure(
            what="energy per token, mean, anomalies left out",
            reached=float(energy[sound].mean()) if sound.any() else float("nan"),
            goal=0.12,
            points=int(sound.sum()),
            split=split,
        ),
        Figure(what="energy per token, mean, all rows", reached=_mean(energy), points=count, split=split),
    ]


def _energy(points: Sequence[PowerPoint], average: Sequence[float]) -> Floats:
    """Errors of joules per token made: the same time on both sides, so those of the power."""
    return np.abs(np.array([s / p.average for s, p in zip(average, points, strict=True)]) - 1.0)


def _median(errors: Floats) -> float:
    return float(np.median(errors)) if len(errors) else float("nan")


def _mean(errors: Floats) -> float:
    return float(errors.mean()) if len(errors) else float("nan")
