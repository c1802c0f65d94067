"""The virtual clock: a heap of what is to happen, ordered by (at_ns, tie, seq).

`tie` is drawn from a seeded stream, so things due at the same nanosecond happen in an order that differs from
seed to seed and never within one. Time moves only when the next thing is taken.
"""

from collections.abc import Callable
from heapq import heappop, heappush

from baseload.domain.rng import Rng
from baseload.twin.chance import bits

Happening = Callable[[], None]


class Agenda:
    """What is to happen, and the present instant `now_ns`."""

    __slots__ = ("_dead", "_heap", "_seq", "_step_tie", "_tie", "now_ns")

    def __init__(self, seed: int, *, start_ns: int) -> None:
        self.now_ns = start_ns
        self._tie = bits(Rng(seed, "twin.tie")).__next__
        self._step_tie = bits(Rng(seed, "twin.tie.steps")).__next__
        self._seq = 0
        self._heap: list[tuple[int, int, int, Happening]] = []
        self._dead: dict[int, None] = {}

    def at(self, at_ns: int, happening: Happening) -> int:
        """Let it happen at `at_ns` (now, if that is past). Returns a handle for `drop`."""
        self._seq = seq = self._seq + 1
        now_ns = self.now_ns
        heappush(self._heap, (at_ns if at_ns > now_ns else now_ns, self._tie(), seq, happening))
        return seq

    def at_step(self, at_ns: int, happening: Happening) -> int:
        """As `at`, for the ends of engine steps, whose ties have a stream of their own: how many there are (steps one
        by one, or many at once) then changes no other tie."""
        self._seq = seq = self._seq + 1
        now_ns = self.now_ns
        heappush(self._heap, (at_ns if at_ns > now_ns else now_ns, self._step_tie(), seq, happening))
        return seq

    def after(self, delay_ns: int, happening: Happening) -> int:
        """Let it happen `delay_ns` from now. Returns a handle for `drop`."""
        return self.at(self.now_ns + delay_ns, happening)

    def drop(self, handle: int) -> None:
        """Let it not happen. The handle must not have happened yet."""
        self._dead[handle] = None

    def step(self) -> bool:
        """Move to the next thing and let it happen; False when nothing is left."""
        heap, dead = self._heap, self._dead
        while heap:
            at_ns, _, seq, happening = heappop(heap)
            if seq in dead:
                del dead[seq]
                continue
            self.now_ns = at_ns
            happening()
            return True
        return False

    def run(self, holds: Callable[[], bool], *, limit_ns: int) -> bool:
        """Step until it holds: True; or until nothing is left, or the present is past the limit: False."""
        heap, dead = self._heap, self._dead
        while not holds():
            if not heap:
                return False
            at_ns, _, seq, happening = heappop(heap)
            if seq in dead:
                del dead[seq]
                continue
            self.now_ns = at_ns
            happening()
            if at_ns > limit_ns:
                return False
        return True
