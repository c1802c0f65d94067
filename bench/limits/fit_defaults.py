"""Fit the serving values shipped in limits/catalogue/serving.toml, on all measured groups.

    python bench/limits/fit_defaults.py DATA_DIR [--kernels]

DATA_DIR holds serving_measured/serving_measured.csv. The form was made on one half of the groups (accelerator,
engine, model family), and `baseload validate` scores the other by values that it fits on the first alone; what is
shipped is fitted on both. `--kernels` also chooses the residual kernels anew (a minute): by the evidence of errors
out of fold, two folds of groups within the first half.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from baseload.limits.catalogue.accelerators import read_catalogue
from baseload.limits.catalogue.models import Models
from baseload.limits.serving import defaults as shipped
from baseload.limits.serving.features import features_of
from baseload.limits.serving.fit import fit, priors
from baseload.limits.serving.held_out import read_points
from baseload.limits.serving.hidden import measured_s
from baseload.limits.serving.measured import anomalies, distinct, halves, sample
from baseload.limits.serving.predict import Predictor
from baseload.limits.serving.residual import SHARES, Kernel, evidence
from baseload.limits.serving.step import times_of
from baseload.limits.serving.traits import traits_of
from baseload.twin.recorded import parse_engine, parse_requests
from baseload.twin.replay_fit import Run, as_planned, calibrated

TARGET = Path(__file__).parents[2] / "src/baseload/limits/catalogue/serving.toml"
N = len(SHARES)


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--kernels", action="store_true")
    options = parser.parse_args()
    path = options.data / "serving_measured" / "serving_measured.csv"
    points = distinct(read_points(path.read_bytes(), name=str(path)))
    develop = [points[i] for i in halves(points)[0]]
    fitted = fit_to(points, rounds=30)
    tpot, ttft = kernels(develop) if options.kernels else (None, None)
    if tpot is None or ttft is None:
        before = shipped.read_defaults()
        tpot, ttft = before.tpot, before.ttft
    fitted = with_runs(fitted, options.data / "vllm_replay", tpot, ttft)
    groups = len({(p.system, p.engine, p.family) for p in points})
    basis = (
        f"{len(points)} distinct points of {groups} (accelerator, engine, model family) groups: "
        "serving_measured.csv (ai-dynamo/aiconfigurator@095f58a, Apache-2.0); "
        "priors: see limits/serving/fit.py; rtx_pro_6000 with vllm: two recorded runs "
        "(casys-kaist/LLMServingSim@5daddb2, MIT)"
    )
    TARGET.write_text(shipped.to_toml(fitted, basis=basis, tpot=tpot, ttft=ttft))
    print(f"{TARGET}: {basis}")


def with_runs(fitted, folder, tpot, ttft):
    """The values with corrections for accelerators of recorded runs, all their runs together."""
    by_chip, catalogue, models = {}, read_catalogue(), Models()
    for path in sorted(folder.glob("*/*/*/requests.jsonl")):
        chip = path.parents[2].name
        memory_gb = catalogue.find(chip).need("memory_gb")
        settings = parse_engine((path.parent / "meta.json").read_bytes(), name=str(path), memory_gb=memory_gb)
        run = Run(parse_requests(path.read_bytes(), name=str(path)), settings, models.find(settings.model)[0])
        by_chip.setdefault(chip, []).append(run)
    base = shipped.read_defaults(shipped.to_toml(fitted, basis="x", tpot=tpot, ttft=ttft).encode())
    predictor = Predictor(catalogue=catalogue, models=models, defaults=base)
    for chip, runs in by_chip.items():
        predictor = as_planned(predictor, chip, runs, calibrated(runs, chip, predictor, {}))
        print(f"{chip}: {len(runs)} runs")
    return predictor.fitted


def fit_to(points, *, start=None, only_groups=False, rounds=12):
    """A fit to measured points."""
    catalogue, models = read_catalogue(), Models()
    traits = [traits_of(p, models.find(p.model)[0]) for p in points]
    features = features_of(points, catalogue, models)
    measured = measured_s(points, models)
    return fit(features, traits, *measured, start=start or priors(), only_groups=only_groups, rounds=rounds)


def kernels(points):
    """Kernels for TPOT and TTFT by the evidence of out-of-fold errors after calibration."""
    catalogue, models = read_catalogue(), Models()
    folds = halves(points, seed=5)
    blocks = ([], [])
    for train, test in (folds, folds[::-1]):
        held = [points[i] for i in test]
        start = fit_to([points[i] for i in train])
        fitted = fit_to([held[i] for i in sample(held)], start=start, only_groups=True)
        features = features_of(held, catalogue, models)
        times = times_of(features, fitted.theta([traits_of(p, models.find(p.model)[0]) for p in held]))
        odd = anomalies(held, features)
        some = [i for i in sample(held, per_group=40, seed=3) if not odd[i]]
        points_of = [held[i] for i in some]
        tpot, _ = Predictor(catalogue=catalogue, models=models, fitted=fitted).errors_of(points_of)
        ttft = np.log(np.array([p.ttft_ms for p in points_of]) / 1e3 / times.ttft_s[some])
        for block, errors, bound in ((blocks[0], tpot, 0.8), (blocks[1], ttft, 1.5)):
            block.append((points_of, np.clip(errors, -bound, bound)))
    start = np.log([*[0.002] * N, *[0.004] * N, 3, 3, 3, 2, 2, 2, 2, 3, 0.004, 0.04])
    scale = np.log([*[4.0] * (2 * N), *[1.0] * 8, 4.0, 4.0])
    return _choose(blocks[0], start), _choose(blocks[1], start + scale)


def _kernel(x):
    e = np.exp(x)
    return Kernel(tuple(e[:N]), tuple(e[N : 2 * N]), tuple(e[2 * N : 2 * N + 8]), float(e[-2]), float(e[-1]))


def _choose(blocks, start):
    width = np.array([*[1.5] * (2 * N), *[0.75] * 8, 1.5, 1.5])

    def cost(x):
        return sum(evidence(p, e, _kernel(x)) for p, e in blocks) + 0.5 * (((x - start) / width) ** 2).sum()

    return _kernel(minimize(cost, start, method="L-BFGS-B", options={"maxiter": 10, "maxfun": 500}).x)


if __name__ == "__main__":
    main()
