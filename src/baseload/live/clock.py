"""Wall time that never runs backwards."""

import time
from collections.abc import Callable


class Clock:
    """Wall nanoseconds, never backwards and never standing still.

    Where the wall clock is set back, time goes on from the highest value seen by the monotonic clock, and follows the
    wall again once that has caught up. `not_before_ns` is the last journaled time at recovery.
    """

    __slots__ = ("_last_ns", "_monotonic_ns", "_offset_ns", "_wall_ns")

    def __init__(
        self,
        *,
        not_before_ns: int = 0,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._last_ns = not_before_ns
        self._offset_ns = not_before_ns - monotonic_ns()

    def now_ns(self) -> int:
        """Nanoseconds since 1970, at least as late as every earlier answer."""
        wall = self._wall_ns()
        monotonic = self._monotonic_ns()
        now = monotonic + self._offset_ns
        if wall > now:
            self._offset_ns = wall - monotonic
            now = wall
        if now < self._last_ns:
            return self._last_ns
        self._last_ns = now
        return now
