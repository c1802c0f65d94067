"""How many tokens to guess ahead: as many as pay, by what guesses were worth so far and what a step costs.

A guess at place i is used only if all before it were right, so k guesses bring 1 + a + a² + … + aᵏ tokens in one
step, with a the share of guesses that were right of those that were tried. They pay where that gain is larger than
what the longer step costs. Where they do not pay, a guess is tried once in a while all the same: text changes.
"""

from collections.abc import Sequence

from baseload.policy.pacing import Predict

PROBE_EVERY = 32  # steps of a sequence between tries while guessing does not pay
PROBE_COSTLY_EVERY = 256  # where even right guesses would not pay: only what a guess costs may have changed
FIRST_BELIEF = 0.6
_WEIGHT = 0.12  # of the newest try
_LEAST_GAIN = 1.03  # a smaller one is noise


def believed(belief: float, *, tried: int, right: int) -> float:
    """The new estimate of a, when `right` of `tried` guesses were used; those behind a wrong one do not count."""
    if not tried:
        return belief
    counted = min(tried, right + 1)
    return belief + (1.0 - (1.0 - _WEIGHT) ** counted) * (right / counted - belief)


def guesses(*, belief: float, costs_ns: Sequence[int]) -> int:
    """The number of guesses per row, 0 to len(costs_ns) - 1, with the most tokens per second.

    `costs_ns[k]` is what a step with k guesses for each row costs, the guesser's own time included; 0 for none where
    nothing is known yet.
    """
    if costs_ns[0] <= 0:
        return min(1, len(costs_ns) - 1)  # one guess finds out
    best, rate = 0, _LEAST_GAIN / costs_ns[0]
    gain = reach = 1.0
    for count in range(1, len(costs_ns)):
        reach *= belief
        gain += reach
        now = gain / costs_ns[count]
        if now > rate:
            best, rate = count, now
    return best


def probe_after(costs_ns: Sequence[int]) -> int:
    """Steps without a guess after which one is tried all the same."""
    return PROBE_EVERY if guesses(belief=1.0, costs_ns=costs_ns) else PROBE_COSTLY_EVERY


def step_costs(*, most: int, rows: int, pairs: int, predict: Predict, guess_ns: int = 0) -> list[int]:
    """Nanoseconds of a step with 0 to `most` guesses for each of `rows` answers that attend to `pairs` positions.

    `guess_ns` is what one more guess for all rows costs the guesser (a draft model's step; 0 for a look-up).
    """
    return [
        predict(rows * (1 + count), pairs, pairs * count) + (count * guess_ns if count else 0)
        for count in range(most + 1)
    ]
