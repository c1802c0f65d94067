"""What an observer at the seams knows of the open requests: who waits, who runs where. Counts cost O(1)."""

from baseload.domain.work import Request


class Shadow:
    """One open request."""

    __slots__ = ("attempts", "due_ns", "first_byte", "replica_id", "request", "requeued")

    def __init__(self, request: Request, due_ns: int) -> None:
        self.request = request
        self.due_ns = due_ns  # it must not wait beyond this
        self.replica_id = ""  # "": waits in the router
        self.attempts = 0
        self.first_byte = False
        self.requeued = False  # waits after a failed attempt


class Shadows:
    """All open requests. Every change goes through these methods, so that the counts follow."""

    def __init__(self) -> None:
        self._open: dict[str, Shadow] = {}
        self._waiting: dict[str, int] = {}  # model → requests that wait
        self._fresh: dict[str, int] = {}  # of those, the ones never dispatched
        self._running: dict[str, dict[str, None]] = {}  # replica → request ids
        self._next_due_ns = 0  # none that waits is due before this
        self.waiting_total = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def running_total(self) -> int:
        """How many run."""
        return len(self._open) - self.waiting_total

    def ids(self) -> list[str]:
        """The open requests."""
        return list(self._open)

    def get(self, request_id: str) -> Shadow | None:
        """The request, if it is open."""
        return self._open.get(request_id)

    def waiting(self, model: str) -> int:
        """How many wait for a model."""
        return self._waiting.get(model, 0)

    def fresh(self, model: str) -> int:
        """How many wait for a model and were never dispatched."""
        return self._fresh.get(model, 0)

    def running(self, replica_id: str) -> int:
        """How many run on a replica."""
        return len(self._running.get(replica_id, ()))

    def running_ids(self, replica_id: str) -> list[str]:
        """Which run on a replica."""
        return list(self._running.get(replica_id, ()))

    def of_key(self, key_id: str) -> int:
        """How many a key has open."""
        return sum(1 for shadow in self._open.values() if shadow.request.key_id == key_id)

    def oldest_due(self, before_ns: int) -> str:
        """A request that waits and was due before this; "" when there is none."""
        if before_ns < self._next_due_ns or not self.waiting_total:
            return ""
        waiting = [shadow for shadow in self._open.values() if not shadow.replica_id]
        oldest = min(waiting, key=lambda shadow: shadow.due_ns)
        self._next_due_ns = oldest.due_ns
        return oldest.request.request_id if oldest.due_ns < before_ns else ""

    def arrive(self, request: Request, due_ns: int) -> None:
        """It waits, until `due_ns` at the latest."""
        self._open[request.request_id] = shadow = Shadow(request, due_ns)
        self._next_due_ns = min(self._next_due_ns, due_ns)
        self._wait(shadow, 1)

    def dispatch(self, shadow: Shadow, replica_id: str) -> None:
        """It runs there."""
        self._wait(shadow, -1)
        shadow.replica_id, shadow.requeued = replica_id, False
        shadow.attempts += 1
        self._running.setdefault(replica_id, {})[shadow.request.request_id] = None

    def give_back(self, shadow: Shadow) -> None:
        """It waits again."""
        del self._running[shadow.replica_id][shadow.request.request_id]
        shadow.replica_id, shadow.requeued = "", True
        self._next_due_ns = min(self._next_due_ns, shadow.due_ns)
        self._wait(shadow, 1)

    def end(self, request_id: str) -> Shadow:
        """It is over."""
        shadow = self._open.pop(request_id)
        if shadow.replica_id:
            del self._running[shadow.replica_id][request_id]
        else:
            self._wait(shadow, -1)
        return shadow

    def end_all(self) -> dict[str, Shadow]:
        """All are over."""
        return {request_id: self.end(request_id) for request_id in list(self._open)}

    def _wait(self, shadow: Shadow, change: int) -> None:
        model = shadow.request.model
        self.waiting_total += change
        self._waiting[model] = self._waiting.get(model, 0) + change
        if not shadow.requeued:
            self._fresh[model] = self._fresh.get(model, 0) + change
