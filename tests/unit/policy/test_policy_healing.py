"""Backing off, and words about a worker's end."""

import itertools

import pytest

from baseload.domain.units import NS_PER_S
from baseload.policy.healing import (
    LONGEST_BACKOFF_NS,
    STEADY_NS,
    backoff_ns,
    ends_crash_row,
    refuses_while_backing_off,
    why_it_ended,
)


def test_backoff_doubles_to_a_cap_with_jitter_downwards() -> None:
    waits = [backoff_ns(crashes, was_ready=False, jitter=0.0) for crashes in range(1, 12)]
    assert waits[0] == NS_PER_S // 2
    assert all(after == min(2 * before, LONGEST_BACKOFF_NS) for before, after in itertools.pairwise(waits))
    assert waits[-1] == LONGEST_BACKOFF_NS
    assert backoff_ns(3, was_ready=False, jitter=0.999) > waits[2] // 2
    assert backoff_ns(10**9, was_ready=True, jitter=0.0) == LONGEST_BACKOFF_NS


def test_a_replica_that_served_is_replaced_at_once_the_first_time() -> None:
    assert backoff_ns(1, was_ready=True, jitter=0.5) == 0
    assert backoff_ns(2, was_ready=True, jitter=0.0) == NS_PER_S // 2


def test_requests_are_held_through_the_first_crashes() -> None:
    assert [refuses_while_backing_off(crashes) for crashes in range(5)] == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("served_ns", "answered", "ended_in_order", "over"),
    [
        (STEADY_NS, True, False, True),
        (STEADY_NS - 1, True, False, False),
        (100 * STEADY_NS, False, False, False),
        (1, True, True, True),
        (STEADY_NS, False, True, False),
    ],
)
def test_a_row_of_crashes_ends_by_serving_on(
    served_ns: int, answered: bool, ended_in_order: bool, over: bool
) -> None:
    assert ends_crash_row(served_ns=served_ns, answered=answered, ended_in_order=ended_in_order) is over


@pytest.mark.parametrize(
    ("code", "detail", "words"),
    [
        (127, "no such file: python", "could not be started before it was ready: no such file: python"),
        (-9, "", "was killed by signal 9 (SIGKILL: often the system ran out of memory)"),
        (-99, "", "signal 99 (unexpected)"),
        (
            1,
            "Traceback\n  x\nMemoryError: no room\n\n",
            "ended with exit code 1 before it was ready: MemoryError: no room",
        ),
        (0, "", "ended by itself"),
    ],
)
def test_the_end_in_words(code: int, detail: str, words: str) -> None:
    assert words in why_it_ended(code, detail, was_ready=False)


def test_words_are_bounded() -> None:
    assert len(why_it_ended(1, "x" * 10_000, was_ready=True)) < 400
