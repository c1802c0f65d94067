"""How large the next engine step may be when answers have to come at a declared pace: pure choices.

Each running answer has a time by which its next token is due: its first token's, plus so many times its TPOT target.
An answer ahead of its pace has slack, which long prompts may use: steps may then be longer than the target, so that
few large steps take the place of many small ones. An answer behind its pace gets short steps until it caught up.
Nobody waits for ever: a step always has room for a small piece of a prompt.
"""

from collections.abc import Callable, Iterable

from msgspec import Struct

from baseload.domain.model import EngineSpec
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Tier

Predict = Callable[[int, int, int], int]  # (tokens, positions decodes attend to, those prompts do) -> ns

UNHURRIED_NS = 60 * NS_PER_S  # a request without a target for its first token is due after so long
PIECE_TOKENS = 16  # the least of a prompt that a step computes
UNKNOWN_TOKENS = 64  # of prompts beside answers with a pace, until it is known what a step costs
GRAIN_TOKENS = 8  # of the search for more
TOP_RANK = Tier.PRIORITY.rank
MARGIN = 0.94  # of the target: what steps take varies (repeats differ by 3–5 %)
LEAST_SLACK = 0.5  # an answer behind its pace catches up with steps of half its target, where decodes allow it
MOST_SLACK = 6.0  # a step lasts at most so many times the target, however far ahead everybody is


class Pace(Struct, frozen=True):
    """A class of requests: its targets in nanoseconds (0: none), and its rank, by which the others give way."""

    ttft_ns: int = 0
    tpot_ns: int = 0
    rank: int = Tier.DEFAULT.rank

    @property
    def patience_ns(self) -> int:
        """How long after its arrival a prompt is due: who is due first comes in first."""
        return self.ttft_ns or UNHURRIED_NS


NO_PACE = Pace()


def paces(spec: EngineSpec) -> dict[Tier, Pace]:
    """The targets of each class of requests of a model."""
    own = Pace(spec.ttft_target_ns, spec.tpot_target_ns)
    first = Pace(
        spec.priority_ttft_target_ns or own.ttft_ns,
        spec.priority_tpot_target_ns or own.tpot_ns,
        rank=Tier.PRIORITY.rank,
    )
    last = Pace(spec.flex_ttft_target_ns, spec.flex_tpot_target_ns, rank=Tier.FLEX.rank)
    return {Tier.PRIORITY: first, Tier.DEFAULT: own, Tier.FLEX: last}


def standing(*, rank: int, lifts: int, waited_ns: int) -> int:
    """Who goes before whom: the class, one more for each time it gave way to a higher one, and for each minute.

    So whatever comes in, a sequence gives way twice at most, and after two minutes stands with the highest.
    """
    return min(TOP_RANK, rank + lifts + waited_ns // UNHURRIED_NS)


def allowed_ns(now_ns: int, answers: Iterable[tuple[int, int, int]]) -> int:
    """How long the next step may take; 0: as long as it likes.

    `answers` holds (time of the first token, tokens so far, TPOT target) of each begun answer that has a target.
    """
    least = 0
    for first_ns, made, tpot_ns in answers:
        target = MARGIN * tpot_ns
        slack = first_ns + made * target - now_ns
        step = int(min(max(slack, LEAST_SLACK * target), MOST_SLACK * target))
        least = min(least, step) if least else step
    return least


def prefill_tokens(*, budget: int, rows: int, pairs: int, start: int, allowed: int, predict: Predict) -> int:
    """Tokens of prompts that fit beside `rows` decodes (attending to `pairs` positions) in a step of `allowed` ns.

    `start` is the position from which the oldest prompt goes on. At least PIECE_TOKENS, at most `budget`.
    """
    if not allowed or budget <= PIECE_TOKENS:
        return budget
    low, high = PIECE_TOKENS // GRAIN_TOKENS, -(-budget // GRAIN_TOKENS)
    while low < high:
        middle = (low + high + 1) // 2
        tokens = min(budget, middle * GRAIN_TOKENS)
        if predict(rows + tokens, pairs, tokens * start + tokens * tokens // 2) <= allowed:
            low = middle
        else:
            high = middle - 1
    return min(budget, low * GRAIN_TOKENS)


def has_room(*, rows: int, pairs: int, context: int, tpot_ns: int, predict: Predict) -> bool:
    """Whether one more answer over `context` tokens leaves a step of decodes alone within the tightest target."""
    return not rows or not tpot_ns or predict(rows + 1, pairs + context, 0) <= tpot_ns * MARGIN
