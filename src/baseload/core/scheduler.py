"""The gang scheduler: which jobs run where. `step(now_ns, event) -> [action]`, with a reason for each choice.

A job gets all its accelerators or waits. Waiting jobs are looked at by priority, then by arrival; smaller ones pass a
large one that does not fit until it has waited `PATIENCE_NS`. A tenant may use what others leave, beyond its own
guarantee; whoever needs its guarantee, or has priority, takes back whole gangs, those that lose the least work first.
"""

from collections import OrderedDict
from itertools import islice
from typing import assert_never

from msgspec import Struct

from baseload.core.grid import Grid, Topology
from baseload.domain.jobs import (
    JobAction,
    JobCheckpointed,
    JobEnded,
    JobEvent,
    JobFailed,
    JobSpec,
    JobSubmitted,
    NodeDown,
    NodeUp,
    Quota,
    RefuseJob,
    SiteCapped,
    SitePriced,
    StartJob,
    StopJob,
)
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Decision
from baseload.policy.placement import Victim, choose_victims, may_pass

PATIENCE_NS = 1_800 * NS_PER_S  # so long a job that does not fit lets later ones pass
LOOKED_AT = 128  # waiting jobs of one priority considered in one pass
MOST_PENDING = 100_000
RETRY_NS = 30 * NS_PER_S  # between two looks for room among those that run
RESTART_NS = 120 * NS_PER_S  # what a stop costs besides the work since the checkpoint


class Job(Struct):
    """One job."""

    spec: JobSpec
    number: int  # of its arrival
    waiting_since_ns: int
    places: tuple[tuple[int, int], ...] = ()  # () while it waits
    started_ns: int = 0
    saved_ns: int = 0  # its work until then survives
    starts: int = 0
    tried_ns: int = -RETRY_NS  # when room was last looked for among those that run


