"""A step-time table from measured steps: it finds what made them, and refuses too little."""

import pytest

from baseload.domain.errors import DataError
from baseload.limits.step_fit import MeasuredStep, fit_steps
from baseload.limits.step_time import StepTimeSpec, StepTimeTable

TRUTH = StepTimeSpec(
    basis="made", fixed_ms=4.0, prefill=((128, 30.0), (512, 110.0)), decode=((1, 0.5), (8, 3.0), (32, 14.0)),
    context=((1_000_000, 900.0),), pairs=((1_000_000, 40.0),),
)  # fmt: skip
FEW = [
    (0, 1, 128),
    (0, 1, 4000),
    (0, 8, 1000),
    (0, 8, 16000),
    (0, 32, 4000),
    (128, 0, 0),
    (512, 0, 0),
    (512, 0, 2048),
]


def measured(prefill: int, rows: int, context: int, table: StepTimeTable | None = None) -> MeasuredStep:
    table, pairs = table or StepTimeTable(TRUTH), prefill * context
    ns = table.step_ns(prefill_tokens=prefill, decode_rows=rows, context_tokens=context, prefill_pairs=pairs)
    return MeasuredStep(prefill, rows, context, ns / 1e6, pairs)


def test_few_points_predict_the_rest() -> None:
    table = StepTimeTable(fit_steps([measured(*at) for at in FEW], basis="measured: made"))
    for at in ((0, 4, 8000), (0, 16, 32000), (0, 32, 100_000), (300, 0, 0), (512, 8, 9000)):
        said = measured(*at, table=table).ms
        assert said == pytest.approx(measured(*at).ms, rel=0.02)


def test_too_little_is_refused() -> None:
    with pytest.raises(DataError, match="measured decode steps and prefill"):
        fit_steps([measured(0, 1, 128)], basis="x")
    with pytest.raises(DataError, match="longer than nothing"):
        fit_steps([*[measured(*at) for at in FEW], MeasuredStep(0, 1, 1, 0.0)], basis="x")
