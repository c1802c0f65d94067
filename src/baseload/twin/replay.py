"""Replay of recorded requests through our batcher, with another engine's settings, on a virtual clock.

The schedule is the production batcher's: decodes first, then prompts in chunks within the token budget, at most so
many sequences. The limits model says how long a step takes. Replicas of attention (data parallel) step together and
share the experts. A request joins at the first step planned after it arrived, which is when an engine's loop looks;
engines that plan a step while another runs take it in a step later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from baseload.core.batch import SeqSpec
from baseload.core.counted import CountedBatcher, Counts
from baseload.domain.errors import Refusal
from baseload.limits.serving.replica import Load, StepCost
from baseload.twin.recorded import EngineSettings, Recorded

_MOST_WAITING = 1 << 40
_WAITING_WEIGHS = 4  # a waiting request burdens a replica as much as so many running ones: vLLM's balancing


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


class Replay:
    """One run. `step` says how long a step with these loads takes; by default the limits model does."""

    def __init__(self, requests: Sequence[Recorded], settings: EngineSettings, cost: StepCost) -> None:
        self._requests = sorted(enumerate(requests), key=lambda item: (item[1].arrival_ns, item[0]))
        self._cost = cost
        self._overhead_ns = settings.arrival_overhead_ns
        blocks = max(1, cost.kv_tokens // settings.dp // settings.block_tokens)
        self._ranks = [
            CountedBatcher(
                num_blocks=blocks,
                block_tokens=settings.block_tokens,
                max_seqs=settings.max_seqs,
                max_step_tokens=settings.max_step_tokens,
                max_context=settings.max_context,
                max_waiting=_MOST_WAITING,
                prefix_cache=settings.prefix_cache,
            )
            for _ in range(settings.dp)
        ]
        self._ahead = settings.ahead
        self._turn = 0
        self._first: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._queued: dict[str, int] = {}
        self.steps = 0

    def run(self) -> list[Replayed]:
        """All requests, in the order given."""
        now_ns = before_ns = at = 0
        while True:
            if not any(rank.busy for rank in self._ranks):
                if at == len(self._requests):
                    break
                now_ns = before_ns = max(now_ns, self._requests[at][1].arrival_ns + self._overhead_ns)
            until_ns = before_ns if self._ahead else now_ns  # when this step was planned
            while at < len(self._requests) and self._requests[at][1].arrival_ns + self._overhead_ns <= until_ns:
                self._take(now_ns, until_ns, *self._requests[at])
                at += 1
            before_ns, now_ns = now_ns, self._step(now_ns)
        by_index = [str(index) for index in range(len(self._requests))]
        return [Replayed(self._queued[i], self._first.get(i, -1), self._last.get(i, -1)) for i in by_index]

    def _take(self, now_ns: int, queued_ns: int, index: int, request: Recorded) -> None:
        loads = [_WAITING_WEIGHS * rank.waiting + rank.running for rank in self._ranks]
        turns = range(self._turn, self._turn + len(loads))
        chosen = min((turn % len(loads) for turn in turns), key=lambda i: loads[i])
        self._turn = (chosen + 1) % len(loads)
        spec = SeqSpec(
            str(index), request.prompt_tokens, request.output_tokens, prefix_hashes=request.prefix_hashes
        )  # fmt: skip
        self._queued[spec.seq_id] = queued_ns
        try:
            self._ranks[chosen].add(now_ns, spec)
        except Refusal:
            return

    def _step(self, now_ns: int) -> int:
        """One step of all ranks; returns when it ended."""
        planned = [rank.plan_counted(now_ns) if rank.busy else None for rank in self._ranks]
        now_ns += self._took_ns([counts for counts in planned if counts and counts.rows])
        self.steps += 1
        for rank, counts in zip(self._ranks, planned, strict=True):
            if counts is None:
                continue
            firsts, finished = rank.commit_counted(now_ns)
            for seq_id in firsts:
                self._first[seq_id] = now_ns
            for ended in finished:
                self._last[ended.seq_id] = now_ns
        return now_ns

    def _took_ns(self, loads: list[Counts]) -> int:
        if not loads:
            return 1
        if len(self._ranks) > 1:
            return self._cost.together_ns(
                [Load(c.prefill_tokens, c.prefill_pairs, c.decode_tokens, c.decode_context, c.prompts) for c in loads]
            )
        c = loads[0]
        return self._cost.mixed_ns(
            tokens=c.prefill_tokens,
            pairs=c.prefill_pairs,
            rows=c.decode_tokens,
            context_tokens=c.decode_context,
            prompts=c.prompts,
        )


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
