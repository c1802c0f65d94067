"""The simulated world: a driver for the control machine on a virtual clock, as `live/driver.py` is on the real one.

It takes from a heap, stamps, journals, steps the machine, performs its actions with delays and faults, and lets the
checkers look after each event.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import assert_never

import msgspec

from baseload.core.control import ControlMachine
from baseload.domain.actions import (
    Action,
    CancelTimer,
    Dispatch,
    Record,
    Refuse,
    SetTimer,
    Shutdown,
    StartWorker,
    StopWorker,
)
from baseload.domain.errors import Reason
from baseload.domain.events import (
    ControlStarted,
    Event,
    RequestFinished,
    TimerFired,
    WorkerExited,
    WorkerReady,
    WorkerStarted,
)
from baseload.domain.model import ModelSpec
from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_MS, NS_PER_S, NS_PER_US
from baseload.twin.agenda import Agenda
from baseload.twin.chance import bits, exponential_ns
from baseload.twin.checkers import Checkers
from baseload.twin.clients import Client, Exchange, request_of
from baseload.twin.costs import Costs
from baseload.twin.hosting import Fleet
from baseload.twin.journal import Digest, JournalItem
from baseload.twin.pools import UnitCost
from baseload.twin.published import accelerator_mttf_s
from baseload.twin.spec import Faults, Physics
from baseload.twin.tally import FaultNote, Tally
from baseload.twin.workers import LOCAL, SIGKILLED, Life, Worker
from baseload.twin.workload import Arrival

START_NS = 1_767_225_600 * NS_PER_S  # 2026-01-01 00:00 UTC: any wall time would do
POLICY_VERSION = "twin"


class World:
    """Everything of one simulation."""

    def __init__(
        self,
        *,
        seed: int,
        physics: Physics,
        hosting: Fleet,
        faults: Faults,
        start_ns: int = START_NS,
        checked: bool = True,
        exact: bool = False,
        lean: bool = False,
        most_decisions: int = 200,
        machine: type[ControlMachine] = ControlMachine,
    ) -> None:
        self.seed = seed
        self.physics = physics
        self.hosting = hosting
        self.exact = exact
        self.lean = lean
        self.tally = Tally(start_ns=start_ns, most_decisions=most_decisions)
        self.on_ended: Callable[[Client], None] = _ignore
        self.disk_full_until_ns = 0
        self.slots: dict[int, Worker] = {}  # where live workers of ours run
        self._broken: dict[str, list[int]] = {}  # model → indices into the tally's faults that wait for a recovery
        self.faults = faults
        self.start_ns = start_ns
        self.agenda = Agenda(seed, start_ns=start_ns)
        self._machine = machine
        self.control: ControlMachine | None = machine(seed=seed, policy_version=POLICY_VERSION)
        self.checkers = Checkers() if checked else None
        self.clients: dict[str, Client] = {}  # those not ended
        self.ended_clients: list[Client] = []
        self.workers: dict[str, Worker] = {}  # by replica id, dead ones too
        self.unreached = 0  # clients that came while control was down
        self.is_shut_down = False
        self.epoch = 0
        self.restarts = 0
        self.events = 0
        self.journal: list[JournalItem] = []  # since the beginning; what a restart loses is cut off
        self.tail: deque[tuple[int, Event]] = deque(maxlen=40)  # the last events, for people
        self.snapshot_every = 0  # events between snapshots; 0: never
        self._snapshot = self.control.snapshot()
        self._snapshot_at = 0  # journal items it includes
        self._settled = 0  # journal items that survive kill -9
        self._digest = Digest()
        self._network = bits(Rng(seed, "twin.network")).__next__
        message_ns = physics.network_us * NS_PER_US
        self._message_ns = 1 + message_ns // 2, max(1, message_ns)
        self._luck = Rng(seed, "twin.luck")
        self._timers: dict[str, int] = {}
        self._stands_at_ns = 0
        self._stands_until_ns = 0
        self._pids = 1000
        self._requests = 0
        self._doomed_models: dict[str, bool] = {}  # models whose starts fail until the faults end
        self._stepping = False
        self._dies_for_ns = 0  # control dies in its next step
        self._down = 0  # the place of its last death in the report

    # -- time and chance ---------------------------------------------------------------------------------------

    @property
    def now_ns(self) -> int:
        """The present instant, which the machines may see later (`stamp_ns`)."""
        return self.agenda.now_ns

    def stamp_ns(self) -> int:
        """The wall clock as the control process reads it: at times it stands still."""
        return self._stands_at_ns if self.now_ns < self._stands_until_ns else self.now_ns

    def stop_clock(self, for_ns: int) -> None:
        """The wall clock stands still for a while."""
        self._stands_at_ns = self.stamp_ns()
        self._stands_until_ns = max(self._stands_until_ns, self.now_ns + for_ns)

    def drawn(self, nominal_ns: int) -> int:
        """A duration drawn uniformly from ±50 % around `nominal_ns`; at least 1."""
        return 1 + nominal_ns // 2 + (self._network() * max(1, nominal_ns) >> 64)

    def network_ns(self) -> int:
        """The time of one message, as `drawn`."""
        least, spread = self._message_ns
        return least + (self._network() * spread >> 64)

    def happens(self, share: float, kind: str) -> bool:
        """Whether a fault with this share of occasions happens now."""
        if share <= 0 or self._luck.unit() >= share:
            return False
        self.tally.small_fault(kind)
        return True

    def costs_of(self, spec: ModelSpec) -> Costs:
        """What steps of a replica of this model take."""
        return self.hosting.costs_of(spec)

    def kv_tokens_of(self, spec: ModelSpec) -> int:
        """KV positions of one replica."""
        return self.hosting.kv_tokens_of(spec)

    def unit_of(self, spec: ModelSpec) -> UnitCost | None:
        """What its steps take where prefill and decode are apart; None: they are not."""
        return self.hosting.unit_of(spec)

    # -- the driver: journal, step, perform --------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        """Step the control machine and perform its actions; nothing while it is down."""
        if self.control is None:
            return
        assert not self._stepping, "performing an action must not step the machine at once"
        self._stepping = True
        at_ns = self.agenda.now_ns
        if at_ns < self._stands_until_ns:
            at_ns = self._stands_at_ns
        self.events += 1
        self.tail.append((at_ns, event))
        actions = self.control.step(at_ns, event)
        if isinstance(event, WorkerReady):
            self._recovered(event.replica_id)
        if self.lean:
            self._digest.add(at_ns, actions)
        else:
            self._journal(at_ns, event, actions)
        if self.checkers:
            self.checkers.stepped(at_ns, event, actions)
        if self._dies_for_ns:
            self.settle()
            self._stepping = False
            self.kill_control(down_ns=self._dies_for_ns)
            return
        for action in actions:
            if type(action) is not Record:
                self._perform(action)
            elif self.lean:  # else it was journaled with its event
                self.tally.entry(action.entry)
        if self.checkers:
            self.checkers.check(at_ns, self.control)
        self._stepping = False

    def settle(self) -> None:
        """What was told so far survives kill -9."""
        self._settled = len(self.journal)

    def digest(self) -> str:
        """SHA-256 over all actions so far and their times."""
        return self._digest.hex()

    def _journal(self, at_ns: int, event: Event, actions: Sequence[Action]) -> None:
        encoded = self._digest.added(at_ns, actions)
        self.journal.append(JournalItem(at_ns, event, actions, encoded))
        if isinstance(event, RequestFinished):
            self.settle()  # the gateway settles before the last byte of an answer leaves
        assert self.control is not None
        if self.snapshot_every and len(self.journal) - self._snapshot_at >= self.snapshot_every:
            self._snapshot = self.control.snapshot()
            self._snapshot_at = len(self.journal)
            self.settle()

    def _perform(self, action: Action) -> None:
        match action:
            case Dispatch(request_id=request_id):
                self.clients[request_id].dispatch(action)
            case Refuse(request_id=request_id):
                self.clients[request_id].refuse(action)
            case StartWorker(replica_id=replica_id, spec=spec):
                self.settle()  # a worker that runs is known after a restart
                self._start(replica_id, spec)
            case StopWorker(replica_id=replica_id, grace_ns=grace_ns):
                self.settle()
                self._stop(replica_id, grace_ns)
            case SetTimer(timer=timer, at_ns=at_ns):
                self._cancel(timer)
                self._timers[timer] = self.agenda.at(at_ns, partial(self._fire, timer, at_ns))
            case CancelTimer(timer=timer):
                self._cancel(timer)
            case Record():
                pass  # journaled with its event
            case Shutdown():
                self.is_shut_down = True
            case _:
                assert_never(action)

    def _fire(self, timer: str, at_ns: int) -> None:
        if self.stamp_ns() < at_ns:  # the wall clock stands still: it is not yet due
            self._timers[timer] = self.agenda.at(self._stands_until_ns, lambda: self._fire(timer, at_ns))
            return
        del self._timers[timer]
        self.tell(TimerFired(timer))

    def _cancel(self, timer: str) -> None:
        handle = self._timers.pop(timer, None)
        if handle is not None:
            self.agenda.drop(handle)

    # -- workers -----------------------------------------------------------------------------------------------

    def _start(self, replica_id: str, spec: ModelSpec) -> None:
        worker = self._new_worker(replica_id, spec, born_ready=False)
        ready_ns = self.drawn(self.physics.start_ms * NS_PER_MS)
        if self.happens(self.faults.slow_starts, "slow start"):
            ready_ns = round(ready_ns * self.faults.slow_factor)
        if spec.name not in self._doomed_models:
            self._doomed_models[spec.name] = self.happens(self.faults.start_loop, "model that never starts")
        fails = self.happens(self.faults.start_fails, "failed start") or (
            self.faults.start_loop > 0 and self._doomed_models[spec.name]
        )
        fails = fails or self.now_ns < self.disk_full_until_ns
        hangs = self.happens(self.faults.start_hangs, "hanging start")
        worker.launch(ready_after_ns=None if hangs else ready_ns, fails=fails)
        self._settle_in(worker)
        crash_every_s = self.faults.crash_every_s
        if self.faults.published > 0:
            own_s = accelerator_mttf_s(self.hosting.accelerators_of(spec.name)) / self.faults.published
            crash_every_s = 1.0 / (1.0 / own_s + (1.0 / crash_every_s if crash_every_s > 0 else 0.0))
        if crash_every_s > 0:
            life_ns = exponential_ns(self._luck, crash_every_s)
            self.agenda.after(life_ns, lambda: self._crash(worker))
        if self.faults.hang_every_s > 0:
            life_ns = exponential_ns(self._luck, self.faults.hang_every_s)
            self.agenda.after(life_ns, lambda: self._hang(worker))

    def _stop(self, replica_id: str, grace_ns: int) -> None:
        worker = self.workers.get(replica_id)
        if worker is not None and worker.life is not Life.DEAD:
            worker.stop(grace_ns)
            return
        epoch = self.epoch  # the launcher finds no such process, and says so; perhaps for the second time

        def report() -> None:
            if self.epoch == epoch:
                self.tell(WorkerExited(replica_id, 0, "no such process"))

        self.agenda.after(self.network_ns(), report)

    def _crash(self, worker: Worker) -> None:
        if self.faults.crash_every_s > 0 or self.faults.published > 0:  # the faults may have ended meanwhile
            self.break_worker(worker, "accelerator")

    def _hang(self, worker: Worker) -> None:
        if self.faults.hang_every_s > 0:
            self._note("hang", worker)
            worker.hang()
            if self.checkers:
                self.checkers.excused[worker.replica_id] = None  # ending it heals

    def _new_worker(self, replica_id: str, spec: ModelSpec, *, born_ready: bool) -> Worker:
        self._pids += 1
        worker = Worker(self, replica_id, spec, pid=self._pids, born_ready=born_ready)
        self.workers[replica_id] = worker
        return worker

    def break_worker(self, worker: Worker, kind: str) -> None:
        """A fault ends a worker's process."""
        if worker.life is not Life.DEAD:
            self._note(kind, worker)
            worker.die(SIGKILLED)

    def note(self, kind: str, subject: str) -> int:
        """A fault was made. Returns its place in the report."""
        self.tally.faults.append(FaultNote((self.now_ns - self.start_ns) / NS_PER_S, kind, subject))
        return len(self.tally.faults) - 1

    def mended(self, place: int) -> None:
        """What that fault broke serves again."""
        note = self.tally.faults[place]
        at_s = (self.now_ns - self.start_ns) / NS_PER_S
        self.tally.faults[place] = FaultNote(note.at_s, note.kind, note.subject, at_s)

    def _note(self, kind: str, worker: Worker) -> None:
        self._broken.setdefault(worker.spec.name, []).append(self.note(kind, worker.replica_id))

    def _recovered(self, replica_id: str) -> None:
        """A worker got ready: what broke first of its model is made good."""
        worker = self.workers.get(replica_id)
        waiting = self._broken.get(worker.spec.name) if worker is not None else None
        if waiting:
            self.mended(waiting.pop(0))

    def _settle_in(self, worker: Worker) -> None:
        slot = next(slot for slot in range(len(self.slots) + 1) if slot not in self.slots)
        self.slots[slot] = worker
        worker.slot = slot

    def worker_gone(self, worker: Worker, unfinished: list[Exchange]) -> None:
        """A worker died and cut these requests."""
        self.slots.pop(worker.slot, None)
        if self.checkers and worker.killed_by_stop:
            self.checkers.cut(
                worker.replica_id, [one.client.request.request_id for one in unfinished if not one.closed]
            )

    # -- clients and the gateway -------------------------------------------------------------------------------

    def ask(self, arrival: Arrival, *, key_id: str, deadline_ns: int = 0) -> Client | None:
        """A client sends a request; None where the control process is down."""
        if self.control is None or self.is_shut_down:
            self.unreached += 1
            return None
        self._requests += 1
        request_id = f"req_{self._requests:024x}"
        deadline = self.stamp_ns() + deadline_ns if deadline_ns else 0
        client = Client(
            self, arrival, request_of(arrival, request_id=request_id, key_id=key_id, deadline_ns=deadline)
        )
        self.clients[request_id] = client
        client.open()
        return client

    def connect(self, exchange: Exchange) -> None:
        """A dispatch travels to its worker, may be late or lost."""
        worker = self.workers.get(exchange.dispatch.replica_id)
        is_cut = worker is not None and self.now_ns < worker.cut_until_ns
        if is_cut or self.happens(self.faults.lost_dispatches, "lost message"):
            timeout_ns = self.drawn(self.physics.dispatch_timeout_ms * NS_PER_MS)
            self.agenda.after(timeout_ns, lambda: exchange.client.failed(exchange, Reason.WORKER_LOST))
            return
        delay_ns = self.network_ns()
        if self.happens(self.faults.slow_dispatches, "slow message"):
            delay_ns *= 1000
        self.agenda.after(delay_ns, partial(self._deliver, exchange))

    def _deliver(self, exchange: Exchange) -> None:
        if exchange.closed:
            return
        replica_id = exchange.dispatch.replica_id
        worker = self.workers.get(replica_id)
        if worker is None:
            worker = self._remote_worker(exchange)
        if worker is None:
            exchange.client.failed(exchange, Reason.WORKER_LOST)
            return
        worker.submit(exchange)

    def _remote_worker(self, exchange: Exchange) -> Worker | None:
        """Workers of remote models are somebody else's: there from the first request on."""
        spec = self.control.model(exchange.client.request.model) if self.control else None
        if spec is None or not spec.is_remote:
            return None
        return self._new_worker(exchange.dispatch.replica_id, spec, born_ready=True)

    def ended(self, client: Client) -> None:
        """A client's request is over."""
        del self.clients[client.request.request_id]
        self.tally.client(client)
        if not self.lean:
            self.ended_clients.append(client)
        self.on_ended(client)

    # -- kill -9 of control, and recovery ----------------------------------------------------------------------

    def kill_control_in_step(self, *, down_ns: int) -> None:
        """The control process dies in its next step: what it decides is journaled and never performed."""
        self._dies_for_ns = down_ns

    def kill_control(self, *, down_ns: int, kind: str = "control", why: str = "kill -9") -> None:
        """The control process dies at this instant; after `down_ns` it is started again."""
        if self.control is None or self.is_shut_down:
            return
        self._dies_for_ns = 0
        self._verify_replay()
        self._down = self.note(kind, why)
        self.control = None
        self.epoch += 1
        self.restarts += 1
        for client in list(self.clients.values()):
            client.cut()
        for handle in self._timers.values():
            self.agenda.drop(handle)
        self._timers = {}
        del self.journal[len(self.journal) - self._luck.below(len(self.journal) - self._settled + 1) :]
        if self.checkers:
            self.checkers = Checkers.after_kill(self.journal, self.checkers)
        self.agenda.after(down_ns, self._recover)

    def lose_power(self, *, down_ns: int) -> None:
        """Control and every worker here end at this instant; after `down_ns` control is started again."""
        self.kill_control(down_ns=down_ns, kind="power loss", why="control and all workers")
        for worker in self.workers.values():
            if not worker.spec.is_remote and self.control is None:
                worker.die(SIGKILLED)

    def _recover(self) -> None:
        control = self._machine.restore(self._snapshot)
        for item in self.journal[self._snapshot_at :]:
            control.step(item.at_ns, item.event)
        self.control = control
        self.epoch += 1
        self.mended(self._down)
        self.tell(ControlStarted(POLICY_VERSION, self.seed))
        replicas = {replica.replica_id: replica for replica in control.status(self.stamp_ns()).replicas}
        orphans = [w for w in self.workers.values() if w.replica_id not in replicas and w.life is not Life.DEAD]
        for replica_id, replica in replicas.items():
            if not replica.url or replica.url.endswith(LOCAL):
                self._report_known(replica_id, self.workers.get(replica_id))
        for worker in orphans:
            self._end_orphan(worker)
        self.settle()

    def _end_orphan(self, worker: Worker) -> None:
        """A worker that the recovered control does not know is killed by the driver, or reported and then stopped."""
        if worker.spec.is_remote:
            return
        if worker.life is Life.READY and self._luck.below(2):
            self.tell(WorkerReady(worker.replica_id, worker.url))
            return
        worker.orphan = True
        worker.die(SIGKILLED)

    def _report_known(self, replica_id: str, worker: Worker | None) -> None:
        if worker is None or worker.life is Life.DEAD:
            self.tell(WorkerExited(replica_id, SIGKILLED, "gone while control was down"))
        elif worker.stopping and self._luck.below(2):
            worker.orphan = True
            worker.die(SIGKILLED)
            self.tell(WorkerExited(replica_id, SIGKILLED, "killed, for it was to end"))
        elif worker.life is Life.READY:
            self.tell(WorkerReady(replica_id, worker.url))
        elif worker.life is Life.STARTING:
            self.tell(WorkerStarted(replica_id, worker.pid, worker.url))

    def _verify_replay(self) -> None:
        """Snapshot and journal must give exactly the state and the actions that were."""
        assert self.control is not None
        ghost = self._machine.restore(self._snapshot)
        for item in self.journal[self._snapshot_at :]:
            event = msgspec.msgpack.decode(msgspec.msgpack.encode(item.event), type=Event)
            actions = ghost.step(item.at_ns, event)
            assert msgspec.msgpack.encode((item.at_ns, actions)) == item.encoded, (
                f"replay of {item.event} at {item.at_ns} gave other actions: {actions}"
            )
        assert ghost.snapshot() == self.control.snapshot(), "replay gave another state"


def _ignore(client: Client) -> None:
    """Nobody waits for this client's end."""
