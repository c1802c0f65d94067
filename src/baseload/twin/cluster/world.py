"""The simulated fleet: drives the gang scheduler on a virtual clock, runs its jobs, and lets faults happen to them.

Production code here: `core.scheduler` with `policy.placement`, and `policy.scaling` for services. Modelled: how jobs
progress, fail and restart, the services' load (a flow), machines, power and prices.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from baseload.core.grid import Topology
from baseload.core.scheduler import SchedulerMachine
from baseload.domain.jobs import (
    JobAction,
    JobCheckpointed,
    JobEnded,
    JobEvent,
    JobFailed,
    JobSubmitted,
    NodeDown,
    NodeUp,
    RefuseJob,
    StartJob,
    StopJob,
)
from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Decision
from baseload.twin.agenda import Agenda
from baseload.twin.chance import exponential_ns
from baseload.twin.cluster.checkers import GangChecker
from baseload.twin.cluster.jobs import Run
from baseload.twin.cluster.spec import Cluster
from baseload.twin.tally import FaultNote

RETOLD_NS = 30 * NS_PER_S  # a message nobody acknowledged is sent again after so long
CHECK_EVERY = 5_000  # steps between two looks at everything


class ClusterWorld:
    """Everything of one simulated fleet."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        seed: int,
        most_decisions: int = 200,
        checked: bool = True,
        machine: type[SchedulerMachine] = SchedulerMachine,
    ) -> None:
        self.cluster = cluster
        self.seed = seed
        self.faults = cluster.faults
        self.topology = Topology(
            sites=tuple(site.nodes for site in cluster.sites),
            per_node=cluster.per_node,
            nodes_per_switch=cluster.nodes_per_switch,
            switches_per_pod=cluster.switches_per_pod,
        )
        self.site_of = [at for at, site in enumerate(cluster.sites) for _ in range(site.nodes)]
        self.first_node = [sum(site.nodes for site in cluster.sites[:at]) for at in range(len(cluster.sites))]
        self.machine = machine(self.topology, cluster.quotas)
        self.checker = GangChecker(self.topology, cluster.quotas, self.site_of) if checked else None
        self.agenda = Agenda(seed, start_ns=0)
        self.runs: dict[str, Run] = {}  # that are not over
        self.ended: list[Run] = []
        self.refused = 0
        self.broken: dict[int, int] = {}  # node → how many reasons it has to be down
        self.on: dict[int, dict[str, Run]] = {}  # node → what runs on it
        self.slow: dict[int, int] = {}  # node → how many reasons it has to be slow, found by nobody yet
        self.cut_until_ns = [0] * len(cluster.sites)
        self.disk_full_until_ns = [0] * len(cluster.sites)
        self.steps = 0
        self.stops = 0
        self.decisions: list[Decision] = []
        self.decisions_total = 0
        self.kinds: dict[str, int] = {}  # decisions by what
        self.notes: list[FaultNote] = []
        self.small_faults: dict[str, int] = {"lost message": 0, "slow message": 0}
        self.on_start: Callable[[Run], None] = _nothing
        self.on_leave: Callable[[Run], None] = _nothing
        self.tail: deque[tuple[int, JobEvent]] = deque(maxlen=30)
        self._most_decisions = most_decisions
        self._messages = Rng(seed, "twin.cluster.messages")
        self._luck = Rng(seed, "twin.cluster.luck")
        self._digest = hashlib.sha256()

    @property
    def now_ns(self) -> int:
        """The present instant."""
        return self.agenda.now_ns

    def digest(self) -> str:
        """SHA-256 over all actions so far and their times."""
        return self._digest.hexdigest()

    def note(self, kind: str, subject: str, until_ns: int = 0) -> None:
        """A fault was made, which will be mended then."""
        self.notes.append(FaultNote(self.now_ns / NS_PER_S, kind, subject, until_ns / NS_PER_S))

    # -- messages to the scheduler, and what it answers -----------------------------------------------------------

    def tell(self, event: JobEvent, *, site: int = -1) -> None:
        """A message from a site (-1: from the control room) to the scheduler; it may be late, or told again."""
        delay_ns = 0
        if site >= 0:
            delay_ns = max(0, self.cut_until_ns[site] - self.now_ns)
            if self.faults.lost_messages > 0 and self._messages.unit() < self.faults.lost_messages:
                delay_ns += RETOLD_NS
                self.small_faults["lost message"] += 1
            if self.faults.slow_messages > 0 and self._messages.unit() < self.faults.slow_messages:
                delay_ns += self._messages.below(60 * NS_PER_S)
                self.small_faults["slow message"] += 1
        if delay_ns:
            self.agenda.after(delay_ns, lambda: self._step(event))
        else:
            self._step(event)

    def _step(self, event: JobEvent) -> None:
        now_ns, machine = self.agenda.now_ns, self.machine
        self.steps += 1
        self.tail.append((now_ns, event))
        actions = machine.step(now_ns, event)
        if actions:
            self._digest.update(msgspec.msgpack.encode((now_ns, actions)))
        self.decisions_total += len(machine.decisions)
        for decision in machine.decisions:
            self.kinds[decision.what] = self.kinds.get(decision.what, 0) + 1
            if self.kinds[decision.what] <= self._most_decisions // 2:  # of each kind the first ones
                self.decisions.append(decision)
        if self.checker is not None:
            self.checker.stepped(event, actions)
            if self.steps % CHECK_EVERY == 0:
                machine.check()
        self._perform(actions)

    def _perform(self, actions: Sequence[JobAction]) -> None:
        for action in actions:
            match action:
                case StartJob(job_id=job_id, places=places, attempt=attempt):
                    self._start(self.runs.get(job_id), places, attempt)
                case StopJob(job_id=job_id):
                    self.stops += 1
                    run = self.runs.get(job_id)
                    if run is not None:
                        self._leave(run)
                case RefuseJob(job_id=job_id):
                    self.refused += 1
                    self.runs.pop(job_id, None)

    # -- jobs -----------------------------------------------------------------------------------------------------

    def submit(self, run: Run) -> None:
        """Somebody asks for a job."""
        self.runs[run.spec.job_id] = run
        self.tell(JobSubmitted(run.spec))

    def end(self, run: Run) -> None:
        """It is done, or not wanted any more."""
        site = run.site
        self._leave(run, saved=True)
        run.ended_ns = self.now_ns
        del self.runs[run.spec.job_id]
        self.ended.append(run)
        self.tell(JobEnded(run.spec.job_id), site=site)

    def _start(self, run: Run | None, places: tuple[tuple[int, int], ...], attempt: int) -> None:
        if run is None:
            return  # it ended while its last message was on the way
        now_ns = self.now_ns
        run.nodes, run.attempt, run.alive = places, attempt, True
        run.site = self.site_of[places[0][0]]
        run.epoch += 1
        run.rate = 1.0 if not any(node in self.slow for node, _ in places) else 1.0 / self.faults.slow_by
        if run.first_ns < 0:
            run.first_ns = now_ns
        elif self.faults.corrupt_checkpoints > 0 and self._luck.unit() < self.faults.corrupt_checkpoints:
            run.lost_ns += run.saved_ns - run.previous_ns
            run.done_ns = run.saved_ns = run.previous_ns
            self.note("corrupt checkpoint", run.spec.job_id)
        for node, _ in places:
            self.on.setdefault(node, {})[run.spec.job_id] = run
        run.since_ns = now_ns + run.start_ns
        self.on_start(run)
        for node, _ in places:
            if node in self.broken:  # nobody has told the scheduler yet
                self.fail(run, f"node {node} does not answer")
                return
        self._plan(run)

    def _plan(self, run: Run) -> None:
        """What comes next if nothing happens: a checkpoint, or the end."""
        epoch = run.epoch
        at_ns = max(run.since_ns, self.now_ns) + run.stretch_ns()
        self.agenda.at(at_ns, lambda: self._stretch_over(run, epoch))

    def _stretch_over(self, run: Run, epoch: int) -> None:
        if run.epoch != epoch or not run.alive:
            return
        if run.done_ns + run.each_ns >= run.work_ns:
            self.end(run)
            return
        run.done_ns += run.each_ns
        run.since_ns = self.now_ns + run.checkpoint_ns
        if self.now_ns >= self.disk_full_until_ns[run.site]:  # else not written: that work is not safe yet
            run.previous_ns, run.saved_ns = run.saved_ns, run.done_ns
            self.tell(JobCheckpointed(run.spec.job_id), site=run.site)
        self._plan(run)

    def _leave(self, run: Run, *, saved: bool = False) -> None:
        """It is off its nodes. What it did since its last checkpoint is lost, unless it is done."""
        if not run.nodes:
            return
        self.on_leave(run)
        if not saved:
            run.lost_ns += run.done_ns - run.saved_ns + (run.worked_ns(self.now_ns) if run.alive else 0)
            run.done_ns = run.saved_ns
        for node, _ in run.nodes:
            self.on[node].pop(run.spec.job_id, None)
        run.nodes, run.alive, run.site = (), False, -1
        run.epoch += 1

    # -- what faults do -------------------------------------------------------------------------------------------

    def fail(self, run: Run, why: str) -> None:
        """A job stops making progress now; that is noticed after a while."""
        if not run.alive:
            return
        run.lost_ns += run.worked_ns(self.now_ns)
        run.alive = False
        run.epoch += 1
        attempt, site = run.attempt, run.site
        after_ns = exponential_ns(self._luck, max(1e-3, self.faults.detect_s))

        def noticed() -> None:
            if run.attempt == attempt and run.nodes:
                self._leave(run)
                self.tell(JobFailed(run.spec.job_id, attempt, why), site=site)

        self.agenda.after(after_ns, noticed)

    def slow_down(self, run: Run, rate: float) -> None:
        """From now on the whole gang works at this rate."""
        if not run.alive or self.now_ns < run.since_ns:
            return
        worked_ns = run.worked_ns(self.now_ns)
        run.epoch += 1
        run.rate = rate
        run.since_ns = self.now_ns - round(worked_ns / rate)
        epoch, left_ns = run.epoch, run.stretch_ns() - round(worked_ns / rate)
        self.agenda.after(max(1, left_ns), lambda: self._stretch_over(run, epoch))

    def break_node(self, node: int, why: str, *, for_ns: int, told_after_ns: int) -> None:
        """A node cannot work for a while. Its jobs fail now; the scheduler hears of it a little later."""
        self.broken[node] = self.broken.get(node, 0) + 1
        for run in list(self.on.get(node, {}).values()):
            self.fail(run, f"node {node}: {why}")
        site = self.site_of[node]
        self.agenda.after(told_after_ns, lambda: self.tell(NodeDown(node, why), site=site))
        self.agenda.after(max(for_ns, told_after_ns + 1), lambda: self.mend_node(node))

    def mend_node(self, node: int) -> None:
        """One of its reasons to be down is over."""
        left = self.broken[node] - 1
        if left:
            self.broken[node] = left
            return
        del self.broken[node]
        # After the news of its failure in any case, however late that comes.
        late_ns = RETOLD_NS + 61 * NS_PER_S + max(0, self.cut_until_ns[self.site_of[node]] - self.now_ns)

        def told() -> None:
            if node not in self.broken:
                self.tell(NodeUp(node))

        self.agenda.after(late_ns, told)


def _nothing(run: Run) -> None:
    """Nobody counts."""
