"""The router machine: every open request, in one dict; a queue per model; and the seats (replicas) that serve them.

A request is *waiting* (in its lane's queue, or in `again` after a failed attempt) or *running* (in one seat's
`running`). Counts of what is in flight are the lengths of these, so they can neither leak nor go negative.

Lanes and seats are private to this machine. Fleet tells it which seats accept; it answers with what waits.
"""

from collections import OrderedDict
from heapq import heapify, heappop, heappush

from msgspec import Struct

from baseload.core.admission import AdmissionMachine
from baseload.core.lanes import Lane, Seat, Ticket
from baseload.core.ledger import Account, Bill, join, leave, rounded_cost, rounded_energy, set_price
from baseload.core.outbox import Outbox
from baseload.domain.actions import Dispatch, Record, Refuse
from baseload.domain.errors import Reason
from baseload.domain.events import RequestFinished
from baseload.domain.fleet import ReplicaView
from baseload.domain.model import Admission, Price
from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Outcome, PhaseTimes, Request, RequestEntry, Tier, TokenCounts
from baseload.policy.pacing import TOP_RANK, standing
from baseload.policy.routing import choose_replica, draw

PREFIXES_KEPT = 16_384  # prefix hashes remembered per model, newest first
OK = Outcome.OK
NO_TOKENS = TokenCounts()
NO_PHASES = PhaseTimes()


class RouterState(Struct):
    """All of the machine's state; seats' accounts are the ledger's."""

    rng_state: int
    tickets: dict[str, Ticket] = {}
    lanes: dict[str, Lane] = {}
    seats: dict[str, Seat] = {}
    refused_total: int = 0
    requests_total: int = 0
    halted: bool = False  # shutting down: nothing is taken or tried again


