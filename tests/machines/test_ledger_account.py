"""The ledger's account against exact arithmetic: shares are fair, and the sums close to the nanosecond."""

from fractions import Fraction

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baseload.core.ledger import Bill, advance, become_ready, close_span, join, leave, open_account, read_meter
from baseload.domain.model import Price

PASSED = st.integers(0, 1_000)


class Books(RuleBasedStateMachine):
    """One replica, its requests, and a reference that shares time in fractions."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000
        self.price = Price(usd_per_hour=3.6e6, busy_w=30, idle_w=5)  # a thousand nano-dollars a nanosecond
        self.account = open_account("r-1", model="m", price=self.price, now_ns=self.now)
        self.running: list[Bill] = []
        self.fair: dict[int, Fraction] = {}
        self.ended: list[Bill] = []
        self.spans = [self.account.span_from_ns]
        self.entries = []
        self.measured_uj = 0

    def pass_time(self, passed_ns: int) -> None:
        for bill in self.running:
            self.fair[id(bill)] += Fraction(passed_ns, len(self.running))
        self.now += passed_ns

    @rule(passed_ns=PASSED)
    @precondition(lambda self: self.account.is_cold)
    def ready(self, passed_ns: int) -> None:
        self.pass_time(passed_ns)
        become_ready(self.account, self.now)

    @rule(passed_ns=PASSED)
    def begin(self, passed_ns: int) -> None:
        self.pass_time(passed_ns)
        bill = Bill()
        join(self.account, bill, self.now)
        self.running.append(bill)
        self.fair[id(bill)] = Fraction(0)

    @rule(passed_ns=PASSED, which=st.integers(0, 1 << 20))
    @precondition(lambda self: self.running)
    def end(self, passed_ns: int, which: int) -> None:
        self.pass_time(passed_ns)
        bill = self.running.pop(which % len(self.running))
        leave(self.account, bill, self.now)
        self.ended.append(bill)

    @rule(passed_ns=PASSED)
    def span(self, passed_ns: int) -> None:
        self.pass_time(passed_ns)
        self.entries.append(close_span(self.account, self.now))

    @rule(passed_ns=st.integers(1, 1_000), energy_uj=st.integers(0, 10**6))
    def meter(self, passed_ns: int, energy_uj: int) -> None:
        self.pass_time(passed_ns)
        if self.account.basis == "modelled" and self.account.drawn_ns:
            return  # mixing labels is covered elsewhere; here all energy is measured or none
        read_meter(self.account, now_ns=self.now, measured_uj=energy_uj, basis="rapl")
        self.measured_uj += energy_uj

    @invariant()
    def closes(self) -> None:
        advance(self.account, self.now)
        account = self.account
        assert account.cold_ns + account.idle_ns + account.useful_ns == self.now - account.started_ns
        open_shares = sum(account.share_ns - bill.mark_ns for bill in self.running) + account.carry_ns
        assert sum(bill.useful_ns for bill in self.ended) + open_shares == account.useful_ns
        assert account.running == len(self.running)
        assert account.carry_ns >= 0

    @invariant()
    def is_fair(self) -> None:
        """No request's share is further from the exact one than the events it lived through could round."""
        for bill in self.ended:
            assert abs(bill.useful_ns - self.fair[id(bill)]) <= 60

    def teardown(self) -> None:
        for bill in self.running:
            leave(self.account, bill, self.now)
        self.ended += self.running
        self.entries.append(close_span(self.account, self.now, final=True))
        shares = sum(bill.useful_ns for bill in self.ended)
        rest = sum(entry.idle_ns + entry.cold_ns for entry in self.entries)
        assert shares + rest == self.now - self.account.started_ns
        billed = sum(bill.cost_nusd for bill in self.ended)
        billed += sum(entry.idle_cost_nusd + entry.cold_cost_nusd for entry in self.entries)
        exact = (self.now - self.account.started_ns) * 1_000  # nano-dollars: 3.6e6 dollars an hour
        assert abs(billed - exact) <= len(self.ended) + 2 * len(self.entries)
        if self.account.basis == "rapl":
            drawn = sum(bill.energy_uj for bill in self.ended)
            drawn += sum(entry.idle_energy_uj + entry.cold_energy_uj for entry in self.entries)
            ahead = max(0, -self.account.pot_uj)  # drawn before a reading that never came
            assert drawn == self.measured_uj + ahead


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
