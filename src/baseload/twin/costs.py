"""How long the steps of a simulated replica take: one by one, or many decode steps summed in closed form.

Two sources: a table of measured or stated points (`limits.step_time`), or the limits model of serving, fitted to
measurements of real hardware (`limits.serving.replica.StepCost`). In both a step that only decodes is
`(fixed + slope * context) // unit` nanoseconds for a fixed number of rows; with r rows the context grows by r a step,
so n steps take a sum of floors of an arithmetic progression, which `floor_sum` gives exactly in O(log) operations.
"""

from math import sqrt
from typing import Protocol

from msgspec import Struct

from baseload.core.counted import Counts
from baseload.limits.serving.replica import FS_PER_NS, StepCost
from baseload.limits.step_time import StepTimeTable

ENDLESS = 1 << 62


class Line(Struct, frozen=True, gc=False):
    """Coming decode steps: step k (from 0) takes `max(1, (first + rise * k) // unit)` ns, for k below `steps`."""

    first: int
    rise: int
    unit: int
    steps: int

    def step_ns(self, k: int) -> int:
        """Of step k alone."""
        return max(1, (self.first + self.rise * k) // self.unit)

    def total_ns(self, steps: int) -> int:
        """Of the first `steps` steps together, exactly."""
        if self.first < self.unit:  # steps shorter than a nanosecond count as one: too rare for a closed form
            return sum(self.step_ns(k) for k in range(steps))
        return floor_sum(steps, self.unit, self.rise, self.first)

    def steps_within(self, time_ns: int) -> tuple[int, int]:
        """(steps, their time): as many as have ended `time_ns` after the first began."""
        first, rise, unit = self.first, self.rise, self.unit
        start, bend = first / unit, rise / unit
        if bend * time_ns > 1e-9 * start * start:
            guess = int((sqrt(start * start + 2 * bend * time_ns) - start) / bend)
        else:
            guess = int(time_ns / max(start, 1.0))
        steps = max(0, min(guess, self.steps))
        took_ns = self.total_ns(steps)
        while took_ns > time_ns:
            steps -= 1
            took_ns -= max(1, (first + rise * steps) // unit)
        while (next_ns := took_ns + max(1, (first + rise * steps) // unit)) <= time_ns:
            took_ns = next_ns
            steps += 1
        return steps, took_ns


class Costs(Protocol):
    """What steps take."""

    basis: str

    def step_ns(self, counts: Counts) -> int:
        """One step; at least 1."""

    def line(self, rows: int, context_tokens: int) -> Line:
        """The coming steps in which `rows` sequences decode; the first reads `context_tokens` positions."""


class TableCosts:
    """From a step-time table."""

    def __init__(self, table: StepTimeTable) -> None:
        self._table = table
        self.basis = table.basis

    def step_ns(self, counts: Counts) -> int:
        """See `Costs`."""
        return self._table.step_ns(
            prefill_tokens=counts.prefill_tokens,
            decode_rows=counts.decode_tokens,
            context_tokens=counts.context_tokens,
            prefill_pairs=counts.prefill_pairs,
        )

    def line(self, rows: int, context_tokens: int) -> Line:
        """See `Costs`."""
        fixed, slope, unit, end = self._table.decode_line(rows, context_tokens)
        steps = -(-(end - context_tokens) // rows) if end else ENDLESS
        return Line(fixed + slope * context_tokens, slope * rows, unit, steps)


class ReplicaCosts:
    """From the limits model."""

    def __init__(self, cost: StepCost) -> None:
        self._cost = cost
        self.basis = f"limits model, {cost.basis}" + (f" ({cost.note})" if cost.note else "")

    def step_ns(self, counts: Counts) -> int:
        """See `Costs`."""
        if not counts.prefill_tokens:
            return self._cost.decode_ns(counts.decode_tokens, counts.context_tokens)
        return self._cost.mixed_ns(
            tokens=counts.prefill_tokens,
            pairs=counts.prefill_pairs,
            rows=counts.decode_tokens,
            context_tokens=counts.decode_context,
            prompts=counts.prompts,
        )

    def line(self, rows: int, context_tokens: int) -> Line:
        """See `Costs`."""
        fixed, slope = self._cost.decode_line(rows)
        return Line(fixed + slope * context_tokens, slope * rows, FS_PER_NS, ENDLESS)


def floor_sum(count: int, unit: int, rise: int, first: int) -> int:
    """The sum of (first + rise * k) // unit over k from 0 to count - 1, for first, rise ≥ 0; O(log unit).

    By Euclid's algorithm on the lattice points under a line (Graham, Knuth, Patashnik: Concrete Mathematics, 3.5).
    """
    total = 0
    while True:
        if rise >= unit:
            total += (count - 1) * count // 2 * (rise // unit)
            rise %= unit
        if first >= unit:
            total += count * (first // unit)
            first %= unit
        top = rise * count + first
        if top < unit:
            return total
        count, first, unit, rise = top // unit, top % unit, rise, unit
