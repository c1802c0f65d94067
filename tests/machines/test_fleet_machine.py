"""The fleet settles: after any disturbance, well-behaved workers and clients bring every model to where it should be.

Safety is the control machine's test; this one is about progress. Nothing may be left waiting, starting, draining,
suspected or unconfirmed for ever.
"""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, rule

from baseload.core.control import ControlMachine
from baseload.domain.actions import CancelTimer, Dispatch, Refuse, SetTimer, StartWorker, StopWorker
from baseload.domain.errors import Reason
from baseload.domain.events import (
    ControlStarted,
    DispatchFailed,
    Event,
    KeyCreated,
    ModelPut,
    RequestArrived,
    RequestFinished,
    TimerFired,
    WorkerExited,
    WorkerReady,
    WorkerSampled,
)
from baseload.domain.fleet import ReplicaState, WorkerSample
from baseload.domain.model import Admission, EngineSpec, ModelSpec, Scaling
from baseload.domain.tenant import Key
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Endpoint, Outcome, Request, TokenCounts

T0 = 1_790_000_000 * NS_PER_S
PICK = st.integers(0, 1 << 20)


class Fleet(RuleBasedStateMachine):
    """One model, disturbed; in the end everyone behaves."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = ControlMachine(seed=3)
        self.now = T0
        self.timers: dict[str, int] = {}
        self.alive: list[str] = []  # worker processes
        self.told_to_stop: list[str] = []
        self.running: dict[str, str] = {}
        self.waiting: list[str] = []
        self.number = 0
        self.spec = ModelSpec("m", "/m")
        self.tell(ControlStarted("1", 3))
        self.tell(KeyCreated(Key("k", "k", "0" * 64, T0)))
        self.put(0, 3, 0)

    def tell(self, event: Event) -> None:
        for action in self.machine.step(self.now, event):
            match action:
                case StartWorker():
                    self.alive.append(action.replica_id)
                case StopWorker() if action.replica_id in self.alive:
                    self.told_to_stop.append(action.replica_id)
                case Dispatch():
                    self.waiting.remove(action.request_id)
                    self.running[action.request_id] = action.replica_id
                case Refuse():
                    if action.request_id in self.waiting:
                        self.waiting.remove(action.request_id)
                    self.running.pop(action.request_id, None)
                case SetTimer():
                    self.timers[action.timer] = action.at_ns
                case CancelTimer():
                    self.timers.pop(action.timer, None)
                case _:
                    pass
        self.machine.check()

    @rule(low=st.integers(0, 2), more=st.integers(0, 2), threads=st.integers(0, 1))
    def put(self, low: int, more: int, threads: int) -> None:
        self.spec = ModelSpec(
            "m",
            "/m",
            scaling=Scaling(low, max(1, low + more), idle_ns=20 * NS_PER_S, drain_timeout_ns=40 * NS_PER_S),
            admission=Admission(max_queue=50, max_wait_ns=600 * NS_PER_S, max_concurrency_per_replica=3),
            engine=EngineSpec(threads=threads),
        )
        self.tell(ModelPut(self.spec))

    @rule(count=st.integers(1, 12))
    def arrive(self, count: int) -> None:
        for _ in range(count):
            self.number += 1
            name = f"req_{self.number}"
            self.waiting.append(name)
            self.tell(RequestArrived(Request(name, "k", "m", Endpoint.CHAT, 1, 1, 0)))

    @rule(which=PICK, reason=st.sampled_from([Reason.WORKER_LOST, Reason.WORKER_ERROR]))
    def fail(self, which: int, reason: Reason) -> None:
        if self.running:
            name = list(self.running)[which % len(self.running)]
            self.waiting.append(name)
            self.tell(DispatchFailed(name, self.running.pop(name), reason))

    @rule(which=PICK, code=st.sampled_from([1, -9]))
    def crash(self, which: int, code: int) -> None:
        if self.alive:
            replica_id = self.alive.pop(which % len(self.alive))
            self.tell(WorkerExited(replica_id, code, "boom"))

    @rule(which=PICK)
    def ready(self, which: int) -> None:
        if self.alive:
            self.tell(WorkerReady(self.alive[which % len(self.alive)], "http://w"))

    @rule(seconds=st.sampled_from([1, 5, 30, 90]))
    def wait(self, seconds: int) -> None:
        until = self.now + seconds * NS_PER_S
        while self.timers and min(self.timers.values()) <= until:
            timer = min(self.timers, key=lambda name: (self.timers[name], name))
            self.now = max(self.now, self.timers.pop(timer))
            self.tell(TimerFired(timer))
        self.now = until

    @rule()
    def restart(self) -> None:
        self.timers.clear()
        self.running.clear()
        self.waiting.clear()
        self.machine = ControlMachine.restore(self.machine.snapshot())
        self.tell(ControlStarted("1", 3))

    def behave(self) -> None:
        """Workers become ready, answer samples and end when told; requests are answered."""
        known = [replica.replica_id for replica in self.machine.status(self.now).replicas]
        for replica_id in known:
            if replica_id not in self.alive or replica_id in self.told_to_stop:
                if replica_id in self.alive:
                    self.alive.remove(replica_id)
                self.tell(WorkerExited(replica_id, 0))
            else:
                self.tell(WorkerReady(replica_id, "http://w"))
                self.tell(WorkerSampled(replica_id, WorkerSample()))
        for name in list(self.running):
            if self.running.pop(name, ""):
                self.tell(RequestFinished(name, Outcome.OK, None, TokenCounts(1, 0, 1)))

    def teardown(self) -> None:
        for _ in range(40):
            self.behave()
            self.wait(3)
        status = self.machine.status(self.now)
        (model,) = status.models
        assert not self.waiting, "whoever waited was answered or refused"
        assert not self.running
        assert model.queued == model.in_flight == 0
        assert model.ready == len(status.replicas) == self.spec.scaling.min_replicas, "idle: down to the minimum"
        assert all(replica.state is ReplicaState.READY for replica in status.replicas)
        self.arrive(1)
        for _ in range(30):
            self.behave()
            self.wait(3)
        assert self.machine.status(self.now).models[0].crashes == 0, "it served on, or slept in order"
        assert not self.waiting, "and it still serves"
        assert not [
            timer for timer in self.timers if timer.startswith(("start:", "stop:", "drain:", "lost:", "suspect:"))
        ]


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
