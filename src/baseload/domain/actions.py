"""What to do: the closed union of outputs of the control machine. Imperative. A driver performs these."""

from msgspec import Struct

from baseload.domain.errors import Reason
from baseload.domain.model import ModelSpec
from baseload.domain.work import Entry


class Dispatch(Struct, frozen=True, array_like=True, tag="dispatch"):
    """Forward the request to this replica. `attempt` counts from 1."""

    request_id: str
    replica_id: str
    url: str
    attempt: int


class Refuse(Struct, frozen=True, array_like=True, tag="refuse"):
    """Answer the request with an error; nothing was sent before. The machine has already forgotten it."""

    request_id: str
    reason: Reason
    message: str
    retry_after_ns: int = 0


class StartWorker(Struct, frozen=True, array_like=True, tag="start_worker"):
    """Launch a worker process for this model under this replica id."""

    replica_id: str
    spec: ModelSpec


class StopWorker(Struct, frozen=True, array_like=True, tag="stop_worker"):
    """End the worker: ask it (SIGTERM), and kill it when it is still there after `grace_ns`."""

    replica_id: str
    grace_ns: int


class SetTimer(Struct, frozen=True, array_like=True, tag="set_timer"):
    """Send TimerFired(timer) at `at_ns`. Setting the same name again moves it."""

    timer: str
    at_ns: int


class CancelTimer(Struct, frozen=True, array_like=True, tag="cancel_timer"):
    """Forget the timer, if it is set."""

    timer: str


class Record(Struct, frozen=True, array_like=True, tag="record"):
    """Write this entry to the journal, atomically with the event that caused it."""

    entry: Entry


class Shutdown(Struct, frozen=True, array_like=True, tag="shutdown"):
    """Everything has ended; the driver may stop."""


Action = Dispatch | Refuse | StartWorker | StopWorker | SetTimer | CancelTimer | Record | Shutdown
