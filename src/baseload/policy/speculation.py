"""How many tokens to guess ahead: as many as pay, by what guesses were worth so far and what a step costs.

A guess at place i is used only if all before it were right, so k guesses bring 1 + a + a² + … + aᵏ tokens in one
step, with a the share of guesses that were right of those that were tried. They pay where that gain is larger than
what the longer step costs, the guesser's time and the host's own work for it included. Where they do not pay, a guess
is tried once in a while all the same: text changes.
"""

from collections.abc import Sequence

from baseload.policy.pacing import Predict

PROBE_EVERY = 32  # steps of a sequence between tries while guessing does not pay
PROBE_COSTLY_EVERY = 256  # where even right guesses would not pay: only what a guess costs may have changed
REST_STEPS = 8  # where nobody is worth a guess, nobody is looked at for so many steps: looking costs as well
TRY_SHARE = 0.01  # of all time may go into guesses that are not expected to pay
FIRST_BELIEF = 0.6
LEAST_AHEAD = 64  # tokens that an answer is expected to go on for at least; else as many as it has so far
_WEIGHT = 0.12  # of the newest try, once there were several
_FIRST_TRIES = 2.0  # so many tries weigh what was believed before the first of them
_OF_ONE_ANSWER = 0.2  # weight of an answer that ended in what is believed of the next
_LEAST_GAIN = 1.05  # a smaller one is noise


def believed(belief: float, *, tried: int, right: int, before: int = 1 << 30) -> float:
    """The new estimate of a, when `right` of `tried` guesses were used; those behind a wrong one do not count.

    `before` tries were made of this answer so far: the first ones say most.
    """
    for at in range(min(tried, right + 1)):
        weight = max(_WEIGHT, 1.0 / (_FIRST_TRIES + 1.0 + before + at))
        belief += weight * ((at < right) - belief)
    return belief


def first_belief(usual: float, *, last: float) -> float:
    """What to believe of the next answer, when the last one that was tried ended with the belief `last`."""
    return usual + _OF_ONE_ANSWER * (last - usual)


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


def saved_ns(*, belief: float, costs_ns: Sequence[int], count: int, rows: int) -> float:
    """Nanoseconds that a step with `count` guesses for one of `rows` answers saves later, less what it costs more."""
    gain = sum([belief**place for place in range(count + 1)])
    return (gain * costs_ns[0] - costs_ns[count]) / rows


def pays_together(*, gains: Sequence[float], alone_ns: int, rows: int, more_ns: float) -> bool:
    """Whether the guesses of some of `rows` answers are worth what they cost together.

    `gains` are the tokens that each is expected to bring; one saves its answer's part of a step of `alone_ns`.
    `more_ns` is what the step takes longer, the guesser's and the host's time included.
    """
    return sum(gains) * alone_ns / rows > more_ns + (_LEAST_GAIN - 1.0) * alone_ns * len(gains) / rows


def probe_after(costs_ns: Sequence[int]) -> int:
    """Steps without a guess after which one is tried all the same."""
    return PROBE_EVERY if guesses(belief=1.0, costs_ns=costs_ns) else PROBE_COSTLY_EVERY


def step_costs(
    *,
    most: int,
    rows: int,
    pairs: int,
    predict: Predict,
    hope: Predict | None = None,
    guess_ns: int = 0,
) -> list[int]:
    """Nanoseconds of a step with 0 to `most` guesses for each of `rows` answers that attend to `pairs` positions.

    `guess_ns` is what one more guess for all rows costs the guesser (a draft model's step; 0 for a look-up). Steps
    with guesses are told by `hope` where it is given: a cost that is not known well is hoped to be low, or it would
    never be known.
    """
    alone, hope = predict(rows, pairs, 0), hope or predict
    if not alone:
        return [0] * (most + 1)
    more = [
        max(alone, hope(rows * (1 + count), pairs, pairs * count)) + count * guess_ns for count in range(1, most + 1)
    ]
    return [alone, *more]
