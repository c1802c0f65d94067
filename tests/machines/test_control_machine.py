"""The control machine against a small, unkind world: its promises to clients and to the ledger hold regardless."""

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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
from baseload.domain.fleet import WorkerSample
from baseload.domain.model import Admission, EngineSpec, ModelSpec, Price, Scaling
from baseload.domain.tenant import Key, KeyLimits
from baseload.domain.units import NS_PER_DAY, NS_PER_HOUR, NS_PER_S
from baseload.domain.work import Endpoint, Outcome, ReplicaEntry, Request, RequestEntry, TokenCounts

T0 = 1_790_000_000 * NS_PER_S
KEYS = [
    Key("key_open", "open", "a" * 64, T0),
    Key("key_tight", "tight", "b" * 64, T0, limits=KeyLimits(30, 2_000, 3)),
    Key("key_one", "one", "c" * 64, T0, models=("a",)),
]
SCALINGS = [
    Scaling(0, 1, idle_ns=20 * NS_PER_S),
    Scaling(0, 3, idle_ns=5 * NS_PER_S, scale_up_cooldown_ns=NS_PER_S, start_timeout_ns=30 * NS_PER_S),
    Scaling(1, 2, idle_ns=NS_PER_S, drain_timeout_ns=10 * NS_PER_S),
    Scaling(2, 4, idle_ns=3 * NS_PER_S, target_queue_delay_ns=0, scale_up_cooldown_ns=0),
]
ADMISSIONS = [
    Admission(max_queue=4, max_wait_ns=10 * NS_PER_S, max_concurrency_per_replica=2, max_attempts=2),
    Admission(max_queue=20, max_wait_ns=60 * NS_PER_S, max_concurrency_per_replica=1, max_attempts=3),
    Admission(max_queue=0, max_concurrency_per_replica=3, max_attempts=1),
]
SOURCES = ["/models/x", "/models/y", "http://10.0.0.9:8000/v1"]
REASONS = [Reason.WORKER_LOST, Reason.WORKER_ERROR]
PICK = st.integers(min_value=0, max_value=1 << 30)


