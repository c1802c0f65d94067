"""What a run leaves behind, gathered as it goes: one row of integers per request, sums of the ledger, samples of the
fleet. Rows lie in flat arrays (about 90 bytes a request), so that millions fit."""

from array import array
from collections.abc import Iterable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from baseload.domain.errors import Reason
from baseload.domain.work import Decision, Entry, Outcome, ReplicaEntry, RequestEntry
from baseload.twin.clients import Client
from baseload.twin.spec import Slo

OUTCOMES = tuple(Outcome)
REASONS = tuple(Reason)
_OUTCOME_AT = {outcome: at for at, outcome in enumerate(OUTCOMES)}
_REASON_AT = {reason: at for at, reason in enumerate(REASONS)}
Ints = NDArray[np.int64]
_SUMS = (
    "decisions_total", "prompt_tokens", "cached_tokens", "completion_tokens", "useful_ns", "idle_ns", "cold_ns",
    "nusd", "uj",
)  # fmt: skip


class FleetSample(Struct, frozen=True):
    """One instant: what waited and ran, and the replicas by state, all models together."""

    at_s: float
    queued: int
    in_flight: int
    starting: int
    ready: int
    draining: int
    busy: int = 0  # of the ready ones, those that run something
    power_w: float = 0.0  # of all replicas, as metered or modelled
    usd_per_hour: float = 0.0


class FaultNote(Struct, frozen=True):
    """A fault that was made, and when what it broke served again (0: it did not, or nothing was to mend)."""

    at_s: float
    kind: str
    subject: str
    recovered_s: float = 0.0


class Table(Struct, frozen=True):
    """All requests, one column each, in the order they ended. Times in ns since the start; 0: never."""

    arrived: Ints
    first_byte: Ints
    ended: Ints
    outcome: Ints  # index into OUTCOMES
    reason: Ints  # index into REASONS; -1: none
    completion: Ints
    stream: Ints

    def attained(self, slo: Slo) -> NDArray[np.bool_]:
        """Which requests were served well."""
        ok = self.outcome == _OUTCOME_AT[Outcome.OK]
        streamed = self.stream > 0
        if slo.ttft_ms:
            ok &= ~streamed | (self.first_byte - self.arrived <= slo.ttft_ms * 1e6)
        if slo.tpot_ms:
            gaps = np.maximum(1, self.completion - 1)
            ok &= ~streamed | (self.ended - self.first_byte <= slo.tpot_ms * 1e6 * gaps)
        if slo.e2e_ms:
            ok &= self.ended - self.arrived <= slo.e2e_ms * 1e6
        return np.asarray(ok, np.bool_)

    def is_ok(self) -> NDArray[np.bool_]:
        """Which were answered well."""
        return np.asarray(self.outcome == _OUTCOME_AT[Outcome.OK], np.bool_)

    def is_gone(self) -> NDArray[np.bool_]:
        """Whose clients went by themselves: nobody's failure, so not counted in attainment."""
        return np.asarray(self.outcome == _OUTCOME_AT[Outcome.CANCELLED], np.bool_)


class Tally:
    """Gathers. `client` once per ended client, `entries` once per ledger entry."""

    def __init__(self, *, start_ns: int, most_decisions: int) -> None:
        self._start_ns = start_ns
        self._most_decisions = most_decisions
        self._rows = array("q")  # seven a request
        self.decisions: list[Decision] = []
        self.decisions_total = 0
        self.queue_ns = array("q")
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = 0
        self.useful_ns = self.idle_ns = self.cold_ns = 0
        self.nusd = self.uj = 0
        self.cold_replicas: dict[str, None] = {}
        self.bases: dict[str, None] = {}
        self.samples: list[FleetSample] = []
        self.faults: list[FaultNote] = []
        self.small_faults: dict[str, int] = {}  # of single occasions, by kind

    def client(self, client: Client) -> None:
        """A client's request is over."""
        start_ns, first_ns = self._start_ns, client.first_byte_ns
        row = (
            client.arrived_ns - start_ns,
            first_ns - start_ns if first_ns else 0,
            client.ended_ns - start_ns,
            _OUTCOME_AT[client.outcome] if client.outcome is not None else -1,
            _REASON_AT[client.reason] if client.reason is not None else -1,
            client.finished_tokens.completion,
            client.arrival.stream,
        )
        self._rows.extend(row)

    def entries(self, entries: Iterable[Entry]) -> None:
        """What was written to the ledger."""
        for entry in entries:
            self.entry(entry)

    def entry(self, entry: Entry) -> None:
        """One line of the ledger."""
        match entry:
            case RequestEntry(tokens=tokens):
                self.prompt_tokens += tokens.prompt
                self.cached_tokens += tokens.cached_in
                self.completion_tokens += tokens.completion
                self.useful_ns += entry.useful_ns
                self.nusd += entry.cost_nusd
                self.uj += entry.energy_uj
                if entry.dispatched_ns:
                    self.queue_ns.append(entry.dispatched_ns - entry.arrived_ns)
            case ReplicaEntry():
                self.idle_ns += entry.idle_ns
                self.cold_ns += entry.cold_ns
                self.nusd += entry.idle_cost_nusd + entry.cold_cost_nusd
                self.uj += entry.idle_energy_uj + entry.cold_energy_uj
                self.bases[entry.energy_basis] = None
                if entry.cold_ns:
                    self.cold_replicas[entry.replica_id] = None
            case Decision():
                self.decisions_total += 1
                if len(self.decisions) < self._most_decisions:
                    self.decisions.append(entry)

    def small_fault(self, kind: str) -> None:
        """A fault of a single occasion: one message, one step, one start."""
        self.small_faults[kind] = self.small_faults.get(kind, 0) + 1

    def join(self, other: "Tally") -> None:
        """Add what another world left behind, over the same time."""
        self._rows.extend(other._rows)
        self.queue_ns.extend(other.queue_ns)
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.decisions += other.decisions[: self._most_decisions - len(self.decisions)]
        self.cold_replicas |= {f"{len(self.cold_replicas)}/{name}": None for name in other.cold_replicas}
        self.bases |= other.bases
        for kind, times in other.small_faults.items():
            self.small_faults[kind] = self.small_faults.get(kind, 0) + times
        self.faults = sorted([*self.faults, *other.faults], key=lambda fault: fault.at_s)
        if not self.samples:
            self.samples = list(other.samples)
            return
        theirs, last_s = 0, self.samples[-1].at_s
        for at, ours in enumerate(self.samples if other.samples else ()):
            if ours.at_s > other.samples[-1].at_s:
                break  # it had ended by then
            while theirs + 1 < len(other.samples) and other.samples[theirs + 1].at_s <= ours.at_s:
                theirs += 1  # its last look at or before this instant: not all look equally often
            sample = other.samples[theirs]
            added = {name: getattr(ours, name) + getattr(sample, name) for name in FleetSample.__struct_fields__[1:]}
            self.samples[at] = FleetSample(at_s=ours.at_s, **added)
        self.samples += [
            sample for sample in other.samples if sample.at_s > last_s
        ]  # it ran on when all others had ended

    def table(self) -> Table:
        """The requests so far."""
        return Table(*np.array(self._rows, np.int64).reshape(-1, len(Table.__struct_fields__)).T)
