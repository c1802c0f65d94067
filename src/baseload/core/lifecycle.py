"""One replica's way through starting → ready → draining → stopping → gone, with its seat, timers and account.

These are the transitions; when to make them is the fleet machine's to say.
"""

import re

from msgspec import Struct

from baseload.core.lanes import Seat
from baseload.core.ledger import (
    Account,
    become_cold,
    become_ready,
    close_span,
    hold,
    open_account,
    release,
    set_price,
)
from baseload.core.outbox import Outbox
from baseload.core.router import RouterMachine
from baseload.domain.actions import Record, StartWorker, StopWorker
from baseload.domain.fleet import ReplicaState, WorkerSample
from baseload.domain.model import ModelSpec
from baseload.domain.units import NS_PER_S
from baseload.policy.healing import REMOTE_REST_NS, SUSPECT_NS

STOP_GRACE_NS = 10 * NS_PER_S  # for a worker that runs nothing
FORCED_GRACE_NS = 5 * NS_PER_S  # for one that must end now
EXIT_SLACK_NS = 30 * NS_PER_S  # how long after its grace an exit is waited for before asking again
STOPS = 4  # how often it is asked before it is written off
CONFIRM_NS = 60 * NS_PER_S  # longest an unconfirmed replica is waited for after a restart
LOST_NS = 30 * NS_PER_S  # longest the reports on a gone replica's requests are waited for

STARTING, READY = ReplicaState.STARTING, ReplicaState.READY
DRAINING, STOPPING = ReplicaState.DRAINING, ReplicaState.STOPPING


class Replica(Struct):
    """One replica's life."""

    replica_id: str
    spec: ModelSpec
    account: Account
    state: ReplicaState
    started_ns: int
    since_ns: int
    url: str = ""
    pid: int = 0
    confirmed: bool = True
    suspect: bool = False
    was_ready: bool = False
    stops: int = 0  # how often it was told to end
    sample: WorkerSample = WorkerSample()
    ready_ns: int = 0  # when it became ready
    answered_ns: int = 0  # when it last answered a request well


class Crew(Struct):
    """One model's replicas and the state of its scaling."""

    spec: ModelSpec
    replicas: list[Replica] = []  # oldest first
    removed: bool = False
    desired: int = 0
    crashes: int = 0  # in a row, as of the last look; `load.crashes_in_a_row` looks
    crashed_ns: int = 0
    retry_at_ns: int = 0
    last_error: str = ""
    scaled_up_ns: int = -(1 << 62)
    pressed_since_ns: int = -1  # -1: not pressed
    slack_since_ns: int = -1
    arrived: list[tuple[int, int]] = []  # (when, requests so far) over the last minute, a second apart
    tokens: list[tuple[int, int, int]] = []  # beside those: prompt tokens asked, output tokens made, answers ended
    needs: list[tuple[int, int]] = []  # (when, replicas the rate needed) over `scale_down_ns`, rising to none after

    @property
    def wanted(self) -> list[Replica]:
        """The replicas that serve or will."""
        return [replica for replica in self.replicas if replica.state in (STARTING, READY)]


