"""Replay of recorded requests through our batcher, with another engine's settings, on a virtual clock.

The schedule is the production batcher's: decodes first, then prompts in chunks within the token budget, at most so
many sequences. `replay_step` says how long a step takes. Replicas of attention that share experts step together;
others each at their own pace. A request goes to the least burdened replica when it arrives, and joins at the first
step planned after that, which is when an engine's loop looks. Engines that plan a step while another runs take it in
a step later, and likewise give away the place of one that ended a step later.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from baseload.core.batch import SeqSpec
from baseload.core.counted import CountedBatcher, Counts
from baseload.domain.errors import Refusal
from baseload.twin.recorded import EngineSettings, Recorded
from baseload.twin.replay_step import Load

_MOST_WAITING = 1 << 40
_WAITING_WEIGHS = 4  # a waiting request burdens a replica as much as so many running ones: vLLM's balancing
_IDLE = Load(0, 0, 0, 0, 0)


class Costs(Protocol):
    """What a replay asks of step costs."""

    @property
    def kv_tokens(self) -> int:
        """Tokens that the caches of all replicas hold together."""
        ...

    @property
    def lockstep(self) -> bool:
        """Whether replicas of attention step together."""
        ...

    def step_ns(self, loads: Sequence[Load]) -> int:
        """Nanoseconds of a step of replicas that step together, one load each."""
        ...


@dataclass(frozen=True, slots=True)
class Replayed:
    """What happened to one request. Times in nanoseconds; -1 where it was refused (it can never fit)."""

    queued_ns: int  # when the engine's loop took it in
    first_ns: int
    last_ns: int

    @property
    def refused(self) -> bool:
        """Whether the engine could not take it."""
        return self.first_ns < 0


class _Rank:
    """A replica of attention: its batcher, and who was sent to it and waits for its loop to look."""

    def __init__(self, settings: EngineSettings, blocks: int) -> None:
        self.sent: deque[tuple[int, SeqSpec]] = deque()
        self.seqs = settings.max_seqs
        self.ended = 0  # with the step before
        self.batcher = CountedBatcher(
            num_blocks=blocks,
            block_tokens=settings.block_tokens,
            max_seqs=settings.max_seqs,
            max_step_tokens=settings.max_step_tokens,
            max_context=settings.max_context,
            max_waiting=_MOST_WAITING,
            prefix_cache=settings.prefix_cache,
        )

    @property
    def burden(self) -> int:
        return _WAITING_WEIGHS * (self.batcher.waiting + len(self.sent)) + self.batcher.running


class _Group:
    """Ranks that step together, and their clock."""

    def __init__(self, ranks: list[_Rank]) -> None:
        self.ranks = ranks
        self.now_ns = self.before_ns = 0

    @property
    def busy(self) -> bool:
        return any(rank.batcher.busy or rank.sent for rank in self.ranks)


class Replay:
    """One run. `cost` says how long a step with these loads takes."""

    def __init__(self, requests: Sequence[Recorded], settings: EngineSettings, cost: Costs) -> None:
        self._requests = sorted(enumerate(requests), key=lambda item: (item[1].arrival_ns, item[0]))
        self._cost = cost
        self._overhead_ns = settings.arrival_overhead_ns
        blocks = max(1, cost.kv_tokens // settings.dp // settings.block_tokens)
        self._ranks = [_Rank(settings, blocks) for _ in range(settings.dp)]
        each = len(self._ranks) if cost.lockstep else 1
        self._groups = [_Group(self._ranks[i : i + each]) for i in range(0, len(self._ranks), each)]
        self._group_of = [self._groups[i // each] for i in range(len(self._ranks))]
        self._ahead = settings.ahead
        self._turn = 0
        self._first: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._queued: dict[str, int] = {}
        self.steps = 0

    def run(self) -> list[Replayed]:
        """All requests, in the order given."""
        at, arrivals = 0, [r.arrival_ns + self._overhead_ns for _, r in self._requests]
        while True:
            busy = [group for group in self._groups if group.busy]
            group = min(busy, key=lambda g: g.now_ns) if busy else None
            if at < len(arrivals) and (group is None or arrivals[at] <= group.now_ns):
                self._send(arrivals[at], *self._requests[at])
                at += 1
            elif group is not None:
                self._step(group)
            else:
                break
        by_index = [str(index) for index in range(len(self._requests))]
        return [Replayed(self._queued[i], self._first.get(i, -1), self._last.get(i, -1)) for i in by_index]

    def _send(self, now_ns: int, index: int, request: Recorded) -> None:
        """To the least burdened rank, in turn among equals."""
        ranks = len(self._ranks)
        turns = [turn % ranks for turn in range(self._turn, self._turn + ranks)]
        chosen = min(turns, key=lambda i: self._ranks[i].burden)
        self._turn = (chosen + 1) % ranks
        group = self._group_of[chosen]
        if not group.busy:
            group.now_ns = group.before_ns = max(group.now_ns, now_ns)
        spec = SeqSpec(
            str(index), request.prompt_tokens, request.output_tokens, prefix_hashes=request.prefix_hashes
        )  # fmt: skip
        self._ranks[chosen].sent.append((now_ns, spec))

    def _step(self, group: _Group) -> None:
        """One step of a group's ranks."""
        planned_ns = group.before_ns if self._ahead else group.now_ns
        if not any(rank.batcher.busy for rank in group.ranks):
            planned_ns = group.now_ns  # nothing runs that a step could be planned beside
        for rank in group.ranks:
            while rank.sent and rank.sent[0][0] <= planned_ns:
                self._take(rank, group.now_ns, planned_ns, rank.sent.popleft()[1])
            if self._ahead:
                rank.batcher.max_seqs = rank.seqs - rank.ended
        planned = [rank.batcher.plan_counted(group.now_ns) if rank.batcher.busy else None for rank in group.ranks]
        loads = [_load(counts) if counts else _IDLE for counts in planned]
        took_ns = self._cost.step_ns(loads) if any(counts and counts.rows for counts in planned) else 1
        group.before_ns, group.now_ns = group.now_ns, group.now_ns + took_ns
        self.steps += 1
        for rank, counts in zip(group.ranks, planned, strict=True):
            rank.ended = 0
            if counts is None:
                continue
            firsts, finished = rank.batcher.commit_counted(group.now_ns)
            rank.ended = len(finished)
            for seq_id in firsts:
                self._first[seq_id] = group.now_ns
            for ended in finished:
                self._last[ended.seq_id] = group.now_ns

    def _take(self, rank: _Rank, now_ns: int, queued_ns: int, spec: SeqSpec) -> None:
        self._queued[spec.seq_id] = queued_ns
        try:
            rank.batcher.add(now_ns, spec)
        except Refusal:
            return


