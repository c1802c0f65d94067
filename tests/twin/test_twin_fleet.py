"""Whole fleets under the gang scheduler: seeds with all faults, machines broken on purpose, figures that add up."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from baseload.core.scheduler import SchedulerMachine
from baseload.domain.jobs import JobAction, JobEnded, JobEvent, NodeDown, StartJob, StopJob
from baseload.twin.cluster.jobs import submitted
from baseload.twin.cluster.run import ClusterSimulation, simulate_cluster
from baseload.twin.cluster.spec import Cluster, ClusterFaults, JobStream, Service, Site
from baseload.twin.cluster.swarm import drawn_cluster
from baseload.twin.hunts import run_or_hunt
from baseload.twin.run import describe_failures
from baseload.twin.spec import SimulateConfig

QUIET = ClusterFaults(published=0.0)
SMALL = Cluster(
    sites=(Site(name="one", nodes=16, usd_per_kwh=(0.1,), usd_per_accelerator_hour=2.0, pue=1.5),),
    hours=12.0,
    jobs=(JobStream(name="train", per_hour=4.0, sizes=((8, 1.0), (32, 1.0)), hours=0.5, checkpoint_min=10.0),),
    faults=QUIET,
)


@pytest.mark.parametrize("seed", range(40_001, 40_021))
def test_fleet_seed(seed: int) -> None:
    report = ClusterSimulation(drawn_cluster(seed), seed=seed).run()
    assert report.failure is None, "\n".join(describe_failures([report.failure]))
    assert report.settled


def test_the_same_seed_gives_the_same_fleet() -> None:
    assert simulate_cluster(drawn_cluster(7), seed=7) == simulate_cluster(drawn_cluster(7), seed=7)
    assert simulate_cluster(SMALL, seed=7).digest != simulate_cluster(SMALL, seed=8).digest


class Tampered(SchedulerMachine):
    tamper: Callable[["Tampered", JobEvent, list[JobAction]], list[JobAction]]

    def step(self, now_ns: int, event: JobEvent) -> list[JobAction]:
        return type(self).tamper(self, event, super().step(now_ns, event))


def _halves(_: Tampered, __: JobEvent, actions: list[JobAction]) -> list[JobAction]:
    return [StartJob(a.job_id, a.places[:1], a.attempt) if isinstance(a, StartJob) else a for a in actions]


def _twice(_: Tampered, __: JobEvent, actions: list[JobAction]) -> list[JobAction]:
    return [a for action in actions for a in ([action] * (1 + isinstance(action, StartJob)))]


def _elsewhere(_: Tampered, __: JobEvent, actions: list[JobAction]) -> list[JobAction]:
    return [
        StartJob(a.job_id, tuple((0, count) for _, count in a.places), a.attempt) if isinstance(a, StartJob) else a
        for a in actions
    ]


def _deaf(machine: Tampered, event: JobEvent, actions: list[JobAction]) -> list[JobAction]:
    return [a for a in actions if not (isinstance(event, NodeDown) and isinstance(a, StopJob))]


def _forgets(machine: Tampered, event: JobEvent, actions: list[JobAction]) -> list[JobAction]:
    return [] if isinstance(event, JobEnded) else actions


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (_halves, "whole gang"),
        (_twice, "twice"),
        (_elsewhere, "node"),
        (_deaf, "is down|started twice|are left"),
        (_forgets, "does not run|not done|attempt"),
    ],
)
def test_a_scheduler_broken_on_purpose_is_caught(
    tamper: Callable[[Tampered, JobEvent, list[JobAction]], list[JobAction]], said: str
) -> None:
    machine = type("Broken", (Tampered,), {"tamper": tamper})
    crowded = msgspec.structs.replace(
        SMALL,
        jobs=(JobStream(name="train", per_hour=40.0, sizes=((16, 1.0), (32, 1.0)), hours=0.5),),
        faults=ClusterFaults(nodes_per_day=200.0, repair_h=0.2),
    )
    report = ClusterSimulation(crowded, seed=3, machine=machine, command="this one").run()
    assert report.failure is not None
    assert any(word in report.failure.message for word in said.split("|")), report.failure.message
    assert report.failure.command == "this one"


def test_without_faults_nothing_is_lost_and_hours_add_up() -> None:
    simulation = ClusterSimulation(SMALL, seed=2)
    report = simulation.run()
    assert report.failure is None
    assert (report.stops, report.failures, report.lost_accelerator_hours) == (0, 0, 0.0)
    assert report.done > 20
    for run in simulation.runs:
        if run.ended_ns > 0 and run.first_ns >= 0:
            parts = -(-run.work_ns // run.each_ns)
            overhead = run.start_ns + (parts - 1) * run.checkpoint_ns
            assert run.ended_ns - run.first_ns == run.work_ns + overhead
    watts = [sample.power_w for sample in report.samples]
    assert min(watts) >= 128 * SMALL.idle_w * 1.5
    mean_kw = sum(watts) / len(watts) / 1000
    assert report.electricity_usd == pytest.approx(mean_kw * 0.1 * 12, rel=1e-6)
    assert report.usd == pytest.approx(128 * 2.0 * 12 + report.electricity_usd, rel=1e-6)


def test_each_fault_does_what_it_says() -> None:
    def with_(**faults: float) -> object:
        changed = msgspec.structs.replace(SMALL, faults=ClusterFaults(**({"published": 0.0} | faults)))  # type: ignore[arg-type]
        report = simulate_cluster(changed, seed=5)
        assert report.failure is None
        return report

    calm = with_()
    assert with_(nodes_per_day=60.0, repair_h=1.0).failures + with_(nodes_per_day=60.0, repair_h=1.0).stops > 5  # type: ignore[attr-defined]
    assert with_(slow_per_day=400.0, slow_by=4.0).goodput < calm.goodput  # type: ignore[attr-defined]
    assert with_(power_per_day=40.0, cap_share=0.2).stops > 3  # type: ignore[attr-defined]
    assert with_(price_spikes_per_day=40.0).electricity_usd > 1.5 * calm.electricity_usd  # type: ignore[attr-defined]
    lossy = with_(nodes_per_day=60.0, repair_h=0.5, disk_full_per_day=20.0, corrupt_checkpoints=0.5)
    assert lossy.lost_accelerator_hours > with_(nodes_per_day=60.0, repair_h=0.5).lost_accelerator_hours  # type: ignore[attr-defined]
    assert with_(partitions_per_day=50.0, lost_messages=0.2, slow_messages=0.2).digest != calm.digest  # type: ignore[attr-defined]


def test_published_rates_are_those_published() -> None:
    everywhere = Cluster(sites=(Site(name="s", nodes=2048),), hours=24 * 54, faults=ClusterFaults(repair_h=0.1))
    report = ClusterSimulation(everywhere, seed=1).run(liveness=False)
    assert 419 * 0.85 < sum(report.faults_by_kind.values()) < 419 * 1.15


def test_a_service_follows_its_load_with_our_autoscaler() -> None:
    service = Service(name="chat", accelerators=2, rate_per_s=60.0, request_s=8.0, concurrency=16, trough=0.2)
    cluster = Cluster(sites=(Site(name="s", nodes=64),), hours=24.0, services=(service,), faults=QUIET)
    report = simulate_cluster(cluster, seed=1)
    (served,) = report.services
    assert served.attained > 0.98
    serving = [sample.serving for sample in report.samples[48:]]
    assert max(serving) > 1.5 * min(serving), "fewer replicas at night"


def test_jobs_of_a_trace_are_those_of_the_trace(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text("submitted_s,accelerators,duration_s\n60,8,3600\n0,16,60\n")
    cluster = msgspec.structs.replace(SMALL, jobs=(JobStream(name="t", trace="jobs.csv"),))
    runs: Sequence[object] = [
        (r.submitted_ns, r.spec.accelerators, r.work_ns) for r in submitted(cluster, seed=1, base=tmp_path)
    ]
    assert runs == [(0, 16, 60_000_000_000), (60_000_000_000, 8, 3_600_000_000_000)]


def test_a_hunt_over_fleets_adds_up_its_seeds() -> None:
    report = run_or_hunt(SimulateConfig(seed=3, seeds=2, cluster=SMALL))
    assert report.hunt is not None  # type: ignore[union-attr]
    assert report.hunt.passed == 2  # type: ignore[union-attr]