class RouterMachine:
    """Takes requests, chooses their replicas, and writes their ledger entries when they end."""

    def __init__(self, state: RouterState, *, admission: AdmissionMachine, outbox: Outbox) -> None:
        self.state = state
        self._admission = admission
        self._outbox = outbox
        self._rng = Rng(0)
        self._rng.state = state.rng_state
        self.emptied: list[Seat] = []  # seats that stopped accepting and run nothing any more; fleet takes these

    def save(self) -> RouterState:
        """The state to be written to a snapshot."""
        self.state.rng_state = self._rng.state
        return self.state

    def reseed(self, seed: int) -> None:
        """Begin the stream of random choices anew."""
        self._rng = Rng(seed, "router")

    # -- requests -----------------------------------------------------------------------------------------------

    def arrive(self, request: Request, now_ns: int) -> Lane | None:
        """A request came: dispatch it, queue it or refuse it. Its lane is returned when it waits."""
        state = self.state
        if request.request_id in state.tickets:
            return None  # told twice
        state.requests_total += 1
        lane = state.lanes.get(request.model)
        if lane is None or lane.closed:
            self.turn_away(request, now_ns, Reason.UNKNOWN_MODEL, f"There is no model named {request.model!r}.")
            return None
        refusal = self._admission.enter(request, now_ns)
        if refusal is not None:
            self.turn_away(request, now_ns, refusal.reason, str(refusal), refusal.retry_after_ns)
            return None
        limits = lane.admission
        deadline_ns = now_ns + limits.max_wait_ns
        if 0 < request.deadline_ns < deadline_ns:
            deadline_ns = request.deadline_ns
        ticket = Ticket(request=request, arrived_ns=now_ns, deadline_ns=deadline_ns, bill=Bill())
        state.tickets[request.request_id] = ticket
        lane.requests_total += 1
        lane.asked_tokens_total += request.prompt_tokens_estimate
        lane.in_flight += 1
        lane.active_ns = now_ns
        if lane.open and not lane.queue:
            self._dispatch(lane, ticket, self._choose(lane, lane.open, request), now_ns)
            return None
        if deadline_ns <= now_ns:
            self.refuse(ticket, now_ns, Reason.DEADLINE, "The request's deadline had passed when it came.")
        elif lane.outage and now_ns < lane.outage_until_ns:
            retry_ns = lane.outage_until_ns - now_ns
            self.refuse(ticket, now_ns, Reason.MODEL_UNAVAILABLE, lane.outage, retry_after_ns=retry_ns)
        elif lane.waiting >= limits.max_queue:
            why = f"{limits.max_queue} requests already wait for {request.model}, its limit."
            self.refuse(ticket, now_ns, Reason.QUEUE_FULL, why, retry_after_ns=NS_PER_S)
        else:
            if not lane.queue:
                lane.has_classes = False
            lane.has_classes = lane.has_classes or request.tier is not Tier.DEFAULT
            lane.queue[request.request_id] = None
            self._watch_deadline(lane, ticket)
            return lane
        return None

    def first_byte(self, request_id: str, now_ns: int) -> None:
        """The answer began."""
        ticket = self.state.tickets.get(request_id)
        if ticket is not None and ticket.replica_id and not ticket.first_byte_ns:
            ticket.first_byte_ns = now_ns
            self.state.seats[ticket.replica_id].waiting_tokens -= waiting_tokens(ticket.request)

    def dispatch_failed(
        self, request_id: str, replica_id: str, now_ns: int, reason: Reason, detail: str
    ) -> Seat | None:
        """An attempt failed before the first byte: hold it or refuse it. Its seat is returned if that is news."""
        ticket = self.state.tickets.get(request_id)
        if ticket is None or ticket.replica_id != replica_id:
            return None
        seat = self.state.seats[replica_id]
        lane = self.state.lanes[ticket.request.model]
        self._leave_seat(ticket, now_ns)
        ticket.failed_on = (*ticket.failed_on, replica_id)
        ticket.failure = reason
        attempts = ticket.attempts
        said = f": {detail}" if detail else ""
        if ticket.first_byte_ns:
            self.end(ticket, now_ns, Outcome.FAILED, reason)
        elif self.state.halted:
            self.refuse(ticket, now_ns, Reason.SHUTTING_DOWN, f"Baseload is shutting down{said}.")
        elif lane.closed:
            self.refuse(ticket, now_ns, Reason.MODEL_REMOVED, f"The model {lane.model!r} was removed.")
        elif attempts >= lane.admission.max_attempts:
            self.refuse(
                ticket, now_ns, reason, f"{attempts} replicas failed this request{said}.", retry_after_ns=NS_PER_S
            )
        elif now_ns >= ticket.deadline_ns:
            self.refuse(
                ticket, now_ns, Reason.DEADLINE, f"Replica {replica_id} failed it, and no time is left{said}."
            )
        else:
            lane.again[request_id] = None
            self._watch_deadline(lane, ticket)
            why = f"{replica_id} failed before the first byte (attempt {attempts}, {reason.value}){said}"
            self._outbox.decide_often(
                now_ns, "retry", kind=reason.value, subject=request_id, model=lane.model, why=why
            )
        return seat

    def finish(self, event: RequestFinished, now_ns: int) -> str:
        """A request ended; the replica it ran on is returned ("" for none)."""
        ticket = self.state.tickets.get(event.request_id)
        if ticket is None:
            return ""
        lane, replica_id = self.state.lanes[ticket.request.model], ticket.replica_id
        if event.outcome is OK and not ticket.first_byte_ns:
            ticket.first_byte_ns = now_ns  # a whole answer: its first byte leaves with its last
        self.end(ticket, now_ns, event.outcome, event.reason, event.tokens, event.phases)
        if lane.queue or lane.again:
            self.pump(lane, now_ns)
        return replica_id

    def pump(self, lane: Lane, now_ns: int) -> None:
        """Dispatch what waits to the seats that have room, in order; refuse what waited too long."""
        tickets = self.state.tickets
        for request_id in list(lane.again) if lane.again and lane.open else ():
            ticket = tickets[request_id]
            elsewhere = [replica_id for replica_id in lane.open if replica_id not in ticket.failed_on]
            if elsewhere:
                del lane.again[request_id]
                self._dispatch(lane, ticket, self._choose(lane, elsewhere, ticket.request), now_ns)
        while lane.open and lane.queue:
            ticket = tickets[self._next(lane, now_ns) if lane.has_classes else next(iter(lane.queue))]
            if ticket.deadline_ns <= now_ns:
                self._refuse_late(ticket, now_ns)
                continue
            del lane.queue[ticket.request.request_id]
            self._dispatch(lane, ticket, self._choose(lane, lane.open, ticket.request), now_ns)

    def _next(self, lane: Lane, now_ns: int) -> str:
        """Who goes first of those that wait: the highest class (one more for each minute), then who came first."""
        tickets, best, first = self.state.tickets, -1, ""
        for request_id in lane.queue:
            ticket = tickets[request_id]
            claim = standing(rank=ticket.request.tier.rank, lifts=0, waited_ns=now_ns - ticket.arrived_ns)
            if claim > best:
                best, first = claim, request_id
            if best == TOP_RANK:
                break
        return first

    def expire(self, lane: Lane, now_ns: int) -> None:
        """Refuse what waited too long, and set the timer for the next."""
        while lane.deadlines and lane.deadlines[0][0] <= now_ns:
            ticket = self.state.tickets.get(heappop(lane.deadlines)[1])
            if ticket is not None and not ticket.replica_id and ticket.deadline_ns <= now_ns:
                self._refuse_late(ticket, now_ns)
        if lane.deadlines:
            self._outbox.set_earlier(f"queue:{lane.model}", lane.deadlines[0][0])

    def refuse_waiting(
        self, lane: Lane, now_ns: int, reason: Reason, message: str, *, retry_after_ns: int = 0
    ) -> None:
        """Refuse everything that waits in a lane."""
        for request_id in [*lane.again, *lane.queue]:
            self.refuse(self.state.tickets[request_id], now_ns, reason, message, retry_after_ns=retry_after_ns)

    def refuse(self, ticket: Ticket, now_ns: int, reason: Reason, message: str, *, retry_after_ns: int = 0) -> None:
        """Answer an admitted request with an error; nothing was sent to it before."""
        request = ticket.request
        self.state.refused_total += 1
        self._outbox.actions.append(Refuse(request.request_id, reason, message, retry_after_ns))
        outcome = Outcome.FAILED if ticket.failed_on else Outcome.REFUSED
        self.end(ticket, now_ns, outcome, reason)
        self._outbox.decide_often(
            now_ns, "refuse", kind=reason.value, subject=request.request_id, model=request.model, why=message
        )

    def turn_away(self, request: Request, now_ns: int, reason: Reason, message: str, retry_after_ns: int = 0) -> None:
        """Refuse a request that was never admitted."""
        self.state.refused_total += 1
        lane = self.state.lanes.get(request.model)
        model = "" if lane is None else request.model  # names clients invent must not grow our tables
        self._outbox.actions.append(Refuse(request.request_id, reason, message, retry_after_ns))
        ticket = Ticket(request=request, arrived_ns=now_ns, deadline_ns=now_ns, bill=Bill())
        self._outbox.actions.append(
            Record(request_entry(ticket, now_ns, Outcome.REFUSED, reason, NO_TOKENS, NO_PHASES))
        )
        self._outbox.decide_often(
            now_ns, "refuse", kind=reason.value, subject=request.request_id, model=model, why=message
        )

    def end(
        self,
        ticket: Ticket,
        now_ns: int,
        outcome: Outcome,
        reason: Reason | None,
        tokens: TokenCounts = NO_TOKENS,
        phases: PhaseTimes = NO_PHASES,
    ) -> None:
        """A request is over, wherever it was: the one way out of `tickets`."""
        request = ticket.request
        request_id = request.request_id
        lane = self.state.lanes[request.model]
        if ticket.replica_id:
            self._leave_seat(ticket, now_ns)
        elif request_id in lane.queue:
            del lane.queue[request_id]
        else:
            lane.again.pop(request_id, None)
        del self.state.tickets[request_id]
        lane.in_flight -= 1
        lane.active_ns = now_ns
        lane.prompt_tokens_total += tokens.prompt
        lane.completion_tokens_total += tokens.completion
        self._admission.leave(request, tokens.prompt + tokens.completion)
        self._outbox.actions.append(Record(request_entry(ticket, now_ns, outcome, reason, tokens, phases)))

    # -- seats --------------------------------------------------------------------------------------------------

    def open_lane(self, model: str, admission: Admission, now_ns: int) -> None:
        """A model was added or changed."""
        lane = self.state.lanes.get(model)
        if lane is None:
            self.state.lanes[model] = Lane(
                model=model,
                admission=admission,
                queue=OrderedDict(),
                again={},
                deadlines=[],
                prefixes=OrderedDict(),
                active_ns=now_ns,
            )
            return
        lane.admission = admission
        lane.closed = False
        for seat in self.state.seats.values():
            if seat.model == model:
                seat.capacity = admission.max_concurrency_per_replica
                self._withdraw(lane, seat)
                self._offer(lane, seat)
        self.pump(lane, now_ns)

    def add_seat(self, replica_id: str, *, model: str, url: str, account: Account, now_ns: int) -> None:
        """A replica is ready: it takes requests from now on."""
        lane = self.state.lanes[model]
        seat = Seat(
            replica_id=replica_id,
            model=lane.model,
            url=url,
            capacity=lane.admission.max_concurrency_per_replica,
            account=account,
        )
        self.state.seats[replica_id] = seat
        self._offer(lane, seat)
        self.pump(lane, now_ns)

    def set_accepting(self, seat: Seat, accepting: bool, now_ns: int) -> None:
        """A replica takes requests again, or takes none for now."""
        lane = self.state.lanes[seat.model]
        seat.accepting = accepting
        if accepting:
            self._offer(lane, seat)
            self.pump(lane, now_ns)
        else:
            self._withdraw(lane, seat)

    def vacate(self, replica_id: str, now_ns: int) -> None:
        """A replica is gone: its running requests' shares are settled; the reports on them are still to come."""
        seat = self.state.seats.get(replica_id)
        if seat is None:
            return
        self._withdraw(self.state.lanes[seat.model], seat)
        seat.accepting, seat.gone = False, True
        for request_id in seat.running:
            leave(seat.account, self.state.tickets[request_id].bill, now_ns)
        if not seat.running:
            del self.state.seats[replica_id]

    def give_up(self, seat: Seat, now_ns: int, reason: Reason) -> None:
        """End the requests of a replica that is gone and about which no report came in time."""
        for request_id in list(seat.running):
            ticket = self.state.tickets[request_id]
            if ticket.first_byte_ns:
                self.end(ticket, now_ns, Outcome.FAILED, reason)
            else:
                ticket.failed_on = (*ticket.failed_on, seat.replica_id)
                self.refuse(ticket, now_ns, reason, f"Replica {seat.replica_id} was lost.", retry_after_ns=NS_PER_S)

    def reprice(self, seat: Seat | None, account: Account, price: Price, now_ns: int) -> None:
        """A replica's price changed: what its running requests used until now is billed at the old one."""
        running = [self.state.tickets[request_id].bill for request_id in seat.running] if seat is not None else []
        for bill in running:
            leave(account, bill, now_ns)
        account.span_ended -= len(running)
        set_price(account, price)
        for bill in running:
            join(account, bill, now_ns)

    def oldest_wait_ns(self, lane: Lane, now_ns: int) -> int:
        """How long the first in line has waited."""
        first = next(iter(lane.again), None) or next(iter(lane.queue), None)
        return now_ns - self.state.tickets[first].arrived_ns if first is not None else 0

    # -- below --------------------------------------------------------------------------------------------------

    def _choose(self, lane: Lane, among: list[str], request: Request) -> Seat:
        seats = self.state.seats
        if len(among) == 1:
            return seats[among[0]]
        drawn = [seats[among[index]] for index in draw(len(among), self._rng)]
        knower, hits = self._knower(lane, among, request) if lane.prefixes else (None, 0)
        if knower is not None and all(knower is not seat for seat in drawn):
            drawn.append(knower)
        views = []
        for seat in drawn:
            known = hits if seat is knower else 0
            running, kv_usage = len(seat.running), seat.sample.kv_usage
            views.append(
                ReplicaView(
                    seat.replica_id, running, seat.capacity, kv_usage, known, seat.held_tokens, seat.waiting_tokens
                )
            )
        return drawn[choose_replica(views)]

    def _knower(self, lane: Lane, among: list[str], request: Request) -> tuple[Seat | None, int]:
        """Who last served the longest known beginning of the prompt, and how many hashes long that is."""
        hashes = request.prefix_hashes
        for count in range(len(hashes), 0, -1):
            seat = self.state.seats.get(lane.prefixes.get(hashes[count - 1], ""))
            if seat is not None and seat.place >= 0 and (among is lane.open or seat.replica_id in among):
                return seat, count
        return None, 0

    def _dispatch(self, lane: Lane, ticket: Ticket, seat: Seat, now_ns: int) -> None:
        request = ticket.request
        ticket.replica_id = ticket.last_replica_id = seat.replica_id
        ticket.attempts += 1
        ticket.dispatched_ns = now_ns
        seat.running[request.request_id] = None
        seat.held_tokens += request.prompt_tokens_estimate
        seat.waiting_tokens += waiting_tokens(request)
        if len(seat.running) >= seat.capacity:
            self._withdraw(lane, seat)
        join(seat.account, ticket.bill, now_ns)
        if request.prefix_hashes:
            prefixes = lane.prefixes
            for value in request.prefix_hashes:
                prefixes[value] = seat.replica_id
                prefixes.move_to_end(value)
            while len(prefixes) > PREFIXES_KEPT:
                prefixes.popitem(last=False)
        self._outbox.actions.append(Dispatch(request.request_id, seat.replica_id, seat.url, ticket.attempts))

    def _leave_seat(self, ticket: Ticket, now_ns: int) -> None:
        seat = self.state.seats[ticket.replica_id]
        ticket.replica_id = ""
        del seat.running[ticket.request.request_id]
        seat.held_tokens -= ticket.request.prompt_tokens_estimate
        if not ticket.first_byte_ns:
            seat.waiting_tokens -= waiting_tokens(ticket.request)
        if seat.accepting:
            leave(seat.account, ticket.bill, now_ns)
            if seat.place < 0:
                self._offer(self.state.lanes[seat.model], seat)
            return
        if not seat.gone:
            leave(seat.account, ticket.bill, now_ns)
        if not seat.running:
            if seat.gone:
                del self.state.seats[seat.replica_id]
            self.emptied.append(seat)

    def _offer(self, lane: Lane, seat: Seat) -> None:
        if seat.accepting and seat.place < 0 and len(seat.running) < seat.capacity:
            seat.place = len(lane.open)
            lane.open.append(seat.replica_id)

    def _withdraw(self, lane: Lane, seat: Seat) -> None:
        if seat.place < 0:
            return
        last = lane.open.pop()
        if last != seat.replica_id:
            lane.open[seat.place] = last
            self.state.seats[last].place = seat.place
        seat.place = -1

    def _watch_deadline(self, lane: Lane, ticket: Ticket) -> None:
        heap = lane.deadlines
        heappush(heap, (ticket.deadline_ns, ticket.request.request_id))
        if len(heap) > 2 * lane.waiting + 64:
            waiting = [*lane.again, *lane.queue]
            lane.deadlines = heap = [(self.state.tickets[name].deadline_ns, name) for name in waiting]
            heapify(heap)
        self._outbox.set_earlier(f"queue:{lane.model}", heap[0][0])

    def _refuse_late(self, ticket: Ticket, now_ns: int) -> None:
        waited_s = (now_ns - ticket.arrived_ns) / NS_PER_S
        why = f"No replica was free within {waited_s:.1f} s."
        self.refuse(ticket, now_ns, Reason.DEADLINE, why, retry_after_ns=NS_PER_S)


def waiting_tokens(request: Request) -> int:
    """Prompt tokens that count as still to be computed until the first byte; of whole answers nobody hears when."""
    return request.prompt_tokens_estimate if request.stream else 0


def request_entry(
    ticket: Ticket, ended_ns: int, outcome: Outcome, reason: Reason | None, tokens: TokenCounts, phases: PhaseTimes
) -> RequestEntry:
    """The ledger's record of a request."""
    request, bill = ticket.request, ticket.bill
    return RequestEntry(  # by position: naming all nineteen takes several times as long
        request.request_id,
        request.key_id,
        request.model,
        request.endpoint,
        ticket.last_replica_id,
        outcome,
        reason,
        ticket.arrived_ns,
        ticket.dispatched_ns,
        ticket.first_byte_ns,
        ended_ns,
        ticket.attempts,
        tokens,
        phases,
        bill.useful_ns,
        rounded_cost(bill),
        rounded_energy(bill),
        bill.basis,
        request.tier,
    )
