"""Fit the values shipped for training steps and throughput, on a development half of whole sites and systems.

python bench/limits/fit_fleet.py DATA_DIR [FOLDER]      writes training.toml and throughput.toml of limits/catalogue

The same tables, catalogue and forms give the same bytes; a test says when a figure that the values rest on has moved.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from baseload.limits.ridge import Fitted, to_toml, unfitted
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


def training(table: bytes) -> str:
    """The file of training values."""
    rows = training_points.read_rows(table, name="training")
    half = development([row.submitter for row in rows])
    used = [row for row in rows if row.submitter in half]
    predictor = TrainingPredictor(fitted=unfitted(training_form.FORM))
    fitted = predictor.calibrate(used).fitted
    basis = f"{fitted.points} jobs of {len(half)} of the submitters of MLPerf training v5.1, up to 72 accelerators"
    kinds = ("all", "kind", "benchmark", "vendor", "accelerator", "pair", "release", "uncounted")
    return to_toml(fitted, basis=basis, kinds=kinds, uncorrected_s=counted(fitted, predictor.uncorrected_s))


def throughput(table: bytes) -> str:
    """The file of throughput values."""
    results = throughput_points.read_rows(table, name="inference")
    half = development([f"{row.submitter}/{row.platform}" for row in results])
    some = [row for row in results if f"{row.submitter}/{row.platform}" in half]
    predictor = ThroughputPredictor(fitted=unfitted(throughput_form.FORM))
    fitted = predictor.calibrate(some).fitted
    basis = f"{fitted.points} results of half of the systems of MLPerf inference v4.1 and v5.1"
    kinds = tuple(kind for kind in throughput_form.WIDTHS if kind not in ("site", "capped"))
    return to_toml(fitted, basis=basis, kinds=kinds, uncorrected_s=counted(fitted, predictor.uncorrected_s))


def counted(fitted: Fitted, uncorrected_s: Callable[[str, str], float | None]) -> dict[tuple[str, str], float]:
    """Seconds before any correction of each (accelerator, work) fitted to, where the catalogue has its figures."""
    pairs = sorted(tuple(name.split("/", 1)) for kind, name in fitted.known if kind == "pair")
    said = {(accelerator, work): uncorrected_s(accelerator, work) for accelerator, work in pairs}
    return {pair: seconds for pair, seconds in said.items() if seconds is not None}


def main(data: Path, target: Path = CATALOGUE) -> None:
    (target / "training.toml").write_text(training((data / "mlperf_training/v5.1_up_to_72.csv").read_bytes()))
    (target / "throughput.toml").write_text(throughput((data / "mlperf_inference/llm.csv").read_bytes()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
