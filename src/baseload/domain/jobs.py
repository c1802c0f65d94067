"""Jobs that need many accelerators at once (training, batch, a service's replica): what the scheduler hears and says.
Nodes are numbers; `core/scheduler` knows which switch, pod and site each is in."""

from msgspec import Struct


class JobSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """A gang: all its accelerators, or none."""

    job_id: str
    tenant: str
    accelerators: int  # fewer than a node's: on one node; more: whole nodes
    priority: int = 0  # higher goes first, and may take the place of lower
    preemptible: bool = True
    site: int = -1  # where it must run; -1: anywhere
    most_usd_per_kwh: float = 0.0  # it waits while electricity is dearer; 0: at any price


class Quota(Struct, frozen=True, forbid_unknown_fields=True):
    """Accelerators of a tenant. Beyond `guaranteed` they are lent, and taken back when their owner needs them."""

    guaranteed: int = 0
    most: int = 0  # 0: no limit


# -- events ---------------------------------------------------------------------------------------------------------


class JobSubmitted(Struct, frozen=True, array_like=True, tag="job_submitted"):
    """A job asks for its place."""

    spec: JobSpec


class JobCheckpointed(Struct, frozen=True, array_like=True, tag="job_checkpointed"):
    """Its work until now survives a stop."""

    job_id: str


class JobEnded(Struct, frozen=True, array_like=True, tag="job_ended"):
    """It is done, or was cancelled."""

    job_id: str


class JobFailed(Struct, frozen=True, array_like=True, tag="job_failed"):
    """It stopped by itself and wants a place again."""

    job_id: str
    attempt: int  # of its starts, from 1: a late report on an earlier one says nothing
    why: str


class NodeDown(Struct, frozen=True, array_like=True, tag="node_down"):
    """A node cannot be used: broken, reclaimed, cut off, or suspected of being slow."""

    node: int
    why: str


class NodeUp(Struct, frozen=True, array_like=True, tag="node_up"):
    """A node can be used again."""

    node: int


class SiteCapped(Struct, frozen=True, array_like=True, tag="site_capped"):
    """Power or cooling allows only so many accelerators of a site to work."""

    site: int
    accelerators: int
    why: str


class SitePriced(Struct, frozen=True, array_like=True, tag="site_priced"):
    """Electricity there costs this from now on."""

    site: int
    usd_per_kwh: float


JobEvent = JobSubmitted | JobCheckpointed | JobEnded | JobFailed | NodeDown | NodeUp | SiteCapped | SitePriced

# -- actions --------------------------------------------------------------------------------------------------------


class StartJob(Struct, frozen=True, array_like=True, tag="start_job"):
    """Run it on these (node, accelerators)."""

    job_id: str
    places: tuple[tuple[int, int], ...]
    attempt: int


class StopJob(Struct, frozen=True, array_like=True, tag="stop_job"):
    """Take it off its nodes; it is pending again. What it did since its last checkpoint is lost."""

    job_id: str
    why: str


class RefuseJob(Struct, frozen=True, array_like=True, tag="refuse_job"):
    """It will never run here, or too many wait."""

    job_id: str
    why: str


JobAction = StartJob | StopJob | RefuseJob
