"""What prompts cost a replica that decodes beside them: by how many sequences decode, and by how many prompts meet.

Prompts that come while a step runs are computed together in the next, as far as its budget goes, and read weights
once. Alone, a prompt ends with a chunk of what is left; where prompts wait for each other, steps are full. Lengths
are log-normal: a few quantiles stand for them. Steps are those of the replica's cost, so all is as modelled as these.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baseload.limits.serving.replica import StepCost

Floats = NDArray[np.float64]
_PROBES = (1, 24, 192, 1024)  # rows beside which costs are computed; straight between
_QUANTILES = (-1.1503, -0.3186, 0.3186, 1.1503)  # of four equal parts of the normal distribution, their middles
_MERGED = 4.0  # prompts longer than a step: where so many meet, few chunks are left unfilled


@dataclass(frozen=True, slots=True)
class PromptCost:
    """Of each prompt: seconds added to steps, and steps taken; rows of tables by `_PROBES`, columns by `together`."""

    probes: Floats
    together: Floats  # prompts that meet, rising from 1
    added_s: Floats
    steps: Floats
    long_s: Floats  # of one alone that is as long as the level's statistic asks, by `_PROBES`
    long_steps: Floats
    spread: float  # squared deviation over mean of the seconds, alone

    def at(self, rows: Floats, together: Floats) -> tuple[Floats, Floats]:
        """(seconds added, steps) of each prompt, where `together` meet beside `rows` decodes; arrays are parallel."""
        place = np.interp(np.log(together), np.log(self.together), np.arange(len(self.together)))
        return _read(self.added_s, self.probes, rows, place), _read(self.steps, self.probes, rows, place)

    def long(self, rows: Floats) -> tuple[Floats, Floats]:
        """(seconds added, steps) of a long one alone."""
        return np.interp(rows, self.probes, self.long_s), np.interp(rows, self.probes, self.long_steps)


def prompt_cost(
    cost: StepCost, *, cached: int, fresh: int, cv: float, long: float, context: float, step_tokens: int,
    most_rows: float,
) -> PromptCost:  # fmt: skip
    """For prompts of `fresh` tokens on average behind `cached` ones, a long one `long` times that, beside sequences
    of `context` positions."""
    probes = [p for p in _PROBES if p <= most_rows] or [1]
    added, steps, longs, together = [], [], [], [1.0]
    for beside in probes:
        budget = max(step_tokens // 8, step_tokens - beside)
        work = _Work(cost, beside, int(beside * context), cached, budget)
        lengths = _lengths(fresh, cv)
        alone = [work.alone(length) for length in lengths]
        row = [tuple(sum(one[i] for one in alone) / len(alone) for i in (0, 1))]
        together, most = [1.0], max(step_tokens / fresh, _MERGED if fresh > step_tokens / 4 else 1.0)
        while 2.0 * together[-1] * fresh < step_tokens / 1.5:
            together.append(2.0 * together[-1])
            row.append(work.meeting(together[-1], fresh))
        together.append(max(most, 1.5 * together[-1]))
        row.append(work.full(lengths))
        longs.append(work.alone(long * fresh))
        added.append([seconds for seconds, _ in row])
        steps.append([count for _, count in row])
    beside_one = _Work(cost, 1, int(context), cached, step_tokens)
    return PromptCost(
        np.array(probes, dtype=float), np.array(together), np.array(added), np.array(steps),
        np.array([seconds for seconds, _ in longs]), np.array([count for _, count in longs]),
        moments(lambda length: beside_one.alone(length)[0], fresh, cv)[1],
    )  # fmt: skip


def moments(seconds_of: Callable[[float], float], mean: float, cv: float) -> tuple[float, float]:
    """(mean, squared deviation over mean) of a time that grows as a · length + b · length², for log-normal lengths,
    whose k-th moment is mean^k · (1 + cv²)^(k (k - 1) / 2)."""
    one, three = seconds_of(mean), seconds_of(3.0 * mean)
    b = min(one, max(0.0, (three - 3.0 * one) / 6.0))
    a, v = one - b, 1.0 + cv * cv
    first, second = a + b * v, a * a * v + 2.0 * a * b * v**3 + b * b * v**6
    return first, second / (first * first) - 1.0 if first > 0 else 0.0


@dataclass(frozen=True, slots=True)
class _Work:
    """Prompts beside so many rows."""

    cost: StepCost
    rows: int
    positions: int
    cached: int
    budget: int

    def _more_s(self, tokens: float, pairs: float, prompts: float) -> float:
        whole = self.cost.mixed_ns(
            tokens=round(tokens),
            pairs=round(pairs),
            rows=self.rows,
            context_tokens=self.positions,
            prompts=round(prompts),
        )
        return max(0, whole - self.cost.decode_ns(self.rows, self.positions)) / 1e9

    def alone(self, fresh: float) -> tuple[float, float]:
        """(seconds, steps) of one prompt."""
        many = math.ceil(fresh / self.budget) - 1  # full chunks before the last
        seconds = 0.0
        if many > 0:
            done = self.cached + (many - 1) * self.budget / 2.0  # before one of them, on average
            seconds = many * self._more_s(self.budget, self.budget * done + self.budget**2 / 2.0, 1.0)
        left = fresh - many * self.budget
        done = self.cached + many * self.budget
        return seconds + self._more_s(left, left * done + left * left / 2.0, 1.0), many + 1.0

    def meeting(self, prompts: float, fresh: float) -> tuple[float, float]:
        """The same of each of several that fit a step."""
        pairs = prompts * (fresh * self.cached + fresh * fresh / 2.0)
        return self._more_s(prompts * fresh, pairs, prompts) / prompts, 1.0 / prompts

    def full(self, lengths: Sequence[float]) -> tuple[float, float]:
        """Where steps are full."""
        mean = sum(lengths) / len(lengths)
        pairs = sum(length * self.cached + length * length / 2.0 for length in lengths) / len(lengths)
        steps = mean / self.budget
        return steps * self._more_s(self.budget, pairs / steps, max(1.0, 1.0 / steps)), steps


def _lengths(mean: float, cv: float) -> list[float]:
    """Four lengths that stand for a log-normal with this mean; one where all are alike."""
    if cv <= 0:
        return [float(mean)]
    sigma = math.sqrt(math.log1p(cv * cv))
    drawn = [math.exp(sigma * z) for z in _QUANTILES]
    return [max(1.0, mean * one * len(drawn) / sum(drawn)) for one in drawn]


def _read(table: Floats, probes: Floats, rows: Floats, place: Floats) -> Floats:
    """A table at rows × column numbers, straight between entries."""
    row = np.interp(rows, probes, np.arange(len(probes)))
    low_r, low_c = np.floor(row).astype(int), np.floor(place).astype(int)
    high_r, high_c = np.minimum(low_r + 1, table.shape[0] - 1), np.minimum(low_c + 1, table.shape[1] - 1)
    r, c = row - low_r, place - low_c
    low = table[low_r, low_c] * (1 - c) + table[low_r, high_c] * c
    high = table[high_r, low_c] * (1 - c) + table[high_r, high_c] * c
    result: Floats = low * (1 - r) + high * r
    return result
