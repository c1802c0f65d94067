"""Who may ask how much: per-minute limits as pure arithmetic over one integer per bucket.

A bucket holds one minute's allowance and refills evenly. Its whole state is the instant at which it would be full
again (the "theoretical arrival time" of ATM's generic cell rate algorithm, ITU-T I.371), so it is exact and small.
"""

from baseload.domain.units import NS_PER_S

MINUTE_NS = 60 * NS_PER_S
MOST_MINUTES = 60  # one request's debt is never counted as more than this many minutes' allowance


def take(full_at_ns: int, *, now_ns: int, amount: int, per_minute: int) -> tuple[int, int]:
    """Take `amount` from a bucket: (new full_at_ns, 0), or (full_at_ns, time to wait) when it holds too little.

    More than a whole minute's allowance is granted when the bucket is full; the debt is then paid by waiting.
    """
    start = full_at_ns if full_at_ns > now_ns else now_ns
    need_ns = (amount if amount < per_minute else per_minute) * MINUTE_NS // per_minute
    wait_ns = start + need_ns - now_ns - MINUTE_NS
    if wait_ns > 0:
        return full_at_ns, wait_ns
    return start + _time_ns(amount, per_minute), 0


def left(full_at_ns: int, *, now_ns: int, per_minute: int) -> tuple[int, int]:
    """What a bucket holds now, and in how many nanoseconds it is full; zeros where there is no limit."""
    reset_ns = max(0, full_at_ns - now_ns) if per_minute else 0
    return max(0, MINUTE_NS - reset_ns) * per_minute // MINUTE_NS, reset_ns


def settle(full_at_ns: int, *, reserved: int, used: int, per_minute: int) -> int:
    """Give back what was reserved and not used, or take what was used beyond it."""
    return full_at_ns + _time_ns(used, per_minute) - _time_ns(reserved, per_minute)


def _time_ns(amount: int, per_minute: int) -> int:
    """How long the bucket takes to refill by `amount`, rounded up."""
    most = MOST_MINUTES * per_minute
    return -(-(amount if amount < most else most) * MINUTE_NS // per_minute)