class SchedulerMachine:
    """Owns who runs where. Not thread-safe; one driver."""

    def __init__(self, topology: Topology, quotas: dict[str, Quota] | None = None) -> None:
        self._grid = Grid(topology)
        self._quotas = quotas or {}
        self._jobs: dict[str, Job] = {}
        self._pending: dict[int, OrderedDict[str, None]] = {}  # priority → ids, by arrival
        self._used: dict[str, int] = {}  # tenant → accelerators
        self._at_work: dict[int, int] = {}  # priority → jobs that run
        self._caps: list[int] = [1 << 60] * len(topology.sites)
        self._busy: list[int] = [0] * len(topology.sites)
        self._prices: list[float] = [0.0] * len(topology.sites)
        self._numbers = 0
        self._actions: list[JobAction] = []
        self.decisions: list[Decision] = []  # of the last step

    def step(self, now_ns: int, event: JobEvent) -> list[JobAction]:
        """Take in what happened; say what to do. The reasons are in `decisions`."""
        self._actions, self.decisions = [], []
        match event:
            case JobSubmitted(spec=spec):
                self._submit(spec, now_ns)
            case JobCheckpointed(job_id=job_id):
                if job_id in self._jobs:
                    self._jobs[job_id].saved_ns = now_ns
            case JobEnded(job_id=job_id):
                self._end(job_id, now_ns)
            case JobFailed(job_id=job_id, attempt=attempt, why=why):
                job = self._jobs.get(job_id)
                if job is not None and job.places and job.starts == attempt:
                    self._stop(job, now_ns, f"it failed: {why}", tell=False)
                    self._fill(now_ns)
            case NodeDown(node=node, why=why):
                self._node_down(node, why, now_ns)
            case NodeUp(node=node):
                self._grid.bring_up(node)
                self._fill(now_ns)
            case SiteCapped(site=site, accelerators=accelerators, why=why):
                self._caps[site] = accelerators
                self._shed(site, why, now_ns)
                self._fill(now_ns)
            case SitePriced(site=site, usd_per_kwh=price):
                self._reprice(site, price, now_ns)
            case _:
                assert_never(event)
        return self._actions

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Jobs that have their place."""
        return len(self._jobs) - self.pending

    @property
    def pending(self) -> int:
        """Jobs that wait."""
        return sum(len(ids) for ids in self._pending.values())

    def free_at(self, site: int) -> int:
        """Accelerators there that are up and idle."""
        return self._grid.free_at(site)

    def places_of(self, job_id: str) -> tuple[tuple[int, int], ...]:
        """Where a job runs; () where it does not."""
        job = self._jobs.get(job_id)
        return job.places if job is not None else ()

    def check(self) -> None:
        """Assert every invariant; O(nodes + jobs), for tests and now and then."""
        self._grid.check({job_id: job.places for job_id, job in self._jobs.items()})
        used: dict[str, int] = {}
        for job_id, job in self._jobs.items():
            waits = job_id in self._pending.get(job.spec.priority, {})
            assert waits != bool(job.places), f"{job_id} both waits and runs, or neither"
            if job.places:
                assert sum(count for _, count in job.places) == job.spec.accelerators, f"{job_id} is not whole"
                used[job.spec.tenant] = used.get(job.spec.tenant, 0) + job.spec.accelerators
        assert used == {tenant: count for tenant, count in self._used.items() if count}
        for tenant, quota in self._quotas.items():
            assert not quota.most or used.get(tenant, 0) <= quota.most, f"{tenant} has more than its quota"
        for site, cap in enumerate(self._caps):
            assert self._busy[site] <= cap, f"site {site} works beyond its cap"

    # -- events -------------------------------------------------------------------------------------------------

    def _submit(self, spec: JobSpec, now_ns: int) -> None:
        if spec.job_id in self._jobs:
            return  # told twice
        why = self._why_never(spec)
        if why:
            self._actions.append(RefuseJob(spec.job_id, why))
            self._decide(now_ns, "refuse", spec, why)
            return
        self._numbers += 1
        job = self._jobs[spec.job_id] = Job(spec=spec, number=self._numbers, waiting_since_ns=now_ns)
        waiting = self._pending.setdefault(spec.priority, OrderedDict())
        is_first = not waiting
        waiting[spec.job_id] = None
        if is_first or self._may_pass_all(spec.priority, now_ns):
            self._try(job, now_ns)

    def _why_never(self, spec: JobSpec) -> str:
        topology, quota = self._grid.topology, self._quotas.get(spec.tenant)
        largest = (max(topology.sites) if spec.site < 0 else topology.sites[spec.site]) * topology.per_node
        if spec.accelerators <= 0:
            return "it asks for no accelerators"
        if spec.accelerators > largest:
            return f"it needs {spec.accelerators:,} accelerators at one site, the largest has {largest:,}"
        if spec.accelerators > topology.per_node and spec.accelerators % topology.per_node:
            return f"beyond one node it must ask for whole nodes of {topology.per_node}"
        if quota is not None and quota.most and spec.accelerators > quota.most:
            return f"{spec.tenant} may use {quota.most:,} accelerators, it asks for {spec.accelerators:,}"
        if self.pending >= MOST_PENDING:
            return f"{MOST_PENDING:,} jobs wait already"
        return ""

    def _end(self, job_id: str, now_ns: int) -> None:
        job = self._jobs.pop(job_id, None)
        if job is None:
            return
        if not job.places:
            del self._pending[job.spec.priority][job_id]
            return
        self._release(job)
        self._fill(now_ns)

    def _node_down(self, node: int, why: str, now_ns: int) -> None:
        for job_id in self._grid.jobs_on(node):
            self._stop(self._jobs[job_id], now_ns, f"node {node}: {why}")
        self._grid.take_down(node)
        self._fill(now_ns)

    def _reprice(self, site: int, price: float, now_ns: int) -> None:
        fell, self._prices[site] = price < self._prices[site], price
        for job in list(self._jobs.values()):
            limit = job.spec.most_usd_per_kwh
            if limit and price > limit and job.places and self._grid.site_of(job.places[0][0]) == site:
                self._stop(job, now_ns, f"electricity at {price:.3f} $/kWh is above its {limit:.3f}")
        if fell or self._actions:
            self._fill(now_ns)

    def _shed(self, site: int, why: str, now_ns: int) -> None:
        """Stop what a cap does not allow: lowest priority, least lost work."""
        over = self._busy[site] - self._caps[site]
        if over <= 0:
            return
        here = [j for j in self._jobs.values() if j.places and self._grid.site_of(j.places[0][0]) == site]
        victims = [self._victim(job, now_ns, job.spec.accelerators) for job in here]
        for victim in choose_victims(victims, over):
            self._stop(self._jobs[victim.job_id], now_ns, why)

    # -- places -------------------------------------------------------------------------------------------------

    def _fill(self, now_ns: int) -> None:
        """Give places to those that wait, in order."""
        for priority in sorted(self._pending, reverse=True):
            waiting = self._pending[priority]
            for looked_at, job_id in enumerate(list(islice(waiting, LOOKED_AT))):
                job = self._jobs[job_id]
                if not self._try(job, now_ns, may_preempt=looked_at == 0):
                    waited_ns = now_ns - job.waiting_since_ns
                    if not may_pass(waited_ns=waited_ns, patience_ns=PATIENCE_NS):
                        return  # what becomes free gathers for it

    def _may_pass_all(self, priority: int, now_ns: int) -> bool:
        """Whether a newcomer may be tried before those that wait with its priority, or a higher one."""
        for other in self._pending:
            if other >= priority and self._pending[other]:
                first = self._jobs[next(iter(self._pending[other]))]
                if not may_pass(waited_ns=now_ns - first.waiting_since_ns, patience_ns=PATIENCE_NS):
                    return False
        return True

    def _try(self, job: Job, now_ns: int, *, may_preempt: bool = True) -> bool:
        """Give it its place now, if there is one or one can be made."""
        spec = job.spec
        quota, used = self._quotas.get(spec.tenant), self._used.get(spec.tenant, 0)
        if quota is not None and quota.most and used + spec.accelerators > quota.most:
            return False
        sites = range(len(self._caps)) if spec.site < 0 else (spec.site,)
        allowed = [site for site in sites if self._is_allowed(spec, site)]
        for site in allowed:
            places = self._grid.find(site, spec.accelerators)
            if places:
                self._start(job, places, now_ns)
                return True
        if may_preempt and now_ns - job.tried_ns >= RETRY_NS:
            job.tried_ns = now_ns
            for site in allowed:
                if self._make_room(job, site, now_ns):
                    places = self._grid.find(site, spec.accelerators)
                    assert places, "the room made suffices"
                    self._start(job, places, now_ns)
                    return True
        return False

    def _is_allowed(self, spec: JobSpec, site: int) -> bool:
        if self._busy[site] + spec.accelerators > self._caps[site]:
            return False
        return not spec.most_usd_per_kwh or self._prices[site] <= spec.most_usd_per_kwh

    def _make_room(self, job: Job, site: int, now_ns: int) -> bool:
        """Stop gangs of lower priority, or lent accelerators where it only asks for its tenant's guarantee."""
        spec, per_node = job.spec, self._grid.topology.per_node
        quota = self._quotas.get(spec.tenant, Quota())
        is_owed = self._used.get(spec.tenant, 0) + spec.accelerators <= quota.guaranteed
        if not is_owed and not any(count and lower < spec.priority for lower, count in self._at_work.items()):
            return False
        candidates = []
        for other in self._jobs.values():
            theirs = other.spec
            if not other.places or not theirs.preemptible or theirs.accelerators < per_node:
                continue
            if self._grid.site_of(other.places[0][0]) != site:
                continue
            owner = self._quotas.get(theirs.tenant, Quota())
            is_lent = self._used.get(theirs.tenant, 0) > owner.guaranteed
            if theirs.priority < spec.priority or (is_owed and is_lent and theirs.priority == spec.priority):
                candidates.append(self._victim(other, now_ns, theirs.accelerators // per_node))
        short = max(1, -(-spec.accelerators // per_node)) - self._grid.whole_at(site)
        victims = choose_victims(candidates, short) if short > 0 else []
        for victim in victims:
            lost_h = victim.lost_ns / 3.6e12
            why = f"{spec.job_id} goes first (priority {spec.priority}); {lost_h:.1f} accelerator-hours are lost"
            self._stop(self._jobs[victim.job_id], now_ns, why)
        return bool(victims)

    def _victim(self, job: Job, now_ns: int, nodes: int) -> Victim:
        lost_ns = (now_ns - max(job.saved_ns, job.started_ns) + RESTART_NS) * job.spec.accelerators
        return Victim(job.spec.job_id, nodes, lost_ns, job.spec.priority)

    def _start(self, job: Job, places: tuple[tuple[int, int], ...], now_ns: int) -> None:
        spec = job.spec
        del self._pending[spec.priority][spec.job_id]
        self._grid.take(spec.job_id, places)
        job.places, job.started_ns, job.saved_ns = places, now_ns, now_ns
        job.starts += 1
        self._used[spec.tenant] = self._used.get(spec.tenant, 0) + spec.accelerators
        self._at_work[spec.priority] = self._at_work.get(spec.priority, 0) + 1
        self._busy[self._grid.site_of(places[0][0])] += spec.accelerators
        self._actions.append(StartJob(spec.job_id, places, job.starts))
        switches = len(dict.fromkeys(self._grid.topology.switch_of(node) for node, _ in places))
        waited_s = (now_ns - job.waiting_since_ns) / NS_PER_S
        why = f"{spec.accelerators:,} accelerators under {switches} switches, after {waited_s:.0f} s"
        self._decide(now_ns, "start", spec, why)

    def _stop(self, job: Job, now_ns: int, why: str, *, tell: bool = True) -> None:
        spec = job.spec
        self._release(job)
        job.waiting_since_ns = now_ns
        waiting = self._pending.setdefault(spec.priority, OrderedDict())
        waiting[spec.job_id] = None
        waiting.move_to_end(spec.job_id, last=False)  # it was here before them
        if tell:
            self._actions.append(StopJob(spec.job_id, why))
        self._decide(now_ns, "stop", spec, why)

    def _release(self, job: Job) -> None:
        spec = job.spec
        self._used[spec.tenant] -= spec.accelerators
        self._at_work[spec.priority] -= 1
        self._busy[self._grid.site_of(job.places[0][0])] -= spec.accelerators
        self._grid.give_back(spec.job_id, job.places)
        job.places = ()

    def _decide(self, now_ns: int, what: str, spec: JobSpec, why: str) -> None:
        self.decisions.append(Decision(at_ns=now_ns, what=what, subject=spec.job_id, model=spec.tenant, why=why))
