"""What follows a worker's bad end: how long to wait before the next start, and what to tell people."""

from baseload.domain.units import NS_PER_MS, NS_PER_S

FIRST_BACKOFF_NS = 500 * NS_PER_MS
LONGEST_BACKOFF_NS = 60 * NS_PER_S
PATIENCE = 3  # after so many crashes in a row, requests are no longer held while backing off
SUSPECT_NS = 30 * NS_PER_S  # a replica that failed a dispatch and gives no sign of life for so long is ended
STEADY_NS = 60 * NS_PER_S  # a replica that serves for so long after a crash ends the row
REMOTE_REST_NS = 2 * NS_PER_S  # a remote replica that failed a dispatch is left alone for so long

_SIGNALS = {
    -6: "SIGABRT: it aborted",
    -7: "SIGBUS: a mapped file may have been cut short",
    -9: "SIGKILL: often the system ran out of memory",
    -11: "SIGSEGV: it crashed inside native code",
    -15: "SIGTERM: somebody ended it",
}


def backoff_ns(crashes: int, *, was_ready: bool, jitter: float) -> int:
    """How long to wait after the `crashes`-th crash in a row (from 1). `jitter` in [0, 1) takes off up to a half.

    A replica that had served and crashes once is replaced at once: its requests are waiting.
    """
    doublings = crashes - 1 - was_ready
    if doublings < 0:
        return 0
    longest = min(FIRST_BACKOFF_NS << min(doublings, 20), LONGEST_BACKOFF_NS)
    return longest - int(longest * jitter / 2)


def refuses_while_backing_off(crashes: int) -> bool:
    """Whether requests are refused rather than held while a model without a ready replica backs off."""
    return crashes >= PATIENCE


def ends_crash_row(*, served_ns: int, answered: bool, ended_in_order: bool) -> bool:
    """Whether a replica shows that the model works again after crashes in a row.

    `served_ns`: how long it has been ready since the last crash and the backing off that followed; `answered`:
    whether it answered a request in that time; `ended_in_order`: it was told to end and did. One answer alone shows
    nothing: a worker may crash after each.
    """
    return answered and (ended_in_order or served_ns >= STEADY_NS)


def why_it_ended(exit_code: int, detail: str, *, was_ready: bool) -> str:
    """A worker's end in words: how, when, and the last line it said."""
    if exit_code == 127:
        how = "could not be started"
    elif exit_code < 0:
        how = f"was killed by signal {-exit_code} ({_SIGNALS.get(exit_code, 'unexpected')})"
    elif exit_code == 0:
        how = "ended by itself"
    else:
        how = f"ended with exit code {exit_code}"
    when = "while serving" if was_ready else "before it was ready"
    lines = [line.strip() for line in detail.splitlines() if line.strip()]
    said = f": {lines[-1][:300]}" if lines else ""
    return f"the worker {how} {when}{said}"
