"""The values of batching: what goes into the batcher, what it plans and what it tells."""

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct

from baseload.domain.work import PhaseTimes, TokenCounts
from baseload.policy.pacing import NO_PACE, Pace


class SeqSpec(Struct, frozen=True):
    """A sequence to be computed: a prompt and at most so many new tokens.

    Without `tokens` only counts are known (the twin); then `prefix_hashes`, one per full block of prompt and answer
    or fewer, say what the prefix cache may share. Sequences with the same `group` (the n choices of a request) share
    the prompt's blocks even where the prefix cache is off. `salt` separates prefix caches, for example of tenants.
    `stop_after` is known to the twin alone: the model ends its answer by itself with this many new tokens.
    """

    seq_id: str
    prompt_tokens: int
    max_new_tokens: int
    tokens: Sequence[int] | None = None
    prefix_hashes: tuple[int, ...] = ()
    group: str = ""
    salt: str = ""
    pace: Pace = NO_PACE
    stop_after: int = 0  # 0: not known; only `core/counted` asks


class Share(Struct, frozen=True):
    """One sequence's part of a step: compute `count` tokens from position `start` on, in these blocks."""

    seq_id: str
    start: int
    count: int
    blocks: Sequence[int]  # the sequence's whole block table; valid until commit
    tokens: Sequence[int]  # the `count` token ids; empty where only counts are known
    wants_token: bool  # these are its last known tokens: the engine samples the next one
    guessed: int = (
        0  # the last so many of the tokens are guesses: the engine samples after each, and after the one before
    )


class Plan(Struct, frozen=True):
    """One engine step. Empty `shares`: nothing to do."""

    shares: tuple[Share, ...]
    decode_tokens: int
    prefill_tokens: int
    context_tokens: int  # sum of start + count over shares: what attention reads
    preempted: tuple[str, ...]


class Sampled(Struct, frozen=True):
    """The next token of a sequence. `stop`: it ends the sequence (an end token, a stop string, a full grammar).

    `right`: so many of the share's guesses were what was sampled; they come before `token`.
    """

    seq_id: str
    token: int = 0
    stop: bool = False
    right: int = 0


class FinishedBy(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCEL = "cancel"


class Finished(Struct, frozen=True):
    """A sequence that ended, with what it used."""

    seq_id: str
    by: FinishedBy
    tokens: TokenCounts
    phases: PhaseTimes


class BatcherTotals(Struct, frozen=True):
    """Counters since the start."""

    prompt_tokens: int = 0  # of sequences that came in
    cached_tokens: int = 0  # of those, found in the prefix cache
    generated_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    guessed_tokens: int = 0
    right_tokens: int = 0  # of the guessed ones


def attended(shares: Sequence[Share]) -> tuple[int, int]:
    """Positions that the step's tokens attend to: of decodes; and of prompts and guesses, who share their reads."""
    decodes = prefills = 0
    for share in shares:
        more = share.count - 1
        if share.wants_token and more == share.guessed:
            decodes += share.start + 1
            prefills += more * (share.start + 1) + more * (more + 1) // 2
        else:
            prefills += share.count * share.start + share.count * (share.count + 1) // 2
    return decodes, prefills
