"""What must always hold, checked after each event against a shadow kept from events and actions alone.

The shadow knows nothing of the machines' insides: it is what an observer at the seams would believe. At the end the
ledger must close to the nanosecond and nothing may be left.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn, Protocol

from baseload.core.control import ControlMachine
from baseload.domain.actions import Action, Dispatch, Record, Refuse, SetTimer, Shutdown, StartWorker, StopWorker
from baseload.domain.errors import Reason
from baseload.domain.events import (
    ControlStarted,
    DispatchFailed,
    Event,
    FirstByteSent,
    KeyCreated,
    ModelPut,
    RequestArrived,
    RequestFinished,
    ShutdownAsked,
    WorkerExited,
    WorkerReady,
    WorkerSampled,
    WorkerStarted,
)
from baseload.domain.fleet import ReplicaState
from baseload.domain.model import ModelSpec
from baseload.domain.status import ControlStatus
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Entry, Outcome, ReplicaEntry, RequestEntry
from baseload.policy.healing import SUSPECT_NS
from baseload.twin.shadow import Shadow, Shadows

MOST_EVENTS_AT_ONE_INSTANT = 20_000
LATEST_NS = 10 * NS_PER_S  # how long a deadline may be overrun: the wall clock may have stood still meanwhile


class Violation(AssertionError):
    """Something that must always hold did not."""


class Item(Protocol):
    """A journaled event."""

    @property
    def at_ns(self) -> int:
        """When it was stepped."""

    @property
    def event(self) -> Event:
        """The event."""

    @property
    def actions(self) -> Sequence[Action]:
        """What the machine answered."""


class Checkers:
    """The observer. `stepped` looks at what the machine answered, `check` at what it shows of itself."""

    def __init__(self) -> None:
        self.open = Shadows()
        self.specs: dict[str, ModelSpec] = {}
        self.most_specs: dict[str, int] = {}  # the highest max_replicas a model ever had
        self.ready: dict[str, str] = {}  # replica → model, as told by WorkerReady and not since stopped or exited
        self.started: dict[str, str] = {}  # replicas between StartWorker and WorkerExited → model
        self.remote_urls: dict[str, None] = {}
        self.remote: dict[str, None] = {}  # replicas of remote models that got a request
        self.draining_since_ns: dict[str, int] = {}
        self.ended: dict[str, RequestEntry] = {}
        self.given_up: dict[str, None] = {}  # ended by control because their worker was gone and nobody reported
        self.spans: dict[str, list[ReplicaEntry]] = {}
        self.shutdown_ns = 0
        self.grace_ns = 0
        self.excused: dict[str, None] = {}  # replicas that may cut what they run
        self._heard_ns: dict[str, int] = {}  # replica → its last sign of life
        self._arrived = ""  # the request that this step brought
        self._doubtful: list[str] = []
        self._retry_at_ns: dict[str, int] = {}  # models that back off
        self._limits: dict[str, int] = {}  # key → most in flight; 0: no limit
        self._last_ns = 0
        self._unheard: dict[str, int] = {}  # replicas without a report since control was down → last known until
        self._at_once = 0

    # -- after each step -------------------------------------------------------------------------------------------

    def stepped(self, at_ns: int, event: Event, actions: Sequence[Action]) -> None:
        """The machine answered this event with these actions; none is performed yet."""
        known_ns = self._last_ns
        self._progress(at_ns)
        if isinstance(event, ControlStarted):
            self._unheard = dict.fromkeys(self.started, known_ns) | self._unheard
        entries = [action.entry for action in actions if isinstance(action, Record)]
        over = self._take_event(at_ns, event)
        for action in actions:
            match action:
                case Dispatch():
                    self._dispatched(action)
                case Refuse(request_id=request_id, reason=reason):
                    self._check_key_limit(request_id, reason)
                    shadow = self._shadow(request_id, "refused")
                    _must(
                        shadow.replica_id not in self.started,
                        f"{request_id} is refused while {shadow.replica_id} runs it",
                    )
                    _must(not shadow.first_byte, f"{request_id} was refused after its first byte")
                    over[request_id] = self.open.end(request_id)
                case StartWorker(replica_id=replica_id, spec=spec):
                    self._starts(replica_id, spec)
                    is_changed = isinstance(event, ModelPut)  # which may end a backing off
                    early_ns = self._retry_at_ns.get(spec.name, 0) - at_ns
                    _must(
                        is_changed or early_ns <= 0, f"{replica_id} starts {early_ns} ns before the backing off ends"
                    )
                case StopWorker(replica_id=replica_id):
                    self._stops(at_ns, replica_id)
                case SetTimer(timer=timer, at_ns=due_ns):
                    _must(due_ns > 0 and timer != "", f"timer {timer!r} is set to {due_ns}")
                case _:
                    pass
        self._take_entries(entries, over)
        if any(isinstance(action, Shutdown) for action in actions):
            _must(len(self.open) == 0 and not self.started, "Shutdown while requests or workers are left")

    def check(self, at_ns: int, control: ControlMachine) -> None:
        """The machine's own view must agree with the shadow, and keep its bounds."""
        status = control.status(at_ns)
        self._check_totals(status)
        self._retry_at_ns = {model.name: model.retry_at_ns for model in status.models}
        late = self.open.oldest_due(at_ns - LATEST_NS)
        _must(late == "", f"{late} waits {LATEST_NS} ns beyond its deadline, and longer")
        self._check_queue()
        live: dict[str, int] = {}
        for replica in status.replicas:
            running = self.open.running(replica.replica_id)
            if replica.in_flight != running and replica.state is not ReplicaState.GONE:
                _break(f"{replica.replica_id} shows {replica.in_flight} in flight, {running} are")
            if replica.cold_ns < 0 or replica.useful_ns < 0 or replica.idle_ns < 0:
                _break(f"negative time: {replica}")
            if replica.state is ReplicaState.DRAINING:
                _must(replica.replica_id not in self._doubtful, f"{replica.replica_id} got a request while it drains")
                self.draining_since_ns.setdefault(replica.replica_id, at_ns)
            elif replica.state is ReplicaState.READY:
                self.draining_since_ns.pop(replica.replica_id, None)
            if replica.state is not ReplicaState.GONE and replica.url not in self.remote_urls:
                live[replica.model] = live.get(replica.model, 0) + 1
        self._doubtful.clear()
        for model, count in live.items():
            bound = self.most_specs.get(model, 1)
            _must(count <= bound, f"{model} has {count} replicas, at most {bound} were ever allowed")

    @classmethod
    def after_kill(cls, journal: Sequence[Item], before: "Checkers") -> "Checkers":
        """The observer of a control process that died with only this much journaled: what it lost never was."""
        observer = cls()
        observer.draining_since_ns = dict(before.draining_since_ns)
        observer.excused = dict(before.excused)
        for item in journal:
            observer.stepped(item.at_ns, item.event, item.actions)
        observer._doubtful.clear()
        observer._arrived = ""
        return observer

    def cut(self, replica_id: str, requests: Sequence[str]) -> None:
        """A worker was killed by its stop while it worked for these requests."""
        _must(replica_id in self.excused or not requests, f"stopping {replica_id} cut the running {requests}")

    # -- at the end --------------------------------------------------------------------------------------------------

    def finish(self, at_ns: int, control: ControlMachine) -> None:
        """Everything ended: nothing is left, and the ledger closes to the nanosecond."""
        _must(len(self.open) == 0, f"requests left: {self.open.ids()}")
        _must(not self.started, f"workers left: {list(self.started)}")
        status = control.status(at_ns)
        _must(status.queued == 0 and status.in_flight == 0, f"{status.queued} queued, {status.in_flight} in flight")
        left = [r.replica_id for r in status.replicas if r.state is not ReplicaState.GONE and r.pid]
        _must(not left, f"replicas left: {left}")
        for replica_id, spans in self.spans.items():
            for before, after in pairwise(spans):
                _must(
                    before.to_ns == after.from_ns and not before.final,
                    f"{replica_id}: spans do not tile: {before}, {after}",
                )
            _must(spans[-1].final, f"{replica_id} has no final span")
        every = [span for spans in self.spans.values() for span in spans]
        shares: dict[str, int] = {}
        for entry in self.ended.values():
            shares[entry.model] = shares.get(entry.model, 0) + entry.useful_ns
        for model in sorted({span.model: None for span in every} | dict.fromkeys(shares)):
            mine = [span for span in every if span.model == model]
            time_ns = sum(span.to_ns - span.from_ns for span in mine)
            rest_ns = sum(span.idle_ns + span.cold_ns for span in mine)
            _must(
                shares.get(model, 0) + rest_ns == time_ns,
                f"{model}: shares {shares.get(model, 0)} + idle and cold {rest_ns} != replica time {time_ns}",
            )
        _must(status.requests_total >= 0, "counters run")

    # -- parts -------------------------------------------------------------------------------------------------------

    def _progress(self, at_ns: int) -> None:
        _must(at_ns >= self._last_ns, "time ran backwards")
        self._at_once = self._at_once + 1 if at_ns == self._last_ns else 0
        self._last_ns = at_ns
        _must(self._at_once < MOST_EVENTS_AT_ONE_INSTANT, "the machine keeps itself busy at one instant")

    def _take_event(self, at_ns: int, event: Event) -> dict[str, Shadow]:
        """Update the shadow by the event; returns the requests it ends, each of which owes one ledger entry."""
        over: dict[str, Shadow] = {}
        match event:
            case ModelPut(spec=spec):
                self.specs[spec.name] = spec
                most = max(spec.scaling.max_replicas, spec.scaling.min_replicas)
                self.most_specs[spec.name] = max(most, self.most_specs.get(spec.name, 0))
                if spec.is_remote:
                    self.remote_urls[spec.source] = None
                    self.most_specs[spec.name] = max(1, self.most_specs[spec.name])
            case RequestArrived(request=request):
                _must(self.open.get(request.request_id) is None, f"{request.request_id} arrived twice")
                max_wait_ns = self.specs[request.model].admission.max_wait_ns if request.model in self.specs else 0
                due_ns = at_ns + max_wait_ns
                self.open.arrive(request, min(due_ns, request.deadline_ns) if request.deadline_ns else due_ns)
                self._arrived = request.request_id
            case (
                FirstByteSent(request_id=name) | RequestFinished(request_id=name) | DispatchFailed(request_id=name)
            ) if name in self.given_up:
                pass
            case KeyCreated(key=key):
                self._limits[key.key_id] = key.limits.max_in_flight
            case FirstByteSent(request_id=request_id):
                self._shadow(request_id, "begun").first_byte = True
            case RequestFinished(request_id=request_id, outcome=outcome):
                replica_id = self._shadow(request_id, "finished").replica_id
                if outcome is Outcome.OK:
                    self._heard_ns[replica_id] = at_ns
                over[request_id] = self.open.end(request_id)
            case DispatchFailed(request_id=request_id):
                shadow = self._shadow(request_id, "given back")
                _must(shadow.replica_id != "", f"{request_id} is given back, but runs nowhere")
                self.open.give_back(shadow)
            case WorkerStarted(replica_id=replica_id):
                self._unheard.pop(replica_id, None)
            case WorkerSampled(replica_id=replica_id):
                self._heard_ns[replica_id] = at_ns
            case WorkerReady(replica_id=replica_id):
                self._heard_ns[replica_id] = at_ns
                self._unheard.pop(replica_id, None)
                if replica_id in self.started:
                    self.ready[replica_id] = self.started[replica_id]
            case WorkerExited(replica_id=replica_id):
                self.ready.pop(replica_id, None)
                self.started.pop(replica_id, None)
                self._heard_ns.pop(replica_id, None)
            case ControlStarted():
                over = self.open.end_all()
                self.ready = {}
            case ShutdownAsked(grace_ns=grace_ns):
                self.shutdown_ns, self.grace_ns = at_ns, grace_ns
            case _:
                pass
        return over

    def _dispatched(self, action: Dispatch) -> None:
        shadow = self._shadow(action.request_id, "dispatched")
        where = f"{action.request_id} → {action.replica_id}"
        spec = self.specs[shadow.request.model]
        _must(not shadow.replica_id, f"{where}: it already runs on {shadow.replica_id}")
        _must(not shadow.first_byte, f"{where}: its first byte was sent")
        attempt, most = shadow.attempts + 1, spec.admission.max_attempts
        _must(action.attempt == attempt, f"{where}: attempt {action.attempt}, the observer counts {attempt}")
        _must(attempt <= most, f"{where}: more than {most} attempts")
        is_remote = action.url in self.remote_urls
        _must(is_remote or self.ready.get(action.replica_id) == spec.name, f"{where}: the replica is not ready")
        if action.replica_id in self.draining_since_ns:
            self._doubtful.append(action.replica_id)  # unless this very step took its draining back
        running = self.open.running(action.replica_id)
        bound = spec.admission.max_concurrency_per_replica
        _must(running < bound, f"{where}: {running} run there already, the bound is {bound}")
        if is_remote:
            self.remote[action.replica_id] = None
        self.open.dispatch(shadow, action.replica_id)

    def _starts(self, replica_id: str, spec: ModelSpec) -> None:
        _must(replica_id not in self.started and replica_id not in self.spans, f"{replica_id} was used before")
        self.started[replica_id] = spec.name
        live = sum(1 for model in self.started.values() if model == spec.name)
        bound = max(spec.scaling.max_replicas, spec.scaling.min_replicas)
        _must(live <= bound, f"{spec.name}: replica {replica_id} is number {live} of at most {bound}")
        _must(not self.shutdown_ns, f"{replica_id} was started during shutdown")

    def _stops(self, at_ns: int, replica_id: str) -> None:
        running = self.open.running_ids(replica_id)
        model = self.started.get(replica_id, "")
        _must(replica_id not in self.remote, f"{replica_id} is stopped, which is somebody else's worker")
        self.ready.pop(replica_id, None)
        since_ns = self.draining_since_ns.get(replica_id)
        drained_out = (
            model in self.specs
            and since_ns is not None
            and (at_ns - since_ns >= self.specs[model].scaling.drain_timeout_ns)
        )
        is_silent = at_ns - self._heard_ns.get(replica_id, at_ns) >= SUSPECT_NS  # cut off: as good as gone
        if drained_out or is_silent or (self.shutdown_ns and at_ns >= self.shutdown_ns + self.grace_ns):
            self.excused[replica_id] = None
        if replica_id in self.excused:
            return
        _must(not running, f"{replica_id} is stopped while it runs {running}")

    def _take_entries(self, entries: Sequence[Entry], over: dict[str, Shadow]) -> None:
        owed = dict(over)
        for entry in entries:
            if isinstance(entry, RequestEntry):
                self._take_request(entry, owed.pop(entry.request_id, None) or self._give_up(entry.request_id))
            elif isinstance(entry, ReplicaEntry):
                parts = (entry.cold_ns, entry.idle_ns, entry.useful_ns)
                if sum(parts) != entry.to_ns - entry.from_ns:
                    _break(f"the span's parts do not add up: {entry}")
                if min(parts) < 0:
                    _break(f"negative: {entry}")
                known_ns = self._unheard.get(entry.replica_id, entry.to_ns)
                if entry.to_ns != known_ns:
                    _break(f"{entry.replica_id} is billed until {entry.to_ns}, but was last known of at {known_ns}")
                self.spans.setdefault(entry.replica_id, []).append(entry)
        _must(not owed, f"ended without a ledger entry: {list(owed)}")

    def _take_request(self, entry: RequestEntry, shadow: Shadow | None) -> None:
        if shadow is None or entry.request_id in self.ended:
            _break(f"{entry.request_id} got a ledger entry without ending, or a second one")
        if entry.attempts != shadow.attempts:
            _break(f"{entry.request_id}: the ledger counts {entry.attempts} attempts, not {shadow.attempts}")
        if entry.useful_ns < 0 or entry.cost_nusd < 0 or entry.energy_uj < 0:
            _break(f"negative: {entry}")
        if entry.arrived_ns > entry.ended_ns:
            _break(f"ended before it came: {entry}")
        if entry.outcome is Outcome.OK and not shadow.attempts:
            _break(f"OK without a dispatch: {entry}")
        self.ended[entry.request_id] = entry

    def _give_up(self, request_id: str) -> Shadow | None:
        """Control may end a request by itself when its worker is gone and no report on it comes."""
        shadow = self.open.get(request_id)
        if shadow is None or not shadow.replica_id or shadow.replica_id in self.started:
            return None
        self.given_up[request_id] = None
        return self.open.end(request_id)

    def _check_totals(self, status: ControlStatus) -> None:
        queued, in_flight = self.open.waiting_total, self.open.running_total
        if status.queued != queued or status.in_flight != in_flight:
            _break(f"{status.queued} queued and {status.in_flight} in flight by status, {queued} and {in_flight} are")
        for model in status.models:
            if min(model.queued, model.in_flight, model.ready, model.starting, model.draining) < 0:
                _break(f"negative: {model}")
            if model.queued != self.open.waiting(model.name):
                _break(f"{model.name}: {model.queued} queued by status, {self.open.waiting(model.name)} are")

    def _check_key_limit(self, request_id: str, reason: Reason) -> None:
        """A key is only told that it has too many in flight when it has."""
        shadow = self.open.get(request_id)
        if shadow is not None and reason is Reason.TOO_MANY_IN_FLIGHT:
            others, limit = self.open.of_key(shadow.request.key_id) - 1, self._limits[shadow.request.key_id]
            _must(others >= limit > 0, f"{request_id} is refused for {others} others in flight, the limit is {limit}")

    def _check_queue(self) -> None:
        """What just came may wait only where the queue had room; what waits after a failed attempt is beyond it."""
        shadow = self.open.get(self._arrived)
        self._arrived = ""
        if shadow is None or shadow.replica_id:
            return
        model = shadow.request.model
        fresh = self.open.fresh(model)
        bound = self.specs[model].admission.max_queue
        _must(fresh <= bound, f"{model}: {fresh} wait in the queue, the bound is {bound}")

    def _shadow(self, request_id: str, verb: str) -> Shadow:
        shadow = self.open.get(request_id)
        _must(shadow is not None, f"{request_id} was {verb}, but it is not open")
        assert shadow is not None
        return shadow


def _must(holds: bool, message: str) -> None:
    if not holds:
        raise Violation(message)


def _break(message: str) -> NoReturn:
    raise Violation(message)
