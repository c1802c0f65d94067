"""A fleet simulated from start to end: a safety phase with jobs and faults, then a liveness phase without."""

import gc
import math
import traceback
from collections.abc import Callable
from pathlib import Path

from baseload.core.scheduler import SchedulerMachine
from baseload.domain.errors import BaseloadError, SettingsError
from baseload.domain.units import NS_PER_HOUR, NS_PER_S, seconds
from baseload.twin.cluster.faults import ClusterFaultMaker
from baseload.twin.cluster.jobs import Run, submitted
from baseload.twin.cluster.report import ClusterReport, ClusterSample, Served, Waits
from baseload.twin.cluster.services import ServiceLoad
from baseload.twin.cluster.spec import Cluster
from baseload.twin.cluster.world import ClusterWorld
from baseload.twin.report import Failure

SAMPLES = 288
LIVENESS_NS = 400 * 24 * NS_PER_HOUR
FAULTS_SHOWN = 400


class ClusterSimulation:
    """One run."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        seed: int,
        name: str = "",
        base: Path | None = None,
        command: str = "",
        decisions: int = 200,
        checked: bool = True,
        machine: type[SchedulerMachine] = SchedulerMachine,
    ) -> None:
        if not cluster.sites or min(site.nodes for site in cluster.sites) < 1:
            raise SettingsError("cluster: at least one site with at least one node is needed.")
        self.cluster = cluster
        self.world = ClusterWorld(cluster, seed=seed, most_decisions=decisions, checked=checked, machine=machine)
        self.faults = ClusterFaultMaker(self.world)
        self.runs = submitted(cluster, seed=seed, base=base)
        self.services = [ServiceLoad(s, self.world, number=at) for at, s in enumerate(cluster.services)]
        self.samples: list[ClusterSample] = []
        self._name = name
        self._command = command
        self._next = 0
        self._horizon_ns = round(cluster.hours * NS_PER_HOUR)
        self._held = [0] * len(cluster.sites)  # accelerators in use, kept as jobs come and go
        self._serving = 0
        self._held_ns: dict[str, int] = {}  # stream → accelerator-nanoseconds held
        self._replicas: list[tuple[int, int]] = [(0, 0) for _ in self.services]  # sum over ticks, most
        self._ticks = 0
        self._service_names = {service.name: None for service in cluster.services}
        self.world.on_start = self._started
        self.world.on_leave = self._left

    def run(self, *, liveness: bool = True) -> ClusterReport:
        """From the first instant to the horizon; then, with `liveness`, on until every job is done."""
        failure, report = None, None
        thresholds = gc.get_threshold()
        gc.set_threshold(200_000, 50, 100)
        try:
            self._safety()
            report = self._report(settled=False)
            if liveness:
                self._settle()
        except Exception as error:  # whatever breaks, the seed and the events before it are the report
            if isinstance(error, BaseloadError):
                raise
            failure = self._failure(error)
        finally:
            gc.set_threshold(*thresholds)
        report = report or self._report(settled=False)
        fields = {name: getattr(report, name) for name in report.__struct_fields__}
        fields |= {"failure": failure, "settled": liveness and failure is None, "digest": self.world.digest()}
        return ClusterReport(**fields)

    def _safety(self) -> None:
        world = self.world
        self.faults.begin()
        self._next_job()
        self._tick()
        self._sample()
        agenda = world.agenda
        agenda.at(self._horizon_ns, _nothing)
        while agenda.now_ns < self._horizon_ns:
            agenda.step()
        world.machine.check()

    def _settle(self) -> None:
        """Faults end, services go, nothing new comes: every job must get done."""
        world = self.world
        self.faults.end()
        for service in self.services:
            service.drop_all()
        for run in self.runs[self._next :]:
            run.ended_ns = 0  # never asked for
        self._next = len(self.runs)
        limit_ns = world.now_ns + LIVENESS_NS
        while world.runs:
            if not world.agenda.step():
                left = list(world.runs)[:5]
                raise AssertionError(f"nothing is left to happen, and {len(world.runs)} jobs are not done: {left}")
            if world.now_ns > limit_ns:
                raise AssertionError(
                    f"after {LIVENESS_NS / NS_PER_HOUR:.0f} hours {len(world.runs)} jobs are not done"
                )
        world.machine.check()

    # -- what goes on ---------------------------------------------------------------------------------------------

    def _next_job(self) -> None:
        if self._next < len(self.runs):
            run = self.runs[self._next]
            self.world.agenda.at(run.submitted_ns, self._submit)

    def _submit(self) -> None:
        if self._next >= len(self.runs):
            return
        run = self.runs[self._next]
        self._next += 1
        self.world.submit(run)
        self._next_job()

    def _tick(self) -> None:
        if not self.services or self.world.now_ns >= self._horizon_ns:
            return
        self._ticks += 1
        for at, service in enumerate(self.services):
            service.tick()
            total, most = self._replicas[at]
            self._replicas[at] = (total + len(service.wanted), max(most, len(service.wanted)))
        self.world.agenda.after(seconds(self.cluster.tick_s), self._tick)

    def _started(self, run: Run) -> None:
        run.held_ns = self.world.now_ns
        self._held[run.site] += run.spec.accelerators
        if run.stream.name in self._service_names:
            self._serving += run.spec.accelerators

    def _left(self, run: Run) -> None:
        name, count = run.stream.name, run.spec.accelerators
        self._held[run.site] -= count
        self._held_ns[name] = self._held_ns.get(name, 0) + (self.world.now_ns - run.held_ns) * count
        if name in self._service_names:
            self._serving -= count

    def _sample(self) -> None:
        world, cluster = self.world, self.cluster
        if world.now_ns > self._horizon_ns:
            return
        hour = world.now_ns // NS_PER_HOUR
        power = usd = carbon = 0.0
        for at, site in enumerate(cluster.sites):
            there = site.nodes * cluster.per_node
            watts = (self._held[at] * cluster.busy_w + (there - self._held[at]) * cluster.idle_w) * site.pue
            grams = site.carbon_g_per_kwh[hour % len(site.carbon_g_per_kwh)] if site.carbon_g_per_kwh else 0.0
            power += watts
            usd += there * site.usd_per_accelerator_hour + watts / 1000 * self.faults.price_of(at)
            carbon += watts / 1000 * grams
        waiting = [run for run in world.runs.values() if not run.nodes]
        self.samples.append(
            ClusterSample(
                at_s=world.now_ns / NS_PER_S,
                accelerators_up=(world.topology.nodes - len(world.broken)) * cluster.per_node,
                busy=sum(self._held),
                serving=self._serving,
                pending_jobs=len(waiting),
                pending_accelerators=sum(run.spec.accelerators for run in waiting),
                running_jobs=len(world.runs) - len(waiting),
                power_w=power,
                usd_per_hour=usd,
                carbon_g_per_hour=carbon,
                rate_per_s=sum(service.rate_per_s for service in self.services),
            )
        )
        world.agenda.after(max(NS_PER_S, self._horizon_ns // SAMPLES), self._sample)

    # -- what is told ---------------------------------------------------------------------------------------------

    def _report(self, *, settled: bool) -> ClusterReport:
        world, cluster, now_ns = self.world, self.cluster, max(1, self.world.now_ns)
        held = dict(self._held_ns)
        for run in world.runs.values():
            if run.nodes:
                part = (now_ns - run.held_ns) * run.spec.accelerators
                held[run.stream.name] = held.get(run.stream.name, 0) + part
        mine = self.runs[: self._next]
        everywhere = world.topology.nodes * cluster.per_node
        hours = now_ns / NS_PER_HOUR
        mean = {
            name: sum(getattr(sample, name) for sample in self.samples) / max(1, len(self.samples))
            for name in ("power_w", "usd_per_hour", "carbon_g_per_hour")
        }
        rented = sum(s.nodes * cluster.per_node * s.usd_per_accelerator_hour for s in cluster.sites)
        job_held = sum(count for name, count in held.items() if name not in self._service_names)
        kinds = {kind: times for kind, times in world.small_faults.items() if times}
        for note in world.notes:
            kinds[note.kind] = kinds.get(note.kind, 0) + 1
        return ClusterReport(
            name=self._name,
            seed=world.seed,
            accelerators=everywhere,
            sites=tuple(site.name for site in cluster.sites),
            hours=hours,
            jobs=len(mine),
            done=sum(run.ended_ns >= 0 for run in mine),
            refused=world.refused,
            starts=world.kinds.get("start", 0),
            stops=world.stops,
            failures=world.kinds.get("stop", 0) - world.stops,
            utilisation=sum(held.values()) / (everywhere * now_ns),
            goodput=sum(_saved(run) for run in mine) / job_held if job_held else 0.0,
            lost_accelerator_hours=sum(run.lost_ns * run.spec.accelerators for run in mine) / NS_PER_HOUR,
            waits=tuple(self._waits(stream.name, mine, held) for stream in cluster.jobs),
            services=tuple(self._served(at) for at in range(len(self.services))),
            usd=mean["usd_per_hour"] * hours,
            electricity_usd=(mean["usd_per_hour"] - rented) * hours,
            energy_mwh=mean["power_w"] * hours / 1e6,
            carbon_t=mean["carbon_g_per_hour"] * hours / 1e6,
            samples=tuple(self.samples),
            faults=tuple(world.notes[:FAULTS_SHOWN]),
            faults_by_kind=dict(sorted(kinds.items())),
            decisions=tuple(world.decisions),
            decisions_total=world.decisions_total,
            decisions_by_kind=dict(sorted(world.kinds.items())),
            steps=world.steps,
            settled=settled,
            digest=world.digest(),
        )

    def _waits(self, name: str, runs: list[Run], held: dict[str, int]) -> Waits:
        mine = [run for run in runs if run.stream.name == name]
        waits = sorted((run.first_ns - run.submitted_ns) / NS_PER_S for run in mine if run.first_ns >= 0)

        def rank(share: float) -> float:
            return waits[math.ceil(share * len(waits)) - 1] if waits else 0.0

        return Waits(
            name=name,
            submitted=len(mine),
            started=len(waits),
            done=sum(run.ended_ns >= 0 for run in mine),
            p50_s=rank(0.5),
            p90_s=rank(0.9),
            p99_s=rank(0.99),
            goodput=sum(_saved(run) for run in mine) / held[name] if held.get(name) else 0.0,
        )

    def _served(self, at: int) -> Served:
        load, (total, most) = self.services[at], self._replicas[at]
        asked = max(load.asked, 1e-9)
        return Served(
            name=load.service.name,
            asked=load.asked,
            attained=load.in_time / asked,
            refused=load.refused / asked,
            mean_replicas=total / max(1, self._ticks),
            most_replicas=most,
        )

    def _failure(self, error: Exception) -> Failure:
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
        tail = tuple(f"{at_ns / NS_PER_S:14.3f} s  {event}" for at_ns, event in self.world.tail)
        return Failure(self.world.seed, f"{type(error).__name__}: {error} [{where}]", self._command, tail)


def simulate_cluster(
    cluster: Cluster,
    *,
    seed: int,
    name: str = "",
    base: Path | None = None,
    command: str = "",
    decisions: int = 200,
    checked: bool = True,
    progress: Callable[[], None] | None = None,
) -> ClusterReport:
    """Run a fleet. A broken invariant does not raise: it is `report.failure`, with `command` to reproduce it."""
    simulation = ClusterSimulation(
        cluster, seed=seed, name=name, base=base, command=command, decisions=decisions, checked=checked
    )
    report = simulation.run()
    if progress is not None:
        progress()
    return report


def _saved(run: Run) -> int:
    """Accelerator-nanoseconds of work that is safe."""
    return (run.work_ns if run.ended_ns > 0 else run.saved_ns) * run.spec.accelerators


def _nothing() -> None:
    """The horizon."""
