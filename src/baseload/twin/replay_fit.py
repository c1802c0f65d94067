"""Calibration by recorded runs: what one accelerator and engine reach, found by replaying until both agree.

A run of some hundred requests tells of reading weights and cache, of prompts and of what a step costs besides. These
move from the shipped values, each within what is physically plausible (`replay_step.WIDTHS`), until the replay agrees
with the recording: least squares on the logarithms of each request's times, with a ridge, by Gauss and Newton on
numeric slopes (a replay takes a tenth of a second). What is found belongs to (accelerator, engine): a run of one
model calibrates others.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from baseload.limits.serving.fit import Fitted
from baseload.limits.serving.points import Layout, Point
from baseload.limits.serving.predict import Predictor
from baseload.limits.serving.step import INDEX
from baseload.limits.shapes import ModelShape
from baseload.twin.recorded import EngineSettings, Recorded
from baseload.twin.replay import Replay, Replayed, tpot_ms
from baseload.twin.replay_step import USUAL, WIDTHS, ReplayCost, replay_cost

Floats = NDArray[np.float64]
Known = Mapping[str, Mapping[str, float]]
"""By `accelerator/engine`: logarithms by which parameters differ from `replay_step.USUAL`."""
TPOT_NOISE, E2E_NOISE, TTFT_NOISE = 0.02, 0.03, 0.3
TELLS = 30.0  # requests of a run together weigh as so many do: their errors are alike
ROUNDS = 6
NUDGE, FARTHEST = 0.3, 2.0  # in widths: for slopes, and at most in a round
_WIDTHS = np.array(list(WIDTHS.values()))
_PLANNED = {
    "dense_math": ("dense_math", "prefill_dense"),
    "expert_math": ("expert_math", "prefill_expert"),
    "regroup": (),
}
"""What of the serving form's parameters a parameter here stands for, where that is not the one of its name."""


@dataclass(frozen=True, slots=True)
class Run:
    """A recorded run: what came, what it ran on."""

    requests: Sequence[Recorded]
    settings: EngineSettings
    shape: ModelShape


def shipped() -> Known:
    """What the recorded runs taught that the package was made with; written by bench/limits/fit_replay.py."""
    values: dict[str, dict[str, float]] = tomllib.loads(
        (files("baseload.twin") / "replay_values.toml").read_text()
    ).get("moved", {})
    return values


def word(accelerator: str, engine: str, predictor: Predictor) -> str:
    """By what `Known` knows them."""
    return f"{predictor.chips.identifier(accelerator)}/{engine}"


def cost_of(run: Run, accelerator: str, predictor: Predictor, known: Known) -> ReplayCost:
    """Step costs of the run's deployment; DataError where the catalogue lacks a figure."""
    moved = known.get(word(accelerator, run.settings.engine, predictor), {})
    return replay_cost(run.shape, accelerator, run.settings, predictor, moved)


def calibrated(runs: Sequence[Run], accelerator: str, predictor: Predictor, known: Known) -> Known:
    """`known` with what makes replays of these runs, all on one accelerator, agree with their recordings."""
    runs = [run for run in runs if any(request.measured for request in run.requests)]
    for engine in dict.fromkeys(run.settings.engine for run in runs):
        key = word(accelerator, engine, predictor)
        of = [run for run in runs if run.settings.engine == engine]
        start = np.array([known.get(key, {}).get(name, 0.0) for name in WIDTHS])
        found = start + _WIDTHS * _fitted(_Errors(of, accelerator, predictor, key, start))
        known = {**known, key: dict(zip(WIDTHS, found.tolist(), strict=True))}
    return known


def as_planned(predictor: Predictor, accelerator: str, runs: Sequence[Run], known: Known) -> Predictor:
    """A predictor whose serving form reaches on this accelerator what the runs showed, where both forms have it."""
    corrections = dict(predictor.fitted.corrections)
    identifier = predictor.chips.identifier(accelerator)
    for run in runs[:1]:
        engine = run.settings.engine
        trait = f"system={identifier},engine={engine}"
        point = Point(
            line=0, id="", engine=engine, version="", model=run.shape.name, system=accelerator, dense_format="",
            expert_format="", isl=2048, osl=1024, concurrency=1.0, decode=Layout(gpus=run.settings.tp),
        )  # fmt: skip
        theta = predictor.theta_of(point, run.shape)
        moved = known.get(word(accelerator, engine, predictor), {})
        for name, usual in USUAL.items():
            for theirs in _PLANNED.get(name, (name,)):
                by = float(np.log(usual)) + moved.get(name, 0.0) - float(theta[INDEX[theirs]])
                corrections[trait, theirs] = corrections.get((trait, theirs), 0.0) + by
    return Predictor(
        catalogue=predictor.catalogue,
        models=predictor.models,
        defaults=predictor.defaults,
        fitted=Fitted(predictor.fitted.globals_, corrections),
    )


@dataclass(frozen=True, slots=True)
class _Errors:
    """What a step of the parameters, in widths from where they start, leaves of error."""

    runs: Sequence[Run]
    accelerator: str
    predictor: Predictor
    key: str
    start: Floats

    def at(self, x: Floats) -> Floats:
        moved = dict(zip(WIDTHS, (self.start + _WIDTHS * x).tolist(), strict=True))
        parts = [x]
        for run in self.runs:
            cost = cost_of(run, self.accelerator, self.predictor, {self.key: moved})
            replayed = Replay(run.requests, run.settings, cost).run()
            parts.append(_of_run(run, replayed) / np.sqrt(len(self.runs)))
        return np.concatenate(parts)


def _fitted(errors_of: _Errors) -> Floats:
    x = np.zeros(len(WIDTHS))
    errors = errors_of.at(x)
    for _ in range(ROUNDS):
        slopes = np.empty((len(errors), len(x)))
        for k in range(len(x)):
            nudged = x.copy()
            nudged[k] += NUDGE
            slopes[:, k] = (errors_of.at(nudged) - errors) / NUDGE
        step = np.clip(np.linalg.lstsq(slopes, -errors, rcond=None)[0], -FARTHEST, FARTHEST)
        for share in (1.0, 0.5, 0.25):
            after = errors_of.at(x + share * step)
            if float(after @ after) < float(errors @ errors):
                break
        else:
            break
        gained = float(errors @ errors) - float(after @ after)
        x, errors = x + share * step, after
        if gained < 1e-3 * float(errors @ errors):
            break
    return x


def _of_run(run: Run, replayed: Sequence[Replayed]) -> Floats:
    """Errors of a run, in units of their noise."""
    both = [(r, p) for r, p in zip(run.requests, replayed, strict=True) if r.measured and not p.refused]
    e2e = [np.log((p.last_ns - p.queued_ns) / 1e6 / r.e2e_ms) / E2E_NOISE for r, p in both]
    tpot = [np.log(tpot_ms(r, p) / r.tpot_ms) / TPOT_NOISE for r, p in both if r.output_tokens > 1 and r.tpot_ms > 0]
    ttft = [np.log((p.first_ns - p.queued_ns) / 1e6 / r.ttft_ms) / TTFT_NOISE for r, p in both if r.ttft_ms > 0]
    errors: Floats = np.array([*tpot, *e2e, *np.clip(ttft, -5.0, 5.0)])
    weighed: Floats = errors * np.sqrt(TELLS / max(1, len(both)))
    return weighed
