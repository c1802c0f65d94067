"""A replica with prefill and decode apart: workers that compute prompts, and workers that write answers.

To the control machine it is one replica behind one URL, as such engines show themselves. Nothing in production
decides between its workers, so that choice is modelled: the production rule (`policy.routing.choose_replica`, least
work ahead in tokens) over the workers of a pool. Each worker is a `Stepper` with the production batcher, unchanged.
A prompt is computed and gives its first token on a prefill worker; its KV cache takes `transfer_ns` to a decode
worker, whose first step with it costs no more than a decode step; then the first token leaves. Modelled as better
than real in two points: sending slows no worker down, and a prefill worker forgets a prompt as soon as it is
computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from baseload.core.batch import Finished, SeqSpec
from baseload.core.batcher import Batcher
from baseload.core.counted import Counts
from baseload.domain.errors import Reason, Refusal
from baseload.domain.fleet import ReplicaView, WorkerSample
from baseload.domain.model import EngineSpec
from baseload.domain.work import PhaseTimes, TokenCounts
from baseload.limits.serving.replica import StepCost
from baseload.policy.routing import choose_replica
from baseload.twin.costs import Costs, Line, ReplicaCosts
from baseload.twin.stepping import Clock, Stepper, Stretch

ENDLESS_QUEUE = 1 << 30  # between the pools nothing is refused: it was taken at the door


@dataclass(frozen=True, slots=True)
class UnitCost:
    """What steps of a replica with pools apart take. Stands wherever a `StepCost` of one replica does."""

    prefill: StepCost  # of one prefill worker
    decode: StepCost  # of one decode worker
    prefill_workers: int
    decode_workers: int
    transfer_ns: Callable[[int], int]  # prompt tokens → time until their KV cache has gone over

    @property
    def accelerators(self) -> int:
        """Of all its workers."""
        return self.prefill_workers * self.prefill.accelerators + self.decode_workers * self.decode.accelerators

    @property
    def kv_tokens(self) -> int:
        """KV positions of all decode workers."""
        return self.decode_workers * self.decode.kv_tokens

    @property
    def idle_w(self) -> float:
        """Watts with nothing to do."""
        return self.prefill_workers * self.prefill.idle_w + self.decode_workers * self.decode.idle_w

    @property
    def busy_w(self) -> float:
        """Watts while all workers compute."""
        return self.prefill_workers * self.prefill.busy_w + self.decode_workers * self.decode.busy_w

    @property
    def basis(self) -> str:
        """What it rests on."""
        shape = f"{self.prefill_workers} prefill and {self.decode_workers} decode workers"
        return f"limits model, {self.decode.basis}, {shape}" + (f" ({self.decode.note})" if self.decode.note else "")


class DecodeCosts:
    """Steps of a decode worker: whose cache came over decodes like the others."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self.basis = costs.basis

    def step_ns(self, counts: Counts) -> int:
        """See `Costs`."""
        rows = counts.decode_tokens + counts.prompts
        return self._costs.line(rows, counts.context_tokens).step_ns(0)

    def line(self, rows: int, context_tokens: int) -> Line:
        """See `Costs`."""
        return self._costs.line(rows, context_tokens)


class _Inside:
    """One sequence within the replica."""

    __slots__ = ("at", "cached", "phases", "spec", "stage", "worker")

    def __init__(self, spec: SeqSpec, worker: int) -> None:
        self.spec = spec
        self.stage = "prefill"  # prefill | transfer | decode
        self.worker = worker
        self.cached = 0
        self.phases = PhaseTimes()
        self.at = 0  # when its transfer began


class _Held:
    """What the workers of a pool have in hand: sequences, and the tokens of their prompts."""

    __slots__ = ("rows", "tokens")

    def __init__(self, workers: int) -> None:
        self.rows = [0] * workers
        self.tokens = [0] * workers

    def put(self, worker: int, tokens: int) -> None:
        """One more."""
        self.rows[worker] += 1
        self.tokens[worker] += tokens

    def drop(self, worker: int, tokens: int) -> None:
        """One less."""
        self.rows[worker] -= 1
        self.tokens[worker] -= tokens


