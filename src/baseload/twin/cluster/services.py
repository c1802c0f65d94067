"""Services of a fleet: their load as a flow, and our autoscaler's choice of replicas on it.

`policy.scaling` is production code; the load, the queue (a fluid one) and how long a replica takes to serve are
modelled: requests in service are rate times time, what exceeds the ready replicas' room waits and is served later.
"""

import math

from baseload.domain.jobs import JobSpec
from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_S, seconds
from baseload.policy.scaling import ScalingView, desired_replicas, has_slack, is_pressed
from baseload.twin.cluster.jobs import Run
from baseload.twin.cluster.spec import JobStream, Service
from baseload.twin.cluster.world import ClusterWorld

ENDLESS_NS = 1 << 60
MOST_WAIT_S = 60.0  # who would wait longer is refused


class ServiceLoad:
    """One service: its replicas are jobs of the gang scheduler."""

    def __init__(self, service: Service, world: ClusterWorld, *, number: int) -> None:
        self.service = service
        self.asked = self.in_time = self.refused = 0.0  # requests
        self.rate_per_s = 0.0
        self.queued = 0.0
        self.wanted: dict[str, Run] = {}
        self._world = world
        self._rng = Rng(world.seed, f"twin.cluster.service.{number}")
        self._stream = JobStream(name=service.name, tenant=service.tenant, start_s=service.start_s)
        self._numbers = 0
        self._pressed_since_ns = self._slack_since_ns = -1
        self._scaled_up_ns = -(1 << 62)
        self._waits_since_ns = -1

    def ready(self) -> int:
        """Replicas that serve now."""
        now_ns = self._world.now_ns
        return sum(run.alive and now_ns >= run.since_ns for run in self.wanted.values())

    def tick(self) -> None:
        """Some seconds passed: requests came, were served or wait; then the autoscaler chooses."""
        service, world = self.service, self._world
        passed_s = world.cluster.tick_s
        self.rate_per_s = rate = self._rate()
        ready = self.ready()
        room = ready * service.concurrency
        can_serve = room / service.request_s * passed_s
        come, waiting = rate * passed_s, self.queued
        served = min(come + waiting, can_serve)
        self.queued = come + waiting - served
        refused = max(0.0, self.queued - MOST_WAIT_S * max(rate, can_serve / passed_s))
        self.queued -= refused
        self.asked += come
        self.refused += refused
        wait_s = self.queued / (can_serve / passed_s) if can_serve else MOST_WAIT_S
        if wait_s * NS_PER_S <= service.scaling.target_queue_delay_ns:
            self.in_time += served
        self._scale(ready, min(room, round(rate * service.request_s)))

    def _rate(self) -> float:
        service, hour = self.service, self._world.now_ns / NS_PER_S / 3600.0
        mean = (1.0 + service.trough) / 2.0
        wave = mean + (1.0 - service.trough) / 2.0 * math.cos((hour - service.peak_hour) * math.pi / 12.0)
        return service.rate_per_s * wave / mean * (1.0 + service.noise * (2.0 * self._rng.unit() - 1.0))

    def _scale(self, ready: int, in_flight: int) -> None:
        service, now_ns = self.service, self._world.now_ns
        scaling, capacity, queued = service.scaling, service.concurrency, math.ceil(self.queued)
        self._waits_since_ns = _since(self._waits_since_ns, queued > 0, now_ns)
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
