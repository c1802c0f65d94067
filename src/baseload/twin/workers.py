"""A simulated worker process: the same batcher as the engine's, stepped by a model of step times.

It is forked, starts, gets ready, computes, drains and dies, and reports through the events of a live launcher.
"""

from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from typing import Protocol

from baseload.core.batch import Finished, SeqSpec
from baseload.core.batcher import Batcher
from baseload.domain.errors import Reason, Refusal
from baseload.domain.events import EnergyMeasured, Event, WorkerExited, WorkerReady, WorkerSampled, WorkerStarted
from baseload.domain.model import ModelSpec
from baseload.twin.agenda import Agenda
from baseload.twin.clients import Exchange
from baseload.twin.costs import Costs
from baseload.twin.pools import Pools, UnitCost
from baseload.twin.prefixes import kv_hashes
from baseload.twin.spec import Faults, Physics
from baseload.twin.stepping import Stepper

LOCAL = ".simulated"  # ends the URL of each worker that is ours
SIGKILLED, SIGSEGV, SIGTERMED, START_FAILED = -9, -11, -15, 1

SLOWEST_REPORT_NS = 2_000_000_000  # the launcher tries again where a report does not come through


class Life(StrEnum):
    """Where a process is in its life."""

    FORKING = "forking"
    STARTING = "starting"
    READY = "ready"
    DEAD = "dead"


class Host(Protocol):
    """What a worker needs of the world."""

    agenda: Agenda
    physics: Physics
    exact: bool  # engines step one by one

    @property
    def faults(self) -> Faults:
        """Those of this moment."""

    def costs_of(self, spec: ModelSpec) -> Costs:
        """What steps of a replica of this model take."""

    def kv_tokens_of(self, spec: ModelSpec) -> int:
        """KV positions of one replica."""

    def unit_of(self, spec: ModelSpec) -> UnitCost | None:
        """What its steps take where prefill and decode are apart; None: they are not."""

    def happens(self, share: float, kind: str) -> bool:
        """Whether a fault with this share of occasions happens now."""

    def network_ns(self) -> int:
        """A drawn delay of one message."""

    def drawn(self, nominal_ns: int) -> int:
        """A drawn duration around a nominal one."""

    def tell(self, event: Event) -> None:
        """Step the control machine (nothing where it is down)."""

    @property
    def epoch(self) -> int:
        """Counts the lives of the control process: what was on its way to an earlier one never arrives."""

    def worker_gone(self, worker: "Worker", unfinished: list[Exchange]) -> None:
        """It died; these requests were cut."""


