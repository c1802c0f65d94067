"""The ledger: where every nanosecond of every replica went, and whose it was.

A replica's life from StartWorker to gone splits into *cold* (until ready), *idle* (ready, nothing runs) and *useful*
(something runs). Useful time is shared equally among the requests running at each instant. Sharing costs O(1) per
event: `share_ns` is what one request that ran since the account was last empty has got so far; what does not divide
evenly waits in `carry_ns` and goes to the last request that leaves. Hence, to the nanosecond:

    Σ request shares + idle + cold = replica time

Measured energy goes into a pot from which time draws its part when it is recorded; time not yet covered by a reading
draws on the last reading's mean power, and the next reading settles the difference.

While nothing is known of a replica (the control process was down, no report on it came yet) its account is *held*:
time stands still in it. If the replica is gone, that is where its account ends; if it lived on, `release` catches up.
"""

from msgspec import Struct

from baseload.domain.model import Price
from baseload.domain.units import NS_PER_DAY, NS_PER_HOUR, NS_PER_S
from baseload.domain.work import ReplicaEntry
from baseload.limits.price import NS_UW_PER_UJ, busy_uw, cost_nusd, energy_uj, idle_uw, nusd_per_hour

SPAN_NS = 300 * NS_PER_S  # spans end on this grid, of which midnight UTC is a point
MODELLED = "modelled"


class Account(Struct):
    """One replica's time. Counters run since its start; `span_*` are their values when the open span began."""

    replica_id: str
    model: str
    started_ns: int
    at_ns: int  # accounted for until here
    span_from_ns: int
    usd_per_hour: float
    nusd_per_hour: int
    busy_uw: int
    idle_uw: int
    is_cold: bool = True
    running: int = 0
    share_ns: int = 0
    carry_ns: int = 0
    cold_ns: int = 0
    idle_ns: int = 0
    useful_ns: int = 0
    span_cold_ns: int = 0
    span_idle_ns: int = 0
    span_useful_ns: int = 0
    span_ended: int = 0  # requests that left in the open span
    basis: str = MODELLED
    drawn_ns: int = 0  # time whose energy was recorded
    pot_uj: int = 0  # measured and not yet drawn; below zero: drawn ahead of the next reading
    read_ns: int = 0  # the last reading
    read_uw: int = 0  # mean power then
    is_held: bool = False  # nothing is known after at_ns


class Bill(Struct):
    """What one request has gathered. Remainders keep the sums exact over several replicas."""

    mark_ns: int = -1  # the account's share_ns on joining; -1: joined to none
    useful_ns: int = 0
    cost_nusd: int = 0
    cost_rest: int = 0  # nanoseconds × nano-dollars per hour
    energy_uj: int = 0
    energy_rest: int = 0  # nanoseconds × microwatts
    basis: str = MODELLED


def open_account(replica_id: str, *, model: str, price: Price, now_ns: int, is_cold: bool = True) -> Account:
    """A replica's account from `now_ns` on."""
    return Account(
        replica_id=replica_id,
        model=model,
        started_ns=now_ns,
        at_ns=now_ns,
        span_from_ns=now_ns,
        usd_per_hour=price.usd_per_hour,
        nusd_per_hour=nusd_per_hour(price),
        busy_uw=busy_uw(price),
        idle_uw=idle_uw(price),
        is_cold=is_cold,
        read_ns=now_ns,
    )


def advance(account: Account, now_ns: int) -> None:
    """Account for the time until `now_ns`."""
    passed = now_ns - account.at_ns
    if passed <= 0 or account.is_held:
        return
    account.at_ns = now_ns
    if account.running:
        account.useful_ns += passed
        each, account.carry_ns = divmod(passed + account.carry_ns, account.running)
        account.share_ns += each
    elif account.is_cold:
        account.cold_ns += passed
    else:
        account.idle_ns += passed


def join(account: Account, bill: Bill, now_ns: int) -> None:
    """A request begins to run on the replica."""
    assert bill.mark_ns < 0
    advance(account, now_ns)
    account.running += 1
    bill.mark_ns = account.share_ns


def leave(account: Account, bill: Bill, now_ns: int) -> None:
    """A request ends there; its share is billed. The last to leave takes what did not divide evenly."""
    assert bill.mark_ns >= 0
    assert account.running > 0
    advance(account, now_ns)
    share = account.share_ns - bill.mark_ns
    account.running -= 1
    account.span_ended += 1
    if not account.running:
        share += account.carry_ns
        account.carry_ns = account.share_ns = 0
    bill.mark_ns = -1
    _charge(account, bill, share)


def become_ready(account: Account, now_ns: int) -> None:
    """The replica serves from now on; cold time ends."""
    advance(account, now_ns)
    account.is_cold = False


def become_cold(account: Account, now_ns: int) -> None:
    """The replica turned out to be still starting."""
    advance(account, now_ns)
    account.is_cold = True


def hold(account: Account, known_ns: int) -> None:
    """Nothing is known of the replica after `known_ns`; nothing runs on it."""
    assert not account.running
    advance(account, known_ns)
    account.is_held = True


