"""Continuous batching as a machine: which sequences compute which tokens in each engine step.

    batcher.add(now_ns, spec)                    # at any time between steps, or during one
    while batcher.busy:
        plan = batcher.plan(now_ns)              # decodes, then prefill chunks, within the token budget
        sampled = run(plan)                      # the engine computes; the twin adds its step time
        finished = batcher.commit(now_ns, sampled)

Tokens are real (the engine) or only counted (the twin); the machine decides alike. Every sequence holds the blocks
of all tokens it has from admission on, so that only a decode that crosses into a new block can find none left;
then the latest arrival is preempted: its blocks are released and it computes them again later (what the prefix
cache kept, it finds there).
"""

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from operator import attrgetter

from baseload.core.blocks import BlockPool, block_hash, root_hash
from baseload.domain.errors import Reason, Refusal
from baseload.domain.work import PhaseTimes, TokenCounts
from baseload.policy.batching import admits, choose_victim, share_budget


@dataclass(frozen=True, slots=True)
class SeqSpec:
    """A sequence to be computed: a prompt and at most so many new tokens.

    Without `tokens` only counts are known (the twin); then `prefix_hashes`, one per full block of the prompt or
    fewer, say what the prefix cache may share. Sequences with the same `group` (the n choices of a request) share
    the prompt's blocks even where the prefix cache is off. `salt` separates prefix caches, for example of tenants.
    """

    seq_id: str
    prompt_tokens: int
    max_new_tokens: int
    tokens: Sequence[int] | None = None
    prefix_hashes: tuple[int, ...] = ()
    group: str = ""
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Share:
    """One sequence's part of a step: compute `count` tokens from position `start` on, in these blocks."""

    seq_id: str
    start: int
    count: int
    blocks: Sequence[int]  # the sequence's whole block table; valid until commit
    tokens: Sequence[int]  # the `count` token ids; empty where only counts are known
    wants_token: bool  # these are its last known tokens: the engine samples the next one


@dataclass(frozen=True, slots=True)
class Plan:
    """One engine step. Empty `shares`: nothing to do."""

    shares: tuple[Share, ...]
    decode_tokens: int
    prefill_tokens: int
    context_tokens: int  # sum of start + count over shares: what attention reads
    preempted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sampled:
    """The next token of a sequence. `stop`: it ends the sequence (an end token, a stop string, a full grammar)."""

    seq_id: str
    token: int = 0
    stop: bool = False


