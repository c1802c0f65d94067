"""Fit the values shipped for training steps and throughput, on a development half of whole sites and systems.

python bench/limits/fit_fleet.py DATA_DIR      writes limits/catalogue/training.toml and throughput.toml
"""

import sys
from pathlib import Path

import numpy as np

from baseload.limits.ridge import to_toml, unfitted
from baseload.limits.throughput import model as throughput_form
from baseload.limits.throughput import points as throughput_points
from baseload.limits.throughput.predict import Predictor as ThroughputPredictor
from baseload.limits.training import fit as training_form
from baseload.limits.training import points as training_points
from baseload.limits.training.predict import Predictor as TrainingPredictor

CATALOGUE = Path(__file__).parents[2] / "src/baseload/limits/catalogue"
SEED = 1


def development(groups: list[str], seed: int = SEED) -> set[str]:
    """Half of the groups, dealt by a seed."""
    names = sorted(set(groups))
    return {
        name
        for name, side in zip(names, np.random.default_rng(seed).permutation(len(names)) % 2, strict=True)
        if side
    }


def main(data: Path) -> None:
    rows = training_points.read_rows((data / "mlperf_training/v5.1_up_to_72.csv").read_bytes(), name="training")
    half = development([row.submitter for row in rows])
    used = [row for row in rows if row.submitter in half]
    fitted = TrainingPredictor(fitted=unfitted(training_form.FORM)).calibrate(used).fitted
    basis = f"{fitted.points} jobs of {len(half)} of the submitters of MLPerf training v5.1, up to 72 accelerators"
    kinds = ("all", "kind", "benchmark", "vendor", "accelerator", "pair", "release", "uncounted")
    (CATALOGUE / "training.toml").write_text(to_toml(fitted, basis=basis, kinds=kinds))
    results = throughput_points.read_rows((data / "mlperf_inference/llm.csv").read_bytes(), name="inference")
    half = development([f"{row.submitter}/{row.platform}" for row in results])
    some = [row for row in results if f"{row.submitter}/{row.platform}" in half]
    fitted = ThroughputPredictor(fitted=unfitted(throughput_form.FORM)).calibrate(some).fitted
    basis = f"{fitted.points} results of half of the systems of MLPerf inference v4.1 and v5.1"
    left = ("site", "capped")
    kinds = tuple(kind for kind in throughput_form.WIDTHS if kind not in left)
    (CATALOGUE / "throughput.toml").write_text(to_toml(fitted, basis=basis, kinds=kinds))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
