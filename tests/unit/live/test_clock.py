"""The live clock neither runs backwards nor stands still."""

from baseload.live.clock import Clock


class Hands:
    """Two clocks to be set by hand."""

    def __init__(self) -> None:
        self.wall = 1_000
        self.monotonic = 50

    def pass_time(self, ns: int) -> None:
        self.wall += ns
        self.monotonic += ns


def clock(hands: Hands, not_before_ns: int = 0) -> Clock:
    return Clock(not_before_ns=not_before_ns, wall_ns=lambda: hands.wall, monotonic_ns=lambda: hands.monotonic)


def test_it_is_the_wall_clock():
    hands = Hands()
    one = clock(hands)
    assert one.now_ns() == 1_000
    hands.pass_time(7)
    assert one.now_ns() == 1_007


def test_a_wall_clock_set_back_does_not_stop_time():
    hands = Hands()
    one = clock(hands)
    one.now_ns()
    hands.wall -= 500
    assert one.now_ns() == 1_000
    hands.pass_time(20)
    assert one.now_ns() == 1_020


def test_a_wall_clock_set_forward_is_followed():
    hands = Hands()
    one = clock(hands)
    hands.wall += 10_000
    assert one.now_ns() == 11_000


def test_it_begins_after_the_last_journaled_time():
    hands = Hands()
    one = clock(hands, not_before_ns=5_000)
    assert one.now_ns() == 5_000
    hands.pass_time(3)
    assert one.now_ns() == 5_003
    hands.wall = 9_000
    assert one.now_ns() == 9_000
