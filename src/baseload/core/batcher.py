"""Continuous batching as a machine: which sequences compute which tokens in each engine step.

    batcher.add(now_ns, spec)                    # at any time between steps, or during one
    while batcher.busy:
        plan = batcher.plan(now_ns)              # decodes, then prefill chunks, within the token budget
        sampled = run(plan)                      # the engine computes; the twin adds its step time
        finished = batcher.commit(now_ns, sampled)

Tokens are real (the engine) or only counted (the twin); the machine decides alike. Every sequence holds the blocks
of all tokens it has from admission on, so that only a decode that crosses into a new block can find none left; then
the latest arrival of the lowest class is preempted: its blocks are released and it computes them again later (what
the prefix cache kept, it finds there). So it is where a higher class waits and has no room. Nobody starves: see
`policy/pacing.standing`.
"""

from bisect import insort
from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import attrgetter

from baseload.core.batch import BatcherTotals, Finished, FinishedBy, Plan, Sampled, SeqSpec, Share
from baseload.core.blocks import BlockPool, block_hash, root_hash
from baseload.core.sequence import Sequenced
from baseload.core.step_times import StepTimes
from baseload.domain.errors import Reason, Refusal
from baseload.policy.batching import admits, choose_victim, share_budget
from baseload.policy.pacing import NO_PACE, TOP_RANK, UNKNOWN_TOKENS, allowed_ns, has_room, prefill_tokens

_by_arrival = attrgetter("arrival")


