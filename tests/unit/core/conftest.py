"""A stage for the control machine: events in, actions out, on a clock that only the test moves."""

from typing import TypeVar

import pytest

from baseload.core.control import ControlMachine
from baseload.domain.actions import Action, CancelTimer, Dispatch, Record, Refuse, SetTimer, StartWorker, StopWorker
from baseload.domain.events import (
    ControlStarted,
    Event,
    FirstByteSent,
    KeyCreated,
    ModelPut,
    RequestArrived,
    RequestFinished,
    TimerFired,
    WorkerExited,
    WorkerReady,
)
from baseload.domain.model import ModelSpec
from baseload.domain.status import ModelStatus
from baseload.domain.tenant import Key
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Decision, Endpoint, Outcome, ReplicaEntry, Request, RequestEntry, TokenCounts

T0 = 1_790_000_000 * NS_PER_S
A = TypeVar("A", bound=Action)


class Stage:
    """Drives one control machine and remembers all it did."""

    def __init__(self) -> None:
        self.machine = ControlMachine(seed=1)
        self.now = T0
        self.actions: list[Action] = []  # of the last call
        self.all: list[Action] = []
        self.timers: dict[str, int] = {}
        self.count = 0
        self.tell(ControlStarted("1", 1))
        self.tell(KeyCreated(Key("key_1", "one", "1" * 64, T0)))

    def tell(self, *events: Event, after_s: float = 0.0) -> list[Action]:
        """Step events after some time; returns their actions."""
        self.now += round(after_s * NS_PER_S)
        self.actions = []
        for event in events:
            self.actions += self._step(event)
        return self.actions

    def wait(self, seconds: float) -> list[Action]:
        """Let time pass; timers fire when due. Returns all actions."""
        until, actions = self.now + round(seconds * NS_PER_S), []
        while self.timers and min(self.timers.values()) <= until:
            timer = min(self.timers, key=lambda name: (self.timers[name], name))
            self.now = max(self.now, self.timers.pop(timer))
            actions += self._step(TimerFired(timer))
        self.now = until
        self.actions = actions
        return actions

    def _step(self, event: Event) -> list[Action]:
        actions = self.machine.step(self.now, event)
        self.machine.check()
        for action in actions:
            if isinstance(action, SetTimer):
                self.timers[action.timer] = action.at_ns
            elif isinstance(action, CancelTimer):
                self.timers.pop(action.timer, None)
        self.all += actions
        return actions

    # -- short hands ------------------------------------------------------------------------------------------

    def put(self, spec: ModelSpec) -> list[str]:
        """Put a model; returns the replicas started."""
        self.tell(ModelPut(spec))
        return [action.replica_id for action in self.of(StartWorker)]

    def ready(self, *replica_ids: str) -> None:
        """Workers become ready."""
        self.tell(*(WorkerReady(name, f"http://{name}") for name in replica_ids))

    def exit(self, replica_id: str, code: int = 1, detail: str = "boom") -> None:
        """A worker ends."""
        self.tell(WorkerExited(replica_id, code, detail))

    def ask(
        self, model: str = "m", *, key_id: str = "key_1", tokens: int = 20, deadline_s: float = 0, **more: object
    ) -> str:
        """A request comes; returns its id."""
        self.count += 1
        request_id = f"req_{self.count}"
        deadline_ns = self.now + round(deadline_s * NS_PER_S) if deadline_s else 0
        request = Request(request_id, key_id, model, Endpoint.CHAT, 10, tokens - 10, deadline_ns, **more)
        self.tell(RequestArrived(request))
        return request_id

    def answer(self, request_id: str, outcome: Outcome = Outcome.OK) -> None:
        """A request gets its first byte and ends."""
        self.tell(FirstByteSent(request_id), RequestFinished(request_id, outcome, None, TokenCounts(10, 2, 5)))

    def of(self, kind: type[A]) -> list[A]:
        """The last call's actions of one kind."""
        return [action for action in self.actions if isinstance(action, kind)]

    def dispatched(self) -> list[tuple[str, str]]:
        """(request, replica) dispatched by the last call."""
        return [(action.request_id, action.replica_id) for action in self.of(Dispatch)]

    def refused(self) -> list[Refuse]:
        """Requests refused by the last call."""
        return self.of(Refuse)

    def stopped(self) -> list[str]:
        """Replicas stopped by the last call."""
        return [action.replica_id for action in self.of(StopWorker)]

    def started(self) -> list[str]:
        """Replicas started by the last call."""
        return [action.replica_id for action in self.of(StartWorker)]

    def decisions(self, what: str) -> list[Decision]:
        """All decisions of one kind so far."""
        entries = [action.entry for action in self.all if isinstance(action, Record)]
        return [entry for entry in entries if isinstance(entry, Decision) and entry.what == what]

    def entries(self) -> list[RequestEntry]:
        """All request entries so far."""
        entries = [action.entry for action in self.all if isinstance(action, Record)]
        return [entry for entry in entries if isinstance(entry, RequestEntry)]

    def entry(self, request_id: str) -> RequestEntry:
        """The one entry of a request."""
        (entry,) = [entry for entry in self.entries() if entry.request_id == request_id]
        return entry

    def spans(self) -> list[ReplicaEntry]:
        """All replica entries so far."""
        entries = [action.entry for action in self.all if isinstance(action, Record)]
        return [entry for entry in entries if isinstance(entry, ReplicaEntry)]

    def model(self, name: str = "m") -> ModelStatus:
        """A model's status now."""
        (status,) = [status for status in self.machine.status(self.now).models if status.name == name]
        return status


@pytest.fixture
def stage() -> Stage:
    """A control machine that has just started, with one key."""
    return Stage()
