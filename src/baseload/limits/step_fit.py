"""A step-time table from a few measured steps: non-negative least squares on relative errors.

The form is `step_time`'s: fixed + prefill(tokens) + decode(rows) + context(positions read) + pairs. Curves get a knot
at each count that was measured, so a step measured at one, eight and thirty-two rows says how rows between cost.
"""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from baseload.domain.errors import DataError
from baseload.limits.step_time import StepTimeSpec

Floats = NDArray[np.float64]
ROUNDS = 2000


class MeasuredStep(Struct, frozen=True):
    """One step, and how long it took. `context_tokens` are the KV positions all its rows read."""

    prefill_tokens: int
    decode_rows: int
    context_tokens: int
    ms: float
    prefill_pairs: int = 0  # of a prompt token and a position it looks back on


def fit_steps(steps: Sequence[MeasuredStep], *, basis: str) -> StepTimeSpec:
    """The table whose relative errors over `steps` are least; DataError where there is too little to fit."""
    rows = sorted({s.decode_rows for s in steps if s.decode_rows})
    chunks = sorted({s.prefill_tokens for s in steps if s.prefill_tokens})
    if not rows or not chunks or any(s.ms <= 0 for s in steps):
        raise DataError(
            "A step-time table needs measured decode steps and prefill steps, each longer than nothing.",
            hint="Measure at least one of each.",
        )
    table = np.zeros((len(steps), 3 + len(rows) + len(chunks)))
    for i, step in enumerate(steps):
        table[i, 0] = 1.0
        table[i, 1] = step.context_tokens
        table[i, 2] = step.prefill_pairs
        _rise(table[i, 3 : 3 + len(rows)], rows, step.decode_rows)
        _rise(table[i, 3 + len(rows) :], chunks, step.prefill_tokens)
    relative = table / np.array([step.ms for step in steps])[:, None]
    x = _non_negative(relative, np.ones(len(steps)))
    per_row, per_token = np.cumsum(x[3 : 3 + len(rows)]), np.cumsum(x[3 + len(rows) :])
    return StepTimeSpec(
        basis=basis,
        fixed_ms=float(x[0]),
        prefill=tuple(zip(chunks, per_token.tolist(), strict=True)),
        decode=tuple(zip(rows, per_row.tolist(), strict=True)),
        context=((1_000_000, float(x[1]) * 1_000_000),),
        pairs=((1_000_000, float(x[2]) * 1_000_000),),
    )


def _rise(cells: Floats, knots: Sequence[int], count: int) -> None:
    """How much of each stretch between knots `count` covers; beyond the last knot, on as in the last stretch."""
    before = 0
    for k, knot in enumerate(knots):
        last = k == len(knots) - 1
        reach = count if last else min(count, knot)
        cells[k] = max(0.0, (reach - before) / (knot - before))
        before = knot


def _non_negative(a: Floats, b: Floats) -> Floats:
    """x ≥ 0 that brings |a·x - b|² lowest, by coordinates in turn: small, and sure to end."""
    square, right = a.T @ a, a.T @ b
    x = np.zeros(a.shape[1])
    for _ in range(ROUNDS):
        for j in range(len(x)):
            if square[j, j] > 0:
                x[j] = max(0.0, x[j] + (right[j] - square[j] @ x) / square[j, j])
    return x