class Batcher:
    """The machine. `max_context` and the pool bound a sequence's length; `max_waiting` bounds the queue."""

    def __init__(
        self,
        *,
        num_blocks: int,
        block_tokens: int,
        max_seqs: int,
        max_step_tokens: int,
        max_context: int,
        max_waiting: int,
        prefix_cache: bool = True,
        step_times: StepTimes | None = None,
    ) -> None:
        assert max_seqs > 0
        self.pool = BlockPool(num_blocks, block_tokens=block_tokens)
        self.max_seqs = max_seqs
        self.max_step_tokens = max(max_step_tokens, max_seqs)  # every decode fits into every step
        self.max_tokens = min(max_context, num_blocks * block_tokens)
        self.max_waiting = max_waiting
        self._prefix_cache = prefix_cache
        self._running: list[Sequenced] = []  # by arrival
        self._waiting: list[Sequenced] = []  # by arrival
        self._seqs: dict[str, Sequenced] = {}
        self._planned: list[tuple[Sequenced, int]] | None = None  # the step that runs: who computes how many tokens
        self._doomed: dict[str, None] = {}  # cancelled while their step runs
        self._arrivals = 0
        self._totals = [0, 0, 0, 0, 0, 0, 0]
        self._guessing = False  # whether any sequence has guesses for the next step
        self._step_times = step_times
        self._paced = False  # whether any sequence ever had a target; without, time plays no part
        self._hashed = False  # whether any ever took part in prefix caching

    # -- what others may look at ------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self._seqs)

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences in the queue, preempted ones among them."""
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks that are held."""
        return self.pool.usage

    @property
    def paced(self) -> bool:
        """Whether any sequence ever had a target."""
        return self._paced

    @property
    def totals(self) -> BatcherTotals:
        """Counters since the start."""
        return BatcherTotals(*self._totals)

    # -- inputs -----------------------------------------------------------------------------------------------

    def add(self, now_ns: int, *specs: SeqSpec) -> None:
        """Queue these sequences, all or none. Refusal: CONTEXT_TOO_LONG where one can never fit, or QUEUE_FULL."""
        for spec in specs:
            assert spec.prompt_tokens > 0
            assert spec.seq_id not in self._seqs
            assert spec.tokens is None or len(spec.tokens) == spec.prompt_tokens
            if spec.prompt_tokens + 1 > self.max_tokens:
                raise Refusal(
                    Reason.CONTEXT_TOO_LONG,
                    f"This model's maximum context length is {self.max_tokens} tokens. However, your prompt has "
                    f"{spec.prompt_tokens} tokens. Please reduce the length of the prompt.",
                )
        if len(self._seqs) + len(specs) > self.max_seqs + self.max_waiting:
            raise Refusal(
                Reason.QUEUE_FULL,
                f"The worker's queue is full ({len(self._waiting)} waiting).",
                hint="Try again later.",
                retry_after_ns=1_000_000_000,
            )
        for spec in specs:
            limit = min(spec.prompt_tokens + max(1, spec.max_new_tokens), self.max_tokens)
            seq = Sequenced(spec, arrival=self._arrivals, now_ns=now_ns, limit=limit)
            self._arrivals += 1
            self._start_hashing(seq, spec)
            self._paced = self._paced or (spec.pace is not NO_PACE and spec.pace != NO_PACE)
            self._seqs[seq.seq_id] = seq
            self._waiting.append(seq)  # the latest arrival: order kept

    def cancel(self, now_ns: int, seq_id: str) -> Finished | None:
        """End a sequence at once (during a step: its blocks come back at commit). None where it already ended."""
        seq = self._seqs.get(seq_id)
        if seq is None or seq_id in self._doomed:
            return None
        if self._planned is not None and any(planned is seq for planned, _ in self._planned):
            self._doomed[seq_id] = None
        else:
            del self._seqs[seq_id]
            self._drop(seq)
        return seq.finished(FinishedBy.CANCEL, now_ns)

    def decode_contexts(self) -> dict[str, int]:
        """Tokens so far of each running sequence, where all of them decode; empty where one still has a prompt."""
        running = self._running
        if any(seq.total - seq.computed != 1 or seq.tokens is None for seq in running):
            return {}
        return {seq.seq_id: seq.total for seq in running}

    def guess(self, seq_id: str, tokens: Sequence[int]) -> None:
        """What may follow this sequence's last token, for the next step to check; as many as fit are taken.

        Only a sequence that owes one token takes guesses; for others this does nothing.
        """
        assert self._planned is None
        seq = self._seqs[seq_id]
        if seq.blocks and seq.tokens is not None and seq.total - seq.computed == 1:
            seq.guesses = list(tokens[: max(0, seq.limit - seq.total - 1)])
            self._guessing = True

    def plan(self, now_ns: int) -> Plan:
        """The next step. Answer it with `commit` or `abandon` before asking again."""
        preempted, pairs = self._schedule(now_ns)
        decodes = context = tokens = 0
        planned = []
        for seq, count in pairs:
            end = seq.computed + count
            context += end
            tokens += count
            guessed = len(seq.guesses)
            decodes += count if seq.total > seq.prompt and count == 1 + guessed else 0
            part = () if seq.tokens is None else seq.tokens[seq.computed : end] + seq.guesses
            wants = end - guessed == seq.total
            planned.append(Share(seq.seq_id, seq.computed, count, seq.blocks, part, wants, guessed))
        return Plan(tuple(planned), decodes, tokens - decodes, context, tuple(preempted))

    def commit(self, now_ns: int, sampled: Iterable[Sampled]) -> list[Finished]:
        """The planned step was computed; `sampled` holds the next token of each share that wanted one."""
        planned = self._take_planned()
        results = {result.seq_id: result for result in sampled}
        finished = []
        for seq, count in planned:
            if seq.seq_id in self._doomed:
                del self._seqs[seq.seq_id]
                self._drop(seq)
                continue
            seq.computed += count
            if seq.guesses:
                self._settle_guesses(seq, results[seq.seq_id].right)
            self._publish(seq)
            if seq.computed < seq.total:
                continue
            result = results[seq.seq_id]
            self._extend(seq, result, now_ns)
            if result.stop or seq.total >= seq.limit:
                del self._seqs[seq.seq_id]
                self._drop(seq)
                by = FinishedBy.STOP if result.stop else FinishedBy.LENGTH
                finished.append(seq.finished(by, now_ns))
        self._doomed = {}
        return finished

    def abandon(self, now_ns: int) -> list[Finished]:
        """The planned step failed: all its sequences end (as cancelled) and what the cache held is forgotten.

        Sequences that were not in the step start again from their first token.
        """
        assert self._planned is not None
        planned, self._planned = self._planned, None
        finished = []
        for seq, _ in planned:
            del self._seqs[seq.seq_id]
            self._drop(seq)
            if seq.seq_id not in self._doomed:
                finished.append(seq.finished(FinishedBy.CANCEL, now_ns))
        self._doomed = {}
        for seq in list(self._running):
            self._preempt(seq)
        self.pool.forget_cached()
        return finished

    def check(self) -> None:
        """Assert every invariant; for tests and idle moments."""
        holders: dict[int, int] = {}
        for seq in self._running:
            for block in seq.blocks:
                holders[block] = holders.get(block, 0) + 1
        self.pool.check(holders)
        assert len(self._running) <= self.max_seqs
        assert len(self._seqs) <= self.max_seqs + self.max_waiting
        assert len(self._running) + len(self._waiting) == len(self._seqs)
        for seqs in (self._running, self._waiting):
            assert all(a.arrival < b.arrival for a, b in pairwise(seqs))
        for seq in self._running:
            assert 0 <= seq.computed < seq.total < seq.limit + 1
            assert len(seq.blocks) >= self.pool.blocks_for(seq.computed)
        assert all(not seq.blocks and seq.computed == 0 for seq in self._waiting)
        assert all(seq.lifts <= max(0, TOP_RANK - seq.pace.rank) for seq in self._seqs.values()), "gave way too often"

    # -- the parts of a step ----------------------------------------------------------------------------------

    def _schedule(self, now_ns: int, *, all_decode: bool = False) -> tuple[list[str], list[tuple[Sequenced, int]]]:
        """Choose the next step: who is preempted, and who computes how many tokens. `all_decode`: it is known that
        all who run owe one token each."""
        assert self._planned is None, "the last plan was neither committed nor abandoned"
        preempted = self._grow_decodes(now_ns)
        is_full = bool(preempted)
        if self._waiting and self._paced and not is_full:
            preempted += self._make_way(now_ns)
        running, budget = self._running, self.max_step_tokens
        if not all_decode or self._paced:
            pending = [seq.total - seq.computed for seq in running]
            budget = self._budget(now_ns, pending) if self._paced else budget
            all_decode = pending.count(1) == len(pending)
        if all_decode and len(running) <= budget:
            pairs, spent = [(seq, 1) for seq in running], len(running)
        else:
            shares = share_budget(pending, budget=budget)
            pairs = [(seq, share) for seq, share in zip(running, shares, strict=True) if share]
            spent = sum(shares)
        assert spent <= budget
        if self._waiting and not is_full:
            admitted = self._admit(now_ns, budget - spent, most=1 if preempted else self.max_seqs)
            spent += sum([share for _, share in admitted])
            pairs += admitted
        if self._guessing:
            pairs = self._with_guesses(pairs, budget - spent)
        self._planned = pairs
        return preempted, pairs

    def _budget(self, now_ns: int, pending: Sequence[int]) -> int:
        """Tokens of this step, so that the answers with a target keep their pace."""
        times, rows = self._step_times, pending.count(1)
        decodes = [seq for seq, left in zip(self._running, pending, strict=True) if left == 1]
        paced = [seq.promise for seq in decodes if seq.pace.tpot_ns and seq.first_token_ns >= 0]
        if times is None or not paced:
            return self.max_step_tokens
        if not times.steps:
            return min(self.max_step_tokens, rows + UNKNOWN_TOKENS)
        start = next((seq.computed for seq, left in zip(self._running, pending, strict=True) if left > 1), 0)
        room = prefill_tokens(
            budget=self.max_step_tokens - rows,
            rows=rows,
            pairs=sum([seq.total for seq in decodes]),
            start=start,
            allowed=allowed_ns(now_ns, paced),
            predict=times.hopeful,
        )
        return rows + room

    def _with_guesses(self, pairs: list[tuple[Sequenced, int]], left: int) -> list[tuple[Sequenced, int]]:
        """Lengthen the shares of decodes by their guesses, as far as the budget and the free blocks go."""
        self._guessing = False
        size, longer = self.pool.block_tokens, []
        for seq, count in pairs:
            if seq.guesses:
                slack = max(0, self.pool.available - len(self._running))  # the next decodes need theirs
                room = (len(seq.blocks) + slack) * size - seq.total
                seq.guesses = seq.guesses[: max(0, min(left, room))]
                missing = self.pool.blocks_for(seq.total + len(seq.guesses)) - len(seq.blocks)
                if missing > 0:
                    seq.blocks += self.pool.allocate(missing)
                left -= len(seq.guesses)
            longer.append((seq, count + len(seq.guesses)))
        return longer

    def _settle_guesses(self, seq: Sequenced, right: int) -> None:
        """Keep the guesses that were right; the cache holds the others' keys until they are written over."""
        assert seq.tokens is not None
        guesses, seq.guesses = seq.guesses, []
        assert right <= len(guesses)
        seq.computed -= len(guesses) - right
        seq.tokens += guesses[:right]
        seq.total += right
        self._totals[2] += right
        self._totals[5] += len(guesses)
        self._totals[6] += right

    def _take_planned(self) -> list[tuple[Sequenced, int]]:
        """The planned step was computed."""
        assert self._planned is not None, "commit answers a plan"
        planned, self._planned = self._planned, None
        self._totals[4] += 1
        return planned

    def _grow_decodes(self, now_ns: int) -> list[str]:
        """Give each running sequence the block its last token needs; where none is left, preempt to get some."""
        preempted: list[str] = []
        size, running = self.pool.block_tokens, self._running
        short = [seq for seq in running if len(seq.blocks) * size < seq.total]
        if not short:
            return preempted
        if len(short) <= self.pool.available:
            for seq, block in zip(short, self.pool.allocate(len(short)), strict=True):
                seq.blocks.append(block)
            return preempted
        if self._paced:
            short.sort(key=lambda seq: (-seq.standing(now_ns), seq.arrival))
        for seq in short:
            while seq.blocks and len(seq.blocks) * size < seq.total:
                if self.pool.available:
                    seq.blocks += self.pool.allocate(1)
                else:
                    preempted.append(self._preempt_lowest(now_ns))
        return preempted

    def _preempt_lowest(self, now_ns: int) -> str:
        """Preempt whoever gives way first; its id."""
        running = self._running
        ranks = [seq.standing(now_ns) if self._paced else 0 for seq in running]
        victim = running[choose_victim([(rank, seq.arrival) for rank, seq in zip(ranks, running, strict=True)])]
        victim.lifts += victim is not running[-1]  # it gave way to its betters, not to those before it
        self._preempt(victim)
        return victim.seq_id

    def _make_way(self, now_ns: int) -> list[str]:
        """Where the first that waits has no room, preempt lower classes for it; none where that does not suffice."""
        head = min(self._waiting, key=lambda seq: (-seq.claim(now_ns), seq.due_ns, seq.arrival))
        rank, preempted = head.claim(now_ns), list[str]()
        lower = [seq for seq in self._running if seq.standing(now_ns) < rank]
        if not lower or self._has_room_for(head) or (head.group and self._is_prefilled_by_sibling(head)):
            return preempted
        needed = self.pool.blocks_for(head.total) + len(self._running) - len(lower)
        if needed > self.pool.available + sum([len(seq.blocks) for seq in lower]):
            return preempted
        for victim in sorted(lower, key=lambda seq: (seq.standing(now_ns), -seq.arrival)):
            victim.lifts += 1
            self._preempt(victim)
            preempted.append(victim.seq_id)
            if self._has_room_for(head):
                break
        return preempted

    def _has_room_for(self, seq: Sequenced) -> bool:
        """Whether it could come in now, were there budget."""
        found = self.pool.match(self._hashes_to_match(seq))
        return self._has_pace_for(seq) and admits(
            blocks_needed=self.pool.blocks_for(seq.total) - self.pool.count_held(found),
            blocks_free=self.pool.available,
            running=len(self._running),
            max_seqs=self.max_seqs,
            budget_left=1,
        )

    def _by_claim(self, now_ns: int) -> list[Sequenced]:
        """Who waits: by class, then by when they are due, then by arrival."""
        return sorted(self._waiting, key=lambda seq: (-seq.claim(now_ns), seq.due_ns, seq.arrival))

    def _admit(self, now_ns: int, budget: int, *, most: int) -> list[tuple[Sequenced, int]]:
        """Bring at most so many waiting sequences in; the first that does not fit holds back those after it."""
        admitted: list[tuple[Sequenced, int]] = []
        if budget <= 0 or len(self._running) >= self.max_seqs:
            return admitted
        pool = self.pool
        held_back: list[Sequenced] = []
        waiting = self._by_claim(now_ns) if self._paced else self._waiting
        for at, seq in enumerate(waiting):
            is_over = budget <= 0 or len(self._running) >= self.max_seqs or len(admitted) >= most
            if is_over or (self._paced and not self._has_pace_for(seq)):
                held_back += waiting[at:]
                break
            if seq.group and self._is_prefilled_by_sibling(seq):
                held_back.append(seq)  # it will share the sibling's blocks in a moment; others may pass
                continue
            found = pool.match(self._hashes_to_match(seq)) if seq.parent is not None else []
            needed = pool.blocks_for(seq.total)
            if not admits(
                blocks_needed=needed - pool.count_held(found),
                blocks_free=pool.available,
                running=len(self._running),
                max_seqs=self.max_seqs,
                budget_left=budget,
            ):
                held_back += waiting[at:]
                break
            pool.take(found)
            seq.blocks = found + pool.allocate(needed - len(found))
            seq.computed = len(found) * pool.block_tokens
            seq.published = len(found)
            if seq.cached < 0:
                seq.cached = seq.computed
                seq.started_ns = now_ns
                self._totals[0] += seq.prompt
                self._totals[1] += seq.cached
            insort(self._running, seq, key=_by_arrival)
            share = min(seq.total - seq.computed, budget)
            budget -= share
            admitted.append((seq, share))
        self._waiting = sorted(held_back, key=_by_arrival) if self._paced else held_back
        return admitted

    def _has_pace_for(self, seq: Sequenced) -> bool:
        """Whether this one may come in without bringing the steps of decodes over the tightest target."""
        targets = [other.pace.tpot_ns for other in (*self._running, seq) if other.pace.tpot_ns]
        times = self._step_times
        if times is None or not times.steps or not targets:
            return True
        running = self._running
        pairs = sum([other.total for other in running])
        return has_room(
            rows=len(running), pairs=pairs, context=seq.total, tpot_ns=min(targets), predict=times.hopeful
        )

    def _is_prefilled_by_sibling(self, seq: Sequenced) -> bool:
        shareable = (seq.prompt - 1) // self.pool.block_tokens * self.pool.block_tokens
        return any(other.group == seq.group and other.computed < shareable for other in self._running)

    def _preempt(self, seq: Sequenced) -> None:
        self._running.remove(seq)
        self.pool.release(seq.blocks)
        seq.blocks = []
        seq.computed = 0
        seq.published = 0
        seq.guesses = []
        self._totals[3] += 1
        insort(self._waiting, seq, key=_by_arrival)

    def _extend(self, seq: Sequenced, result: Sampled, now_ns: int) -> None:
        if seq.tokens is not None:
            seq.tokens.append(result.token)
        seq.total += 1
        self._totals[2] += 1
        if seq.first_token_ns < 0:
            seq.first_token_ns = now_ns

    def _drop(self, seq: Sequenced) -> None:
        if seq.blocks:
            self._running.remove(seq)
            self.pool.release(seq.blocks)
            seq.blocks = []
        else:
            self._waiting.remove(seq)

    # -- prefix cache -----------------------------------------------------------------------------------------

    def _start_hashing(self, seq: Sequenced, spec: SeqSpec) -> None:
        if not spec.group and (not self._prefix_cache or (spec.tokens is None and not spec.prefix_hashes)):
            return
        self._hashed = True
        seq.parent = root_hash(spec.salt if self._prefix_cache else f"{spec.salt}\n{spec.group}")
        full = spec.prompt_tokens // self.pool.block_tokens
        if spec.tokens is None:
            seq.hashes = list(spec.prefix_hashes) if self._prefix_cache else []
            if spec.group and not seq.hashes:
                seq.parent = root_hash(f"{spec.salt}\n{spec.group}")
                for i in range(full):
                    seq.hashes.append(block_hash(seq.hashes[-1] if i else seq.parent, (i,)))

    def _hashes_to_match(self, seq: Sequenced) -> list[int]:
        """Hashes of the full blocks before the last token, which must be computed to know what follows it."""
        usable = (seq.total - 1) // self.pool.block_tokens
        seq.know_hashes(usable, self.pool.block_tokens)
        return seq.hashes[:usable]

    def _publish(self, seq: Sequenced) -> None:
        """Let others find the blocks that this commit filled."""
        full = seq.computed // self.pool.block_tokens
        if full == seq.published or seq.parent is None:
            return
        seq.know_hashes(full, self.pool.block_tokens)
        for i in range(seq.published, min(full, len(seq.hashes))):
            self.pool.publish(seq.blocks[i], seq.hashes[i])
        seq.published = full
