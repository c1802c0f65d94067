"""The control machine: every decision of the control plane, as `step(now_ns, event) -> list[Action]`.

It joins four private machines over one outbox:

    admission   keys and their limits: may this request come in?
    router      open requests, queues, choice of replica, retries; writes the ledger's request entries
    fleet       replicas: start, drain, stop, crash, back off; how many there should be
    ledger      one account per replica, held by the fleet, shared out to requests by the router

The same object runs in the live world and in the twin. Time never runs backwards in it, late and repeated reports
are taken for what they are, and `restore(snapshot())` behaves identically from there on.
"""

from collections.abc import Sequence
from typing import assert_never

from baseload.core import reading
from baseload.core.admission import AdmissionMachine, AdmissionState
from baseload.core.fleet import BUSY_TICK_NS, FleetMachine, FleetState
from baseload.core.ledger import boundaries, close_span, next_boundary
from baseload.core.lifecycle import FORCED_GRACE_NS
from baseload.core.outbox import Outbox, OutboxState
from baseload.core.router import RouterMachine, RouterState
from baseload.core.snapshot import ControlState, Snapshot, decode, encode
from baseload.domain.actions import Action, Record, Shutdown
from baseload.domain.errors import Reason
from baseload.domain.events import (
    ControlStarted,
    DispatchFailed,
    EnergyMeasured,
    Event,
    FirstByteSent,
    KeyCreated,
    KeyRevoked,
    ModelPut,
    ModelRemoved,
    RequestArrived,
    RequestFinished,
    ShutdownAsked,
    TimerFired,
    WorkerExited,
    WorkerReady,
    WorkerSampled,
    WorkerStarted,
)
from baseload.domain.model import ModelSpec
from baseload.domain.rng import Rng
from baseload.domain.status import ControlStatus
from baseload.domain.tenant import Allowance, Key
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Entry, Outcome, Request

LAST_SLACK_NS = 30 * NS_PER_S  # after the forced stop, longest the workers' exits are waited for
POLICY_VERSION = "4"


