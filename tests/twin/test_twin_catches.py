"""The checkers can fail: machines broken on purpose are caught, each by what it breaks."""

from collections.abc import Sequence

import msgspec
import pytest

from baseload.core.control import ControlMachine
from baseload.domain.actions import Action, Dispatch, Record, Refuse, SetTimer, StartWorker, StopWorker
from baseload.domain.events import ControlStarted, Event, RequestFinished, TimerFired, WorkerStarted
from baseload.domain.model import Admission, ModelSpec, Scaling
from baseload.domain.units import NS_PER_S
from baseload.domain.work import ReplicaEntry, RequestEntry
from baseload.twin.report import SimulateReport
from baseload.twin.run import Simulation
from baseload.twin.spec import Faults, SimulateConfig, Workload

MODEL = ModelSpec(
    name="m",
    source="simulated",
    scaling=Scaling(max_replicas=2, idle_ns=2 * NS_PER_S),
    admission=Admission(max_queue=6, max_concurrency_per_replica=4),
    context_tokens=4096,
)


class Tampered(ControlMachine):
    """Answers as the real machine does, then changes the answer."""

    def step(self, now_ns: int, event: Event) -> list[Action]:
        return list(self.tamper(event, super().step(now_ns, event)))

    def tamper(self, event: Event, actions: Sequence[Action]) -> Sequence[Action]:
        raise NotImplementedError


class LosesARequest(Tampered):
    def tamper(self, event: Event, actions: Sequence[Action]) -> Sequence[Action]:
        return [a for a in actions if not (isinstance(a, Dispatch) and a.request_id.endswith("5"))]


class DispatchesTwice(Tampered):
    def tamper(self, event: Event, actions: Sequence[Action]) -> Sequence[Action]:
        return [a for action in actions for a in ([action, action] if isinstance(action, Dispatch) else [action])]


class RefusesWhatRuns(Tampered):
    def tamper(self, event: Event, actions: Sequence[Action]) -> Sequence[Action]:
        extra = [Refuse(a.request_id, "queue_full", "") for a in actions if isinstance(a, Dispatch)]  # type: ignore[arg-type]
        return [*actions, *extra]


class DispatchesToWhatIsNotReady(Tampered):
    def tamper(self, event: Event, actions: Sequence[Action]) -> Sequence[Action]:
        if isinstance(event, WorkerStarted):
            return [*actions, Dispatch("req_000000000000000000000001", event.replica_id, event.url, 1)]
        return actions


class StartsTooMany(Tampered):
    def tamper(self, event: Event, actions: Sequence[Action]) -> Sequence[Action]:
        extra = [
            StartWorker(f"{a.replica_id}-{i}", a.spec) for a in actions if isinstance(a, StartWorker) for i in "abc"
        ]
        return [*actions, *extra]


class CutsWhatRuns(Tampered):
    def tamper(self, event: Event, actions: Sequence[Action]) -> Sequence[Action]:
        return [*actions, *(StopWorker(a.replica_id, 0) for a in actions if isinstance(a, Dispatch))]


class ForgetsALedgerEntry(Tampered):
    def tamper(self, event: Event, actions: Sequence[Action]) -> Sequence[Action]:
        return [a for a in actions if not (isinstance(a, Record) and isinstance(a.entry, RequestEntry))]


class WritesALedgerEntryTwice(Tampered):
    def tamper(self, event: Event, actions: Sequence[Action]) -> Sequence[Action]:
        if isinstance(event, RequestFinished):
            return [*actions, *(a for a in actions if isinstance(a, Record) and isinstance(a.entry, RequestEntry))]
        return actions


class BillsANanosecondTooMuch(Tampered):
    def tamper(self, event: Event, actions: Sequence[Action]) -> Sequence[Action]:
        changed: list[Action] = []
        for action in actions:
            if isinstance(action, Record) and isinstance(action.entry, RequestEntry) and action.entry.useful_ns:
                entry = msgspec.structs.replace(action.entry, useful_ns=action.entry.useful_ns + 1)
                action = Record(entry)
            changed.append(action)
        return changed


class LosesIdleTime(Tampered):
    def tamper(self, event: Event, actions: Sequence[Action]) -> Sequence[Action]:
        return [
            Record(msgspec.structs.replace(a.entry, idle_ns=0))
            if isinstance(a, Record) and isinstance(a.entry, ReplicaEntry)
            else a
            for a in actions
        ]


class NeverStopsAnything(Tampered):
    def tamper(self, event: Event, actions: Sequence[Action]) -> Sequence[Action]:
        return [a for a in actions if not isinstance(a, StopWorker)]


class SpinsAtOneInstant(Tampered):
    def tamper(self, event: Event, actions: Sequence[Action]) -> Sequence[Action]:
        return [*actions, SetTimer("spin:", 1)]


class Forgetful(Tampered):
    """Not the same after a restart."""

    def tamper(self, event: Event, actions: Sequence[Action]) -> Sequence[Action]:
        self.count = getattr(self, "count", 0) + 1
        return [SetTimer(a.timer, a.at_ns + self.count) if isinstance(a, SetTimer) else a for a in actions]


class BillsThePowerLoss(ControlMachine):
    """Takes the time of a restart for the last it knew of its replicas."""

    def step(self, now_ns: int, event: Event) -> list[Action]:
        if isinstance(event, ControlStarted):
            super().step(now_ns, TimerFired("none"))
        return super().step(now_ns, event)


def run(machine: type[ControlMachine], faults: Faults | None = None) -> SimulateReport:
    workload = Workload(requests=60, rate_per_s=3.0, prompt_tokens=100, output_tokens=20, spread=0.3)
    return Simulation(
        SimulateConfig(seed=7, models=(MODEL,), workload=workload, faults=faults or Faults()), machine=machine
    ).run()


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (LosesARequest, "in flight by status"),
        (DispatchesTwice, "already runs"),
        (RefusesWhatRuns, "is refused while"),
        (DispatchesToWhatIsNotReady, "not ready"),
        (StartsTooMany, "is number 3 of at most 2"),
        (CutsWhatRuns, "is stopped while it runs"),
        (ForgetsALedgerEntry, "ended without a ledger entry"),
        (WritesALedgerEntryTwice, "without ending, or a second one"),
        (BillsANanosecondTooMuch, "!= replica time"),
        (LosesIdleTime, "parts do not add up"),
        (NeverStopsAnything, "workers left|Shutdown while"),
        (SpinsAtOneInstant, "busy at one instant"),
    ],
)
def test_a_broken_machine_is_caught(machine: type[ControlMachine], said: str) -> None:
    failure = run(machine).failure
    assert failure is not None
    assert failure.message.startswith("Violation: ")
    assert any(part in failure.message for part in said.split("|")), failure.message
    assert failure.command == "baseload simulate --seed 7"
    assert failure.tail


def test_a_machine_that_does_not_replay_is_caught() -> None:
    failure = run(Forgetful, Faults(control_restart_every_s=3.0)).failure
    assert failure is not None
    assert "replay" in failure.message


def test_time_without_power_that_is_billed_is_caught() -> None:
    faults = Faults(power_loss_every_s=5.0)
    failure = run(BillsThePowerLoss, faults).failure
    assert failure is not None
    assert "was last known of at" in failure.message
    assert run(ControlMachine, faults).failure is None


def test_the_real_machine_passes_the_same_run() -> None:
    assert run(ControlMachine).failure is None
    assert run(ControlMachine, Faults(control_restart_every_s=3.0)).failure is None
