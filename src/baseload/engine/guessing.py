"""Guessing ahead in the loop: whose next tokens are guessed, how many, and what became of it.

`EngineSpec.guess` says how: "off", "prompt" (look-up in the sequence itself) or the directory of a draft model.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from baseload.core.batcher import Batcher
from baseload.core.step_times import StepTimes
from baseload.engine.drafting import PromptLookup
from baseload.engine.sampling import RowSampler
from baseload.policy.speculation import FIRST_BELIEF, believed, guesses, probe_after, step_costs


class GuessSource(Protocol):
    """Guesses for many sequences at once."""

    @property
    def guess_ns(self) -> int:
        """What one more guess for all sequences costs; 0: nothing to speak of."""

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

    guess_ns = 0

    def __init__(self) -> None:
        self._of: dict[str, PromptLookup] = {}

    def open(self, seq_id: str, tokens: Sequence[int], sampler: RowSampler) -> None:
        """A new sequence begins with these tokens."""
        self._of[seq_id] = PromptLookup(tokens)

    def push(self, seq_id: str, tokens: Sequence[int]) -> None:
        """A sequence grew."""
        lookup = self._of[seq_id]
        for token in tokens:
            lookup.push(token)

    def guess(self, asked: Mapping[str, int]) -> Mapping[str, Sequence[int]]:
        """What followed the last tokens the last time they stood there."""
        return {seq_id: self._of[seq_id].guess(most) for seq_id, most in asked.items()}

    def close(self, seq_id: str) -> None:
        """A sequence ended."""
        del self._of[seq_id]


class GuessAhead:
    """The loop's part of it. Without a source it does nothing."""

    def __init__(self, source: GuessSource | None, *, most: int) -> None:
        self._source = source
        self._most = most
        self._belief: dict[str, float] = {}  # by sequence: the share of its guesses that were right
        self._unguessed: dict[str, int] = {}  # steps since its last guess

    @property
    def active(self) -> bool:
        """Whether there is a source at all."""
        return self._source is not None

    def open(self, seq_id: str, tokens: Sequence[int], sampler: RowSampler) -> None:
        """A new sequence."""
        if self._source is not None:
            self._source.open(seq_id, tokens, sampler)
            self._belief[seq_id] = FIRST_BELIEF
            self._unguessed[seq_id] = 0

    def close(self, seq_id: str) -> None:
        """A sequence ended."""
        if self._belief.pop(seq_id, None) is not None and self._source is not None:
            del self._unguessed[seq_id]
            self._source.close(seq_id)

    def propose(self, batcher: Batcher, times: StepTimes) -> None:
        """Hand the batcher guesses for the next step, where they pay. Beside a prefill they do not."""
        if self._source is None:
            return
        contexts = batcher.decode_contexts()
        if not contexts:
            return
        costs = step_costs(
            most=self._most,
            rows=len(contexts),
            pairs=sum(contexts.values()),
            predict=times.predict,
            guess_ns=self._source.guess_ns,
        )
        asked, patience = {}, probe_after(costs)
        for seq_id in contexts:
            count = guesses(belief=self._belief[seq_id], costs_ns=costs)
            if not count and self._unguessed[seq_id] >= patience:
                count = 1
            self._unguessed[seq_id] += 1
            if count:
                asked[seq_id] = count
        if asked:
            for seq_id, tokens in self._source.guess(asked).items():
                if len(tokens):
                    batcher.guess(seq_id, tokens)

    def settle(self, seq_id: str, guessed: int, tokens: Sequence[int]) -> None:
        """A step made these tokens of a sequence, all but the last of them by `guessed` guesses."""
        if self._source is None:
            return
        self._source.push(seq_id, tokens)
        if guessed:
            self._unguessed[seq_id] = 0
            self._belief[seq_id] = believed(self._belief[seq_id], tried=guessed, right=len(tokens) - 1)
