"""A fleet's service as a flow against the same load request by request through the whole control machine."""

import numpy as np
import pytest
from msgspec.structs import replace

from baseload.domain.model import Admission, EngineSpec, ModelSpec, Scaling
from baseload.domain.units import NS_PER_S
from baseload.limits.step_time import StepTimeSpec
from baseload.twin.cluster.run import ClusterSimulation
from baseload.twin.cluster.spec import Cluster, ClusterFaults, Service, Site
from baseload.twin.ranges import joint_complaint
from baseload.twin.run import Simulation
from baseload.twin.spec import Physics, SimulateConfig, Slo, Source, Workload

HOURS = 6.0
RATE, TROUGH, PEAK_HOUR = 0.4, 0.2, 6.0  # it rises all the time
REQUEST_S, PLACES, START_S = 60.0, 8, 30
TOKENS = 200  # of an answer, on average; each takes 0.3 s, whoever is beside
SCALING = Scaling(min_replicas=1, max_replicas=100, idle_ns=600 * NS_PER_S)
QUIET = ClusterFaults(published=0.0)


def by_flow(scaling: Scaling, seed: int) -> tuple[np.ndarray, float]:
    """Rows of (seconds, replicas, requests in them); share that waited no longer than the target."""
    service = Service(
        name="m", accelerators=1, rate_per_s=RATE, request_s=REQUEST_S, concurrency=PLACES, trough=TROUGH,
        peak_hour=PEAK_HOUR, noise=0.0, start_s=START_S, scaling=scaling,
    )  # fmt: skip
    cluster = Cluster(sites=(Site(name="a", nodes=16),), hours=HOURS, services=(service,), faults=QUIET)
    simulation = ClusterSimulation(cluster, seed=seed)
    (load,) = simulation.services
    rows: list[tuple[float, int, int]] = []
    tick = load.tick

    def watched() -> None:
        tick()
        rows.append((simulation.world.now_ns / NS_PER_S, len(load.wanted), load.running))

    load.tick = watched  # type: ignore[method-assign]
    report = simulation.run(liveness=False)
    assert report.failure is None
    return np.array(rows), report.services[0].attained


def by_request(scaling: Scaling, seed: int) -> tuple[np.ndarray, float]:
    """The same, through admission, router, fleet and batcher."""
    spread = 0.5
    median = round(TOKENS / np.exp(spread**2 / 2))
    context = round(100 * np.exp(spread**2 / 2) + TOKENS * np.exp(spread**2) / 2)  # of one in the batch, on average
    model = ModelSpec(
        name="m",
        source="simulated",
        scaling=scaling,
        admission=Admission(max_queue=10_000, max_concurrency_per_replica=PLACES, max_wait_ns=60 * NS_PER_S),
        engine=EngineSpec(max_seqs=PLACES, max_step_tokens=4096),
        context_tokens=8192,
    )
    source = Source(
        kind="diurnal", rate_per_s=RATE, duration_s=HOURS * 3600, peak_hour=PEAK_HOUR, trough=TROUGH,
        prompt_tokens=100, output_tokens=median, spread=spread, stream=1.0,
    )  # fmt: skip
    step = StepTimeSpec(
        basis="stated", fixed_ms=1000 * REQUEST_S / TOKENS, prefill=((4096, 1.0),), decode=((64, 0.001),)
    )
    config = SimulateConfig(
        seed=seed,
        models=(model,),
        workload=Workload(sources=(source,)),
        physics=Physics(start_ms=1000 * START_S, kv_tokens=PLACES * (context + 8), step_time=step),
        slo=Slo(ttft_ms=scaling.target_queue_delay_ns / 1e6 + 500, tpot_ms=1000),  # and a step or two
        checked=False,
        decisions=0,
    )
    report = Simulation(config).run()
    assert report.failure is None
    rows = [(s.at_s, s.ready + s.starting, s.in_flight - s.queued) for s in report.timeline if s.at_s < HOURS * 3600]
    return np.array(rows), report.attainment


@pytest.mark.parametrize(
    ("scaling", "off"),
    [(SCALING, 0.08), (replace(SCALING, requests_per_s=0.12), 0.12)],
    ids=["by queues and memory", "by the rate of requests"],
)
def test_a_flow_needs_the_replicas_that_its_requests_need(scaling: Scaling, off: float) -> None:
    flow, in_time = by_flow(scaling, 3)
    requests, attained = by_request(scaling, 3)
    replica_hours = [HOURS * rows[:, 1].mean() for rows in (flow, requests)]
    assert replica_hours[0] == pytest.approx(replica_hours[1], rel=off)  # and so dollars, at any price
    assert flow[:, 2].mean() == pytest.approx(requests[:, 2].mean(), rel=0.04)
    use = [rows[:, 2].sum() / (PLACES * rows[:, 1].sum()) for rows in (flow, requests)]
    assert use[0] == pytest.approx(use[1], abs=0.06)
    assert abs(flow[:, 1].max() - requests[:, 1].max()) <= 2
    at_the_time = np.interp(requests[:, 0], flow[:, 0], flow[:, 1])
    assert np.abs(at_the_time - requests[:, 1]).mean() < 2
    assert in_time == pytest.approx(attained, abs=0.04)
    quarter = len(flow) // 4
    assert flow[:quarter, 1].mean() < 0.9 * flow[-quarter:, 1].mean()  # it did scale


def test_what_a_replica_carries_in_tokens_is_no_figure_of_a_flow() -> None:
    service = Service(name="m", scaling=replace(SCALING, prompt_tokens_per_s=10.0, output_tokens_per_s=10.0))
    config = SimulateConfig(cluster=Cluster(sites=(Site(name="a", nodes=1),), services=(service,)))
    assert "requests_per_s" in (joint_complaint(config) or "")
