"""Swarm-random fleets: each seed draws sites, jobs, quotas, and which kinds of fault are on and how often."""

import msgspec

from baseload.domain.jobs import Quota
from baseload.domain.rng import Rng
from baseload.twin.cluster.spec import Cluster, ClusterFaults, JobStream, Service, Site


def drawn_cluster(seed: int, base: Cluster | None = None) -> Cluster:
    """The fleet of one seed of a hunt; with `base` only its faults are drawn."""
    rng = Rng(seed, "twin.cluster.swarm")
    faults = _faults(rng)
    if base is not None:
        return msgspec.structs.replace(base, faults=faults)
    per_node = 1 << (1 + rng.below(3))
    nodes = [4 + rng.below(40) for _ in range(1 + rng.below(3))]
    sites = tuple(
        Site(
            name=f"site-{at}",
            nodes=count,
            spot_share=0.5 * rng.unit() if rng.below(2) else 0.0,
            usd_per_kwh=(0.05, 0.1 + 0.2 * rng.unit()),
        )
        for at, count in enumerate(nodes)
    )
    tenants = [f"tenant-{at}" for at in range(1 + rng.below(3))]
    room = per_node * sum(nodes)
    quotas = {
        tenant: Quota(guaranteed=rng.below(room), most=room // 4 + rng.below(room) if rng.below(3) == 0 else 0)
        for tenant in tenants
        if rng.below(2)
    }
    return Cluster(
        sites=sites,
        hours=2.0 + 10 * rng.unit(),
        per_node=per_node,
        nodes_per_switch=2 + rng.below(8),
        switches_per_pod=1 + rng.below(4),
        jobs=tuple(_jobs(rng, at, tenants, per_node, min(nodes)) for at in range(1 + rng.below(4))),
        services=(_service(rng, tenants, per_node),) if rng.below(2) else (),
        quotas=quotas,
        faults=faults,
    )


def _jobs(rng: Rng, at: int, tenants: list[str], per_node: int, nodes: int) -> JobStream:
    sizes = tuple(
        (per_node * (1 + rng.below(nodes)) if rng.below(2) else 1 + rng.below(per_node), 0.1 + rng.unit())
        for _ in range(1 + rng.below(3))
    )
    return JobStream(
        name=f"jobs-{at}",
        tenant=tenants[rng.below(len(tenants))],
        per_hour=1.0 + 30 * rng.unit(),
        sizes=sizes,
        hours=0.02 + rng.unit(),
        spread=rng.unit(),
        priority=rng.below(4),
        preemptible=rng.below(4) > 0,
        checkpoint_min=1.0 + 30 * rng.unit(),
        checkpoint_s=20 * rng.unit(),
        start_s=60 * rng.unit(),
        most_usd_per_kwh=0.3 if rng.below(3) == 0 else 0.0,
    )


def _service(rng: Rng, tenants: list[str], per_node: int) -> Service:
    return Service(
        name="service",
        tenant=tenants[rng.below(len(tenants))],
        accelerators=1 + rng.below(per_node),
        rate_per_s=1.0 + 20 * rng.unit(),
        concurrency=4 + rng.below(28),
        noise=0.5 * rng.unit(),
    )


def _faults(rng: Rng) -> ClusterFaults:
    def per_day(most: float) -> float:
        return most * rng.unit() if rng.below(2) else 0.0

    def share(most: float) -> float:
        return most * rng.unit() if rng.below(2) else 0.0

    return ClusterFaults(
        published=per_day(2000.0),
        repair_h=0.02 + 3 * rng.unit(),
        detect_s=0.1 + 120 * rng.unit(),
        nodes_per_day=per_day(200.0),
        switches_per_day=per_day(50.0),
        slow_per_day=per_day(100.0),
        slow_by=1.1 + 4 * rng.unit(),
        slow_found_min=1.0 + 60 * rng.unit(),
        power_per_day=per_day(30.0),
        cooling_per_day=per_day(30.0),
        cap_share=0.2 + 0.7 * rng.unit(),
        price_spikes_per_day=per_day(40.0),
        spot_per_day=per_day(100.0),
        spot_h=0.1 + 2 * rng.unit(),
        disk_full_per_day=per_day(30.0),
        corrupt_checkpoints=share(0.5),
        partitions_per_day=per_day(60.0),
        lost_messages=share(0.2),
        slow_messages=share(0.3),
    )
