"""What the control machine shows of itself: the one view behind `baseload status`, /metrics and the dashboard."""

from msgspec import Struct

from baseload.domain.fleet import ReplicaState, WorkerSample


class ReplicaStatus(Struct, frozen=True):
    """One replica now."""

    replica_id: str
    model: str
    state: ReplicaState
    url: str
    pid: int
    since_ns: int  # in this state since
    started_ns: int
    in_flight: int
    sample: WorkerSample
    cold_ns: int
    useful_ns: int
    idle_ns: int
    power_w: float  # now: measured, or modelled from whether it works
    energy_basis: str


class ModelStatus(Struct, frozen=True):
    """One model now. `state` is "asleep", "waking", "awake", "draining", "backing off" or "remote"."""

    name: str
    state: str
    desired: int
    ready: int
    starting: int
    draining: int
    queued: int
    oldest_wait_ns: int
    in_flight: int
    crashes: int  # in a row; 0 once a replica has answered and served on for a minute, or ended in order
    retry_at_ns: int  # when backing off: the next start; else 0
    last_error: str  # why the last worker ended badly, in words
    requests_total: int
    prompt_tokens_total: int
    completion_tokens_total: int


class SpareStatus(Struct, frozen=True):
    """A process without a model that waits to become any."""

    pid: int
    is_warm: bool  # false: it still imports
    memory_bytes: int  # resident


class ControlStatus(Struct, frozen=True):
    """Everything at one instant."""

    now_ns: int
    started_ns: int
    seed: int
    policy_version: str
    models: tuple[ModelStatus, ...]
    replicas: tuple[ReplicaStatus, ...]
    queued: int
    in_flight: int
    keys: int
    requests_total: int
    refused_total: int
    shutting_down: bool
    spares: tuple[SpareStatus, ...] = ()  # of the live world only
