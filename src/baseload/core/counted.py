"""The batcher where tokens are only counted (the twin): the same schedule, and many quiet steps at once.

A step's choices are the production batcher's own (`Batcher._schedule`); what differs is only that nobody needs the
token ids, so `plan_counted` tells sums and `commit_counted` samples by itself: a sequence ends after `stop_after`
tokens, or at its limit.

While every running sequence decodes, nothing can come in and nothing ends, the next steps are known: each sequence
gains one token a step, and blocks are taken at known steps. `quiet_steps` says for how many steps this holds;
`fast_forward` performs them in one call with the same end as so many plans and commits (a property test holds it).
"""

from collections.abc import Sequence
from operator import itemgetter

from msgspec import Struct

from baseload.core.batch import Finished, FinishedBy, Plan
from baseload.core.batcher import Batcher
from baseload.core.sequence import Sequenced
from baseload.policy.batching import admits

ENDLESS = 1 << 62
_first_of = itemgetter(0)


class Counts(Struct, frozen=True, gc=False):
    """One engine step as sums. `rows` 0: nothing to do."""

    rows: int
    decode_tokens: int
    prefill_tokens: int
    context_tokens: int  # KV positions read by all rows; of decodes alone: `decode_context`
    decode_context: int = 0
    prefill_pairs: int = 0  # of a prompt token and an earlier position that it attends to
    prompts: int = 0  # sequences that prefill


class Outlook(Struct, frozen=True, gc=False):
    """Known while all that run decode: the first ends after so many steps; the next step reads so many KV positions;
    and whether any fills blocks that others may find by their content."""

    steps: int
    context: int
    fills: bool


