"""What to simulate of a whole fleet: sites, jobs, services, quotas and faults, as frozen values read from TOML."""

from msgspec import Struct

from baseload.domain.jobs import Quota
from baseload.domain.model import Scaling
from baseload.domain.units import NS_PER_S


class Site(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Nodes at one place. Lists go round: of 24 values each is an hour of the day."""

    name: str
    nodes: int
    pue: float = 1.2
    usd_per_accelerator_hour: float = 2.0  # whether it works or not; electricity is apart
    usd_per_kwh: tuple[float, ...] = (0.08,)
    carbon_g_per_kwh: tuple[float, ...] = (350.0,)
    spot_share: float = 0.0  # of its nodes, the last ones, that may be reclaimed


class JobStream(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Jobs of one kind: training, fine-tuning, batch. Lengths are log-normal around a median, `spread` its sigma."""

    name: str
    tenant: str = "default"
    per_hour: float = 10.0
    sizes: tuple[tuple[int, float], ...] = ((8, 1.0),)  # (accelerators, weight)
    hours: float = 2.0  # median of undisturbed work
    spread: float = 1.0
    priority: int = 0
    preemptible: bool = True
    checkpoint_min: float = 30.0  # minutes of work between checkpoints
    checkpoint_s: float = 10.0  # what writing one costs
    start_s: float = 120.0  # from its place to its first step, and again after each stop
    most_usd_per_kwh: float = 0.0
    trace: str = ""  # a CSV of submitted_s, accelerators, duration_s instead of all the above


class Service(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model that answers; its load is a flow, not single requests. Replicas are gangs that never end.

    `scaling` may say what a replica carries as `requests_per_s`, not in tokens: a flow has none.
    """

    name: str
    tenant: str = "default"
    accelerators: int = 8  # of one replica
    rate_per_s: float = 100.0  # mean over the day
    request_s: float = 10.0  # a request's time in a replica
    concurrency: int = 32  # requests in a replica at a time
    trough: float = 0.4  # least rate as a share of the most
    peak_hour: float = 14.0
    noise: float = 0.1  # of the rate from tick to tick
    start_s: float = 90.0
    priority: int = 100
    scaling: Scaling = Scaling(min_replicas=1, max_replicas=10_000, idle_ns=600 * NS_PER_S)


class ClusterFaults(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What breaks. Rates are per day of the whole fleet, unless published; 0: never."""

    published: float = 1.0  # accelerators, hosts and links fail as often as published, so many times
    repair_h: float = 6.0  # mean; a third of that after a link flap or a false alarm is needed to bring a node back
    detect_s: float = 30.0  # mean until a failure is noticed; its job does nothing meanwhile
    nodes_per_day: float = 0.0
    switches_per_day: float = 0.0  # all nodes below are cut off
    switch_min: float = 20.0
    slow_per_day: float = 0.0  # a node is silently slow, and its whole gang with it
    slow_by: float = 1.5
    slow_found_min: float = 30.0  # mean until somebody notices
    power_per_day: float = 0.0  # a site loses a part of its power
    cooling_per_day: float = 0.0  # or of its cooling
    cap_share: float = 0.7  # what is left then
    cap_min: float = 60.0
    price_spikes_per_day: float = 0.0
    price_by: float = 8.0
    spike_min: float = 60.0
    spot_per_day: float = 0.0  # reclaims of one spot node
    spot_h: float = 4.0
    disk_full_per_day: float = 0.0  # a site writes no checkpoint for a while
    disk_min: float = 30.0
    corrupt_checkpoints: float = 0.0  # share of restarts that find the last checkpoint unreadable: one back
    partitions_per_day: float = 0.0  # nothing is heard from a site, nor does it hear
    partition_min: float = 5.0
    lost_messages: float = 0.0  # share of messages sent again after half a minute
    slow_messages: float = 0.0  # share of messages that take up to a minute


class Cluster(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A fleet under one gang scheduler."""

    sites: tuple[Site, ...]
    hours: float = 24.0
    per_node: int = 8
    nodes_per_switch: int = 32
    switches_per_pod: int = 16
    busy_w: float = 1000.0  # of an accelerator at work with its share of the node
    idle_w: float = 250.0
    tick_s: float = 5.0  # between looks at the services' load
    jobs: tuple[JobStream, ...] = ()
    services: tuple[Service, ...] = ()
    quotas: dict[str, Quota] = {}
    faults: ClusterFaults = ClusterFaults()
