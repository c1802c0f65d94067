"""Named timers on one event loop handle: a heap with lazy deletion, so that setting and cancelling stay cheap."""

import asyncio
import heapq
from collections.abc import Callable

from baseload.domain.units import NS_PER_S

_MAX_WAIT_S = 3_600.0  # loops take no arbitrary long waits


class Timers:
    """Calls `fire(name)` when a timer is due by `now_ns`."""

    def __init__(self, *, now_ns: Callable[[], int], fire: Callable[[str], None]) -> None:
        self._now_ns = now_ns
        self._fire = fire
        self._due: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._handle_at_ns = 0
        self._is_closed = False

    def set(self, name: str, at_ns: int) -> None:
        """Set, or move, a timer."""
        self._due[name] = at_ns
        heapq.heappush(self._heap, (at_ns, name))
        if not self._is_closed and (self._handle is None or at_ns < self._handle_at_ns):
            self._schedule()
        if len(self._heap) > 64 + 4 * len(self._due):
            self._heap = [(at_ns, name) for name, at_ns in self._due.items()]
            heapq.heapify(self._heap)

    def cancel(self, name: str) -> None:
        """Forget a timer, if it is set."""
        self._due.pop(name, None)

    def close(self) -> None:
        """Fire nothing any more."""
        self._is_closed = True
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _schedule(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        heap = self._heap
        while heap and self._due.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)  # cancelled, moved, or fired
        if heap:
            self._handle_at_ns = heap[0][0]
            delay_s = (heap[0][0] - self._now_ns()) / NS_PER_S
            self._handle = self._loop.call_later(min(max(delay_s, 0.0), _MAX_WAIT_S), self._wake)

    def _wake(self) -> None:
        self._handle = None
        now_ns = self._now_ns()
        while self._heap and self._heap[0][0] <= now_ns and not self._is_closed:
            at_ns, name = heapq.heappop(self._heap)
            if self._due.get(name) == at_ns:
                del self._due[name]
                self._fire(name)
        if not self._is_closed:
            self._schedule()
