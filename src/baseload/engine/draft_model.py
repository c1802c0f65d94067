"""Guesses by a draft model: a smaller model of the same vocabulary runs ahead of the large one.

It keeps a cache of its own. Each guess draws from the draft's logits with the random number that the large model's
sampler will use at that place, so that where both models agree on the odds they draw the same token.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from baseload.core.blocks import BlockPool
from baseload.core.step_times import StepTimes
from baseload.engine.sampling import RowSampler
from baseload.engine.spans import Span, StepRunner

_UNLEARNED_STEPS = 2
_LEARNING_STEPS = 64
_OFTEN = 4  # steps from one that is learned from to the next, after those
_FEW = 4  # tokens that a guess reads on the way


class _Draft:
    """One sequence at the draft model. `computed` leading tokens of `tokens` + `ahead` are in its cache."""

    __slots__ = ("ahead", "blocks", "computed", "sampler", "tokens")

    def __init__(self, tokens: Sequence[int], sampler: RowSampler) -> None:
        self.tokens = list(tokens)
        self.ahead: list[int] = []
        self.computed = 0
        self.blocks: list[int] = []
        self.sampler = sampler

    def push(self, token: int) -> None:
        """The sequence grew; a guess that was wrong makes what the cache holds behind it worthless."""
        if self.ahead and self.ahead[0] == token:
            del self.ahead[0]
        else:
            self.ahead = []
            self.computed = min(self.computed, len(self.tokens))
        self.tokens.append(token)


class DraftModel:
    """A guess source (engine/guessing.py) over a runner of its own. `most_tokens` bounds one step's prefill.

    `vocab_size` counts the tokens that both models have (families pad theirs to different sizes); 0: all.
    """

    def __init__(
        self,
        runner: StepRunner,
        *,
        most_tokens: int,
        vocab_size: int = 0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._runner = runner
        self._clock = clock
        self._most_tokens = most_tokens
        self._vocab_size = vocab_size
        self._pool = BlockPool(runner.num_blocks, block_tokens=runner.block_tokens)
        self._drafts: dict[str, _Draft] = {}
        self._times = StepTimes()
        self._seen = 0  # steps
        self.apart_ns = 0

    @property
    def is_known(self) -> bool:
        """Whether it made a few steps beyond the first, which may have waited for a program."""
        return self._times.steps > 0

    def guess_ns(self, rows: int, pairs: int) -> int:
        """The time of one step of the draft for so many sequences, so long together."""
        return self._times.predict(rows, pairs, 0)

    def behind_ns(self, seq_id: str) -> int:
        """What it takes to read what was not guessed for, if that is more than a few tokens."""
        behind = self._behind(seq_id)
        return self._times.predict(behind, 0, behind * behind // 2) if behind > _FEW else 0

    @property
    def room(self) -> int:
        """Blocks of its cache that no sequence holds."""
        return self._pool.available

    def open(self, seq_id: str, tokens: Sequence[int], sampler: RowSampler) -> None:
        """A new sequence begins with these tokens."""
        self._drafts[seq_id] = _Draft(tokens, sampler)

    def push(self, seq_id: str, tokens: Sequence[int]) -> None:
        """A sequence grew."""
        for token in tokens:
            self._drafts[seq_id].push(token)

    def close(self, seq_id: str) -> None:
        """A sequence ended."""
        self._pool.release(self._drafts.pop(seq_id).blocks)

    def guess(self, asked: Mapping[str, int]) -> Mapping[str, Sequence[int]]:
        """What the draft model would say next. A sequence for which its cache has no room gets no guess."""
        began = self._clock()
        active = {seq_id: most for seq_id, most in asked.items() if self._has_room(seq_id, most)}
        for seq_id in active:
            draft = self._drafts[seq_id]
            draft.ahead = []
            draft.computed = min(draft.computed, len(draft.tokens) - 1)
        self._catch_up(list(active))
        longest = max(active.values(), default=0)
        for made in range(longest):
            rows = [seq_id for seq_id, most in active.items() if most > made]
            step_began = self._clock()
            spans = [self._span(self._drafts[seq_id], wants=True) for seq_id in rows]
            logits = self._runner.run(spans)
            for seq_id, row in zip(rows, logits, strict=True):
                draft = self._drafts[seq_id]
                draft.computed = len(draft.tokens) + made
                draft.ahead.append(draft.sampler.foresee(row[: self._vocab_size or None], made))
            self._learn(spans, self._clock() - step_began)
        self.apart_ns = self._clock() - began
        return {seq_id: list(self._drafts[seq_id].ahead) for seq_id in active}

    def _has_room(self, seq_id: str, most: int) -> bool:
        draft = self._drafts[seq_id]
        end = len(draft.tokens) + most
        missing = self._pool.blocks_for(end) - len(draft.blocks)
        if end > self._runner.max_context or missing > self._pool.available:
            return False
        if missing > 0:
            draft.blocks += self._pool.allocate(missing)
        return True

    def _catch_up(self, seq_ids: Sequence[str]) -> None:
        """Compute what sequences far behind have before their last token, many in one step."""
        pending = {seq_id: self._behind(seq_id) for seq_id in seq_ids if self._behind(seq_id) > _FEW}
        while pending:
            room, spans = self._most_tokens, []
            for seq_id in list(pending):
                draft, count = self._drafts[seq_id], min(pending[seq_id], room)
                if not count:
                    break
                spans.append(self._span(draft, wants=False, end=draft.computed + count))
                draft.computed += count
                room -= count
                pending[seq_id] -= count
                if not pending[seq_id]:
                    del pending[seq_id]
            began = self._clock()
            self._runner.run(spans)
            self._learn(spans, self._clock() - began)

    def _learn(self, spans: Sequence[Span], took_ns: int) -> None:
        """A step over these spans and the choice of its guesses took so long. The first ones say nothing."""
        self._seen += 1
        if self._seen > _UNLEARNED_STEPS and (self._seen < _LEARNING_STEPS or not self._seen % _OFTEN):
            more = [(len(span.tokens) - 1, span.start) for span in spans]
            decode_pairs = sum([span.start + 1 for span in spans if span.wants_logits])
            prefill_pairs = sum([count * (start + 1) + count * (count + 1) // 2 for count, start in more])
            tokens = len(spans) + sum([count for count, _ in more])
            self._times.observe(tokens, decode_pairs, prefill_pairs, took_ns)

    def _behind(self, seq_id: str) -> int:
        """Tokens before a sequence's last that are not in the cache."""
        draft = self._drafts[seq_id]
        return len(draft.tokens) - 1 - min(draft.computed, len(draft.tokens) - 1)

    def _span(self, draft: _Draft, *, wants: bool, end: int | None = None) -> Span:
        begin, count = draft.computed, len(draft.tokens)  # a copy of the whole would take longer than the rest
        ahead = draft.ahead[max(0, begin - count) :] if end is None else []
        known = np.array(draft.tokens[begin:end] + ahead, np.int32)
        if self._vocab_size:
            known = np.minimum(known, self._vocab_size - 1)  # what the draft does not know, it takes for another
        return Span(known, begin, np.array(draft.blocks, np.int32), wants)