class CountedBatcher(Batcher):
    """The production batcher, and a shorter way through its steps for sequences without token ids."""

    _outlook: Outlook | None = None  # None: to be looked for

    def generated(self, seq_id: str) -> int:
        """New tokens of a sequence that has not ended."""
        seq = self._seqs[seq_id]
        return seq.total - seq.prompt

    def holds_slot(self, seq_id: str) -> bool:
        """Whether it runs (and does not wait)."""
        return bool(self._seqs[seq_id].blocks)

    def is_doomed(self, seq_id: str) -> bool:
        """Whether it was cancelled while its step runs."""
        return seq_id in self._doomed

    def cancel(self, now_ns: int, seq_id: str) -> Finished | None:
        """See `Batcher.cancel`."""
        self._outlook = None
        return super().cancel(now_ns, seq_id)

    def plan(self, now_ns: int) -> Plan:
        """See `Batcher.plan`."""
        self._outlook = None
        return super().plan(now_ns)

    def plan_counted(self, now_ns: int) -> Counts:
        """As `plan`, told in sums. Answer it with `commit_counted` or `abandon`."""
        outlook, self._outlook = self._outlook, None
        rows = len(self._running)
        preempted, pairs = self._schedule(now_ns, all_decode=outlook is not None)
        if outlook is None or preempted:
            return _sums(pairs)
        return _sums(pairs[rows:], rows, outlook.context)  # those before decode, one token each

    def plan_decodes(self, now_ns: int) -> Counts:
        """The next step alone of a quiet stretch, in which nobody comes in: who was added since waits."""
        self._outlook = None
        self._grow_decodes(now_ns)
        self._planned = [(seq, 1) for seq in self._running]
        return _sums(self._planned)

    def counts(self) -> Counts:
        """The planned step, told in sums."""
        assert self._planned is not None
        return _sums(self._planned)

    def commit_counted(self, now_ns: int) -> tuple[list[str], list[Finished]]:
        """The planned step was computed. Returns who got a first token, and who ended."""
        planned = self._take_planned()
        doomed, hashed, generated, size = self._doomed, self._hashed, 0, self.pool.block_tokens
        all_decode, context, left, fills = len(planned) == len(self._running), 0, ENDLESS, False
        firsts: list[str] = []
        ended: list[Sequenced] = []
        for seq, count in planned:
            if doomed and seq.seq_id in doomed:
                del self._seqs[seq.seq_id]
                self._drop(seq)
                continue
            seq.computed = computed = seq.computed + count
            if hashed and seq.parent is not None and computed // size != seq.published:
                self._publish(seq)
            total = seq.total
            if computed < total:
                all_decode = False
                continue
            seq.total = total = total + 1
            generated += 1
            if seq.first_token_ns < 0:
                seq.first_token_ns = now_ns
                firsts.append(seq.seq_id)
            ends_in = seq.ends_at - total
            if ends_in <= 0:
                ended.append(seq)
                continue
            context += total
            if ends_in < left:
                left = ends_in
            if hashed and seq.published < len(seq.hashes):
                fills = True
        self._totals[2] += generated
        self._doomed = {}
        self._outlook = Outlook(left, context, fills) if all_decode else None
        return firsts, self._end_all(ended, now_ns)

    def quiet_steps(self) -> int:
        """See `quiet`: only for how many steps."""
        return self.quiet()[0]

    def quiet(self) -> tuple[int, int]:
        """For how many steps from now only known things happen: all running sequences decode, none comes in, none is
        preempted, and none ends before the last of these steps; 0: take one step with `plan_counted`. And the KV
        positions that the first of them reads: each further one reads one a row more."""
        running, pool = self._running, self.pool
        if not running or self._planned is not None or (self._waiting and self._first_may_come_in()):
            return 0, 0
        outlook = self._outlook = self._outlook or self._look()
        if outlook is None or (outlook.fills and self._waiting):  # what it fills may be what somebody waits for
            return 0, 0
        steps, context = outlook.steps, outlook.context
        size, available = pool.block_tokens, pool.available
        if len(running) * (steps // size + 1) <= available:
            return steps, context  # there is room whatever each needs
        while steps > 0:
            needed = 0
            for seq in running:
                short = seq.total + steps - 1 - len(seq.blocks) * size
                if short > 0:
                    needed += -(-short // size)
            if needed <= available:
                break
            steps //= 2
        return max(0, steps), context

    def _look(self) -> Outlook | None:
        """What `commit_counted` and `fast_forward` see on their way, seen anew."""
        left, context, fills = ENDLESS, 0, False
        for seq in self._running:
            total = seq.total
            if total - seq.computed != 1 or total <= seq.prompt or seq.tokens is not None:
                return None
            fills = fills or seq.published < len(seq.hashes)
            context += total
            left = min(left, seq.ends_at - total)
        return Outlook(left, context, fills)

    def fast_forward(self, now_ns: int, steps: int) -> list[Finished]:
        """Perform `steps` quiet steps, the last of which ends now. Returns who ended with it."""
        running, size = self._running, self.pool.block_tokens
        outlook = self._outlook or self._look()
        assert outlook is not None, "not all who run decode"
        short: list[tuple[int, Sequenced]] = []  # and the step at whose plan it holds no place for its next token
        for seq in running:
            total = seq.total
            seq.total = grown = total + steps
            seq.computed = grown - 1
            room = len(seq.blocks) * size + 2
            if room <= grown:
                short.append((room - total, seq))
        for seq in running if self._hashed else ():
            if seq.parent is not None and seq.published >= len(seq.hashes):
                seq.published = seq.computed // size
        if outlook.fills:
            self._take_and_publish(steps)
        elif short:
            self._take(short, steps)
        rows, left, context = len(running), outlook.steps - steps, outlook.context + steps * len(running)
        self._totals[2] += steps * rows
        self._totals[4] += steps
        ended: list[Sequenced] = []
        if left <= 0:
            ended = [seq for seq in running if seq.total >= seq.ends_at]
            context -= sum([seq.total for seq in ended])
            left = min([seq.ends_at - seq.total for seq in running if seq.total < seq.ends_at], default=ENDLESS)
        self._outlook = None if outlook.fills else Outlook(left, context, False)
        return self._end_all(ended, now_ns)

    def usage_after(self, steps: int) -> float:
        """Share of the blocks held once `steps` quiet steps are performed and the step after them has begun."""
        size, due = self.pool.block_tokens, 0
        for seq in self._running:
            left = seq.total + steps - len(seq.blocks) * size
            if left > 0:
                due += -(-left // size)
        return 1.0 - (self.pool.available - due) / self.pool.num_blocks

    def _take(self, short: list[tuple[int, Sequenced]], steps: int) -> None:
        """Give each of these the blocks it needs, in the order in which step by step they would take them."""
        size = self.pool.block_tokens
        short.sort(key=_first_of)
        if steps - short[0][0] < size:
            for (_, seq), block in zip(short, self.pool.allocate(len(short)), strict=True):
                seq.blocks.append(block)
        elif short[-1][0] - short[0][0] < size:  # each takes one in `size` steps, so they go round in this order
            rows, blocks = len(short), self.pool.allocate(sum([(steps - first) // size + 1 for first, _ in short]))
            for at, (_, seq) in enumerate(short):
                seq.blocks += blocks[at::rows]
        else:
            deeds = [(step, at) for at, (first, _) in enumerate(short) for step in range(first, steps + 1, size)]
            for (_, at), block in zip(sorted(deeds), self.pool.allocate(len(deeds)), strict=True):
                short[at][1].blocks.append(block)

    def _take_and_publish(self, steps: int) -> None:
        """Block by block in order of time: what one row publishes, another of the same text does not."""
        running, size = self._running, self.pool.block_tokens
        deeds: list[tuple[int, int, int]] = []
        for at, seq in enumerate(running):
            before = seq.computed - steps  # computed then; it had one token more
            deeds += [(step, 0, at) for step in range(len(seq.blocks) * size - before + 1, steps + 1, size)]
            if seq.parent is not None and seq.published < len(seq.hashes):
                full = min(seq.computed // size, len(seq.hashes))
                deeds += [((n + 1) * size - before, 1, at) for n in range(seq.published, full)]
        for _, is_filled, at in sorted(deeds):
            seq = running[at]
            if is_filled:
                self.pool.publish(seq.blocks[seq.published], seq.hashes[seq.published])
                seq.published += 1
            else:
                seq.blocks += self.pool.allocate(1)
        for seq in running:
            if seq.parent is not None:
                seq.published = seq.computed // size

    def _first_may_come_in(self) -> bool:
        """Whether the next step might admit somebody. If not, no quiet step does: free blocks only get less."""
        seq, pool, running = self._waiting[0], self.pool, len(self._running)
        if seq.group or self._paced:
            return True  # those after it may pass it
        budget = self.max_step_tokens - running
        if budget <= 0 or running >= self.max_seqs:
            return False
        found = pool.match(self._hashes_to_match(seq)) if seq.parent is not None else []
        needed = pool.blocks_for(seq.total) - pool.count_held(found)
        return admits(
            blocks_needed=needed,
            blocks_free=pool.available,
            running=running,
            max_seqs=self.max_seqs,
            budget_left=budget,
        )

    def _end_all(self, ended: list[Sequenced], now_ns: int) -> list[Finished]:
        finished = []
        for seq in ended:
            del self._seqs[seq.seq_id]
            self._drop(seq)
            by = FinishedBy.STOP if seq.total >= seq.stop_at else FinishedBy.LENGTH
            finished.append(seq.finished(by, now_ns))
        return finished


def _sums(pairs: Sequence[tuple[Sequenced, int]], decodes: int = 0, context: int = 0) -> Counts:
    """These shares as sums, beside so many decodes that read so many positions."""
    prompts = tokens = seen = ends = 0
    for seq, count in pairs:
        start = seq.computed
        if count > 1 or seq.total == seq.prompt:
            prompts += 1
            tokens += count
            ends += start + count
            seen += start * count + count * count // 2
        else:
            decodes += 1
            context += start + count
    return Counts(decodes + prompts, decodes, tokens, context + ends, context, seen, prompts)
