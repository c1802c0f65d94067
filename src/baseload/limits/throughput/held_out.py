"""The held-out examination of throughput and wall power: whole systems left out, five times over.

A row's copies (the same system under two accuracy targets) are one measurement, and a system's measurements stay on
one side of every split. The form and the priors were chosen while looking at the table they are scored on; the
corrections of a scored group are always fitted without it, and the shipped values are left out.
"""

from collections.abc import Sequence

import numpy as np

from baseload.limits.goals import Row as Figure
from baseload.limits.in_turn import in_turn
from baseload.limits.ridge import unfitted
from baseload.limits.throughput.model import FORM
from baseload.limits.throughput.points import Row, distinct, read_rows
from baseload.limits.throughput.predict import Answer, Predictor

FILE = "mlperf_inference/llm.csv"
GOAL = 0.10
FOLDS = 5


def score(table: bytes, *, name: str = FILE, seed: int = 1, predictor: Predictor | None = None) -> list[Figure]:
    """The rows of `baseload validate` for a table of published inference results."""
    start = predictor or Predictor(fitted=unfitted(FORM))  # without shipped values: they saw half of this table
    rows = read_rows(table, name=name)
    once = [row for row in (rows[i] for i in distinct(rows)) if row.value > 0]
    systems = sorted({_system(row) for row in once})
    deal = dict(zip(systems, np.random.default_rng(seed).integers(FOLDS, size=len(systems)).tolist(), strict=True))
    scored, said = in_turn(once, lambda row: str(deal[_system(row)]), start)
    split = f"{FOLDS} parts of whole systems, seed {seed}: each scored by the others"
    figures = []
    for scenario, goal in (("offline", GOAL), ("server", None), ("interactive", None)):
        some = [i for i, row in enumerate(scored) if row.scenario == scenario]
        what = f"MLPerf LLM {scenario} throughput"
        figures.append(_figure(f"{what}, mean", scored, said, some, split, goal=goal))
        if scenario == "offline":
            closed = [i for i in some if scored[i].division in ("", "closed")]
            figures.append(_figure(f"{what}, closed division, mean", scored, said, closed, split, goal=goal))
            figures.append(_figure(f"{what}, median", scored, said, some, split, median=True))
    powered, watts = _power(once, start)
    figures.append(
        Figure(
            what="MLPerf LLM power at the wall, mean",
            reached=float(np.mean(watts)) if watts else float("nan"),
            points=powered,
            split="each powered measurement scored by all the others",
        )
    )
    for word, of in (("accelerator", _accelerator), ("model", _model)):
        scored, said = in_turn(once, of, start)
        some = [i for i, row in enumerate(scored) if row.scenario == "offline"]
        split = f"each {word}'s results scored, calibrated on all the others"
        figures.append(_figure(f"MLPerf LLM offline, {word} unseen, median", scored, said, some, split, median=True))
    return figures


def _power(rows: Sequence[Row], start: Predictor) -> tuple[int, list[float]]:
    powered = [row for row in rows if row.power_w > 0]
    errors = []
    for row in powered:
        answer = start.calibrate([other for other in powered if other is not row]).predict([row])[0]
        if answer.power_w is not None:
            errors.append(abs(answer.power_w / row.power_w - 1.0))
    return len(errors), errors


def _figure(
    what: str,
    rows: Sequence[Row],
    said: Sequence[Answer],
    some: Sequence[int],
    split: str,
    *,
    goal: float | None = None,
    median: bool = False,
) -> Figure:
    errors = [abs(a / rows[i].value - 1.0) for i in some if (a := said[i].throughput) is not None]
    reached = float(np.median(errors) if median else np.mean(errors)) if errors else float("nan")
    blank = len(some) - len(errors)
    return Figure(
        what=what, reached=reached, points=len(errors), goal=goal,
        split=split + (f"; {blank} flagged with the missing figure" if blank else ""),
    )  # fmt: skip


def _system(row: Row) -> str:
    return f"{row.submitter}/{row.platform}/{row.accelerator}"


def _accelerator(row: Row) -> str:
    return row.accelerator


def _model(row: Row) -> str:
    return row.model