class Lifecycle:
    """Performs the transitions and keeps seats, timers and accounts in step with them."""

    def __init__(self, crews: dict[str, Crew], *, router: RouterMachine, outbox: Outbox) -> None:
        self._crews = crews
        self._router = router
        self._outbox = outbox
        self.index = {replica.replica_id: (crew, replica) for crew in crews.values() for replica in crew.replicas}
        for replica_id, seat in router.state.seats.items():
            if replica_id in self.index:
                seat.account = self.index[replica_id][1].account  # one object again after decoding

    def everyone(self) -> list[Replica]:
        """Every replica, by model (the order of `index` does not survive a snapshot)."""
        return [replica for crew in self._crews.values() for replica in crew.replicas]

    def start(self, crew: Crew, number: int, now_ns: int) -> Replica:
        """Begin a replica's life. A remote one is ready at once."""
        spec = crew.spec
        replica_id = f"{re.sub('[^A-Za-z0-9_.-]', '-', spec.name)[:40]}-{number}"
        replica = Replica(
            replica_id=replica_id,
            spec=spec,
            account=open_account(replica_id, model=spec.name, price=spec.price, now_ns=now_ns),
            state=STARTING,
            started_ns=now_ns,
            since_ns=now_ns,
        )
        crew.replicas.append(replica)
        self.index[replica_id] = (crew, replica)
        if spec.is_remote:
            replica.url = spec.source
            self.serve(replica, now_ns)
        else:
            self._outbox.actions.append(StartWorker(replica_id, spec))
            self._outbox.set_timer(f"start:{replica_id}", now_ns + spec.scaling.start_timeout_ns)
        return replica

    def serve(self, replica: Replica, now_ns: int) -> None:
        """It is ready: it takes requests."""
        self._outbox.cancel_timer(f"start:{replica.replica_id}")
        become_ready(replica.account, now_ns)
        replica.was_ready, replica.ready_ns = True, now_ns
        self._enter(replica, READY, now_ns)
        self._router.add_seat(
            replica.replica_id, model=replica.spec.name, url=replica.url, account=replica.account, now_ns=now_ns
        )

    def serve_not_yet(self, replica: Replica, now_ns: int) -> None:
        """It was thought ready, and is still starting."""
        self._router.vacate(replica.replica_id, now_ns)
        become_cold(replica.account, now_ns)
        self._enter(replica, STARTING, now_ns)

    def drain(self, replica: Replica, now_ns: int, why: str) -> None:
        """Take nothing new; let running requests finish; then stop."""
        if replica.state is STARTING:
            self.stop(replica, now_ns, STOP_GRACE_NS, why=why)
            return
        seat = self._router.state.seats[replica.replica_id]
        self._enter(replica, DRAINING, now_ns)
        self._router.set_accepting(seat, False, now_ns)
        if not seat.running:
            self.drained(replica, now_ns, why)
            return
        if not replica.spec.is_remote:  # which is nobody's to stop, however long its last requests take
            self._outbox.set_timer(f"drain:{replica.replica_id}", now_ns + replica.spec.scaling.drain_timeout_ns)
        why = f"{why}; {len(seat.running)} running requests finish first"
        self._outbox.decide(now_ns, "drain", subject=replica.replica_id, model=replica.spec.name, why=why)

    def undrain(self, replica: Replica, now_ns: int) -> None:
        """It is wanted after all."""
        self._outbox.cancel_timer(f"drain:{replica.replica_id}")
        self._enter(replica, READY, now_ns)
        if not replica.suspect:
            self._router.set_accepting(self._router.state.seats[replica.replica_id], True, now_ns)

    def drained(self, replica: Replica, now_ns: int, why: str) -> None:
        """It runs nothing any more and nothing will be sent to it."""
        if replica.spec.is_remote:
            self._outbox.decide(now_ns, "stop", subject=replica.replica_id, model=replica.spec.name, why=why)
            self.gone(replica, now_ns)
        else:
            self.stop(replica, now_ns, STOP_GRACE_NS, why=why)

    def stop(self, replica: Replica, now_ns: int, grace_ns: int, *, why: str) -> None:
        """Tell the worker to end."""
        replica_id = replica.replica_id
        for kind in ("start", "drain", "suspect"):
            self._outbox.cancel_timer(f"{kind}:{replica_id}")
        seat = self._router.state.seats.get(replica_id)
        if seat is not None and seat.accepting:
            self._router.set_accepting(seat, False, now_ns)
        self._enter(replica, STOPPING, now_ns)
        replica.stops += 1
        self._outbox.actions.append(StopWorker(replica_id, grace_ns))
        self._outbox.set_timer(f"stop:{replica_id}", now_ns + grace_ns + EXIT_SLACK_NS)
        self._outbox.decide(now_ns, "stop", subject=replica_id, model=replica.spec.name, why=why)

    def stop_again(self, replica: Replica, now_ns: int) -> bool:
        """No exit was reported in time: ask again, or write it off (True)."""
        if replica.stops < STOPS:
            self.stop(replica, now_ns, FORCED_GRACE_NS, why="it was told to end and has not")
            return False
        why = f"no exit was reported after it was told to end {STOPS} times; it is written off"
        self._outbox.decide(now_ns, "stop", subject=replica.replica_id, model=replica.spec.name, why=why)
        self.gone(replica, now_ns)
        return True

    def stop_orphan(self, replica_id: str, now_ns: int) -> None:
        """A worker nobody knows must end."""
        self._outbox.actions.append(StopWorker(replica_id, FORCED_GRACE_NS))
        why = "a worker that belongs to no known replica was found"
        self._outbox.decide(now_ns, "stop", subject=replica_id, model="", why=why)

    def gone(self, replica: Replica, now_ns: int) -> None:
        """It is no more: settle its account and forget it."""
        replica_id = replica.replica_id
        for kind in ("start", "drain", "stop", "confirm", "suspect"):
            self._outbox.cancel_timer(f"{kind}:{replica_id}")
        self._router.vacate(replica_id, now_ns)
        if replica_id in self._router.state.seats:
            self._outbox.set_timer(f"lost:{replica_id}", now_ns + LOST_NS)
        self._outbox.actions.append(Record(close_span(replica.account, now_ns, final=True)))
        crew, _ = self.index.pop(replica_id)
        crew.replicas.remove(replica)

    def hold_all(self, known_ns: int) -> None:
        """The control process was down: what is known of replicas ends at `known_ns`. Remote ones are always on."""
        for replica in self.everyone():
            self._close_span(replica, known_ns)
            if not (replica.spec.is_remote and replica.state is READY):
                hold(replica.account, known_ns)

    def doubt_all(self, now_ns: int) -> None:
        """The control process restarted: nothing is sent to a replica until the driver has reported on it."""
        for replica in self.everyone():
            replica_id = replica.replica_id
            seat = self._router.state.seats.get(replica_id)
            if replica.spec.is_remote:
                if seat is not None and replica.state is READY:
                    self.trust(replica, seat, now_ns)
                else:
                    self.gone(replica, now_ns)
                continue
            for kind in ("start", "drain", "suspect"):
                self._outbox.cancel_timer(f"{kind}:{replica_id}")
            replica.suspect = replica.confirmed = False
            if seat is not None:
                self._router.set_accepting(seat, False, now_ns)
            self._outbox.set_timer(f"confirm:{replica_id}", now_ns + CONFIRM_NS)

    def lived_on(self, replica: Replica, now_ns: int) -> None:
        """The driver reported it alive after a restart: the time since what was last known is its own too."""
        if replica.account.is_held:
            self._outbox.actions += [Record(entry) for entry in release(replica.account, now_ns)]
            set_price(replica.account, replica.spec.price)  # which may have changed meanwhile

    def confirm(self, replica: Replica) -> None:
        """After a restart, the driver reported on it or will not any more."""
        replica.confirmed = True
        self._outbox.cancel_timer(f"confirm:{replica.replica_id}")

    def suspect(self, replica: Replica, seat: Seat, now_ns: int) -> None:
        """It could not be reached: send nothing until it gives a sign of life."""
        replica.suspect = True
        self._router.set_accepting(seat, False, now_ns)
        rest_ns = REMOTE_REST_NS if replica.spec.is_remote else SUSPECT_NS
        self._outbox.set_timer(f"suspect:{replica.replica_id}", now_ns + rest_ns)

    def trust(self, replica: Replica, seat: Seat, now_ns: int) -> None:
        """It gave a sign of life: send requests if it is ready."""
        replica.suspect = False
        self._outbox.cancel_timer(f"suspect:{replica.replica_id}")
        if replica.state is READY and replica.confirmed and not seat.accepting:
            self._router.set_accepting(seat, True, now_ns)

    def reprice(self, replica: Replica, spec: ModelSpec, now_ns: int) -> None:
        """Its price changed: time until now is billed at the old one."""
        if replica.account.is_held:
            return  # what is not known to have passed has no price yet
        seat = self._router.state.seats.get(replica.replica_id)
        self._close_span(replica, now_ns)
        self._router.reprice(seat, replica.account, spec.price, now_ns)

    def _close_span(self, replica: Replica, now_ns: int) -> None:
        if replica.account.span_from_ns < now_ns and not replica.account.is_held:
            self._outbox.actions.append(Record(close_span(replica.account, now_ns)))

    def _enter(self, replica: Replica, state: ReplicaState, now_ns: int) -> None:
        replica.state = state
        replica.since_ns = now_ns
