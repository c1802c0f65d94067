"""The fleet machine: how many replicas each model has, and what follows from the reports on them.

After a restart of the control process, replicas are *unconfirmed* until the driver reports on each; nothing is
dispatched to them before. A *suspect* failed a dispatch and takes nothing until it gives a sign of life.
"""

from msgspec import Struct

from baseload.core.lanes import Lane, Seat
from baseload.core.ledger import read_meter
from baseload.core.lifecycle import (
    DRAINING,
    FORCED_GRACE_NS,
    READY,
    STARTING,
    STOP_GRACE_NS,
    STOPPING,
    Crew,
    Lifecycle,
    Replica,
)
from baseload.core.load import (
    by_worth,
    count_wanted,
    crashes_in_a_row,
    most_replicas,
    needs_restart,
    outdated,
    proves_well,
    scaling_view,
    watch_demand,
    watch_load,
)
from baseload.core.outbox import Outbox
from baseload.core.router import RouterMachine
from baseload.domain.errors import Reason
from baseload.domain.fleet import WorkerSample
from baseload.domain.model import ModelSpec
from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_MS, NS_PER_S
from baseload.policy.healing import backoff_ns, refuses_while_backing_off, why_it_ended
from baseload.policy.scaling import Choice, desired_replicas

QUEUE_TICK_NS = 250 * NS_PER_MS  # how often scaling is reconsidered while requests wait
BUSY_TICK_NS = NS_PER_S  # and while they run
NEVER_NS = 1 << 62


class FleetState(Struct):
    """All of the machine's state."""

    rng_state: int
    crews: dict[str, Crew] = {}
    next_number: int = 1
    removed: list[str] = []  # models of which replicas or requests are still left
    halted: bool = False  # an orderly end was asked for: nothing is started any more