def _load(c: Counts) -> Load:
    return Load(c.prefill_tokens, c.prefill_pairs, c.decode_tokens, c.decode_context, c.prompts)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near a replay came to a recording: relative errors of means and of a percentile, and per-request means."""

    requests: int
    tpot: float
    e2e: float
    ttft: float
    e2e_p99: float
    tpot_each: float  # mean over requests of |replayed / recorded - 1|
    e2e_each: float
    ttft_each: float


def agreement(requests: Sequence[Recorded], replayed: Sequence[Replayed]) -> Agreement | None:
    """Compare with what was measured; None where the recording has no times."""
    both = [(r, p) for r, p in zip(requests, replayed, strict=True) if r.measured and not p.refused]
    if not both:
        return None
    # A recording may have times of one kind only: what was not measured is not compared.
    ttft = [((p.first_ns - p.queued_ns) / 1e6, r.ttft_ms) for r, p in both if r.ttft_ms > 0]
    e2e = [((p.last_ns - p.queued_ns) / 1e6, r.e2e_ms) for r, p in both]
    tpot = [(tpot_ms(r, p), r.tpot_ms) for r, p in both if r.output_tokens > 1 and r.tpot_ms > 0]
    return Agreement(
        requests=len(both),
        tpot=_of_means(tpot),
        e2e=_of_means(e2e),
        ttft=_of_means(ttft),
        e2e_p99=_p99([a for a, _ in e2e]) / _p99([b for _, b in e2e]) - 1.0,
        tpot_each=_each(tpot),
        e2e_each=_each(e2e),
        ttft_each=_each(ttft),
    )


def tpot_ms(request: Recorded, replayed: Replayed) -> float:
    """Time per output token after the first; 0 where there is one only."""
    if request.output_tokens < 2:
        return 0.0
    return (replayed.last_ns - replayed.first_ns) / 1e6 / (request.output_tokens - 1)


def _of_means(pairs: list[tuple[float, float]]) -> float:
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs) - 1.0 if pairs else 0.0


def _each(pairs: list[tuple[float, float]]) -> float:
    return sum(abs(a / b - 1.0) for a, b in pairs) / len(pairs) if pairs else 0.0


def _p99(values: list[float]) -> float:
    """The 99th percentile, straight between neighbours."""
    ranked = sorted(values)
    at = 0.99 * (len(ranked) - 1)
    low, high = list(pairwise([*ranked, ranked[-1]]))[int(at)]
    return low + (high - low) * (at - int(at))
