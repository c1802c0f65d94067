"""The held-out examination of training: jobs calibrated small and predicted large, and sites and silicon left out.

Every split parts whole groups. The form and the priors were chosen while looking at the table they are scored on;
the corrections of a scored group are always fitted without it, and the shipped values are left out.
"""

from collections.abc import Sequence

import numpy as np

from baseload.limits.goals import Row as Figure
from baseload.limits.in_turn import in_turn
from baseload.limits.ridge import unfitted
from baseload.limits.training.fit import FORM
from baseload.limits.training.points import Row, read_rows, whole_system
from baseload.limits.training.predict import Answer, Predictor

FILE = "mlperf_training/v5.1_up_to_72.csv"
GOAL = 0.10
SMALL = (16, 32)
LANGUAGE = ("llama31_8b", "llama31_405b", "llama2_70b_lora", "flux1")


def score(table: bytes, *, name: str = FILE, predictor: Predictor | None = None) -> list[Figure]:
    """The rows of `baseload validate` for a table of published training results."""
    start = predictor or Predictor(fitted=unfitted(FORM))  # without shipped values: they saw half of this table
    rows = [row for row in whole_system(read_rows(table, name=name)) if row.step_s > 0]
    figures = []
    for most in SMALL:
        small = [row for row in rows if row.accelerators <= most]
        large = [row for row in rows if row.accelerators > most]
        said = start.calibrate(small).predict(large)
        split = f"calibrated on {len(small)} jobs of at most {most} accelerators, scored beyond"
        figures += _figures(f"MLPerf training, step time beyond {most}", large, said, split)
    for what, of in (("site", _site), ("accelerator", _accelerator)):
        scored, said = in_turn(rows, of, start)
        split = f"each {what}'s jobs scored, calibrated on all the others"
        figures.append(_figure(f"MLPerf training, {what} unseen: step time", scored, said, split, goal=None))
    said = start.predict(rows)
    figures.append(_figure("MLPerf training, sheet only: step time", rows, said, "nothing calibrated", goal=None))
    return figures


def score_beyond(table: bytes, other: bytes, *, most: int = 72, name: str = "other.csv") -> list[Figure]:
    """Jobs of another table (another round, say) beyond `most` accelerators, calibrated on jobs up to `most`.

    Once by the first table alone, once with the other table's small jobs too. Rows whose unit cannot be what their
    columns say (limits/plausible.py) are not scored, as they do not calibrate.
    """
    start = Predictor(fitted=unfitted(FORM))
    rows = [row for row in whole_system(read_rows(table, name=FILE)) if row.accelerators <= most]
    others = [row for row in whole_system(read_rows(other, name=name)) if row.step_s > 0]
    odd = {one.line for one in start.implausible(others)}
    large = [row for row in others if row.accelerators > most and row.line not in odd]
    unscored = sum(row.accelerators > most for row in others) - len(large)
    figures = []
    for words, small in (
        ("by the first table", rows),
        ("by both tables", rows + [row for row in others if row.accelerators <= most]),
    ):
        said = start.calibrate(small).predict(large)
        split = f"{name}: jobs beyond {most} scored, calibrated {words} up to {most}"
        split += f"; {unscored} left out, their unit cannot be" if unscored else ""
        what = f"MLPerf training, another table beyond {most}, calibrated {words}"
        figures.append(_figure(f"{what}, mean", large, said, split))
        figures.append(_figure(f"{what}, median", large, said, split, median=True, goal=None))
    return figures


def _figures(what: str, rows: Sequence[Row], said: Sequence[Answer], split: str) -> list[Figure]:
    language = [i for i, row in enumerate(rows) if row.benchmark in LANGUAGE]
    return [
        _figure(f"{what}, mean", rows, said, split),
        _figure(
            f"{what}, language and image models, mean",
            [rows[i] for i in language],
            [said[i] for i in language],
            split,
        ),
        _figure(f"{what}, median", rows, said, split, median=True, goal=None),
    ]


def _figure(
    what: str,
    rows: Sequence[Row],
    said: Sequence[Answer],
    split: str,
    *,
    goal: float | None = GOAL,
    median: bool = False,
) -> Figure:
    errors = [
        abs(answer.step_s / row.step_s - 1.0)
        for row, answer in zip(rows, said, strict=True)
        if answer.step_s is not None
    ]
    reached = float(np.median(errors) if median else np.mean(errors)) if errors else float("nan")
    blank = len(rows) - len(errors)
    return Figure(
        what=what, reached=reached, points=len(errors), goal=goal,
        split=split + (f"; {blank} flagged with the missing figure" if blank else ""),
    )  # fmt: skip


def _site(row: Row) -> str:
    return row.submitter


def _accelerator(row: Row) -> str:
    return row.accelerator