class ControlMachine:
    """The control plane's decisions. Not thread-safe; owned by one driver."""

    def __init__(self, *, seed: int, policy_version: str = POLICY_VERSION) -> None:
        snapshot = Snapshot(
            control=ControlState(seed=seed, policy_version=policy_version),
            outbox=OutboxState(),
            admission=AdmissionState(),
            router=RouterState(rng_state=Rng(seed, "router").state),
            fleet=FleetState(rng_state=Rng(seed, "fleet").state),
        )
        self._wire(snapshot)

    @classmethod
    def restore(cls, data: bytes) -> "ControlMachine":
        """The machine as it was when `data` was taken. Raises JournalError for damaged or foreign bytes."""
        machine = cls.__new__(cls)
        machine._wire(decode(data))
        return machine

    def snapshot(self) -> bytes:
        """All of the state, as bytes."""
        return encode(
            Snapshot(
                control=self._state,
                outbox=self._outbox.state,
                admission=self._admission.state,
                router=self._router.save(),
                fleet=self._fleet.save(),
            )
        )

    def step(self, now_ns: int, event: Event) -> list[Action]:
        """Take in what happened; say what to do. `now_ns` before the last one's counts as the last one's."""
        state = self._state
        if isinstance(event, ControlStarted):
            self._end_all(state.now_ns)
            self._fleet.hold_all(state.now_ns)
        now_ns = max(now_ns, state.now_ns)
        if now_ns >= state.span_due_ns:
            self._close_spans(now_ns)
        state.now_ns = now_ns
        self._take(now_ns, event)
        while self._router.emptied:
            self._fleet.emptied(self._router.emptied.pop(), now_ns)
        if self._fleet.state.removed:
            self._fleet.forget_removed()
        if state.shutting_down:
            self._maybe_over(now_ns)
        return self._outbox.take()

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def seed(self) -> int:
        """The seed its random choices come from."""
        return self._state.seed

    @property
    def policy_version(self) -> str:
        """The version of the policies; another version may answer the same events otherwise."""
        return self._state.policy_version

    def key_by_hash(self, secret_sha256: str) -> Key | None:
        """The key with this hash, unless revoked. O(1)."""
        return self._admission.key_by_hash(secret_sha256)

    def keys(self) -> Sequence[Key]:
        """All keys that are not revoked."""
        return self._admission.keys()

    def allowance(self, key_id: str, now_ns: int) -> Allowance:
        """What is left of the key's per-minute limits."""
        return self._admission.allowance(key_id, max(now_ns, self._state.now_ns))

    def model(self, name: str) -> ModelSpec | None:
        """The model's specification. O(1)."""
        return self._state.specs.get(name)

    def models(self) -> Sequence[ModelSpec]:
        """All models, in the order they were added."""
        return list(self._state.specs.values())

    def status(self, now_ns: int) -> ControlStatus:
        """Everything at this instant."""
        return reading.status(
            max(now_ns, self._state.now_ns),
            control=self._state,
            keys=len(self._admission.keys()),
            router=self._router.state,
            fleet=self._fleet.state,
        )

    def open_entries(self, now_ns: int) -> list[Entry]:
        """What runs now and is not yet recorded: each replica's open span, and each request with its share so far.

        A request entry of this kind has `ended_ns` 0 and stands for the request only here.
        """
        return reading.open_entries(
            max(now_ns, self._state.now_ns), router=self._router.state, fleet=self._fleet.state
        )

    def check(self) -> None:
        """Assert what must hold between any two steps. O(everything): for tests, the twin, and idle moments."""
        reading.check(
            control=self._state,
            admission=self._admission.state,
            router=self._router.state,
            fleet=self._fleet.state,
        )

    # -- below --------------------------------------------------------------------------------------------------

    def _wire(self, snapshot: Snapshot) -> None:
        self._state = snapshot.control
        self._outbox = Outbox(snapshot.outbox)
        self._admission = AdmissionMachine(snapshot.admission)
        self._router = RouterMachine(snapshot.router, admission=self._admission, outbox=self._outbox)
        self._fleet = FleetMachine(snapshot.fleet, router=self._router, outbox=self._outbox)

    def _take(self, now_ns: int, event: Event) -> None:
        match event:
            case RequestArrived():
                self._arrived(event.request, now_ns)
            case FirstByteSent():
                self._router.first_byte(event.request_id, now_ns)
            case RequestFinished():
                self._finished(event, now_ns)
            case DispatchFailed():
                seat = self._router.dispatch_failed(
                    event.request_id, event.replica_id, now_ns, event.reason, event.detail
                )
                if seat is not None:
                    self._fleet.dispatch_failed(seat, now_ns, event.reason)
            case WorkerSampled():
                self._fleet.worker_sampled(event.replica_id, now_ns, event.sample)
            case EnergyMeasured():
                self._fleet.energy_measured(event.replica_id, now_ns, event.energy_uj, event.basis)
            case TimerFired():
                self._timer(event.timer, now_ns)
            case WorkerStarted():
                self._fleet.worker_started(event.replica_id, now_ns, event.pid, event.url)
            case WorkerReady():
                self._fleet.worker_ready(event.replica_id, now_ns, event.url)
            case WorkerExited():
                self._fleet.worker_exited(event.replica_id, now_ns, event.exit_code, event.detail)
            case ModelPut():
                self._state.specs[event.spec.name] = event.spec
                self._router.open_lane(event.spec.name, event.spec.admission, now_ns)
                self._fleet.put_model(event.spec, now_ns)
            case ModelRemoved():
                self._remove_model(event.model, now_ns)
            case KeyCreated():
                self._admission.put_key(event.key)
            case KeyRevoked():
                self._admission.revoke_key(event.key_id)
            case ControlStarted():
                self._started(event, now_ns)
            case ShutdownAsked():
                self._shut_down(event.grace_ns, now_ns)
            case _:
                assert_never(event)

    def _arrived(self, request: Request, now_ns: int) -> None:
        if self._state.shutting_down:
            self._router.turn_away(request, now_ns, Reason.SHUTTING_DOWN, "Baseload is shutting down.")
            return
        waiting_in = self._router.arrive(request, now_ns)
        if waiting_in is not None:
            self._fleet.look_soon(self._fleet.state.crews[request.model], now_ns)
        else:
            lane, spec = self._router.state.lanes.get(request.model), self._state.specs.get(request.model)
            if lane is not None and lane.in_flight == 1 and spec is not None and not spec.is_remote:
                self._outbox.set_earlier(f"scale:{request.model}", now_ns + BUSY_TICK_NS)

    def _finished(self, event: RequestFinished, now_ns: int) -> None:
        replica_id = self._router.finish(event, now_ns)
        if replica_id and event.outcome is Outcome.OK:
            self._fleet.served(replica_id, now_ns)

    def _remove_model(self, name: str, now_ns: int) -> None:
        self._state.specs.pop(name, None)
        lane = self._router.state.lanes.get(name)
        if lane is not None:
            lane.closed = True
            why = f"The model {name!r} was removed."
            self._router.refuse_waiting(lane, now_ns, Reason.MODEL_REMOVED, why)
            self._fleet.remove_model(name, now_ns)

    def _timer(self, timer: str, now_ns: int) -> None:
        if not self._outbox.fired(timer, now_ns):
            return
        kind, _, subject = timer.partition(":")
        if kind == "queue":
            lane = self._router.state.lanes.get(subject)
            if lane is not None:
                self._router.expire(lane, now_ns)
        elif kind == "ledger":
            pass  # each step closes due spans; the timer only sees to it that there is a step
        elif kind == "shutdown":
            self._force(now_ns)
        else:
            self._fleet.timer(kind, subject, now_ns)

    def _close_spans(self, now_ns: int) -> None:
        """End all spans at the boundaries that have passed, exactly there (held ones do when they are released)."""
        state = self._state
        points = boundaries(state.span_due_ns, now_ns) if state.span_due_ns else []
        accounts = [replica.account for crew in self._fleet.state.crews.values() for replica in crew.replicas]
        for account in accounts:
            for point in points if not account.is_held else ():
                if point > account.span_from_ns:
                    self._outbox.actions.append(Record(close_span(account, point)))
        state.span_due_ns = next_boundary(now_ns)
        self._outbox.set_timer("ledger:", state.span_due_ns)

    # -- start and end ------------------------------------------------------------------------------------------

    def _end_all(self, now_ns: int) -> None:
        """Requests in flight when the control process went down ended with it, at the last instant it knew."""
        for ticket in list(self._router.state.tickets.values()):
            self._router.end(ticket, now_ns, Outcome.FAILED, Reason.CONTROL_RESTARTED)
        self._router.emptied.clear()

    def _started(self, event: ControlStarted, now_ns: int) -> None:
        state = self._state
        if event.seed != state.seed:
            state.seed = event.seed
            self._router.reseed(event.seed)
            self._fleet.reseed(event.seed)
        state.policy_version = event.policy_version
        state.started_ns = now_ns if not event.offline else state.started_ns
        state.shutting_down = state.forced = state.is_over = self._router.state.halted = False
        for timer in [name for name in self._outbox.state.timers if name.startswith(("shutdown:", "lost:"))]:
            del self._outbox.state.timers[timer]
        self._outbox.set_all_again(not_before_ns=now_ns + 60 * NS_PER_S, held=("stop:",))
        self._outbox.set_timer("ledger:", state.span_due_ns)
        self._fleet.control_started(now_ns, offline=event.offline)

    def _shut_down(self, grace_ns: int, now_ns: int) -> None:
        state = self._state
        if not state.shutting_down:
            state.shutting_down = self._router.state.halted = True
            self._outbox.decide(now_ns, "shut_down", subject="", model="", why="an orderly end was asked for")
            for lane in self._router.state.lanes.values():
                self._router.refuse_waiting(lane, now_ns, Reason.SHUTTING_DOWN, "Baseload is shutting down.")
            self._fleet.halt(now_ns)
        if not state.forced:
            self._outbox.set_earlier("shutdown:", now_ns + grace_ns)

    def _force(self, now_ns: int) -> None:
        """The time given for an orderly end is over; and after a last while, so is everything else."""
        state = self._state
        if not state.shutting_down:
            return
        if not state.forced:
            state.forced = True
            self._fleet.force(now_ns)
            self._outbox.set_timer("shutdown:", now_ns + FORCED_GRACE_NS + LAST_SLACK_NS)
            return
        for ticket in list(self._router.state.tickets.values()):
            if ticket.first_byte_ns:
                self._router.end(ticket, now_ns, Outcome.FAILED, Reason.SHUTTING_DOWN)
            else:
                self._router.refuse(ticket, now_ns, Reason.SHUTTING_DOWN, "Baseload is shutting down.")
        self._fleet.abandon(now_ns)

    def _maybe_over(self, now_ns: int) -> None:
        state = self._state
        if state.is_over or self._router.state.tickets or not self._fleet.is_empty:
            return
        state.is_over = True
        for timer in list(self._outbox.state.timers):
            self._outbox.cancel_timer(timer)
        self._outbox.actions.append(Shutdown())
