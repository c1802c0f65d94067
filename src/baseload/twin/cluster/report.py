"""What a simulated fleet showed, as plain values."""

from msgspec import Struct

from baseload.domain.work import Decision
from baseload.twin.report import Failure
from baseload.twin.tally import FaultNote


class ClusterSample(Struct, frozen=True):
    """One instant of the whole fleet."""

    at_s: float
    accelerators_up: int
    busy: int
    serving: int  # of the busy ones, those of services
    pending_jobs: int
    pending_accelerators: int
    running_jobs: int
    power_w: float  # at the meters, PUE with it
    usd_per_hour: float  # accelerators and electricity
    carbon_g_per_hour: float
    rate_per_s: float  # of all services


class Waits(Struct, frozen=True):
    """How long jobs of one stream waited for their first place, in seconds."""

    name: str
    submitted: int
    started: int
    done: int
    p50_s: float
    p90_s: float
    p99_s: float
    goodput: float  # saved work over the time accelerators were held


class Served(Struct, frozen=True):
    """One service over the run."""

    name: str
    asked: float
    attained: float  # share served within the target delay
    refused: float  # share
    mean_replicas: float
    most_replicas: int


class ClusterReport(Struct, frozen=True):
    """One run of a fleet. Times are virtual."""

    name: str
    seed: int
    accelerators: int
    sites: tuple[str, ...]
    hours: float
    jobs: int
    done: int
    refused: int
    starts: int
    stops: int  # by the scheduler: preemption, nodes that fail, caps, prices
    failures: int  # jobs that stopped by themselves
    utilisation: float  # accelerator-hours held over those there are
    goodput: float  # saved work of jobs over accelerator-hours they held
    lost_accelerator_hours: float
    waits: tuple[Waits, ...]
    services: tuple[Served, ...]
    usd: float
    electricity_usd: float
    energy_mwh: float
    carbon_t: float
    samples: tuple[ClusterSample, ...]
    faults: tuple[FaultNote, ...]
    faults_by_kind: dict[str, int]
    decisions: tuple[Decision, ...]
    decisions_total: int
    decisions_by_kind: dict[str, int]
    steps: int
    settled: bool  # liveness: after the faults every job that was asked for got done
    digest: str
    failure: Failure | None = None
