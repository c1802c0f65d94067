"""What the router keeps: an open request (ticket), a replica that serves (seat), a model's queue (lane)."""

from collections import OrderedDict

from msgspec import Struct

from baseload.core.ledger import Account, Bill
from baseload.domain.errors import Reason
from baseload.domain.fleet import WorkerSample
from baseload.domain.model import Admission
from baseload.domain.work import Request


class Ticket(Struct):
    """One open request."""

    request: Request
    arrived_ns: int
    deadline_ns: int  # it waits here no longer than this
    bill: Bill
    replica_id: str = ""  # where it runs; "" while it waits
    last_replica_id: str = ""
    attempts: int = 0
    failed_on: tuple[str, ...] = ()
    failure: Reason | None = None  # of its last attempt
    dispatched_ns: int = 0
    first_byte_ns: int = 0


class Seat(Struct):
    """A replica as the router sees it."""

    replica_id: str
    model: str
    url: str
    capacity: int
    account: Account
    accepting: bool = True  # ready, confirmed, trusted, not draining
    gone: bool = False  # the replica is gone; the reports on what it ran are still to come
    place: int = -1  # index in its lane's `open`; -1: not there
    running: dict[str, None] = {}
    held_tokens: int = 0  # prompt tokens (estimated) of what runs
    waiting_tokens: int = 0  # of those, of streams whose first token has not come
    sample: WorkerSample = WorkerSample()


class Lane(Struct):
    """One model's queue and counts."""

    model: str
    admission: Admission
    queue: OrderedDict[str, None]  # request ids, first come first served within a class
    again: dict[str, None]  # request ids to dispatch again; before the queue, never blocking it
    deadlines: list[tuple[int, str]]  # heap over waiting requests; stale ones are skipped
    prefixes: OrderedDict[int, str]  # prefix hash -> the replica that served it last
    open: list[str] = []  # replicas with room, in no meaningful order
    in_flight: int = 0
    active_ns: int = 0  # when a request last came or ended
    outage: str = ""  # why nothing can be served until outage_until_ns
    outage_until_ns: int = 0
    closed: bool = False  # the model was removed
    requests_total: int = 0
    asked_tokens_total: int = 0  # prompt tokens (estimated) of those requests
    prompt_tokens_total: int = 0
    completion_tokens_total: int = 0
    has_classes: bool = False  # whether any that waits is of another class than the default

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self.queue) + len(self.again)
