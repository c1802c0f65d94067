"""Per-minute limits as arithmetic on one integer."""

import hypothesis.strategies as st
from hypothesis import given

from baseload.domain.units import NS_PER_S
from baseload.policy.admission import MINUTE_NS, settle, take

NOW = 1_790_000_000 * NS_PER_S


def test_a_full_bucket_holds_one_minutes_allowance() -> None:
    full_at, taken = 0, 0
    while True:
        full_at, wait_ns = take(full_at, now_ns=NOW, amount=1, per_minute=30)
        if wait_ns:
            break
        taken += 1
    assert taken == 30
    assert wait_ns == 2 * NS_PER_S  # one request refills in two seconds
    assert take(full_at, now_ns=NOW + wait_ns - 1, amount=1, per_minute=30)[1] == 1
    assert take(full_at, now_ns=NOW + wait_ns, amount=1, per_minute=30)[1] == 0


def test_a_request_larger_than_the_allowance_needs_a_full_bucket_and_is_paid_off() -> None:
    full_at, wait_ns = take(0, now_ns=NOW, amount=250, per_minute=100)
    assert wait_ns == 0
    assert full_at == NOW + MINUTE_NS * 5 // 2
    assert take(full_at, now_ns=NOW + MINUTE_NS, amount=1, per_minute=100)[1] > 0
    assert take(full_at, now_ns=full_at - MINUTE_NS + MINUTE_NS // 100, amount=1, per_minute=100)[1] == 0


def test_what_was_not_used_is_given_back_and_what_was_used_beyond_is_taken() -> None:
    full_at, _ = take(0, now_ns=NOW, amount=60, per_minute=60)
    assert settle(full_at, reserved=60, used=10, per_minute=60) == NOW + 10 * NS_PER_S
    assert settle(full_at, reserved=60, used=70, per_minute=60) == NOW + 70 * NS_PER_S


@given(
    per_minute=st.integers(1, 10_000),
    asks=st.lists(st.tuples(st.integers(0, 20 * NS_PER_S), st.integers(0, 5_000)), max_size=40),
)
def test_never_more_than_the_allowance_in_any_minute(per_minute: int, asks: list[tuple[int, int]]) -> None:
    full_at, now = 0, NOW
    granted: list[tuple[int, int]] = []
    for passed_ns, amount in asks:
        now += passed_ns
        amount = min(amount, per_minute)
        after, wait_ns = take(full_at, now_ns=now, amount=amount, per_minute=per_minute)
        assert wait_ns >= 0
        assert wait_ns == 0 or after == full_at
        if not wait_ns:
            granted.append((now, amount))
        full_at = after
    for begin, _ in granted:  # a full bucket and what refills meanwhile: at most two allowances in a minute
        assert sum(amount for at, amount in granted if begin <= at < begin + MINUTE_NS) <= 2 * per_minute
