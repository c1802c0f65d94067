"""Serving predictions cross-validated on the development half: what the form may be chosen by. The rest is not read.

    python bench/limits/develop.py DATA_DIR

DATA_DIR holds serving_measured/serving_measured.csv. Each accelerator, then each model, is left out in turn and
scored by values fitted on the others (a model: calibrated by 20 points of each accelerator and engine of the others).
Known groups: two pairs of folds of groups; 20 points of each accelerator, engine and mode calibrate, the rest is
scored. *Clean*: anomalies left out; *stated*: rows that state their worker counts. Half a minute.
"""

import argparse
from math import isnan
from pathlib import Path

from rich.console import Console
from rich.table import Table

from baseload.limits.serving.held_out import Scored, figures_of, fitted_on, left_out, read_points
from baseload.limits.serving.measured import distinct, halves, sample
from baseload.limits.serving.predict import Predictor

SEEDS = (5, 6)  # of the folds


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    path = parser.parse_args().data / "serving_measured" / "serving_measured.csv"
    points = distinct([p for p in read_points(path.read_bytes(), name=str(path)) if p.tpot_ms > 0])
    develop = [points[i] for i in halves(points)[0]]
    table = Table("TPOT of", "mode", "points", "mean", "clean", "median", "stated", "TTFT median")
    parts = {
        "accelerator unseen": left_out(develop, develop, Predictor(), lambda p: p.system, calibrate=False),
        "model unseen": left_out(develop, develop, Predictor(), lambda p: p.family, calibrate=True),
        "known groups": known(develop),
    }
    for name, scored in parts.items():
        for mode in ("agg", "disagg"):
            f = figures_of(scored.of(mode), Predictor())
            shares = (f.tpot_mean, f.tpot_clean, f.tpot_median, f.known_tpot_mean, f.ttft_median)
            table.add_row(name, mode, str(f.points), *("–" if isnan(x) else f"{x:.1%}" for x in shares))
    Console().print(table)


def known(points):
    """Each fold by values of the other, calibrated by a sample of its own."""
    scored, said = [], []
    for seed in SEEDS:
        folds = halves(points, seed=seed)
        for train, test in (folds, folds[::-1]):
            held = [points[i] for i in test]
            chosen = set(sample(held))
            alone = fitted_on([points[i] for i in train], Predictor()).calibrate([held[i] for i in sorted(chosen)])
            rest = [p for i, p in enumerate(held) if i not in chosen]
            scored += rest
            said += alone.predict(rest)
    return Scored(scored, said)


if __name__ == "__main__":
    main()