class FleetMachine:
    """Decides on starts, drains and stops; tells the router which replicas take requests."""

    def __init__(self, state: FleetState, *, router: RouterMachine, outbox: Outbox) -> None:
        self.state = state
        self._router = router
        self._outbox = outbox
        self._life = Lifecycle(state.crews, router=router, outbox=outbox)
        self._rng = Rng(0)
        self._rng.state = state.rng_state

    def save(self) -> FleetState:
        """The state to be written to a snapshot."""
        self.state.rng_state = self._rng.state
        return self.state

    def reseed(self, seed: int) -> None:
        """Begin the stream of random choices anew."""
        self._rng = Rng(seed, "fleet")

    @property
    def is_empty(self) -> bool:
        """Whether no replica is left."""
        return not self._life.index

    # -- models -------------------------------------------------------------------------------------------------

    def put_model(self, spec: ModelSpec, now_ns: int) -> None:
        """A model was added or replaced. Replicas whose engine settings changed are replaced by draining."""
        crew = self.state.crews.get(spec.name)
        if crew is None:
            crew = self.state.crews[spec.name] = Crew(spec=spec)
        elif crew.removed or needs_restart(crew.spec, spec):
            crew.crashes = crew.retry_at_ns = 0
            crew.last_error = ""
            self._outbox.cancel_timer(f"backoff:{spec.name}")
        if crew.removed:
            self.state.removed.remove(spec.name)
        crew.spec, crew.removed = spec, False
        self._settle_outage(crew, now_ns)
        for replica in crew.replicas:
            if not needs_restart(replica.spec, spec):
                if replica.spec.price != spec.price:
                    self._life.reprice(replica, spec, now_ns)
                replica.spec = spec
        self.rescale(crew, now_ns)

    def remove_model(self, name: str, now_ns: int) -> None:
        """A model was removed: its replicas drain."""
        crew = self.state.crews.get(name)
        if crew is not None and not crew.removed:
            crew.removed = True
            self.state.removed.append(name)
            self._outbox.cancel_timer(f"backoff:{name}")
            self.rescale(crew, now_ns)

    def rescale(self, crew: Crew, now_ns: int) -> None:
        """Bring the number of replicas to what is desired, and set the time of the next look."""
        crew.crashes = crashes_in_a_row(crew, now_ns)
        watch_load(crew, self._lane(crew), self._router.state.seats, now_ns)
        watch_demand(crew, self._lane(crew), now_ns)
        choice = self._choose(crew, now_ns)
        crew.desired = choice.desired
        wanted = count_wanted(crew)
        if wanted < choice.desired:
            self._grow(crew, choice, now_ns)
        elif wanted > choice.desired:
            self._shrink(crew, choice, now_ns)
        self._replace_outdated(crew, now_ns)
        self._set_tick(crew, now_ns)

    def forget_removed(self) -> None:
        """Forget removed models of which nothing is left."""
        for name in [name for name in self.state.removed if not self.state.crews[name].replicas]:
            if self._router.state.lanes[name].in_flight:
                continue
            for kind in ("scale", "backoff", "queue"):
                self._outbox.cancel_timer(f"{kind}:{name}")
            self._outbox.forget_model(name)
            del self._router.state.lanes[name], self.state.crews[name]
            self.state.removed.remove(name)

    def look_soon(self, crew: Crew, now_ns: int) -> None:
        """Requests wait: reconsider scaling at once if nothing will serve them, else at the next tick."""
        if not crew.wanted:
            self.rescale(crew, now_ns)
        else:
            self._outbox.set_earlier(f"scale:{crew.spec.name}", now_ns + QUEUE_TICK_NS)

    # -- reports ------------------------------------------------------------------------------------------------

    def worker_started(self, replica_id: str, now_ns: int, pid: int, url: str) -> None:
        """A worker process exists."""
        crew, replica = self._life.index.get(replica_id, (None, None))
        if crew is None or replica is None:
            self._life.stop_orphan(replica_id, now_ns)
            return
        replica.pid = pid
        replica.url = url or replica.url
        self._life.lived_on(replica, now_ns)
        if replica.confirmed:
            return
        self._life.confirm(replica)
        if replica.state in (DRAINING, STOPPING):
            self._life.stop(replica, now_ns, STOP_GRACE_NS, why="it was to end before the restart")
            return
        if replica.state is READY:
            self._life.serve_not_yet(replica, now_ns)
        self._outbox.set_timer(f"start:{replica_id}", now_ns + replica.spec.scaling.start_timeout_ns)
        why = f"worker {replica_id} outlived the control process and is still starting"
        self._outbox.decide(now_ns, "adopt", subject=replica_id, model=crew.spec.name, why=why)
        self.rescale(crew, now_ns)

    def worker_ready(self, replica_id: str, now_ns: int, url: str) -> None:
        """A worker takes requests."""
        crew, replica = self._life.index.get(replica_id, (None, None))
        if crew is None or replica is None:
            self._life.stop_orphan(replica_id, now_ns)
            return
        if replica.spec.is_remote:
            return
        adopted = not replica.confirmed
        replica.url = url
        self._life.lived_on(replica, now_ns)
        if adopted:
            self._life.confirm(replica)
            if replica.state in (DRAINING, STOPPING):
                self._life.stop(replica, now_ns, STOP_GRACE_NS, why="it was to end before the restart")
                return
            why = f"worker {replica_id} outlived the control process and answers"
            self._outbox.decide(now_ns, "adopt", subject=replica_id, model=crew.spec.name, why=why)
        seat = self._router.state.seats.get(replica_id)
        if replica.state is STARTING:
            self._life.serve(replica, now_ns)
            self._settle_outage(crew, now_ns)
            self.rescale(crew, now_ns)
        elif replica.state is READY and seat is not None:
            seat.url = url
            self._life.trust(replica, seat, now_ns)
            self.rescale(crew, now_ns)

    def worker_exited(self, replica_id: str, now_ns: int, exit_code: int, detail: str) -> None:
        """A worker process is gone."""
        crew, replica = self._life.index.get(replica_id, (None, None))
        if crew is None or replica is None or replica.spec.is_remote:
            return
        if replica.confirmed and replica.state is not STOPPING:
            self._crashed(crew, replica, now_ns, why_it_ended(exit_code, detail, was_ready=replica.was_ready))
        elif not replica.confirmed:
            why = "it ended while the control process was down"
            self._outbox.decide(now_ns, "stop", subject=replica_id, model=crew.spec.name, why=why)
        elif proves_well(crew, replica, now_ns, ended_in_order=exit_code == 0):
            crew.crashes = 0
        self._gone(crew, replica, now_ns)

    def worker_sampled(self, replica_id: str, now_ns: int, sample: WorkerSample) -> None:
        """A worker's figures were polled: a sign of life."""
        crew, replica = self._life.index.get(replica_id, (None, None))
        if crew is None or replica is None:
            return
        replica.sample = sample
        seat = self._router.state.seats.get(replica_id)
        if seat is not None:
            seat.sample = sample
            if replica.suspect:
                self._life.trust(replica, seat, now_ns)
                self._refuse_hopeless(crew, now_ns)
            watch_load(crew, self._lane(crew), self._router.state.seats, now_ns)

    def energy_measured(self, replica_id: str, now_ns: int, energy_uj: int, basis: str) -> None:
        """A meter was read."""
        replica = self._life.index.get(replica_id, (None, None))[1]
        if replica is not None:
            read_meter(replica.account, now_ns=now_ns, measured_uj=energy_uj, basis=basis)

    def dispatch_failed(self, seat: Seat, now_ns: int, reason: Reason) -> None:
        """A dispatch to this replica failed; if it could not be reached, nothing more is sent for a while."""
        replica = self._life.index.get(seat.replica_id, (None, None))[1]
        if reason is Reason.WORKER_LOST and replica is not None and replica.state is READY and not replica.suspect:
            self._life.suspect(replica, seat, now_ns)
        crew = self.state.crews[seat.model]
        self._router.pump(self._lane(crew), now_ns)
        self._refuse_hopeless(crew, now_ns)
        if self._lane(crew).waiting:
            self.look_soon(crew, now_ns)

    def served(self, replica_id: str, now_ns: int) -> None:
        """A replica answered a request well: a sign of life, and perhaps the end of a row of crashes."""
        crew, replica = self._life.index.get(replica_id, (None, None))
        if crew is None or replica is None:
            return
        replica.answered_ns = now_ns
        if replica.suspect:
            self._life.trust(replica, self._router.state.seats[replica_id], now_ns)
            self._refuse_hopeless(crew, now_ns)
        if crew.crashes:
            crew.crashes = crashes_in_a_row(crew, now_ns)

    def emptied(self, seat: Seat, now_ns: int) -> None:
        """A replica that takes nothing new runs nothing any more."""
        replica = self._life.index.get(seat.replica_id, (None, None))[1]
        if replica is None:
            self._outbox.cancel_timer(f"lost:{seat.replica_id}")
        elif replica.state is DRAINING and not seat.running:
            self._life.drained(replica, now_ns, "its last request has ended")

    # -- timers -------------------------------------------------------------------------------------------------

    def timer(self, kind: str, subject: str, now_ns: int) -> None:
        """A fleet timer is due: scale, backoff (subject: a model); start, drain, stop, … (subject: a replica)."""
        if kind in ("scale", "backoff"):
            if subject in self.state.crews:
                self.rescale(self.state.crews[subject], now_ns)
            return
        if kind == "lost":
            seat = self._router.state.seats.get(subject)
            if seat is not None and seat.gone:
                self._router.give_up(seat, now_ns, Reason.WORKER_LOST)
            return
        crew, replica = self._life.index.get(subject, (None, None))
        if crew is None or replica is None:
            return
        match kind:
            case "start" if replica.state is STARTING:
                limit_s = replica.spec.scaling.start_timeout_ns / NS_PER_S
                self._crashed(crew, replica, now_ns, f"the worker was not ready within {limit_s:.0f} s")
                self._life.stop(replica, now_ns, FORCED_GRACE_NS, why="it took too long to start")
            case "drain" if replica.state is DRAINING:
                self._life.stop(replica, now_ns, FORCED_GRACE_NS, why="its last requests did not end in time")
            case "stop" if replica.state is STOPPING:
                self._life.stop_again(replica, now_ns)
            case "confirm" if not replica.confirmed:
                self._life.confirm(replica)
                self._life.stop(replica, now_ns, FORCED_GRACE_NS, why="nothing was heard of it after the restart")
            case "suspect" if replica.suspect:
                self._suspicion_ended(crew, replica, now_ns)
        self._settle_outage(crew, now_ns)
        self.rescale(crew, now_ns)

    # -- the control process ------------------------------------------------------------------------------------

    def hold_all(self, known_ns: int) -> None:
        """Before a (re)start is taken in: spans end and accounts stand still at the last instant the machine knew."""
        self._life.hold_all(known_ns)

    def control_started(self, now_ns: int, *, offline: bool) -> None:
        """After a (re)start: no request runs; replicas are unconfirmed until reported; offline, none is started."""
        self.state.halted = offline
        self._life.doubt_all(now_ns)
        for crew in list(self.state.crews.values()) if not offline else ():
            self.rescale(crew, now_ns)

    def halt(self, now_ns: int) -> None:
        """Drain and stop every replica."""
        self.state.halted = True
        for crew in list(self.state.crews.values()):
            self._outbox.cancel_timer(f"backoff:{crew.spec.name}")
            self.rescale(crew, now_ns)

    def force(self, now_ns: int) -> None:
        """Stop what still drains."""
        for replica in self._life.everyone():
            if replica.spec.is_remote:
                self._life.gone(replica, now_ns)
            elif replica.state is not STOPPING:
                self._life.stop(replica, now_ns, FORCED_GRACE_NS, why="the time given for an orderly end is over")

    def abandon(self, now_ns: int) -> None:
        """Write off every replica that has not reported its end."""
        for replica in self._life.everyone():
            self._life.gone(replica, now_ns)

    # -- below --------------------------------------------------------------------------------------------------

    def _lane(self, crew: Crew) -> Lane:
        return self._router.state.lanes[crew.spec.name]

    def _choose(self, crew: Crew, now_ns: int) -> Choice:
        if self.state.halted:
            return Choice(0, "shut_down", "an orderly end was asked for")
        if crew.removed:
            return Choice(0, "remove", "the model was removed")
        if crew.spec.is_remote:
            return Choice(1, "start", "a worker that somebody else runs is always on")
        lane = self._lane(crew)
        view = scaling_view(crew, lane, oldest_wait_ns=self._router.oldest_wait_ns(lane, now_ns), now_ns=now_ns)
        return desired_replicas(view, crew.spec.scaling)

    def _grow(self, crew: Crew, choice: Choice, now_ns: int) -> None:
        missing = choice.desired - count_wanted(crew)
        for replica in reversed(crew.replicas):
            if (
                missing
                and replica.state is DRAINING
                and replica.confirmed
                and not needs_restart(replica.spec, crew.spec)
            ):
                self._life.undrain(replica, now_ns)
                self._decide(crew, now_ns, "undrain", replica.replica_id, choice.why)
                missing -= 1
        if now_ns < crew.retry_at_ns:
            self._outbox.set_timer(f"backoff:{crew.spec.name}", crew.retry_at_ns)
            return
        room = most_replicas(crew.spec) - len(crew.replicas)
        if min(missing, room) > 0:
            self._decide(crew, now_ns, choice.what, crew.spec.name, choice.why)
            crew.scaled_up_ns = now_ns
            crew.slack_since_ns = -1
        for _ in range(min(missing, room)):
            self._start(crew, now_ns, choice.why)

    def _start(self, crew: Crew, now_ns: int, why: str) -> Replica:
        number, self.state.next_number = self.state.next_number, self.state.next_number + 1
        replica = self._life.start(crew, number, now_ns)
        if not crew.spec.is_remote:
            self._decide(crew, now_ns, "start", replica.replica_id, why)
        return replica

    def _shrink(self, crew: Crew, choice: Choice, now_ns: int) -> None:
        victims = by_worth(
            [replica for replica in crew.wanted if replica.confirmed], crew.spec, self._router.state.seats
        )
        surplus = count_wanted(crew) - choice.desired
        if victims[:surplus]:
            self._decide(crew, now_ns, choice.what, crew.spec.name, choice.why)
        for replica in victims[:surplus]:
            self._life.drain(replica, now_ns, choice.why)
        crew.slack_since_ns = -1

    def _replace_outdated(self, crew: Crew, now_ns: int) -> None:
        """One at a time: start the new one first where there is room, then drain an old one."""
        wanted = [replica for replica in crew.wanted if replica.confirmed]
        old = outdated(wanted, crew.spec)
        if not old or crew.removed or self.state.halted:
            return
        why = "the model's engine settings changed"
        fresh = [replica for replica in wanted if replica not in old]
        has_room = crew.spec.is_remote or len(crew.replicas) < most_replicas(crew.spec)
        if not fresh and has_room:
            if now_ns < crew.retry_at_ns:
                return  # the new one fails; the old ones go on serving
            fresh = [self._start(crew, now_ns, why)]
        if any(replica.state is READY for replica in fresh) or len(crew.replicas) == len(old):
            self._life.drain(by_worth(old, crew.spec, self._router.state.seats)[0], now_ns, why)

    def _set_tick(self, crew: Crew, now_ns: int) -> None:
        timer, scaling, lane = f"scale:{crew.spec.name}", crew.spec.scaling, self._lane(crew)
        if crew.removed or self.state.halted or crew.spec.is_remote:
            self._outbox.cancel_timer(timer)
        elif lane.waiting and len(crew.replicas) < most_replicas(crew.spec):
            self._outbox.set_timer(timer, now_ns + QUEUE_TICK_NS)
        elif lane.in_flight:
            self._outbox.set_timer(timer, now_ns + BUSY_TICK_NS)
        elif len(crew.wanted) > scaling.min_replicas:
            sleep_ns = lane.active_ns + scaling.idle_ns
            self._outbox.set_timer(timer, sleep_ns if sleep_ns > now_ns else now_ns + BUSY_TICK_NS)
        else:
            self._outbox.cancel_timer(timer)

    def _crashed(self, crew: Crew, replica: Replica, now_ns: int, why: str) -> None:
        crew.crashes = crashes_in_a_row(crew, now_ns) + 1
        crew.crashed_ns, crew.last_error = now_ns, why
        self._decide(crew, now_ns, "crash", replica.replica_id, why)
        wait_ns = backoff_ns(crew.crashes, was_ready=replica.was_ready, jitter=self._rng.unit())
        if wait_ns:
            crew.retry_at_ns = now_ns + wait_ns
            self._outbox.set_timer(f"backoff:{crew.spec.name}", crew.retry_at_ns)
            why = f"{crew.crashes} crashes in a row; the next start is in {wait_ns / NS_PER_S:.1f} s at the earliest"
            self._decide(crew, now_ns, "backoff", crew.spec.name, why)

    def _gone(self, crew: Crew, replica: Replica, now_ns: int) -> None:
        self._life.gone(replica, now_ns)
        self._settle_outage(crew, now_ns)
        self._refuse_hopeless(crew, now_ns)
        self.rescale(crew, now_ns)

    def _suspicion_ended(self, crew: Crew, replica: Replica, now_ns: int) -> None:
        seat = self._router.state.seats.get(replica.replica_id)
        if replica.spec.is_remote:
            if seat is not None:
                self._life.trust(replica, seat, now_ns)
                self._refuse_hopeless(crew, now_ns)
            return
        self._crashed(crew, replica, now_ns, "the worker failed a request and gave no sign of life since")
        self._life.stop(replica, now_ns, FORCED_GRACE_NS, why=crew.last_error)

    def _settle_outage(self, crew: Crew, now_ns: int) -> None:
        """Say whether requests are held or refused while nothing serves this model."""
        lane, spec = self._lane(crew), crew.spec
        lane.outage, lane.outage_until_ns = "", 0
        if not spec.is_remote and not most_replicas(spec):
            lane.outage, lane.outage_until_ns = f"The model {spec.name!r} is set to zero replicas.", NEVER_NS
        elif now_ns < crew.retry_at_ns and refuses_while_backing_off(crew.crashes) and not crew.wanted:
            # Every tenant reads this; the reason, with paths of this machine, is the operator's: status and events.
            why = "does not start; its operator sees why in `baseload status`"
            lane.outage, lane.outage_until_ns = f"The model {spec.name!r} {why}.", crew.retry_at_ns
        if lane.outage:
            retry_ns = min(lane.outage_until_ns - now_ns, 60 * NS_PER_S)
            self._router.refuse_waiting(lane, now_ns, Reason.MODEL_UNAVAILABLE, lane.outage, retry_after_ns=retry_ns)

    def _refuse_hopeless(self, crew: Crew, now_ns: int) -> None:
        """Refuse what waits for another attempt where no other replica is or can come."""
        lane = self._lane(crew)
        if not lane.again:
            return
        may_change = any(
            replica.suspect or not replica.confirmed or replica.state in (DRAINING, STOPPING)
            for replica in crew.replicas
        )
        if not crew.spec.is_remote and (may_change or len(crew.replicas) < most_replicas(crew.spec)):
            return
        for request_id in list(lane.again):
            ticket = self._router.state.tickets[request_id]
            if all(replica.replica_id in ticket.failed_on for replica in crew.wanted):
                why = f"Every replica of {crew.spec.name!r} failed this request."
                reason = ticket.failure or Reason.WORKER_ERROR
                self._router.refuse(ticket, now_ns, reason, why, retry_after_ns=NS_PER_S)

    def _decide(self, crew: Crew, now_ns: int, what: str, subject: str, why: str) -> None:
        self._outbox.decide(now_ns, what, subject=subject, model=crew.spec.name, why=why)
