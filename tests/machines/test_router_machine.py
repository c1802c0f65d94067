"""The router alone, against a plain model of queues: first come first served, bounds, and no replica twice."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baseload.core.admission import AdmissionMachine, AdmissionState
from baseload.core.ledger import Account, open_account
from baseload.core.outbox import Outbox, OutboxState
from baseload.core.router import RouterMachine, RouterState
from baseload.domain.actions import Dispatch, Refuse
from baseload.domain.errors import Reason
from baseload.domain.events import RequestFinished
from baseload.domain.model import Admission, Price
from baseload.domain.tenant import Key
from baseload.domain.work import Endpoint, Outcome, Request, TokenCounts

LIMITS = Admission(max_queue=5, max_wait_ns=100, max_concurrency_per_replica=2, max_attempts=3)
PICK = st.integers(0, 1 << 20)


class Routing(RuleBasedStateMachine):
    """Requests in a list as they came, seats in a dict: slow and plainly right."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(OutboxState())
        admission = AdmissionMachine(AdmissionState())
        admission.put_key(Key("k", "k", "0" * 64, 0))
        self.router = RouterMachine(RouterState(rng_state=5), admission=admission, outbox=self.outbox)
        self.router.open_lane("m", LIMITS, 0)
        self.lane = self.router.state.lanes["m"]
        self.now = 1_000
        self.number = 0
        self.accounts: dict[str, Account] = {}
        self.accepting: dict[str, bool] = {}
        self.queue: list[str] = []  # expected order of those never dispatched
        self.deadline: dict[str, int] = {}
        self.running: dict[str, str] = {}
        self.again: list[str] = []
        self.failed: dict[str, list[str]] = {}

    def perform(self) -> None:
        """Check what came out against the plain model."""
        for action in self.outbox.take():
            if isinstance(action, Dispatch):
                request_id, replica_id = action.request_id, action.replica_id
                assert self.accepting[replica_id]
                assert list(self.running.values()).count(replica_id) < 2
                assert replica_id not in self.failed.get(request_id, [])
                if request_id in self.again:
                    self.again.remove(request_id)
                else:
                    assert request_id == self.queue.pop(0), "first come, first served"
                assert self.deadline[request_id] > self.now or action.attempt > 1
                self.running[request_id] = replica_id
            elif isinstance(action, Refuse):
                assert action.request_id not in self.running
                if action.request_id in self.again:
                    self.again.remove(action.request_id)
                else:
                    self.queue.remove(action.request_id)
                if action.reason is Reason.QUEUE_FULL:
                    assert len(self.queue) + len(self.again) >= LIMITS.max_queue

    def running_on(self, replica_id: str) -> int:
        return list(self.running.values()).count(replica_id)

    @rule(deadline_ns=st.sampled_from([0, 0, 30]), hashes=st.lists(st.integers(0, 5), max_size=3))
    def arrive(self, deadline_ns: int, hashes: list[int]) -> None:
        self.number += 1
        request_id = f"r{self.number}"
        deadline = self.now + deadline_ns if deadline_ns else 0
        request = Request(request_id, "k", "m", Endpoint.CHAT, 1, 1, deadline, prefix_hashes=tuple(hashes))
        self.queue.append(request_id)
        self.deadline[request_id] = deadline or self.now + LIMITS.max_wait_ns
        self.router.arrive(request, self.now)
        self.perform()

    @rule(which=PICK, outcome=st.sampled_from([Outcome.OK, Outcome.CANCELLED]))
    @precondition(lambda self: self.running or self.queue or self.again)
    def finish(self, which: int, outcome: Outcome) -> None:
        names = (
            [*self.running] if outcome is Outcome.OK and self.running else [*self.running, *self.queue, *self.again]
        )
        request_id = names[which % len(names)]
        self.running.pop(request_id, None)
        for waiting in (self.queue, self.again):
            if request_id in waiting:
                waiting.remove(request_id)
        self.router.finish(RequestFinished(request_id, outcome, None, TokenCounts(1, 0, 1)), self.now)
        self.perform()

    @rule(which=PICK)
    @precondition(lambda self: self.running)
    def fail(self, which: int) -> None:
        request_id = list(self.running)[which % len(self.running)]
        replica_id = self.running.pop(request_id)
        self.failed.setdefault(request_id, []).append(replica_id)
        self.again.append(request_id)
        assert self.router.dispatch_failed(request_id, replica_id, self.now, Reason.WORKER_ERROR, "") is not None
        self.perform()
        self.router.pump(self.lane, self.now)
        self.perform()
        assert self.router.dispatch_failed(request_id, "nobody", self.now, Reason.WORKER_ERROR, "") is None

    @rule()
    @precondition(lambda self: len(self.accepting) < 5)
    def add_seat(self) -> None:
        replica_id = f"s{len(self.accounts)}"
        account = open_account(replica_id, model="m", price=Price(), now_ns=self.now, is_cold=False)
        self.accounts[replica_id] = account
        self.accepting[replica_id] = True
        self.router.add_seat(replica_id, model="m", url="u", account=account, now_ns=self.now)
        self.perform()

    @rule(which=PICK, accepts=st.booleans())
    @precondition(lambda self: self.accepting)
    def set_accepting(self, which: int, accepts: bool) -> None:
        replica_id = list(self.accepting)[which % len(self.accepting)]
        self.accepting[replica_id] = accepts
        self.router.set_accepting(self.router.state.seats[replica_id], accepts, self.now)
        self.perform()

    @rule(which=PICK)
    @precondition(lambda self: self.accepting)
    def vacate(self, which: int) -> None:
        replica_id = list(self.accepting)[which % len(self.accepting)]
        del self.accepting[replica_id]
        self.router.vacate(replica_id, self.now)
        assert self.accounts[replica_id].running == 0
        self.perform()

    @rule(passed_ns=st.integers(1, 60))
    def wait(self, passed_ns: int) -> None:
        self.now += passed_ns
        self.router.expire(self.lane, self.now)
        self.perform()
        assert all(self.deadline[request_id] > self.now for request_id in [*self.queue, *self.again])

    @invariant()
    def agrees(self) -> None:
        state = self.router.state
        assert list(self.lane.queue) == self.queue
        assert sorted(self.lane.again) == sorted(self.again)
        assert {
            name: ticket.replica_id for name, ticket in state.tickets.items() if ticket.replica_id
        } == self.running
        assert self.lane.in_flight == len(state.tickets) == len(self.queue) + len(self.again) + len(self.running)
        assert len(self.queue) <= LIMITS.max_queue
        assert len(self.lane.deadlines) <= 2 * self.lane.waiting + 64 + len(self.running)

    @invariant()
    def nobody_waits_beside_a_free_seat(self) -> None:
        free = [name for name, accepts in self.accepting.items() if accepts and self.running_on(name) < 2]
        assert sorted(free) == sorted(self.lane.open)
        assert not (free and self.queue)
        for request_id in self.again:
            assert all(name in self.failed[request_id] for name in free)


TestRouting = Routing.TestCase
TestRouting.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