def release(account: Account, now_ns: int) -> list[ReplicaEntry]:
    """The replica lived on: the time since is accounted for, in spans that end where all do, the last one now.

    No meter was read meanwhile: with one, that time stands at the last reading's power, and no reading settles it.
    """
    account.is_held = False
    due_ns = next_boundary(account.span_from_ns)
    points = [*(boundaries(due_ns, now_ns) if due_ns <= now_ns else []), now_ns]
    spans = [close_span(account, point) for point in points if point > account.span_from_ns]
    account.pot_uj, account.read_ns = max(0, account.pot_uj), now_ns
    return spans


def set_price(account: Account, price: Price) -> None:
    """From now on time costs and draws this; spans and bills of the time before must be closed."""
    account.usd_per_hour = price.usd_per_hour
    account.nusd_per_hour = nusd_per_hour(price)
    account.busy_uw, account.idle_uw = busy_uw(price), idle_uw(price)


def read_meter(account: Account, *, now_ns: int, measured_uj: int, basis: str) -> None:
    """A meter was read: `measured_uj` since the reading before (the first covers all that is not yet recorded).

    Of a held account's time nothing is known, so neither is what a reading is for.
    """
    if account.is_held:
        return
    advance(account, now_ns)
    account.basis = basis
    account.pot_uj += measured_uj
    passed = now_ns - account.read_ns
    if passed > 0:
        account.read_uw = measured_uj * NS_UW_PER_UJ // passed
        account.read_ns = now_ns


def power_w(account: Account) -> float:
    """The replica's power now: as last measured, or modelled from whether it works."""
    if account.basis != MODELLED:
        return account.read_uw / 1e6
    return (account.busy_uw if account.running or account.is_cold else account.idle_uw) / 1e6


def next_boundary(now_ns: int) -> int:
    """When the spans open at `now_ns` end at the latest."""
    return (now_ns // SPAN_NS + 1) * SPAN_NS


def boundaries(due_ns: int, now_ns: int) -> list[int]:
    """The boundaries at which spans due at `due_ns` end until `now_ns`: each midnight, and the last grid point."""
    last = now_ns // SPAN_NS * SPAN_NS
    points = [due_ns] if due_ns < last else []
    midnight = (due_ns // NS_PER_DAY + 1) * NS_PER_DAY
    while midnight < last and len(points) < 1_000:
        points.append(midnight)
        midnight += NS_PER_DAY
    return [*points, last]


def close_span(account: Account, now_ns: int, *, final: bool = False) -> ReplicaEntry:
    """End the open span at `now_ns` and begin the next; `final` when the replica is gone (it runs nothing then)."""
    assert not (final and account.running)
    advance(account, now_ns)
    cold = account.cold_ns - account.span_cold_ns
    idle = account.idle_ns - account.span_idle_ns
    cold_uj = _draw(account, cold, account.busy_uw)
    idle_uj = _draw(account, idle, account.idle_uw)
    if final and account.pot_uj > 0 and account.basis != MODELLED:
        idle_uj, account.pot_uj = idle_uj + account.pot_uj, 0  # what rounding left over
    entry = ReplicaEntry(
        replica_id=account.replica_id,
        model=account.model,
        from_ns=account.span_from_ns,
        to_ns=account.at_ns,
        cold_ns=cold,
        idle_ns=idle,
        useful_ns=account.useful_ns - account.span_useful_ns,
        requests_ended=account.span_ended,
        final=final,
        price_usd_per_hour=account.usd_per_hour,
        idle_cost_nusd=cost_nusd(idle, account.nusd_per_hour),
        cold_cost_nusd=cost_nusd(cold, account.nusd_per_hour),
        idle_energy_uj=idle_uj,
        cold_energy_uj=cold_uj,
        energy_basis=account.basis,
    )
    account.span_from_ns = account.at_ns
    account.span_cold_ns = account.cold_ns
    account.span_idle_ns = account.idle_ns
    account.span_useful_ns = account.useful_ns
    account.span_ended = 0
    return entry


def rounded_cost(bill: Bill) -> int:
    """The bill's cost, rounded half up."""
    return bill.cost_nusd + (2 * bill.cost_rest >= NS_PER_HOUR)


def rounded_energy(bill: Bill) -> int:
    """The bill's energy, rounded half up."""
    return bill.energy_uj + (2 * bill.energy_rest >= NS_UW_PER_UJ)


def _charge(account: Account, bill: Bill, share_ns: int) -> None:
    bill.useful_ns += share_ns
    whole, bill.cost_rest = divmod(share_ns * account.nusd_per_hour + bill.cost_rest, NS_PER_HOUR)
    bill.cost_nusd += whole
    if account.basis == MODELLED:
        account.drawn_ns += share_ns
        whole, bill.energy_rest = divmod(share_ns * account.busy_uw + bill.energy_rest, NS_UW_PER_UJ)
        bill.energy_uj += whole
    else:
        bill.basis = account.basis
        bill.energy_uj += _draw(account, share_ns, 0)


def _draw(account: Account, time_ns: int, modelled_uw: int) -> int:
    """The energy of recorded time: modelled, or its part of the pot by time."""
    waiting_ns = account.at_ns - account.started_ns - account.drawn_ns
    account.drawn_ns += time_ns
    if account.basis == MODELLED:
        return energy_uj(time_ns, modelled_uw)
    if not time_ns:
        return 0
    ahead_uj = account.read_uw * (account.at_ns - account.read_ns) // NS_UW_PER_UJ
    drawn = max(0, account.pot_uj + ahead_uj) * time_ns // waiting_ns
    account.pot_uj -= drawn
    return drawn
