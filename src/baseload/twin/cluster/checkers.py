"""What must always hold of the gang scheduler, from events and actions alone; and that everybody's turn comes."""

from collections.abc import Sequence

from baseload.core.grid import Topology
from baseload.domain.jobs import (
    JobAction,
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
    StartJob,
    StopJob,
)
from baseload.twin.checkers import Violation


class GangChecker:
    """The observer: who runs where, as told; every step in O(what it told)."""

    def __init__(self, topology: Topology, quotas: dict[str, Quota], site_of: Sequence[int]) -> None:
        self._per_node = topology.per_node
        self._free = [topology.per_node] * topology.nodes
        self._is_down = [False] * topology.nodes
        self._quotas = quotas
        self._site_of = site_of
        self._specs: dict[str, JobSpec] = {}
        self._places: dict[str, tuple[tuple[int, int], ...]] = {}
        self._on: dict[int, dict[str, None]] = {}
        self._used: dict[str, int] = {}
        self._busy = [0] * len(topology.sites)
        self._caps = [1 << 60] * len(topology.sites)
        self._attempts: dict[str, int] = {}
        self.steps = 0

    def stepped(self, event: JobEvent, actions: Sequence[JobAction]) -> None:
        """The scheduler answered this event with these actions."""
        self.steps += 1
        match event:
            case JobSubmitted(spec=spec):
                self._specs.setdefault(spec.job_id, spec)
            case JobEnded(job_id=job_id):
                self._leave(job_id)
                self._specs.pop(job_id, None)
            case JobFailed(job_id=job_id, attempt=attempt):
                if self._attempts.get(job_id) == attempt:
                    self._leave(job_id)
            case NodeDown(node=node):
                self._is_down[node] = True
            case NodeUp(node=node):
                self._is_down[node] = False
            case SiteCapped(site=site, accelerators=accelerators):
                self._caps[site] = accelerators
            case _:
                pass
        for action in actions:
            match action:
                case StopJob(job_id=job_id):
                    _must(job_id in self._places, f"{job_id} is stopped, and does not run")
                    self._leave(job_id)
                case StartJob():
                    self._starts(action)
                case RefuseJob(job_id=job_id):
                    _must(job_id not in self._places, f"{job_id} is refused, and runs")
                    self._specs.pop(job_id, None)
        if isinstance(event, NodeDown):
            left = self._on.get(event.node)
            _must(not left, f"node {event.node} is down, and {list(left or ())} are left on it")
        for site, busy in enumerate(self._busy):
            _must(busy <= self._caps[site], f"site {site}: {busy} accelerators work, {self._caps[site]} may")

    def _starts(self, action: StartJob) -> None:
        job_id, places = action.job_id, action.places
        spec = self._specs.get(job_id)
        if spec is None:
            raise Violation(f"{job_id} is started, and nobody asked for it")
        _must(job_id not in self._places, f"{job_id} is started twice")
        _must(action.attempt == self._attempts.get(job_id, 0) + 1, f"{job_id}: attempt {action.attempt}")
        self._attempts[job_id] = action.attempt
        _must(sum(count for _, count in places) == spec.accelerators, f"{job_id} does not get its whole gang")
        _must(len(dict(places)) == len(places), f"{job_id} gets a node twice")
        sites = list(dict.fromkeys(self._site_of[node] for node, _ in places))
        _must(len(sites) == 1 and spec.site in (-1, sites[0]), f"{job_id} runs at sites {sites}")
        for node, count in places:
            _must(not self._is_down[node], f"{job_id} is put on node {node}, which is down")
            self._free[node] -= count
            _must(self._free[node] >= 0, f"{job_id} is put on node {node}, which is full")
            self._on.setdefault(node, {})[job_id] = None
        self._places[job_id] = places
        self._busy[sites[0]] += spec.accelerators
        self._used[spec.tenant] = used = self._used.get(spec.tenant, 0) + spec.accelerators
        most = self._quotas.get(spec.tenant, Quota()).most
        _must(not most or used <= most, f"{spec.tenant} has {used} accelerators, and may have {most}")

    def _leave(self, job_id: str) -> None:
        places = self._places.pop(job_id, ())
        for node, count in places:
            self._free[node] += count
            del self._on[node][job_id]
        if places:
            spec = self._specs[job_id]
            self._used[spec.tenant] -= spec.accelerators
            self._busy[self._site_of[places[0][0]]] -= spec.accelerators


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)
