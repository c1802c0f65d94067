"""What the control machine shows of itself: status, and the accruals of what runs now. Changes nothing."""

from msgspec.structs import replace

from baseload.core.admission import AdmissionState
from baseload.core.fleet import FleetState
from baseload.core.ledger import advance, close_span, leave, power_w
from baseload.core.lifecycle import Crew, Replica
from baseload.core.load import crashes_in_a_row
from baseload.core.router import RouterState, request_entry, waiting_tokens
from baseload.core.snapshot import ControlState
from baseload.domain.fleet import ReplicaState
from baseload.domain.status import ControlStatus, ModelStatus, ReplicaStatus
from baseload.domain.work import Entry, Outcome, PhaseTimes, TokenCounts


def status(now_ns: int, *, control: ControlState, keys: int, router: RouterState, fleet: FleetState) -> ControlStatus:
    """Everything at this instant."""
    models = tuple(_model_status(crew, now_ns, router) for crew in fleet.crews.values())
    return ControlStatus(
        now_ns=now_ns,
        started_ns=control.started_ns,
        seed=control.seed,
        policy_version=control.policy_version,
        models=models,
        replicas=tuple(
            _replica_status(replica, now_ns, router) for crew in fleet.crews.values() for replica in crew.replicas
        ),
        queued=sum(model.queued for model in models),
        in_flight=sum(model.in_flight for model in models),
        keys=keys,
        requests_total=router.requests_total,
        refused_total=router.refused_total,
        shutting_down=control.shutting_down,
    )


def open_entries(now_ns: int, *, router: RouterState, fleet: FleetState) -> list[Entry]:
    """Each replica's open span, and each open request with its share so far; shares, idle and cold sum exactly."""
    entries: list[Entry] = []
    bills = {}
    for crew in fleet.crews.values():
        for replica in crew.replicas:
            account = replace(replica.account)
            seat = router.seats.get(replica.replica_id)
            advance(account, now_ns)
            entries.append(close_span(replace(account), now_ns))
            for request_id in seat.running if seat is not None else ():
                bills[request_id] = replace(router.tickets[request_id].bill)
                leave(account, bills[request_id], now_ns)
    for request_id, ticket in router.tickets.items():
        seen = replace(ticket, bill=bills.get(request_id, ticket.bill))
        entries.append(request_entry(seen, 0, Outcome.OK, None, TokenCounts(), PhaseTimes()))
    return entries


def _model_status(crew: Crew, now_ns: int, router: RouterState) -> ModelStatus:
    lane = router.lanes[crew.spec.name]
    counts = dict.fromkeys(ReplicaState, 0)
    for replica in crew.replicas:
        counts[replica.state] += 1
    waiting = len(lane.queue) + len(lane.again)
    first = next(iter(lane.again), None) or next(iter(lane.queue), None)
    leaving = counts[ReplicaState.DRAINING] + counts[ReplicaState.STOPPING]
    backing_off = now_ns < crew.retry_at_ns and not counts[ReplicaState.READY]
    if crew.spec.is_remote and not crew.removed:
        state = "remote"
    elif counts[ReplicaState.READY]:
        state = "awake"
    elif counts[ReplicaState.STARTING]:
        state = "waking"
    elif backing_off:
        state = "backing off"
    else:
        state = "draining" if leaving else "asleep"
    return ModelStatus(
        name=crew.spec.name,
        state=state,
        desired=crew.desired,
        ready=counts[ReplicaState.READY],
        starting=counts[ReplicaState.STARTING],
        draining=leaving,
        queued=waiting,
        oldest_wait_ns=now_ns - router.tickets[first].arrived_ns if first is not None else 0,
        in_flight=lane.in_flight - waiting,
        crashes=crashes_in_a_row(crew, now_ns),
        retry_at_ns=crew.retry_at_ns if now_ns < crew.retry_at_ns else 0,
        last_error=crew.last_error,
        requests_total=lane.requests_total,
        prompt_tokens_total=lane.prompt_tokens_total,
        completion_tokens_total=lane.completion_tokens_total,
    )


def _replica_status(replica: Replica, now_ns: int, router: RouterState) -> ReplicaStatus:
    account = replace(replica.account)
    advance(account, now_ns)
    seat = router.seats.get(replica.replica_id)
    return ReplicaStatus(
        replica_id=replica.replica_id,
        model=replica.spec.name,
        state=replica.state,
        url=replica.url,
        pid=replica.pid,
        since_ns=replica.since_ns,
        started_ns=replica.started_ns,
        in_flight=len(seat.running) if seat is not None else 0,
        sample=replica.sample,
        cold_ns=account.cold_ns,
        useful_ns=account.useful_ns,
        idle_ns=account.idle_ns,
        power_w=power_w(account),
        energy_basis=account.basis,
    )


def check(*, control: ControlState, admission: AdmissionState, router: RouterState, fleet: FleetState) -> None:
    """Assert what must hold between any two steps. O(everything): for tests, the twin, and idle moments."""
    replicas = {replica.replica_id: replica for crew in fleet.crews.values() for replica in crew.replicas}
    running = {request_id: seat.replica_id for seat in router.seats.values() for request_id in seat.running}
    waiting = {request_id for lane in router.lanes.values() for request_id in (*lane.queue, *lane.again)}
    assert sum(len(seat.running) for seat in router.seats.values()) == len(running)
    assert running.keys() | waiting == router.tickets.keys()
    assert not running.keys() & waiting
    in_lane, in_tab = dict.fromkeys(router.lanes, 0), dict.fromkeys(admission.tabs, 0)
    for request_id, ticket in router.tickets.items():
        assert ticket.replica_id == running.get(request_id, "")
        assert ticket.replica_id not in ticket.failed_on
        in_lane[ticket.request.model] += 1
        in_tab[ticket.request.key_id] += 1
    for lane in router.lanes.values():
        assert lane.in_flight == in_lane[lane.model]
        assert all(router.seats[replica_id].place == place for place, replica_id in enumerate(lane.open))
        assert not (lane.open and lane.queue), "requests wait beside a free replica"
    for tab in admission.tabs.values():
        assert tab.in_flight == in_tab[tab.key.key_id]
    for seat in router.seats.values():
        held = [router.tickets[request_id] for request_id in seat.running]
        assert seat.held_tokens == sum(ticket.request.prompt_tokens_estimate for ticket in held)
        assert seat.waiting_tokens == sum(waiting_tokens(t.request) for t in held if not t.first_byte_ns)
        assert (seat.place >= 0) == (seat.accepting and len(seat.running) < seat.capacity)
        assert seat.gone == (seat.replica_id not in replicas)
        if seat.accepting:
            replica = replicas[seat.replica_id]
            assert replica.state is ReplicaState.READY
            assert replica.confirmed
            assert not replica.suspect
            assert seat.account is replica.account
        if not seat.gone:
            assert seat.account.running == len(seat.running)
    for replica in replicas.values():
        assert replica.confirmed or replica.account.is_held
        assert not (replica.account.is_held and replica.account.running)
    for crew in fleet.crews.values():
        assert crew.spec.name in router.lanes
        assert crew.removed == (crew.spec.name not in control.specs)
