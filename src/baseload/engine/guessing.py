"""Guessing ahead in the loop: whose next tokens are guessed, how many, and what became of it.

`EngineSpec.guess` says how: "off", "prompt" (look-up in the sequence itself) or the directory of a draft model.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from baseload.core.batcher import Batcher
from baseload.core.step_times import StepTimes
from baseload.engine.drafting import PromptLookup
from baseload.engine.sampling import RowSampler
from baseload.policy.speculation import (
    FIRST_BELIEF,
    LEAST_AHEAD,
    PROBE_COSTLY_EVERY,
    PROBE_EVERY,
    REST_STEPS,
    TRY_SHARE,
    believed,
    first_belief,
    guesses,
    pays_together,
    probe_after,
    saved_ns,
    step_costs,
)

_WEIGHT = 0.1  # of the newest step in the mean cost of asking
_FOUND_WEIGHT = 0.1  # of the newest asking in the share that found a guess
_READING = 4096  # tokens that say all of what reading costs; fewer weigh less


class GuessSource(Protocol):
    """Guesses for many sequences at once."""

    @property
    def is_known(self) -> bool:
        """Whether it guessed often enough to tell what that costs."""

    @property
    def apart_ns(self) -> int:
        """Of the last `guess`, the time that `guess_ns` and `behind_ns` tell."""

    def guess_ns(self, rows: int, pairs: int) -> int:
        """What one more guess for each of so many sequences, so long together, costs; 0: nothing to speak of."""

    def behind_ns(self, seq_id: str) -> int:
        """What it takes to read what it has not read yet of a sequence, before it can guess."""

    def open(self, seq_id: str, tokens: Sequence[int], sampler: RowSampler) -> None:
        """A new sequence begins with these tokens."""

    def push(self, seq_id: str, tokens: Sequence[int]) -> None:
        """A sequence grew."""

    def guess(self, asked: Mapping[str, int]) -> Mapping[str, Sequence[int]]:
        """What may come next, at most so many tokens for each sequence."""

    def close(self, seq_id: str) -> None:
        """A sequence ended."""


class PromptLookups:
    """Look-up in each sequence's own tokens."""

    def __init__(self, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._of: dict[str, PromptLookup] = {}
        self._clock = clock
        self._token_ns = 0.0  # the mean time to read one token
        self.apart_ns = 0
        self.is_known = False

    def guess_ns(self, rows: int, pairs: int) -> int:
        """Nothing beyond what asking costs."""
        return 0

    def behind_ns(self, seq_id: str) -> int:
        """What it takes to read the tokens since the last guess."""
        return int(self._of[seq_id].unread * self._token_ns)

    def open(self, seq_id: str, tokens: Sequence[int], sampler: RowSampler) -> None:
        """A new sequence begins with these tokens."""
        self._of[seq_id] = PromptLookup(tokens)

    def push(self, seq_id: str, tokens: Sequence[int]) -> None:
        """A sequence grew."""
        self._of[seq_id].extend(tokens)

    def guess(self, asked: Mapping[str, int]) -> Mapping[str, Sequence[int]]:
        """What followed the last tokens the last time they stood there."""
        unread, began = sum([self._of[seq_id].unread for seq_id in asked]), self._clock()
        for seq_id in asked:
            self._of[seq_id].read_on()
        self.apart_ns = self._clock() - began
        self.is_known = True
        if unread:
            weight = min(1.0, unread / _READING) if self._token_ns else 1.0
            self._token_ns += weight * (self.apart_ns / unread - self._token_ns)
        return {seq_id: self._of[seq_id].guess(most) for seq_id, most in asked.items()}

    def close(self, seq_id: str) -> None:
        """A sequence ended."""
        del self._of[seq_id]


class _Record:
    """What became of one sequence's guesses."""

    __slots__ = ("belief", "found", "last", "made", "tried", "was_right")

    def __init__(self, belief: float, found: float, now: int) -> None:
        self.belief = belief
        self.found = found  # the share of times that it was asked for and there was a guess
        self.tried = 0  # guesses that were checked
        self.last = now  # the step of its last guess
        self.was_right = False  # that one
        self.made = 0  # tokens of its answer


class GuessAhead:
    """The loop's part of it. Without a source it does nothing.

    Who is worth how many guesses is thought over every few steps: thinking costs as well.
    """

    def __init__(
        self, source: GuessSource | None, *, most: int, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._source = source
        self._most = most
        self._clock = clock
        self._records: dict[str, _Record] = {}
        self._usual = FIRST_BELIEF  # of answers so far
        self._usually_found = 1.0
        self._now = 0  # steps
        self._rests_until = 0
        self._chosen: dict[str, int] = {}  # guesses for whom, until it is thought over
        self._costs: Sequence[int] = ()  # of a step, by guesses for each row
        self._rows = 0  # for which they were counted
        self._patience = PROBE_EVERY
        self._counted_at = self._counted_until = 0
        self._try_ns = 0.0  # the cost of one guess for one of them
        self._credit_ns = 0.0  # that may be spent on guesses which are not expected to pay
        self._host_ns = 0.0  # the mean time to ask for one sequence's guesses, a draft model's own aside

    @property
    def active(self) -> bool:
        """Whether there is a source at all."""
        return self._source is not None

    @property
    def rests(self) -> bool:
        """Whether nobody was worth a guess lately."""
        return self._now < self._rests_until

    def open(self, seq_id: str, tokens: Sequence[int], sampler: RowSampler) -> None:
        """A new sequence."""
        if self._source is not None:
            self._source.open(seq_id, tokens, sampler)
            self._records[seq_id] = _Record(self._usual, self._usually_found, self._now)

    def close(self, seq_id: str) -> None:
        """A sequence ended."""
        record = self._records.pop(seq_id, None)
        if record is not None and self._source is not None:
            self._source.close(seq_id)
            self._chosen.pop(seq_id, None)
            if record.tried:
                self._usual = first_belief(self._usual, last=record.belief)
            self._usually_found = first_belief(self._usually_found, last=record.found)

    def propose(self, batcher: Batcher, times: StepTimes) -> None:
        """Hand the batcher guesses for the next step, where they pay. Beside a prefill they do not."""
        if self._source is None:
            return
        self._now += 1
        if self.rests:
            return
        began = self._clock()
        contexts = batcher.decode_contexts()
        if not contexts:
            return
        tries: dict[str, int] = {}
        if self._now >= self._counted_until or len(contexts) != self._rows:
            self._count(contexts, times)
            tries = self._think(contexts, times)
        asked = {**self._chosen, **tries}
        if not asked:
            self._rests_until = self._now + REST_STEPS
            return
        for seq_id, tokens in self._source.guess(asked).items():
            record, some = self._records[seq_id], len(tokens) > 0
            record.found += _FOUND_WEIGHT * (some - record.found)
            if some:
                record.last = self._now
                batcher.guess(seq_id, tokens)
        took = max(0, self._clock() - began - self._source.apart_ns) / len(asked)
        self._host_ns += (_WEIGHT if self._host_ns else 1.0) * (took - self._host_ns)

    def _count(self, contexts: Mapping[str, int], times: StepTimes) -> None:
        """What steps with guesses cost now, and how much of the time since the last count may go into trying."""
        assert self._source is not None
        rows, pairs = len(contexts), sum(contexts.values())
        guess_ns = self._source.guess_ns(rows, pairs)
        self._costs = step_costs(
            most=self._most,
            rows=rows,
            pairs=pairs,
            predict=times.predict,
            hope=times.hopeful,
            guess_ns=guess_ns,
        )
        alone = self._costs[0]
        gained = (self._now - self._counted_at) * alone * TRY_SHARE
        self._credit_ns = min(self._credit_ns + gained, alone * PROBE_COSTLY_EVERY * TRY_SHARE)
        self._try_ns = max(0, self._costs[1] - alone - guess_ns) / rows + guess_ns + self._host_ns
        self._counted_at, self._counted_until, self._rows = self._now, self._now + REST_STEPS, rows
        self._patience = probe_after(self._costs)

    def _think(self, contexts: Mapping[str, int], times: StepTimes) -> dict[str, int]:
        """Choose how many guesses for whom until the next count; returns who is tried once beyond that."""
        assert self._source is not None
        self._chosen, tries = {}, dict[str, int]()
        if not self._costs[0]:
            return {}
        if not self._source.is_known:
            return {next(iter(contexts)): 1}  # one finds out for all
        for seq_id in contexts:
            record = self._records[seq_id]
            count = guesses(belief=record.belief, costs_ns=self._costs)
            if count and self._is_worth_asking(seq_id, record, count):
                self._chosen[seq_id] = count
            elif self._may_try(seq_id, record):
                tries[seq_id] = 1
        if self._chosen and not self._pay_together(contexts, times):
            self._chosen = {}
        return tries

    def _pay_together(self, contexts: Mapping[str, int], times: StepTimes) -> bool:
        """Whether those chosen are worth a step of the guesser, and the longer step."""
        assert self._source is not None
        chosen, rows, alone_ns = self._chosen, self._rows, self._costs[0]
        gains, more = [], 0.0
        for seq_id, count in chosen.items():
            record = self._records[seq_id]
            gains.append(record.found * sum([record.belief ** (place + 1) for place in range(count)]))
            more += record.found * count
        pairs, longest = sum(contexts.values()), max(chosen.values())
        longer_ns = times.hopeful(rows + round(more), pairs, round(more * pairs / rows)) - alone_ns
        guess_ns = longest * self._source.guess_ns(len(chosen), sum([contexts[seq_id] for seq_id in chosen]))
        more_ns = max(0, longer_ns) + guess_ns + self._host_ns * len(chosen)
        return pays_together(gains=gains, alone_ns=alone_ns, rows=rows, more_ns=more_ns)

    def _is_worth_asking(self, seq_id: str, record: _Record, count: int) -> bool:
        """Whether guesses will save more than asking for them, and reading what the source has not read of it."""
        assert self._source is not None
        saved = saved_ns(belief=record.belief, costs_ns=self._costs, count=count, rows=self._rows)
        saved = record.found * saved - self._host_ns
        behind_ns = self._source.behind_ns(seq_id)
        return saved > 0 and saved * max(LEAST_AHEAD, record.made) > behind_ns

    def _may_try(self, seq_id: str, record: _Record) -> bool:
        """Whether a guess that is not expected to pay is due, and there is time to spend on it."""
        assert self._source is not None
        eager = record.was_right and self._patience == PROBE_EVERY
        if self._now - record.last <= (REST_STEPS if eager else self._patience):
            return False
        cost_ns = self._try_ns + self._source.behind_ns(seq_id)
        if cost_ns > self._credit_ns:
            return False
        self._credit_ns -= cost_ns
        record.last = self._now
        return True

    def settle(self, seq_id: str, guessed: int, tokens: Sequence[int]) -> None:
        """A step made these tokens of a sequence, all but the last of them by `guessed` guesses."""
        if self._source is None:
            return
        self._source.push(seq_id, tokens)
        record = self._records[seq_id]
        record.made += len(tokens)
        if guessed:
            right = len(tokens) - 1
            record.belief = believed(record.belief, tried=guessed, right=right, before=record.tried)
            record.tried += min(guessed, right + 1)
            record.was_right = right > 0