class World(RuleBasedStateMachine):
    """A driver, its workers and its clients, all at once. A machine restored from bytes takes each step as well."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = ControlMachine(seed=7)
        self.shadow: ControlMachine | None = None
        self.now = T0
        self.timers: dict[str, int] = {}
        self.workers: dict[str, str] = {}  # told to start and not yet reported gone -> "", "ready" or "stopping"
        self.launched: set[str] = set()
        self.last_known: dict[str, int] = {}  # replicas nothing was heard of since a restart -> until when
        self.stepped_ns = T0
        self.open: dict[str, str] = {}  # request -> replica ("" while it waits)
        self.failed: dict[str, list[str]] = {}
        self.bytes_out: set[str] = set()
        self.number = 0
        self.arrived: list[str] = []
        self.entries: dict[str, RequestEntry] = {}
        self.spans: dict[str, list[ReplicaEntry]] = {}
        self.specs: dict[str, ModelSpec] = {}
        self.most: dict[str, int] = {}
        self.is_over = False
        self.tell(ControlStarted("1", 7))
        for key in KEYS:
            self.tell(KeyCreated(key))
        self.put("a", 1, 0, 0, 0, 0)

    # -- the driver's part --------------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        actions = self.machine.step(self.now, event)
        self.stepped_ns = self.now
        if isinstance(event, WorkerStarted | WorkerReady):
            self.last_known.pop(event.replica_id, None)
        if self.shadow is not None:
            assert self.shadow.step(self.now, event) == actions
        for action in actions:
            self.perform(action)

    def perform(self, action: Action) -> None:
        match action:
            case Dispatch():
                assert self.open[action.request_id] == ""
                assert self.workers[action.replica_id] == "ready"
                assert action.replica_id not in self.failed.get(action.request_id, [])
                assert action.attempt == len(self.failed.get(action.request_id, [])) + 1
                self.open[action.request_id] = action.replica_id
            case Refuse():
                assert action.request_id not in self.bytes_out
                assert action.message
                del self.open[action.request_id]
            case StartWorker():
                assert action.replica_id not in self.workers
                self.launched.add(action.replica_id)
                self.workers[action.replica_id] = ""
                scaling = action.spec.scaling
                live = [name for name in self.workers if name.startswith(f"{action.spec.name}-")]
                assert len(live) <= max(scaling.max_replicas, scaling.min_replicas)
            case StopWorker():
                assert action.replica_id in self.launched or action.replica_id in ("ghost-1", "nobody")  # no remote
                if action.replica_id in self.workers:
                    self.workers[action.replica_id] = "stopping"
            case SetTimer():
                self.timers[action.timer] = action.at_ns
            case CancelTimer():
                self.timers.pop(action.timer, None)
            case Shutdown():
                assert not self.open
                self.is_over = True
            case Record(entry=RequestEntry() as entry):
                assert entry.request_id not in self.entries
                self.entries[entry.request_id] = entry
                self.open.pop(entry.request_id, None)  # given up: no report on it came in time
            case Record(entry=ReplicaEntry() as entry):
                spans = self.spans.setdefault(entry.replica_id, [])
                assert not spans or (spans[-1].to_ns == entry.from_ns and not spans[-1].final)
                assert entry.to_ns - entry.from_ns == entry.cold_ns + entry.idle_ns + entry.useful_ns
                assert entry.to_ns == self.last_known.get(entry.replica_id, entry.to_ns)
                spans.append(entry)
                if entry.final:
                    self.workers.pop(entry.replica_id, None)
                elif entry.replica_id not in self.workers:
                    self.workers[entry.replica_id] = "ready"

    def pick(self, which: int, among: list[str]) -> str:
        return among[which % len(among)] if among else "nobody"

    def running(self) -> list[str]:
        return [request_id for request_id, replica_id in self.open.items() if replica_id]

    def note_remote(self) -> None:
        for replica in self.machine.status(self.now).replicas:
            self.workers.setdefault(replica.replica_id, "ready")

    # -- administration -----------------------------------------------------------------------------------------

    @rule(
        name=st.sampled_from("ab"),
        scaling=st.integers(0, 3),
        admission=st.integers(0, 2),
        source=st.integers(0, 2),
        threads=st.integers(0, 1),
        price=st.integers(0, 1),
    )
    def put(self, name: str, scaling: int, admission: int, source: int, threads: int, price: int) -> None:
        spec = ModelSpec(
            name=name,
            source=SOURCES[source],
            scaling=SCALINGS[scaling],
            admission=ADMISSIONS[admission],
            engine=EngineSpec(threads=threads),
            price=Price(usd_per_hour=0.1 + price, busy_w=33.3),
        )
        self.specs[name] = spec
        self.remote_before_ready(spec)
        self.tell(ModelPut(spec))

    def remote_before_ready(self, spec: ModelSpec) -> None:
        """A remote replica is ready without a report, under an id the world learns from the Dispatch."""
        if spec.is_remote:
            self.workers = _Trusting(self.workers)

    @rule(name=st.sampled_from("ab"))
    def remove(self, name: str) -> None:
        self.specs.pop(name, None)
        self.tell(ModelRemoved(name))

    @rule(which=st.integers(0, 2), create=st.booleans())
    def keys(self, which: int, create: bool) -> None:
        self.tell(KeyCreated(KEYS[which]) if create else KeyRevoked(KEYS[which].key_id))

    # -- clients ------------------------------------------------------------------------------------------------

    @rule(
        model=st.sampled_from("aaabc"),
        key=st.sampled_from(["key_open", "key_open", "key_tight", "key_one", "key_none"]),
        deadline_s=st.sampled_from([0, 0, 1, 100]),
        prefix=st.integers(0, 3),
        count=st.integers(1, 6),
    )
    def arrive(self, model: str, key: str, deadline_s: int, prefix: int, count: int) -> None:
        for _ in range(count):
            self.number += 1
            request_id = f"req_{self.number}"
            deadline_ns = self.now + deadline_s * NS_PER_S if deadline_s else 0
            prefixes = tuple(range(prefix, 2 * prefix))
            request = Request(request_id, key, model, Endpoint.CHAT, 50, 50, deadline_ns, prefix_hashes=prefixes)
            self.arrived.append(request_id)
            self.open[request_id] = ""
            self.tell(RequestArrived(request))

    @rule(which=PICK)
    def first_byte(self, which: int) -> None:
        request_id = self.pick(which, self.running())
        if request_id in self.open:
            self.bytes_out.add(request_id)
        self.tell(FirstByteSent(request_id))

    @rule(which=PICK, outcome=st.sampled_from([Outcome.OK, Outcome.OK, Outcome.REJECTED, Outcome.FAILED]))
    def finish(self, which: int, outcome: Outcome) -> None:
        request_id = self.pick(which, self.running())
        self.open.pop(request_id, None)
        reason = Reason.WORKER_ERROR if outcome is Outcome.FAILED else None
        self.tell(RequestFinished(request_id, outcome, reason, TokenCounts(40, 8, 20)))

    @rule(which=PICK)
    def cancel(self, which: int) -> None:
        request_id = self.pick(which, list(self.open))
        self.open.pop(request_id, None)
        self.tell(RequestFinished(request_id, Outcome.CANCELLED, Reason.CLIENT_GONE, TokenCounts()))

    @rule(which=PICK, reason=st.sampled_from(REASONS))
    def fail(self, which: int, reason: Reason) -> None:
        request_id = self.pick(which, [name for name in self.running() if name not in self.bytes_out])
        replica_id = self.open.get(request_id, "")
        if replica_id:
            self.failed.setdefault(request_id, []).append(replica_id)
            self.open[request_id] = ""
        self.tell(DispatchFailed(request_id, replica_id, reason, "connection reset"))

    @rule(which=PICK)
    def late_reports(self, which: int) -> None:
        """Reports about requests and workers that are long over, or never were."""
        over = self.pick(which, [name for name in self.arrived if name not in self.open])
        self.tell(FirstByteSent(over))
        self.tell(RequestFinished(over, Outcome.OK, None, TokenCounts(1, 0, 1)))
        self.tell(DispatchFailed(over, "a-1", Reason.WORKER_LOST))
        waiting = self.pick(which, [name for name, replica_id in self.open.items() if not replica_id])
        self.tell(FirstByteSent(waiting))
        self.tell(DispatchFailed(waiting, "a-1", Reason.WORKER_LOST))
        self.tell(WorkerReady("ghost-1", "http://127.0.0.1:1"))
        self.tell(WorkerExited("ghost-2", 0))
        self.tell(TimerFired("scale:a"))
        self.tell(TimerFired("no such timer"))

    # -- workers ------------------------------------------------------------------------------------------------

    def local(self) -> list[str]:
        return [
            replica.replica_id
            for replica in self.machine.status(self.now).replicas
            if not replica.url.startswith("http://10.")
        ]

    @rule(which=PICK)
    def started(self, which: int) -> None:
        replica_id = self.pick(which, self.local())
        if self.workers.get(replica_id) == "doubted":
            self.workers[replica_id] = ""
        self.tell(WorkerStarted(replica_id, 4711, ""))

    @rule(which=PICK)
    def ready(self, which: int) -> None:
        replica_id = self.pick(which, self.local())
        if self.workers.get(replica_id) in ("", "doubted"):
            self.workers[replica_id] = "ready"
        self.tell(WorkerReady(replica_id, "http://127.0.0.1:2"))

    @rule()
    def all_ready(self) -> None:
        for which in range(len(self.local())):
            self.ready(which)

    @rule(which=PICK, code=st.sampled_from([0, 1, 127, -9]))
    def exited(self, which: int, code: int) -> None:
        replica_id = self.pick(which, self.local())
        self.tell(WorkerExited(replica_id, code, "Traceback\n  boom"))

    @rule(which=PICK, kv=st.floats(0, 1), waiting=st.integers(0, 2))
    def sampled(self, which: int, kv: float, waiting: int) -> None:
        self.tell(WorkerSampled(self.pick(which, self.local()), WorkerSample(1, waiting, kv)))

    @rule(which=PICK, energy_uj=st.integers(0, 10**9))
    def energy(self, which: int, energy_uj: int) -> None:
        self.tell(EnergyMeasured(self.pick(which, self.local()), energy_uj, "rapl"))

    # -- time and the control process ---------------------------------------------------------------------------

    @rule(passed_ns=st.one_of(st.integers(1, NS_PER_S), st.integers(1, 40 * NS_PER_S), st.just(NS_PER_HOUR * 25)))
    def wait(self, passed_ns: int) -> None:
        """Time passes; what falls due on the way fires (for a bounded number of firings)."""
        until = self.now + passed_ns
        for _ in range(60):
            due = min(self.timers.items(), key=lambda item: (item[1], item[0]), default=None)
            if due is None or due[1] > until:
                break
            del self.timers[due[0]]
            self.now = max(self.now, due[1])
            self.tell(TimerFired(due[0]))
        self.now = max(self.now, min(until, *self.timers.values()) if self.timers else until)

    @rule()
    def save(self) -> None:
        self.shadow = ControlMachine.restore(self.machine.snapshot())
        assert self.shadow.snapshot() == self.machine.snapshot()

    @rule(
        down_ns=st.integers(0, 3 * NS_PER_S) | st.integers(0, 2 * NS_PER_DAY),
        reports=st.lists(st.sampled_from("rsx-"), min_size=8, max_size=8),
    )
    def restart(self, down_ns: int, reports: list[str]) -> None:
        """kill -9 of the control process; its workers live on, or not."""
        for replica_id in self.local():
            self.last_known.setdefault(replica_id, self.stepped_ns)
        self.now += down_ns
        self.timers.clear()
        self.open.clear()
        self.is_over = False
        before = dict(self.workers)
        for replica_id in self.workers:
            self.workers[replica_id] = "doubted"
        remote = [name for name in before if name not in self.local()]
        for replica_id in remote:
            self.workers[replica_id] = before[replica_id]
        self.tell(ControlStarted("1", 7))
        for replica_id, report in zip(self.local(), reports, strict=False):
            if self.workers.get(replica_id) != "doubted":
                continue  # new since
            if report == "r":
                self.workers[replica_id] = "ready"
                self.tell(WorkerReady(replica_id, "http://127.0.0.1:3"))
            elif report == "s":
                self.workers[replica_id] = ""
                self.tell(WorkerStarted(replica_id, 1, ""))
            elif report == "x":
                self.tell(WorkerExited(replica_id, -9))

    @rule(grace_ns=st.integers(0, 5 * NS_PER_S))
    @precondition(lambda self: not self.is_over)
    def shut_down(self, grace_ns: int) -> None:
        self.tell(ShutdownAsked(grace_ns))

    # -- what must hold -----------------------------------------------------------------------------------------

    @invariant()
    def sound(self) -> None:
        self.machine.check()
        status = self.machine.status(self.now)
        assert status.queued + status.in_flight == len(self.open)
        assert sum(model.in_flight for model in status.models) == len(self.running())
        for model in status.models:
            spec = self.specs.get(model.name)
            assert model.queued == 0 or spec is not None
        for replica in status.replicas:
            until = self.last_known.get(replica.replica_id, self.now)
            assert replica.cold_ns + replica.idle_ns + replica.useful_ns == until - replica.started_ns
        assert set(self.entries) | set(self.open) == set(self.arrived)
        assert not set(self.entries) & set(self.open)

    @invariant()
    def closes(self) -> None:
        """Recorded or open: shares + idle + cold = replica time, and the money follows the time."""
        entries = [*self.entries.values(), *(span for spans in self.spans.values() for span in spans)]
        entries += self.machine.open_entries(self.now)
        requests = [entry for entry in entries if isinstance(entry, RequestEntry)]
        spans = [entry for entry in entries if isinstance(entry, ReplicaEntry)]
        shared = sum(entry.useful_ns for entry in requests)
        assert shared == sum(span.useful_ns for span in spans)
        assert shared + sum(span.idle_ns + span.cold_ns for span in spans) == sum(
            span.to_ns - span.from_ns for span in spans
        )
        exact = sum(span.price_usd_per_hour * 1e9 * (span.to_ns - span.from_ns) / NS_PER_HOUR for span in spans)
        billed = sum(entry.cost_nusd for entry in requests)
        billed += sum(span.idle_cost_nusd + span.cold_cost_nusd for span in spans)
        assert abs(billed - exact) <= len(requests) + 2 * len(spans) + 1e-6 * exact

    def teardown(self) -> None:
        """Everything drains and the ledger closes for good."""
        for request_id in list(self.open):
            self.tell(RequestFinished(request_id, Outcome.CANCELLED, Reason.CLIENT_GONE, TokenCounts()))
            self.open.pop(request_id, None)
        if not self.is_over:
            self.tell(ShutdownAsked(0))
        for _ in range(12):
            if self.is_over:
                break
            for replica in self.machine.status(self.now).replicas:
                self.tell(WorkerExited(replica.replica_id, 0))
            self.wait(40 * NS_PER_S)
        assert self.is_over
        assert not self.machine.open_entries(self.now)
        assert all(spans[-1].final for spans in self.spans.values())
        self.closes()
        self.sound()


class _Trusting(dict[str, str]):
    """Workers by id; one never heard of is remote and ready."""

    def __missing__(self, replica_id: str) -> str:
        return "ready"


TestControl = World.TestCase
TestControl.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
    print_blob=True,
)
