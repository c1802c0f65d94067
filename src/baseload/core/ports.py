"""The seams between the machines and the two worlds, and between the rooms above that may not import each other."""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from baseload.domain.actions import Dispatch, Refuse
from baseload.domain.events import Event
from baseload.domain.model import ModelSpec
from baseload.domain.status import ControlStatus
from baseload.domain.tenant import Allowance, Key
from baseload.domain.work import Request


class Sink(Protocol):
    """The holder of one open client request (a gateway exchange; a simulated client in tests)."""

    def dispatch(self, action: Dispatch) -> None:
        """Forward the request to the replica, and report back through `Control.tell`. Called synchronously."""

    def refuse(self, action: Refuse) -> None:
        """Answer the client with an error. The request is over; tell nothing more about it."""


class UsageRow(Struct, frozen=True):
    """Usage of one (day, key, model, class of service); replicas' idle and cold time has key_id "", class ""."""

    day: str  # "2026-11-20", UTC
    key_id: str
    key_name: str
    model: str
    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    useful_ns: int
    idle_ns: int
    cold_ns: int
    cost_nusd: int
    energy_uj: int
    energy_basis: str  # "modelled", "rapl", "nvml" or "mixed"
    tier: str = ""  # "priority", "default" or "flex"; "" for requests counted before classes were (format 1)


class JournalRow(Struct, frozen=True):
    """One record of the journal, as shown by `baseload events`: the event or the entry, and when."""

    seq: int
    at_ns: int
    kind: str
    subject: str
    body: dict[str, object]


class Control(Protocol):
    """The running control machine, as the gateway sees it. All methods belong to the driver's event loop."""

    def open(self, request: Request, sink: Sink) -> None:
        """Journal and step RequestArrived; the sink is called at once or later, exactly until the request ends."""

    def tell(self, event: Event) -> None:
        """Journal and step an event; perform its actions. Not yet proof against kill -9: see `settle`."""

    def settle(self) -> None:
        """Hand all told events to the operating system, so that they survive kill -9 of this process.

        Call before the last byte of an answer leaves. Costs one `write`, no `fsync`.
        """

    async def acknowledge(self, event: Event) -> None:
        """`tell`, and return once the event is on stable storage (fsync). For administration."""

    def key_by_hash(self, secret_sha256: str) -> Key | None:
        """The key with this hash, unless revoked. O(1)."""

    def keys(self) -> Sequence[Key]:
        """All keys that are not revoked."""

    def allowance(self, key_id: str) -> Allowance:
        """What is left of the key's per-minute limits. O(1)."""

    def model(self, name: str) -> ModelSpec | None:
        """The model's specification. O(1)."""

    def models(self) -> Sequence[ModelSpec]:
        """All models, in the order they were added."""

    def status(self) -> ControlStatus:
        """Everything at this instant."""

    def now_ns(self) -> int:
        """Wall time in nanoseconds that never runs backwards."""

    async def usage(self, *, from_day: str = "", to_day: str = "") -> list[UsageRow]:
        """Usage by day, key, model and class, including what runs now."""

    async def events(
        self, *, after_seq: int = 0, limit: int = 100, kind: str = "", model: str = ""
    ) -> list[JournalRow]:
        """The newest `limit` journal records after `after_seq`, oldest first."""


class Launcher(Protocol):
    """Starts and ends worker processes; reports through events (WorkerStarted, WorkerReady, WorkerExited)."""

    def start(self, replica_id: str, spec: ModelSpec) -> None:
        """Begin to start a worker."""

    def stop(self, replica_id: str, grace_ns: int) -> None:
        """Begin to end a worker."""
