"""Calibration by recorded runs: the few parameters of a step that one accelerator and engine have of their own.

A run of some hundred requests tells of reading weights and cache, of prefill and of what a step costs besides. These
move, from the shipped values and not far without reason, until the replay agrees with the recording: least squares on
the logarithms of each request's times, with a ridge, by Gauss and Newton on numeric slopes (a replay takes a tenth of
a second). What is found is a correction for (accelerator, engine): a run of one model calibrates others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baseload.limits.serving.fit import Fitted
from baseload.limits.serving.predict import Predictor
from baseload.limits.serving.replica import StepCost, step_cost
from baseload.limits.shapes import ModelShape
from baseload.twin.recorded import EngineSettings, Recorded
from baseload.twin.replay import Replay, Replayed, tpot_ms

Floats = NDArray[np.float64]
MOVED = (
    (("launch_s",), 0.3),
    (("row_s",), 0.3),
    (("dense_read", "expert_read"), 0.3),
    (("kv_read",), 0.6),
    (("dense_math", "prefill_dense", "expert_math", "prefill_expert", "prefill_pairs"), 0.3),
    (("expert_read", "expert_math", "prefill_expert"), 0.2),
    (("message_s",), 0.3),
    (("alike",), 0.1),
)
"""What moves together, and how far in logarithms: one run of one model cannot tell parameters of a line apart."""
WIDTHS = np.array([width for _, width in MOVED])
TPOT_NOISE, E2E_NOISE, TTFT_NOISE = 0.02, 0.03, 0.3
ROUNDS = 6


@dataclass(frozen=True, slots=True)
class Run:
    """A recorded run: what came, what it ran on."""

    requests: Sequence[Recorded]
    settings: EngineSettings
    shape: ModelShape


def cost_of(run: Run, accelerator: str, predictor: Predictor) -> StepCost:
    """Step costs of the run's deployment; DataError where the catalogue lacks a figure."""
    s = run.settings
    return step_cost(
        run.shape,
        accelerator,
        engine=s.engine,
        version=s.version,
        tp=s.tp,
        dp=s.dp,
        ep=s.ep,
        pp=s.pp,
        weights=s.weights,
        memory_share=s.memory_share,
        predictor=predictor,
    )


def calibrated(runs: Sequence[Run], accelerator: str, predictor: Predictor) -> Predictor:
    """A predictor whose corrections for the accelerator and the runs' engine make replays agree with recordings."""
    runs = [run for run in runs if any(request.measured for request in run.requests)]
    if not runs:
        return predictor
    x = np.zeros(len(MOVED))
    errors = _errors(runs, accelerator, predictor, x)
    for _ in range(ROUNDS):
        slopes = np.empty((len(errors), len(x)))
        for k in range(len(x)):
            nudged = x.copy()
            nudged[k] += 0.05
            slopes[:, k] = (_errors(runs, accelerator, predictor, nudged) - errors) / 0.05
        step = np.linalg.lstsq(slopes, -errors, rcond=None)[0]
        for share in (1.0, 0.5, 0.25):
            trial = x + share * np.clip(step, -0.5, 0.5)
            after = _errors(runs, accelerator, predictor, trial)
            if float(after @ after) < float(errors @ errors):
                break
        else:
            break
        gained = float(errors @ errors) - float(after @ after)
        x, errors = trial, after
        if gained < 1e-3 * float(errors @ errors):
            break
    return moved(predictor, accelerator, runs, x)


def moved(predictor: Predictor, accelerator: str, runs: Sequence[Run], x: Floats) -> Predictor:
    """The predictor with its parameters moved by `x` for the accelerator and the engines of the runs."""
    corrections = dict(predictor.fitted.corrections)
    for engine in dict.fromkeys(run.settings.engine for run in runs):
        trait = f"system={predictor.chips.identifier(accelerator)},engine={engine}"
        for (names, _), by in zip(MOVED, x, strict=True):
            for name in names:
                corrections[trait, name] = corrections.get((trait, name), 0.0) + float(by)
    return Predictor(
        catalogue=predictor.catalogue,
        models=predictor.models,
        defaults=predictor.defaults,
        fitted=Fitted(predictor.fitted.globals_, corrections),
    )


def _errors(runs: Sequence[Run], accelerator: str, predictor: Predictor, x: Floats) -> Floats:
    after = moved(predictor, accelerator, runs, x)
    parts = [x / WIDTHS]
    for run in runs:
        replayed = Replay(run.requests, run.settings, cost_of(run, accelerator, after)).run()
        parts.append(_of_run(run, replayed) / np.sqrt(len(runs)))
    return np.concatenate(parts)


def _of_run(run: Run, replayed: Sequence[Replayed]) -> Floats:
    """Errors of a run, in units of their noise; all its requests together weigh as some tens do: they are alike."""
    both = [(r, p) for r, p in zip(run.requests, replayed, strict=True) if r.measured and not p.refused]
    e2e = [np.log((p.last_ns - p.queued_ns) / 1e6 / r.e2e_ms) / E2E_NOISE for r, p in both]
    tpot = [np.log(tpot_ms(r, p) / r.tpot_ms) / TPOT_NOISE for r, p in both if r.output_tokens > 1]
    ttft = [np.log((p.first_ns - p.queued_ns) / 1e6 / r.ttft_ms) / TTFT_NOISE for r, p in both if r.ttft_ms > 0]
    errors: Floats = np.array([*tpot, *e2e, *np.clip(ttft, -5.0, 5.0)])
    weighed: Floats = errors * np.sqrt(30.0 / max(1, len(both)))
    return weighed