class Pools:
    """Steps the workers of one replica, as `Stepper` steps one engine."""

    def __init__(
        self,
        engine: EngineSpec,
        *,
        cost: UnitCost,
        max_context: int,
        clock: Clock,
        on_step: Callable[[Sequence[str], Sequence[Finished]], None],
        exact: bool = False,
        stretch: Stretch | None = None,
    ) -> None:
        self._clock = clock
        self._on_step = on_step
        self._cost = cost
        self._is_halted = False
        self._inside: dict[str, _Inside] = {}
        later = msgspec.structs.replace(
            engine, max_step_tokens=max_context + engine.max_seqs, max_waiting=ENDLESS_QUEUE, prefix_cache=False
        )

        def worker(spec: EngineSpec, cost: StepCost, costs: Costs, told: object) -> Stepper:
            return Stepper(
                spec, kv_tokens=max(1, cost.kv_tokens), max_context=max_context, costs=costs, clock=clock,
                on_step=told, exact=exact, stretch=stretch,  # type: ignore[arg-type]
            )  # fmt: skip

        first, second = ReplicaCosts(cost.prefill), DecodeCosts(ReplicaCosts(cost.decode))
        self._prefills = [worker(engine, cost.prefill, first, self._prefilled) for _ in range(cost.prefill_workers)]
        self._decodes = [worker(later, cost.decode, second, self._decoded) for _ in range(cost.decode_workers)]
        self._workers = [*self._prefills, *self._decodes]
        self._sizes = [cost.prefill.accelerators] * len(self._prefills)
        self._sizes += [cost.decode.accelerators] * len(self._decodes)

        self._prompts, self._answers = _Held(len(self._prefills)), _Held(len(self._decodes))

    # -- inputs -------------------------------------------------------------------------------------------------

    def add(self, spec: SeqSpec) -> None:
        """Queue a sequence at the prefill worker with the least work ahead (Refusal as `Batcher.add`)."""
        most = self._decodes[0].batcher.max_tokens
        if spec.prompt_tokens + 2 > most:
            raise Refusal(Reason.CONTEXT_TOO_LONG, f"A decode worker's context length is {most} tokens.")
        chosen = self._least_work(self._prefills, self._prompts)
        one = SeqSpec(
            seq_id=spec.seq_id,
            prompt_tokens=spec.prompt_tokens,
            max_new_tokens=1,
            prefix_hashes=spec.prefix_hashes,
            stop_after=1,
        )
        self._prefills[chosen].add(one)
        self._inside[spec.seq_id] = _Inside(spec, chosen)
        self._prompts.put(chosen, spec.prompt_tokens)

    def cancel(self, seq_id: str) -> None:
        """End a sequence at once."""
        inside = self._inside.pop(seq_id, None)
        if inside is not None and inside.stage != "transfer":
            first = inside.stage == "prefill"
            (self._prompts if first else self._answers).drop(inside.worker, inside.spec.prompt_tokens)
            (self._prefills if first else self._decodes)[inside.worker].cancel(seq_id)

    def disturb(self, stretch: Stretch | None) -> None:
        """See `Stepper.disturb`, of all workers."""
        for worker in self._workers:
            worker.disturb(stretch)

    def halt(self) -> None:
        """Nothing ends any more."""
        self._is_halted = True
        for worker in self._workers:
            worker.halt()

    # -- looking ------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether anything is in it."""
        return bool(self._inside) or any(worker.busy for worker in self._workers)

    @property
    def kv_usage(self) -> float:
        """Mean of the decode workers, or of the prefill workers where that is more."""
        pools = (self._prefills, self._decodes)
        return max(sum(worker.kv_usage for worker in pool) / len(pool) for pool in pools)

    @property
    def batcher(self) -> Batcher:
        """Of the first decode worker, to look at."""
        return self._decodes[0].batcher

    @property
    def steps(self) -> int:
        """Engine steps of all workers."""
        return sum(worker.steps for worker in self._workers)

    def generated(self, seq_id: str) -> int:
        """Tokens that have left; the first waits for the decode worker's first step."""
        inside = self._inside[seq_id]
        made = self._decodes[inside.worker].generated(seq_id) if inside.stage == "decode" else 0
        return made + 1 if made else 0

    def computed_ns(self) -> int:
        """Time of all steps that have begun, as the share of the accelerators that took them."""
        done = sum(worker.computed_ns() * size for worker, size in zip(self._workers, self._sizes, strict=True))
        return done // sum(self._sizes)

    def figures(self) -> WorkerSample:
        """What its front would tell a poll now: all workers together."""
        first = [worker.figures() for worker in self._prefills]
        second = [worker.figures() for worker in self._decodes]
        sent = sum(inside.stage == "transfer" for inside in self._inside.values())
        kv = max(sum(one.kv_usage for one in pool) / len(pool) for pool in (first, second))
        return WorkerSample(
            running=sum(one.running for one in (*first, *second)) + sent,
            waiting=sum(one.waiting for one in (*first, *second)),
            kv_usage=kv,
            prompt_tokens=sum(one.prompt_tokens for one in first),
            completion_tokens=sum(one.completion_tokens for one in (*first, *second)),
        )

    # -- from pool to pool --------------------------------------------------------------------------------------

    def _prefilled(self, firsts: Sequence[str], finished: Sequence[Finished]) -> None:
        for end in finished:
            inside = self._inside[end.seq_id]
            spec = inside.spec
            inside.cached, inside.phases = end.tokens.cached_in, end.phases
            self._prompts.drop(inside.worker, spec.prompt_tokens)
            if spec.stop_after == 1 or spec.max_new_tokens <= 1:  # the first token is all of the answer
                del self._inside[end.seq_id]
                self._on_step([end.seq_id], [end])
                continue
            inside.stage, inside.at = "transfer", self._clock.now_ns
            took_ns = max(1, self._cost.transfer_ns(spec.prompt_tokens))
            self._clock.at_step(self._clock.now_ns + took_ns, lambda one=inside: self._sent(one))  # type: ignore[misc]

    def _sent(self, inside: _Inside) -> None:
        spec = inside.spec
        if self._is_halted or self._inside.get(spec.seq_id) is not inside:
            return
        inside.stage, inside.worker = "decode", self._least_work(self._decodes, self._answers)
        self._answers.put(inside.worker, spec.prompt_tokens)
        self._decodes[inside.worker].add(
            SeqSpec(
                seq_id=spec.seq_id,
                prompt_tokens=spec.prompt_tokens + 1,
                max_new_tokens=max(1, spec.max_new_tokens - 1),
                stop_after=max(0, spec.stop_after - 1),
            )
        )

    def _decoded(self, firsts: Sequence[str], finished: Sequence[Finished]) -> None:
        ends = []
        for end in finished:
            inside = self._inside.pop(end.seq_id)
            self._answers.drop(inside.worker, inside.spec.prompt_tokens)
            before, after = inside.phases, end.phases
            tokens = TokenCounts(inside.spec.prompt_tokens, inside.cached, end.tokens.completion + 1)
            phases = PhaseTimes(
                before.queue_ns, before.prefill_ns, after.queue_ns + after.prefill_ns + after.decode_ns
            )
            ends.append(Finished(end.seq_id, end.by, tokens, phases))
        self._on_step(firsts, ends)

    def _least_work(self, workers: Sequence[Stepper], held: "_Held") -> int:
        """The worker of a pool that the router would choose."""
        of_prompts = held is self._prompts
        views = [
            ReplicaView(
                str(at), held.rows[at], worker.batcher.max_seqs, worker.kv_usage, 0, held.tokens[at],
                held.tokens[at] if of_prompts else 0,
            )
            for at, worker in enumerate(workers)
        ]  # fmt: skip
        return choose_replica(views)
