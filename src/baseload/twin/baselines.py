"""Simple policies to compare ours with, put into the control machine of a simulated world only.

Routing: round robin, least loaded (fewest requests in flight, of all replicas), random. Scaling: on the request rate
(as many replicas as the rate over a window needs at a stated rate per replica; fewer after `idle_ns` below that).
Everything else is the production machine. What scaling on rate has seen is not part of a snapshot: it goes without
faults that restart control.
"""

from collections import deque

from baseload.core.control import ControlMachine
from baseload.core.fleet import FleetMachine
from baseload.core.lanes import Lane, Seat
from baseload.core.lifecycle import Crew
from baseload.core.load import count_wanted
from baseload.core.router import RouterMachine
from baseload.core.snapshot import Snapshot
from baseload.domain.errors import SettingsError
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Request
from baseload.policy.scaling import Choice
from baseload.twin.spec import Policies

ROUTINGS = ("ours", "round_robin", "least_loaded", "random")
SCALINGS = ("ours", "request_rate")


def machine_for(policies: Policies) -> type[ControlMachine]:
    """The control machine with these policies; the production one where both are ours. SettingsError: no such."""
    for what, chosen, known in (("routing", policies.routing, ROUTINGS), ("scaling", policies.scaling, SCALINGS)):
        if chosen not in known:
            raise SettingsError(f"policies.{what}: unknown {chosen!r}.", hint=f"Known: {', '.join(known)}.")
    if policies.requests_per_replica_s <= 0 or policies.rate_window_s <= 0:
        raise SettingsError("policies: requests_per_replica_s and rate_window_s must be above 0.")
    if policies.routing == policies.scaling == "ours":
        return ControlMachine

    class Other(ControlMachine):
        """Our control machine with another router or autoscaler."""

        def _wire(self, snapshot: Snapshot) -> None:
            super()._wire(snapshot)
            router = RouterMachine
            match policies.routing:
                case "round_robin":
                    router = RoundRobin
                case "least_loaded":
                    router = LeastLoaded
                case "random":
                    router = RandomRouting
            self._router = router(snapshot.router, admission=self._admission, outbox=self._outbox)
            if policies.scaling == "request_rate":
                self._fleet = RequestRate(snapshot.fleet, router=self._router, outbox=self._outbox)
                self._fleet.policies = policies
            else:
                self._fleet = FleetMachine(snapshot.fleet, router=self._router, outbox=self._outbox)

    return Other


class RoundRobin(RouterMachine):
    """One after the other, in the order they were started, whatever they do."""

    def _choose(self, lane: Lane, among: list[str], request: Request) -> Seat:
        order = sorted(among, key=_number)
        return self.state.seats[order[lane.requests_total % len(order)]]


class LeastLoaded(RouterMachine):
    """The one with the fewest requests in flight; ties go to the one started first."""

    def _choose(self, lane: Lane, among: list[str], request: Request) -> Seat:
        seats = self.state.seats
        return seats[min(among, key=lambda name: (len(seats[name].running), _number(name)))]


class RandomRouting(RouterMachine):
    """Any of them."""

    def _choose(self, lane: Lane, among: list[str], request: Request) -> Seat:
        return self.state.seats[among[self._rng.below(len(among))]]


class RequestRate(FleetMachine):
    """As many replicas as the request rate needs."""

    policies: Policies = Policies()

    def _choose(self, crew: Crew, now_ns: int) -> Choice:
        if self.state.halted or crew.removed or crew.spec.is_remote:
            return super()._choose(crew, now_ns)
        seen: dict[str, _Seen] = self.__dict__.setdefault("_seen", {})
        return seen.setdefault(crew.spec.name, _Seen()).choose(crew, self._lane(crew), self.policies, now_ns)


class _Seen:
    """Arrivals of one model over a window, and since when fewer replicas would do."""

    def __init__(self) -> None:
        self.totals: deque[tuple[int, int]] = deque()  # (at, requests so far)
        self.fewer_since_ns = -1

    def choose(self, crew: Crew, lane: Lane, policies: Policies, now_ns: int) -> Choice:
        """The number of replicas for the rate seen."""
        scaling, wanted = crew.spec.scaling, count_wanted(crew)
        window_ns = round(policies.rate_window_s * NS_PER_S)
        self.totals.append((now_ns, lane.requests_total))
        while len(self.totals) > 1 and self.totals[1][0] <= now_ns - window_ns:
            self.totals.popleft()
        since_ns, before = self.totals[0]
        over_s = max(1.0, min(window_ns, now_ns - since_ns) / NS_PER_S)
        rate = (lane.requests_total - before) / over_s
        needed = -int(-rate // policies.requests_per_replica_s)
        low, high = scaling.min_replicas, max(scaling.max_replicas, scaling.min_replicas)
        needed = min(high, max(low, needed, 1 if lane.in_flight else 0))
        why = f"{rate:.2f} requests/s over {over_s:.0f} s"
        if needed >= wanted:
            self.fewer_since_ns = -1
            return Choice(needed, "scale_up" if wanted else "wake", why) if needed > wanted else Choice(wanted)
        if self.fewer_since_ns < 0:
            self.fewer_since_ns = now_ns
        if now_ns - self.fewer_since_ns < scaling.idle_ns:
            return Choice(wanted)
        self.fewer_since_ns = -1
        return Choice(needed, "scale_down", why)


def _number(replica_id: str) -> tuple[int, str]:
    """Replicas in the order they were started: shorter names first, then by name."""
    return len(replica_id), replica_id
