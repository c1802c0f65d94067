"""How long the engine's next step will take, learned from the steps before it.

A step costs what its tokens cost (weights are read once whatever their number, arithmetic grows with it) plus what
attention reads: time = base(tokens) + decode_slope · decode_pairs + prefill_slope · prefill_pairs, where pairs counts
the earlier positions that the step's tokens attend to (a prompt's tokens share what they read, so theirs cost less).
`base` is piecewise linear between powers of two. All of it is one small Kalman filter (a recursive least squares
with drift), whose prior after the first step is: fewer tokens cost the same, more cost in proportion. One step in a
while takes far longer than its like (a page fault, another process); the filter is shown no more than three times
what it expected.
"""

import numpy as np
from msgspec import Struct

_KNOTS = 13  # tokens 1, 2, 4 … 4096; beyond in proportion
_NOISE = 0.05  # of a step's time: what repeated steps differ by
_DRIFT = 0.004  # of each figure, per step: a machine's speed changes
_OUTLIER = 3.0
_TRUST_AFTER = 16  # steps before an outlier is known as one
_APART = np.abs(np.arange(_KNOTS)[:, None] - np.arange(_KNOTS)[None, :])
_TOGETHER = np.eye(_KNOTS + 2)
_TOGETHER[:_KNOTS, :_KNOTS] = 0.8**_APART


class LearnedTimes(Struct, frozen=True, forbid_unknown_fields=True):
    """What was learned, to be kept: figures in nanoseconds, and how sure they are."""

    steps: int
    figures: list[float]
    covariance: list[list[float]]


class StepTimes:
    """The learned model: `observe` after each step, `predict` before the next."""

    __slots__ = ("_covariance", "_figures", "_spreads", "_state", "steps")

    def __init__(self) -> None:
        self.steps = 0
        self._state = np.zeros(_KNOTS + 2)  # base at the knots, then ns per decode pair and per prefill pair
        self._covariance = np.zeros((_KNOTS + 2, _KNOTS + 2))
        self._figures: list[float] = []  # the state as it is predicted from; empty: to be told anew
        self._spreads: list[list[float]] = []  # the covariance

    @staticmethod
    def of(learned: LearnedTimes) -> "StepTimes":
        """As it was learned earlier, to go on from; raises ValueError where no steps can have taught this."""
        state, covariance = np.asarray(learned.figures, float), np.asarray(learned.covariance, float)
        if state.shape != (_KNOTS + 2,) or covariance.shape != (_KNOTS + 2, _KNOTS + 2) or learned.steps <= 0:
            raise ValueError("these step times are of another form")
        if not np.isfinite(state).all() or not np.isfinite(covariance).all() or state[:_KNOTS].max() <= 0.0:
            raise ValueError("these step times are no times")
        spread = np.linalg.eigvalsh(covariance)
        if not np.allclose(covariance, covariance.T) or spread[0] < -1e-6 * abs(spread[-1]):
            raise ValueError("these step times are sure of what they cannot be")
        times = StepTimes()
        times.steps = learned.steps
        times._state, times._covariance = state, covariance
        return times

    def learned(self) -> LearnedTimes:
        """What is to be kept for a later `of`."""
        return LearnedTimes(self.steps, self._state.tolist(), self._covariance.tolist())

    def observe(self, tokens: int, decode_pairs: int, prefill_pairs: int, step_ns: int) -> None:
        """A step of so many tokens that attended to so many positions took so long."""
        assert tokens > 0
        assert step_ns >= 0
        self.steps += 1
        if self.steps == 1:
            self._begin(tokens, float(max(1, step_ns)))
        x = _features(tokens, decode_pairs, prefill_pairs)
        expected = max(1.0, float(x @ self._state))
        shown = float(step_ns)
        if self.steps > _TRUST_AFTER:
            shown = min(shown, _OUTLIER * expected)
        self._covariance += _spread(_DRIFT * self._state)
        reach = self._covariance @ x
        gain = reach / (float(x @ reach) + (_NOISE * max(expected, shown)) ** 2)
        self._state += gain * (shown - float(x @ self._state))
        self._covariance -= np.outer(gain, reach)
        self._covariance = (self._covariance + self._covariance.T) / 2  # rounding must not make it lopsided
        self._figures, self._spreads = [], []

    def predict(self, tokens: int, decode_pairs: int, prefill_pairs: int) -> int:
        """Nanoseconds of a step; 0 while nothing is known. Never falls with more tokens or positions."""
        if not self.steps:
            return 0
        if not self._figures:
            base = np.maximum.accumulate(np.maximum(self._state[:_KNOTS], 0.0))
            self._figures = [*base.tolist(), *np.maximum(self._state[_KNOTS:], 0.0).tolist()]
        figures = self._figures
        low, share = _place(tokens)
        return int(
            (1.0 - share) * figures[low]
            + share * figures[low + 1]
            + decode_pairs * figures[_KNOTS]
            + prefill_pairs * figures[_KNOTS + 1]
        )

    def hopeful(self, tokens: int, decode_pairs: int, prefill_pairs: int) -> int:
        """As `predict`, less one standard deviation of it: what was not tried for long is tried again."""
        if not self.steps:
            return 0
        if not self._spreads:
            self._spreads = self._covariance.tolist()
        spreads = self._spreads
        low, share = _place(tokens)
        x = ((low, 1.0 - share), (low + 1, share), (_KNOTS, decode_pairs), (_KNOTS + 1, prefill_pairs))
        doubt = max(0.0, sum([at * by * spreads[i][j] for i, at in x for j, by in x])) ** 0.5
        return max(0, int(self.predict(tokens, decode_pairs, prefill_pairs) - doubt))

    def _begin(self, tokens: int, step_ns: float) -> None:
        scale = np.maximum(1.0, 2.0 ** np.arange(_KNOTS) / tokens)
        self._state[:_KNOTS] = step_ns * scale
        spread = np.concatenate([step_ns * scale * 0.5, [step_ns / 1000, step_ns / 10000]])
        self._covariance = _spread(spread)


def _spread(deviations: np.ndarray) -> np.ndarray:
    """Covariance of figures with these deviations: neighbouring knots go together, slopes stand alone."""
    return np.asarray(np.outer(deviations, deviations) * _TOGETHER)


def _features(tokens: int, decode_pairs: int, prefill_pairs: int) -> np.ndarray:
    """What each figure of the state counts for in this step."""
    x = np.zeros(_KNOTS + 2)
    low, share = _place(tokens)
    x[low], x[low + 1] = 1.0 - share, share
    x[_KNOTS], x[_KNOTS + 1] = decode_pairs, prefill_pairs
    return x


def _place(tokens: int) -> tuple[int, float]:
    """The knot at or below, and how far it is to the next; above 1 beyond the last: the last piece goes on."""
    low = min(tokens.bit_length() - 1, _KNOTS - 2)
    return low, tokens / (1 << low) - 1.0