class FinishedBy(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class Finished:
    """A sequence that ended, with what it used."""

    seq_id: str
    by: FinishedBy
    tokens: TokenCounts
    phases: PhaseTimes


@dataclass(frozen=True, slots=True)
class BatcherTotals:
    """Counters since the start."""

    prompt_tokens: int = 0  # of sequences that came in
    cached_tokens: int = 0  # of those, found in the prefix cache
    generated_tokens: int = 0
    preemptions: int = 0
    steps: int = 0


class _Seq:
    __slots__ = (
        "arrival", "arrived_ns", "blocks", "cached", "computed", "first_token_ns", "group", "hashes", "limit",
        "parent", "prompt", "published", "seq_id", "started_ns", "tokens", "total",
    )  # fmt: skip

    def __init__(self, spec: SeqSpec, *, arrival: int, now_ns: int, limit: int) -> None:
        self.seq_id = spec.seq_id
        self.arrival = arrival
        self.group = spec.group
        self.tokens = None if spec.tokens is None else list(spec.tokens)
        self.prompt = spec.prompt_tokens
        self.total = spec.prompt_tokens  # prompt and generated
        self.limit = limit  # total at which it ends by length
        self.computed = 0  # tokens whose KV is in the blocks
        self.cached = -1  # prompt tokens found in the prefix cache when first admitted; -1: not admitted yet
        self.blocks: list[int] = []
        self.hashes: list[int] = []  # of the full blocks, as far as known
        self.parent: int | None = None  # root hash; None: takes no part in prefix caching
        self.published = 0
        self.arrived_ns = now_ns
        self.started_ns = -1
        self.first_token_ns = -1


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
    ) -> None:
        assert max_seqs > 0
        self.pool = BlockPool(num_blocks, block_tokens=block_tokens)
        self.max_seqs = max_seqs
        self.max_step_tokens = max(max_step_tokens, max_seqs)  # every decode fits into every step
        self.max_tokens = min(max_context, num_blocks * block_tokens)
        self.max_waiting = max_waiting
        self._prefix_cache = prefix_cache
        self._running: list[_Seq] = []  # by arrival
        self._waiting: list[_Seq] = []  # by arrival
        self._seqs: dict[str, _Seq] = {}
        self._plan: Plan | None = None
        self._doomed: dict[str, None] = {}  # cancelled while their step runs
        self._arrivals = 0
        self._totals = [0, 0, 0, 0, 0]

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
            seq = _Seq(spec, arrival=self._arrivals, now_ns=now_ns, limit=limit)
            self._arrivals += 1
            self._start_hashing(seq, spec)
            self._seqs[seq.seq_id] = seq
            self._waiting.append(seq)  # the latest arrival: order kept

    def cancel(self, now_ns: int, seq_id: str) -> Finished | None:
        """End a sequence at once (during a step: its blocks come back at commit). None where it already ended."""
        seq = self._seqs.get(seq_id)
        if seq is None or seq_id in self._doomed:
            return None
        if self._plan is not None and any(share.seq_id == seq_id for share in self._plan.shares):
            self._doomed[seq_id] = None
        else:
            del self._seqs[seq_id]
            self._drop(seq)
        return self._finish(seq, FinishedBy.CANCEL, now_ns)

    def plan(self, now_ns: int) -> Plan:
        """The next step. Answer it with `commit` or `abandon` before asking again."""
        assert self._plan is None, "the last plan was neither committed nor abandoned"
        preempted = self._grow_decodes()
        budget = self.max_step_tokens
        shares = share_budget([seq.total - seq.computed for seq in self._running], budget=budget)
        pairs = [(seq, share) for seq, share in zip(self._running, shares, strict=True) if share]
        if self._waiting and not preempted:
            pairs += self._admit(now_ns, budget - sum(shares))
        decodes = context = tokens = 0
        planned = []
        for seq, count in pairs:
            end = seq.computed + count
            context += end
            tokens += count
            decodes += seq.total > seq.prompt and count == 1
            part = () if seq.tokens is None else seq.tokens[seq.computed : end]
            planned.append(Share(seq.seq_id, seq.computed, count, seq.blocks, part, end == seq.total))
        assert tokens <= budget
        self._plan = Plan(tuple(planned), decodes, tokens - decodes, context, tuple(preempted))
        return self._plan

    def commit(self, now_ns: int, sampled: Iterable[Sampled]) -> list[Finished]:
        """The planned step was computed; `sampled` holds the next token of each share that wanted one."""
        assert self._plan is not None, "commit answers a plan"
        plan, self._plan = self._plan, None
        self._totals[4] += 1
        results = {result.seq_id: result for result in sampled}
        finished = []
        for share in plan.shares:
            seq = self._seqs[share.seq_id]
            if share.seq_id in self._doomed:
                del self._seqs[share.seq_id]
                self._drop(seq)
                continue
            seq.computed += share.count
            self._publish(seq)
            if not share.wants_token:
                continue
            result = results[share.seq_id]
            self._extend(seq, result, now_ns)
            if result.stop or seq.total >= seq.limit:
                del self._seqs[seq.seq_id]
                self._drop(seq)
                by = FinishedBy.STOP if result.stop else FinishedBy.LENGTH
                finished.append(self._finish(seq, by, now_ns))
        self._doomed = {}
        return finished

    def abandon(self, now_ns: int) -> list[Finished]:
        """The planned step failed: all its sequences end (as cancelled) and what the cache held is forgotten.

        Sequences that were not in the step start again from their first token.
        """
        assert self._plan is not None
        plan, self._plan = self._plan, None
        finished = []
        for share in plan.shares:
            seq = self._seqs.pop(share.seq_id)
            self._drop(seq)
            if share.seq_id not in self._doomed:
                finished.append(self._finish(seq, FinishedBy.CANCEL, now_ns))
        self._doomed = {}
        for seq in list(self._running):
            self._preempt(seq)
        self.pool.forget_cached()
        return finished

    def check(self) -> None:
        """Assert every invariant; for tests and idle moments."""
        self.pool.check()
        refs = [0] * self.pool.num_blocks
        for seq in self._running:
            for block in seq.blocks:
                refs[block] += 1
        assert refs == self.pool._refs, "a block leaked, or is held by nobody"
        assert len(self._running) <= self.max_seqs
        assert len(self._seqs) <= self.max_seqs + self.max_waiting
        assert len(self._running) + len(self._waiting) == len(self._seqs)
        for seqs in (self._running, self._waiting):
            assert all(a.arrival < b.arrival for a, b in pairwise(seqs))
        for seq in self._running:
            assert 0 <= seq.computed < seq.total < seq.limit + 1
            assert len(seq.blocks) >= self.pool.blocks_for(seq.computed)
        assert all(not seq.blocks and seq.computed == 0 for seq in self._waiting)

    # -- the parts of a step ----------------------------------------------------------------------------------

    def _grow_decodes(self) -> list[str]:
        """Give each running sequence the block its last token needs; preempt the latest arrivals if none is left."""
        preempted: list[str] = []
        size = self.pool.block_tokens
        i = 0
        while i < len(self._running):
            seq = self._running[i]
            if len(seq.blocks) * size < seq.total:
                while not self.pool.available:
                    victim = self._running[choose_victim([other.arrival for other in self._running])]
                    self._preempt(victim)
                    preempted.append(victim.seq_id)
                    if victim is seq:
                        break
                else:
                    seq.blocks += self.pool.allocate(1)
            i += 1
        return preempted

    def _admit(self, now_ns: int, budget: int) -> list[tuple[_Seq, int]]:
        """Bring waiting sequences in, oldest first; the first that does not fit holds back those after it."""
        admitted: list[tuple[_Seq, int]] = []
        pool = self.pool
        held_back = []
        for at, seq in enumerate(self._waiting):
            if budget <= 0 or len(self._running) >= self.max_seqs:
                held_back += self._waiting[at:]
                break
            if seq.group and self._is_prefilled_by_sibling(seq):
                held_back.append(seq)  # it will share the sibling's blocks in a moment; others may pass
                continue
            found = pool.match(self._hashes_to_match(seq))
            needed = pool.blocks_for(seq.total)
            if not admits(
                blocks_needed=needed - pool.count_held(found),
                blocks_free=pool.available,
                running=len(self._running),
                max_seqs=self.max_seqs,
                budget_left=budget,
            ):
                held_back += self._waiting[at:]
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
        self._waiting = held_back
        return admitted

    def _is_prefilled_by_sibling(self, seq: _Seq) -> bool:
        shareable = (seq.prompt - 1) // self.pool.block_tokens * self.pool.block_tokens
        return any(other.group == seq.group and other.computed < shareable for other in self._running)

    def _preempt(self, seq: _Seq) -> None:
        self._running.remove(seq)
        self.pool.release(seq.blocks)
        seq.blocks = []
        seq.computed = 0
        seq.published = 0
        self._totals[3] += 1
        insort(self._waiting, seq, key=_by_arrival)

    def _extend(self, seq: _Seq, result: Sampled, now_ns: int) -> None:
        if seq.tokens is not None:
            seq.tokens.append(result.token)
        seq.total += 1
        self._totals[2] += 1
        if seq.first_token_ns < 0:
            seq.first_token_ns = now_ns

    def _drop(self, seq: _Seq) -> None:
        if seq.blocks:
            self._running.remove(seq)
            self.pool.release(seq.blocks)
            seq.blocks = []
        else:
            self._waiting.remove(seq)

    def _finish(self, seq: _Seq, by: FinishedBy, now_ns: int) -> Finished:
        started = seq.started_ns if seq.started_ns >= 0 else now_ns
        first = seq.first_token_ns if seq.first_token_ns >= 0 else now_ns
        phases = PhaseTimes(started - seq.arrived_ns, first - started, now_ns - first)
        counts = TokenCounts(prompt=seq.prompt, cached_in=max(0, seq.cached), completion=seq.total - seq.prompt)
        return Finished(seq.seq_id, by, counts, phases)

    # -- prefix cache -----------------------------------------------------------------------------------------

    def _start_hashing(self, seq: _Seq, spec: SeqSpec) -> None:
        if not self._prefix_cache and not spec.group:
            return
        seq.parent = root_hash(spec.salt if self._prefix_cache else f"{spec.salt}\n{spec.group}")
        full = spec.prompt_tokens // self.pool.block_tokens
        if spec.tokens is None:
            seq.hashes = list(spec.prefix_hashes[:full]) if self._prefix_cache else []
            if spec.group and not seq.hashes:
                seq.parent = root_hash(f"{spec.salt}\n{spec.group}")
                for i in range(full):
                    seq.hashes.append(block_hash(seq.hashes[-1] if i else seq.parent, (i,)))

    def _extend_hashes(self, seq: _Seq, blocks: int) -> None:
        """Know the hashes of the first `blocks` blocks, where the tokens are known."""
        if seq.parent is None or seq.tokens is None:
            return
        size = self.pool.block_tokens
        for i in range(len(seq.hashes), blocks):
            parent = seq.hashes[-1] if i else seq.parent
            seq.hashes.append(block_hash(parent, seq.tokens[i * size : (i + 1) * size]))

    def _hashes_to_match(self, seq: _Seq) -> list[int]:
        """Hashes of the full blocks before the last token, which must be computed to know what follows it."""
        usable = (seq.total - 1) // self.pool.block_tokens
        self._extend_hashes(seq, usable)
        return seq.hashes[:usable]

    def _publish(self, seq: _Seq) -> None:
        """Let others find the blocks that this commit filled."""
        full = seq.computed // self.pool.block_tokens
        if full == seq.published or seq.parent is None:
            return
        self._extend_hashes(seq, full)
        for i in range(seq.published, min(full, len(seq.hashes))):
            self.pool.publish(seq.blocks[i], seq.hashes[i])
        seq.published = full
