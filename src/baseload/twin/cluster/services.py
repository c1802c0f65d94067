"""Services of a fleet: their load as a flow, and our autoscaler's choice of replicas on it.

`policy.scaling` is production code. The load is modelled as counts: how many requests came in a short while (drawn,
with Poisson's scatter), how many of those in a replica ended (a request takes `request_s` on average, whoever is
beside it), how many wait because all places are taken. No request is followed by itself; a test holds replicas and
use of the flow against the same load, request by request through the whole control machine (`test_twin_flow.py`).
"""

import math
from collections import deque

import numpy as np

from baseload.domain.jobs import JobSpec
from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_S, seconds
from baseload.policy.scaling import (
    QUICK_NS,
    WINDOW_NS,
    ScalingView,
    desired_replicas,
    has_slack,
    is_pressed,
    replicas_needed,
    work_of,
)
from baseload.twin.cluster.jobs import Run
from baseload.twin.cluster.spec import JobStream, Service
from baseload.twin.cluster.world import ClusterWorld

ENDLESS_NS = 1 << 60
MOST_WAIT_S = 60.0  # who would wait longer is refused
LEAST_STEP_S = 1.0  # of the flow; a tenth of a request's time where that is longer


class ServiceLoad:
    """One service: its replicas are jobs of the gang scheduler."""

    def __init__(self, service: Service, world: ClusterWorld, *, number: int) -> None:
        self.service = service
        self.asked = self.in_time = self.refused = 0  # requests
        self.rate_per_s = 0.0
        self.queued = 0
        self.running = 0
        self.wanted: dict[str, Run] = {}
        self._world = world
        self._rng = Rng(world.seed, f"twin.cluster.service.{number}")
        self._random = np.random.default_rng(Rng(world.seed, f"twin.cluster.flow.{number}").u64())
        self._stream = JobStream(name=service.name, tenant=service.tenant, start_s=service.start_s)
        self._numbers = 0
        self._came: deque[tuple[int, int]] = deque([(0, 0)])  # (at, asked so far), over the autoscaler's window
        self._needs: deque[tuple[int, int]] = deque()  # (at, replicas needed)
        self._pressed_since_ns = self._slack_since_ns = -1
        self._scaled_up_ns = -(1 << 62)
        self._waits_since_ns = -1

    def ready(self) -> int:
        """Replicas that serve now."""
        now_ns = self._world.now_ns
        return sum(run.alive and now_ns >= run.since_ns for run in self.wanted.values())

    def tick(self) -> None:
        """Some seconds passed: requests came, were served or wait; then the autoscaler chooses."""
        service, passed_s = self.service, self._world.cluster.tick_s
        self.rate_per_s = self._rate()
        ready = self.ready()
        steps = max(1, math.ceil(passed_s / max(LEAST_STEP_S, service.request_s / 10.0)))
        self._flow(ready * service.concurrency, steps, passed_s / steps)
        self._scale(ready)

    def _flow(self, room: int, steps: int, each_s: float) -> None:
        """Requests come, end and move up, step by step."""
        service, random = self.service, self._random
        ends = min(1.0, each_s / service.request_s)  # share of those in a replica that end in a step
        served_per_s = room / service.request_s
        most = round(MOST_WAIT_S * max(self.rate_per_s, served_per_s))
        now_ns, each_ns = self._world.now_ns, seconds(each_s)
        for at, come in enumerate(random.poisson(self.rate_per_s * each_s, steps).tolist()):
            if self.running:
                self.running -= min(self.running, int(random.binomial(self.running, ends)))
            self.running = min(self.running, room)  # of replicas that went
            moved = min(self.queued + come, room - self.running)
            wait_s = self.queued / served_per_s if room else MOST_WAIT_S
            if wait_s * NS_PER_S <= service.scaling.target_queue_delay_ns:
                self.in_time += moved
            self.running += moved
            self.queued += come - moved
            over = max(0, self.queued - most)
            self.queued -= over
            self.asked += come
            self.refused += over
            at_ns = now_ns - (steps - 1 - at) * each_ns
            self._waits_since_ns = _since(self._waits_since_ns, self.queued > 0, at_ns)
            self._came.append((at_ns, self.asked))

    def _rate(self) -> float:
        service, hour = self.service, self._world.now_ns / NS_PER_S / 3600.0
        mean = (1.0 + service.trough) / 2.0
        wave = mean + (1.0 - service.trough) / 2.0 * math.cos((hour - service.peak_hour) * math.pi / 12.0)
        return service.rate_per_s * wave / mean * (1.0 + service.noise * (2.0 * self._rng.unit() - 1.0))

    def _needed(self) -> int:
        """Replicas that the requests of the last minute need, where it is told what one carries; else 0."""
        scaling, now_ns, came = self.service.scaling, self._world.now_ns, self._came
        while len(came) > 1 and came[1][0] <= now_ns - WINDOW_NS:
            came.popleft()
        if scaling.requests_per_s <= 0:
            return 0
        first = came[0]
        quick = next((entry for entry in came if entry[0] >= now_ns - QUICK_NS), came[-1])

        def work(since: tuple[int, int]) -> float:
            return work_of(requests=self.asked - since[1], prompt_tokens=0, answer_tokens=0.0, scaling=scaling)

        needed = replicas_needed(
            work=work(first), over_ns=now_ns - first[0], quick_work=work(quick), quick_ns=now_ns - quick[0]
        )
        while self._needs and self._needs[0][0] <= now_ns - scaling.scale_down_ns:
            self._needs.popleft()
        self._needs.append((now_ns, needed))
        return needed

    def _scale(self, ready: int) -> None:
        service, now_ns = self.service, self._world.now_ns
        scaling, capacity, queued, in_flight = service.scaling, service.concurrency, self.queued, self.running
        usage = in_flight / (ready * capacity) if ready else 0.0
        pressed = is_pressed(kv_usage=usage, target_kv_usage=scaling.target_kv_usage, all_have_waiting=queued > 0)
        slack = not pressed and has_slack(
            replicas=ready,
            load=in_flight + queued,
            capacity=capacity,
            kv_usage=usage,
            target_kv_usage=scaling.target_kv_usage,
        )
        self._pressed_since_ns = _since(self._pressed_since_ns, pressed, now_ns)
        self._slack_since_ns = _since(self._slack_since_ns, slack, now_ns)
        view = ScalingView(
            wanted=len(self.wanted),
            ready=ready,
            queued=queued,
            oldest_wait_ns=now_ns - self._waits_since_ns if self._waits_since_ns >= 0 else 0,
            in_flight=in_flight,
            capacity=capacity,
            idle_for_ns=0,
            pressed_for_ns=now_ns - self._pressed_since_ns if self._pressed_since_ns >= 0 else 0,
            slack_for_ns=now_ns - self._slack_since_ns if self._slack_since_ns >= 0 else 0,
            since_scale_up_ns=now_ns - self._scaled_up_ns,
            needed=self._needed(),
            most_needed=max((needed for _, needed in self._needs), default=0),
        )
        desired = desired_replicas(view, scaling).desired
        if desired > len(self.wanted):
            self._scaled_up_ns = now_ns
        elif desired < len(self.wanted):
            self._slack_since_ns = -1
        while len(self.wanted) < desired and self._start():
            pass
        while len(self.wanted) > desired:
            self._drop()

    def _start(self) -> bool:
        """Ask for one more replica; False where it is refused for good, and nothing is asked for ten minutes."""
        self._numbers += 1
        service = self.service
        spec = JobSpec(
            job_id=f"{service.name}/{self._numbers}",
            tenant=service.tenant,
            accelerators=service.accelerators,
            priority=service.priority,
            preemptible=False,
        )
        run = Run(spec, self._stream, submitted_ns=self._world.now_ns, work_ns=ENDLESS_NS)
        run.each_ns = ENDLESS_NS
        self.wanted[spec.job_id] = run
        self._world.submit(run)
        if spec.job_id not in self._world.runs:  # refused
            del self.wanted[spec.job_id]
            self._scaled_up_ns = self._world.now_ns + seconds(600)
            return False
        return True

    def _drop(self) -> None:
        """The youngest goes, one that has no place yet first."""
        chosen = next((run for run in reversed(self.wanted.values()) if not run.nodes), None)
        run = chosen or next(reversed(self.wanted.values()))
        del self.wanted[run.spec.job_id]
        self._world.end(run)

    def drop_all(self) -> None:
        """The service ends."""
        while self.wanted:
            self._drop()


def _since(since_ns: int, holds: bool, now_ns: int) -> int:
    if not holds:
        return -1
    return since_ns if since_ns >= 0 else now_ns
