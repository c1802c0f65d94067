"""The held-out examination of replays: a run's first requests calibrate, those that arrived later are scored.

What is shipped for the accelerator of a run is left out, since it may rest on that very run. The usual values that
remain, of any accelerator, were chosen with the recorded runs in sight (docs/limits.md, section Replay).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from baseload.limits.goals import Row as Figure
from baseload.limits.serving.predict import Predictor
from baseload.twin.recorded import Recorded
from baseload.twin.replay import Replay, agreement
from baseload.twin.replay_fit import Known, Run, calibrated, cost_of

FIRST = 100
_GOALS = (
    ("tpot", "time per output token, mean", 0.03),
    ("e2e", "end to end, mean", 0.03),
    ("ttft", "time to first token, mean", 0.10),
    ("e2e_p99", "end to end, 99th percentile", 0.05),
)


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A recorded run, the accelerator it ran on, and a word for it."""

    run: Run
    accelerator: str
    name: str


def score(recorded: Sequence[RecordedRun], predictor: Predictor, *, first: int = FIRST) -> list[Figure]:
    """The rows of `baseload validate` for recorded runs."""
    figures: list[Figure] = []
    for one in recorded:
        run = Run(_only(one.run.requests, 0, first), one.run.settings, one.run.shape)
        known = calibrated([run], one.accelerator, predictor, {})
        figures += _figures(one, predictor, known, first, f"first {first} requests calibrate")
        others = [o.run for o in recorded if o is not one and o.accelerator == one.accelerator]
        if others:
            known = calibrated(others, one.accelerator, predictor, {})
            split = "calibrated by the other runs of the accelerator"
            figures += _figures(one, predictor, known, 0, split, goals=False)
    return figures


def _figures(
    one: RecordedRun, predictor: Predictor, known: Known, first: int, split: str, *, goals: bool = True
) -> list[Figure]:
    cost = cost_of(one.run, one.accelerator, predictor, known)
    scored = _only(one.run.requests, first, len(one.run.requests))
    found = agreement(scored, Replay(one.run.requests, one.run.settings, cost).run())
    return [
        Figure(
            what=f"replay of {one.name}: {what}" if goals else f"the same, other runs calibrate: {what}",
            reached=abs(getattr(found, field)) if found else float("nan"),
            points=found.requests if found else 0,
            split=split,
            goal=goal if goals else None,
        )
        for field, what, goal in _GOALS
    ]


def _only(requests: Sequence[Recorded], first: int, last: int) -> list[Recorded]:
    """With the times of these alone."""
    return [
        r if first <= i < last else msgspec.structs.replace(r, ttft_ms=0.0, tpot_ms=0.0, e2e_ms=0.0)
        for i, r in enumerate(requests)
    ]
