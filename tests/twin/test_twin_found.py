"""What hunts have found, each as the shortest story that shows it.

A seed draws another run whenever the swarm learns something new, so a failing seed is pinned as the events that
mattered in it. Each of these failed before its fix.
"""

from baseload.core.control import ControlMachine
from baseload.domain.actions import Action, Dispatch, StopWorker
from baseload.domain.events import (
    ControlStarted,
    Event,
    KeyCreated,
    ModelPut,
    ModelRemoved,
    RequestArrived,
    RequestFinished,
    TimerFired,
)
from baseload.domain.model import ModelSpec, Scaling
from baseload.domain.tenant import Key
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Endpoint, Outcome, Request, TokenCounts

REMOTE = ModelSpec(name="m", source="http://elsewhere", scaling=Scaling(drain_timeout_ns=NS_PER_S))


def told(*events: Event) -> tuple[ControlMachine, list[Action]]:
    """A machine that was told these, one a second; and all it answered."""
    machine = ControlMachine(seed=1)
    key = Key(key_id="key_1", name="k", secret_sha256="1" * 64, created_ns=0)
    actions: list[Action] = []
    for second, event in enumerate([ControlStarted("1", 1), KeyCreated(key), *events], start=1):
        actions += machine.step(second * NS_PER_S, event)
    return machine, actions


def arrived(number: int) -> RequestArrived:
    return RequestArrived(Request(f"req_{number}", "key_1", "m", Endpoint.CHAT, 10, 10, 0))


def test_a_remote_worker_is_never_stopped_however_long_its_last_request_takes() -> None:
    machine, actions = told(
        ModelPut(REMOTE),
        arrived(1),
        ModelRemoved("m"),
        *(TimerFired("drain:m-1") for _ in range(3)),
        RequestFinished("req_1", Outcome.OK, None, TokenCounts(10, 0, 5)),
    )
    assert any(isinstance(action, Dispatch) for action in actions)
    assert not any(isinstance(action, StopWorker) for action in actions)
    assert machine.status(60 * NS_PER_S).replicas == ()


def test_a_request_for_a_model_whose_removal_waits_for_its_last_request_is_refused() -> None:
    machine, _ = told(ModelPut(REMOTE), arrived(1), ModelRemoved("m"), arrived(2))
    status = machine.status(60 * NS_PER_S)
    assert (status.in_flight, status.refused_total) == (1, 1)


def test_a_remote_model_that_runs_nothing_can_be_removed() -> None:
    machine, _ = told(ModelPut(REMOTE), ModelRemoved("m"))
    assert machine.status(60 * NS_PER_S).models == ()
