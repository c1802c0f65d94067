"""What happened: the closed union of inputs to the control machine. Past tense. The journal holds these."""

from msgspec import Struct

from baseload.domain.errors import Reason
from baseload.domain.fleet import WorkerSample
from baseload.domain.model import ModelSpec
from baseload.domain.tenant import Key
from baseload.domain.work import Outcome, PhaseTimes, Request, TokenCounts

# -- administration: acknowledged only once durable -----------------------------------------------------------


class ModelPut(Struct, frozen=True, array_like=True, tag="model_put"):
    """A model was added, or its specification replaced."""

    spec: ModelSpec


class ModelRemoved(Struct, frozen=True, array_like=True, tag="model_removed"):
    """A model was removed: its queue is refused, its replicas drain."""

    model: str


class KeyCreated(Struct, frozen=True, array_like=True, tag="key_created"):
    """A key was created. Only the hash of its secret is here."""

    key: Key


class KeyRevoked(Struct, frozen=True, array_like=True, tag="key_revoked"):
    """A key was revoked; requests already running finish."""

    key_id: str


# -- requests --------------------------------------------------------------------------------------------------


class RequestArrived(Struct, frozen=True, array_like=True, tag="arrived"):
    """A parsed, authenticated request asks to be served."""

    request: Request


class FirstByteSent(Struct, frozen=True, array_like=True, tag="first_byte"):
    """The first byte of the answer went to the client: from here on no retry is possible.

    Not told of an answer that leaves whole: its RequestFinished(OK) says it all.
    """

    request_id: str


class RequestFinished(Struct, frozen=True, array_like=True, tag="finished"):
    """The dispatched request ended and nothing more will be done for it.

    OK and REJECTED (the worker refused it properly), CANCELLED (the client went), or FAILED after the first byte.
    `tokens` are those measured, or counted by the gateway where the worker could not say any more.
    """

    request_id: str
    outcome: Outcome
    reason: Reason | None
    tokens: TokenCounts
    phases: PhaseTimes = PhaseTimes()


class DispatchFailed(Struct, frozen=True, array_like=True, tag="dispatch_failed"):
    """The replica could not be reached, died or was overloaded before the first byte: another may try."""

    request_id: str
    replica_id: str
    reason: Reason
    detail: str = ""


# -- fleet -----------------------------------------------------------------------------------------------------


class WorkerStarted(Struct, frozen=True, array_like=True, tag="worker_started"):
    """A worker process exists (not yet ready)."""

    replica_id: str
    pid: int
    url: str


class WorkerReady(Struct, frozen=True, array_like=True, tag="worker_ready"):
    """A worker answers /health and takes requests."""

    replica_id: str
    url: str


class WorkerExited(Struct, frozen=True, array_like=True, tag="worker_exited"):
    """A worker process is gone, or could not be started. `detail` is the end of its log, for people."""

    replica_id: str
    exit_code: int  # negative: killed by that signal; 127: could not be started
    detail: str = ""


class WorkerSampled(Struct, frozen=True, array_like=True, tag="worker_sampled"):
    """A worker's figures were polled."""

    replica_id: str
    sample: WorkerSample


class EnergyMeasured(Struct, frozen=True, array_like=True, tag="energy"):
    """A meter was read: the replica's share of measured energy since the last such event."""

    replica_id: str
    energy_uj: int
    basis: str  # "rapl" | "nvml"


# -- the control process itself ----------------------------------------------------------------------------------


class ControlStarted(Struct, frozen=True, array_like=True, tag="control_started"):
    """The control process (re)started. Requests then in flight are over (their clients are gone).

    Replicas known from before are reported next by the driver, each with WorkerReady (adopted, alive and
    healthy), WorkerStarted (alive, still starting) or WorkerExited (gone, or ended as unusable).

    `offline`: only to administer what is stored while nothing runs. No worker is started nor reported on.
    """

    policy_version: str
    seed: int
    offline: bool = False


class ShutdownAsked(Struct, frozen=True, array_like=True, tag="shutdown_asked"):
    """An orderly end was asked for: take nothing new, let running requests finish, stop the workers."""

    grace_ns: int


class TimerFired(Struct, frozen=True, array_like=True, tag="timer"):
    """A timer set by a machine is due. `timer` is the name it was set under."""

    timer: str


Event = (
    ModelPut
    | ModelRemoved
    | KeyCreated
    | KeyRevoked
    | RequestArrived
    | FirstByteSent
    | RequestFinished
    | DispatchFailed
    | WorkerStarted
    | WorkerReady
    | WorkerExited
    | WorkerSampled
    | EnergyMeasured
    | ControlStarted
    | ShutdownAsked
    | TimerFired
)