class Worker:
    """One process. `born_ready`: somebody else's (a remote model); it is never started nor stopped."""

    def __init__(self, host: Host, replica_id: str, spec: ModelSpec, *, pid: int, born_ready: bool = False) -> None:
        self.host = host
        self.replica_id = replica_id
        self.spec = spec
        self.pid = pid
        self.url = f"http://{replica_id}{LOCAL}"
        self.life = Life.READY if born_ready else Life.FORKING
        self.orphan = False  # unknown to the present control process
        self.stopping = False
        self.is_hung = False
        self.killed_by_stop = False
        self.slot = -1  # its place in the world; -1: somebody else's
        self.slow_by = 1.0  # so many times as long as they should its steps take
        self.cut_until_ns = 0  # nothing gets through to it or from it until then
        self.engine = self._engine()
        self._exchanges: dict[str, Exchange] = {}
        self._reported_ns = 0
        self._metered_ns = host.agenda.now_ns
        self._metered_step_ns = 0
        self._taken = 0  # requests taken so far, for unique sequence ids

    # -- launcher's side ----------------------------------------------------------------------------------------

    def launch(self, *, ready_after_ns: int | None, fails: bool) -> None:
        """Fork, then get ready after so long (None: never), or end with an error instead."""
        host = self.host
        fork_ns = host.drawn(host.physics.fork_ms * 1_000_000)
        host.agenda.after(fork_ns, self._forked)
        if ready_after_ns is not None:
            host.agenda.after(fork_ns + ready_after_ns, self._start_failed if fails else self._got_ready)

    def stop(self, grace_ns: int) -> None:
        """SIGTERM now, SIGKILL after `grace_ns`."""
        if self.life is Life.DEAD or self.stopping:
            return
        self.stopping = True
        host = self.host
        if self.life is not Life.READY:
            host.agenda.after(host.drawn(host.physics.stop_ms * 1_000_000), lambda: self.die(SIGTERMED))
            return
        self._end_if_drained()
        host.agenda.after(grace_ns, self._grace_over)

    def die(self, exit_code: int) -> None:
        """The process ends at this instant, whatever it was doing."""
        if self.life is Life.DEAD:
            return
        self.life = Life.DEAD
        self.engine.halt()
        host = self.host
        unfinished = list(self._exchanges.values())
        for exchange in unfinished:
            exchange.emitted = self.emitted(exchange)
            exchange.worker = None
        self._exchanges.clear()
        for exchange in unfinished:
            host.agenda.after(host.network_ns(), partial(exchange.client.failed, exchange, Reason.WORKER_LOST))
        host.worker_gone(self, unfinished)
        detail = "" if exit_code == 0 else f"simulated end with code {exit_code}"
        self.report(WorkerExited(self.replica_id, exit_code, detail), host.drawn(host.physics.detect_ms * 1_000_000))

    def hang(self) -> None:
        """It goes on to exist and does nothing more."""
        if self.life is Life.READY:
            self.is_hung = True
            self.engine.halt()
            self.host.agenda.after(self.host.physics.unresponsive_ms * 1_000_000, lambda: self.die(SIGKILLED))

    def slow_down(self, factor: float) -> None:
        """From its next step on it takes `factor` times as long; 1: as it should."""
        self.slow_by = factor
        self.engine.disturb(self._stretched if factor != 1.0 or self.host.faults.stalls > 0 else None)

    def report(self, event: Event, delay_ns: int) -> None:
        """Tell control after the delay, never out of order, unless that control process is gone by then."""
        host, epoch = self.host, self.host.epoch
        if host.happens(host.faults.slow_reports, "slow message"):
            delay_ns += min(999 * delay_ns, SLOWEST_REPORT_NS)
        self._reported_ns = max(self._reported_ns + 1, host.agenda.now_ns + delay_ns)

        def arrive() -> None:
            if host.epoch == epoch and not self.orphan:
                host.tell(event)

        host.agenda.at(self._reported_ns, arrive)

    def sample(self) -> None:
        """Be polled."""
        if self.life is not Life.READY or self.is_hung:
            return
        host = self.host
        figures = self.engine.figures()
        if not host.happens(host.faults.lost_reports, "lost message"):
            self.report(WorkerSampled(self.replica_id, figures), self._wire_ns())
        host.agenda.after(host.physics.sample_ms * 1_000_000, self.sample)

    def meter(self) -> None:
        """An energy meter is read: busy power while it computed, idle power otherwise."""
        if self.life is Life.DEAD:
            return
        host, price = self.host, self.spec.price
        now_ns = host.agenda.now_ns
        step_ns = self.engine.computed_ns()
        busy_ns = min(step_ns - self._metered_step_ns, now_ns - self._metered_ns)
        idle_ns = now_ns - self._metered_ns - busy_ns
        self._metered_ns, self._metered_step_ns = now_ns, step_ns
        energy_uj = round((busy_ns * price.busy_w + idle_ns * price.idle_w) / 1000)  # ns x W = nJ
        self.report(EnergyMeasured(self.replica_id, energy_uj, "nvml"), host.network_ns())
        host.agenda.after(host.physics.meter_ms * 1_000_000, self.meter)

    # -- gateway's side ------------------------------------------------------------------------------------------

    def submit(self, exchange: Exchange) -> None:
        """A request arrives on a new connection."""
        agenda, host, client = self.host.agenda, self.host, exchange.client
        if exchange.closed:
            return
        if self.life is not Life.READY or self.stopping:
            agenda.after(host.network_ns(), partial(client.failed, exchange, Reason.WORKER_LOST))
            return
        if host.happens(host.faults.worker_errors, "worker error"):
            agenda.after(host.network_ns(), partial(client.failed, exchange, Reason.WORKER_ERROR))
            return
        self._taken += 1
        seq_id = f"{client.request.request_id}.{self._taken}"
        try:
            self.engine.add(self._sequence(seq_id, exchange))
        except Refusal as refusal:
            answer = client.rejected if refusal.reason is Reason.CONTEXT_TOO_LONG else client.failed
            agenda.after(host.network_ns(), partial(answer, exchange, refusal.reason))
            return
        exchange.worker = self
        exchange.seq_id = seq_id
        self._exchanges[seq_id] = exchange

    def hang_up(self, exchange: Exchange) -> None:
        """The gateway closed the connection; the worker notices after the network's delay."""
        self.host.agenda.after(self.host.network_ns(), lambda: self._hung_up(exchange))

    def emitted(self, exchange: Exchange) -> int:
        """Tokens it has sent so far."""
        return self.engine.generated(exchange.seq_id)

    @property
    def unfinished(self) -> int:
        """Requests it works for."""
        return len(self._exchanges)

    @property
    def batcher(self) -> Batcher:
        """The engine's batcher, to look at."""
        return self.engine.batcher

    @property
    def steps(self) -> int:
        """Engine steps it took."""
        return self.engine.steps

    # -- inside ---------------------------------------------------------------------------------------------------

    def _engine(self) -> Stepper | Pools:
        host, spec = self.host, self.spec
        max_context = spec.engine.max_context or spec.context_tokens or 8192
        stretch = self._stretched if host.faults.stalls > 0 else None
        unit = host.unit_of(spec)
        if unit is not None:
            return Pools(
                spec.engine, cost=unit, max_context=max_context, clock=host.agenda, on_step=self._stepped,
                exact=host.exact, stretch=stretch,
            )  # fmt: skip
        return Stepper(
            spec.engine, kv_tokens=host.kv_tokens_of(spec), max_context=max_context, costs=host.costs_of(spec),
            clock=host.agenda, on_step=self._stepped, exact=host.exact, stretch=stretch,
        )  # fmt: skip

    def _forked(self) -> None:
        if self.life is Life.FORKING:
            self.life = Life.STARTING
            self.report(WorkerStarted(self.replica_id, self.pid, self.url), 0)
            if self.host.physics.meter_ms:
                self.meter()

    def _got_ready(self) -> None:
        if self.life is Life.STARTING and not self.stopping:
            self.life = Life.READY
            self.report(WorkerReady(self.replica_id, self.url), self.host.network_ns())
            self.host.agenda.after(self.host.physics.sample_ms * 1_000_000, self.sample)

    def _start_failed(self) -> None:
        if self.life is Life.STARTING:
            self.die(START_FAILED)

    def _grace_over(self) -> None:
        if self.life is not Life.DEAD:
            self.killed_by_stop = True
            self.die(SIGKILLED)

    def _end_if_drained(self) -> None:
        if self.stopping and not self._exchanges and self.life is Life.READY and not self.is_hung:
            self.host.agenda.after(self.host.drawn(self.host.physics.stop_ms * 1_000_000), lambda: self.die(0))

    def _sequence(self, seq_id: str, exchange: Exchange) -> SeqSpec:
        arrival = exchange.client.arrival
        return SeqSpec(
            seq_id=seq_id,
            prompt_tokens=arrival.prompt_tokens,
            max_new_tokens=arrival.max_tokens,
            prefix_hashes=kv_hashes(arrival, self.spec.engine.block_tokens),
            stop_after=arrival.output_tokens,
        )

    def _wire_ns(self) -> int:
        """The time of one message from here; what is sent while it is cut off waits."""
        host, took_ns = self.host, self.host.network_ns()
        held_ns = self.cut_until_ns - host.agenda.now_ns
        return took_ns + held_ns if held_ns > 0 else took_ns

    def _stretched(self, took_ns: int) -> int:
        """What a step takes where some stall, or all are slow."""
        host = self.host
        stall = host.faults.slow_factor if host.happens(host.faults.stalls, "straggling step") else 1.0
        return round(took_ns * self.slow_by * stall)

    def _stepped(self, firsts: Sequence[str], finished: Sequence[Finished]) -> None:
        """A step of the engine ended: first tokens leave, and answers."""
        host = self.host
        for seq_id in firsts:
            exchange = self._exchanges[seq_id]
            host.agenda.after(self._wire_ns(), partial(exchange.client.first_byte, exchange))
        for end in finished:
            exchange = self._exchanges.pop(end.seq_id)
            exchange.worker = None
            exchange.emitted = end.tokens.completion
            exchange.cached, exchange.phases = end.tokens.cached_in, end.phases
            answer_ns = self._wire_ns()
            host.agenda.after(answer_ns, partial(exchange.client.finished, exchange))
            if host.happens(host.faults.crash_after_answer, "crash after an answer"):
                host.agenda.after(2 * answer_ns, lambda: self.die(SIGSEGV))
        if not self.engine.busy:
            assert not self._exchanges, f"the batcher lost {list(self._exchanges)}"
            assert self.engine.kv_usage == 0, "the batcher holds blocks for nobody"
        self._end_if_drained()

    def _hung_up(self, exchange: Exchange) -> None:
        if self.is_hung:
            return
        if exchange.seq_id in self._exchanges:
            exchange.emitted = self.emitted(exchange)
            exchange.worker = None
            self.engine.cancel(exchange.seq_id)
            del self._exchanges[exchange.seq_id]
            self._end_if_drained()
