"""What a simulation showed, as plain values: for the command line to print, for JSON, for comparisons."""

import math
from collections.abc import Iterable, Sequence

from msgspec import Struct

from baseload.domain.units import NS_PER_MS, NS_PER_S, NUSD_PER_USD, UJ_PER_J
from baseload.domain.work import Decision, Entry, Outcome, ReplicaEntry, RequestEntry, joint_basis
from baseload.twin.clients import Client


class Percentiles(Struct, frozen=True):
    """Of one kind of time, in milliseconds; `count` 0: there was none, and the rest is 0."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


class TimelinePoint(Struct, frozen=True):
    """One instant: what waited and ran, and the replicas by state, all models together."""

    at_s: float
    queued: int
    in_flight: int
    starting: int
    ready: int
    draining: int


class Failure(Struct, frozen=True):
    """A seed that broke something that must always hold."""

    seed: int
    message: str
    command: str  # reproduces it
    tail: tuple[str, ...]  # the last events before it


class Hunt(Struct, frozen=True):
    """Many seeds, each with faults drawn from it."""

    first_seed: int
    seeds: int
    passed: int
    requests: int
    events: int
    virtual_s: float
    restarts: int
    failures: tuple[Failure, ...]


class SimulateReport(Struct, frozen=True):
    """One run (of a hunt: its last seed). Times are virtual; money and energy as the ledger has them."""

    seed: int
    step_time_basis: str
    requests: int  # that clients sent
    unreached: int  # of those, sent while control was down
    outcomes: dict[str, int]
    reasons: dict[str, int]  # of those that did not end well
    ttft: Percentiles  # streaming: request sent → first byte
    tpot: Percentiles  # streaming: between tokens after the first
    e2e: Percentiles  # answered well: request sent → last byte
    queue: Percentiles  # in the router: arrival → last dispatch
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    tokens_per_s: float  # completion tokens over the virtual time
    cold_starts: int
    useful_s: float
    idle_s: float
    cold_s: float
    usd: float
    joules: float
    energy_basis: str
    usd_per_million_tokens: float  # prompt and completion
    tokens_per_joule: float
    timeline: tuple[TimelinePoint, ...]
    decisions: tuple[Decision, ...]  # the first ones
    decisions_total: int
    restarts: int
    events: int
    virtual_s: float
    digest: str  # SHA-256 of all actions with their times
    failure: Failure | None = None
    hunt: Hunt | None = None


def percentiles(times_ns: Iterable[int]) -> Percentiles:
    """Nearest-rank percentiles."""
    ordered = sorted(times_ns)
    if not ordered:
        return Percentiles(0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def rank(share: float) -> float:
        return ordered[math.ceil(share * len(ordered)) - 1] / NS_PER_MS

    mean = sum(ordered) / len(ordered) / NS_PER_MS
    return Percentiles(len(ordered), mean, rank(0.5), rank(0.9), rank(0.99), ordered[-1] / NS_PER_MS)


def thin(points: Sequence[TimelinePoint], *, most: int) -> tuple[TimelinePoint, ...]:
    """At most so many of the points, evenly, the last one among them."""
    stride = -(-len(points) // most) if points else 1
    kept = list(points[::stride])
    if points and kept[-1] is not points[-1]:
        kept.append(points[-1])
    return tuple(kept)


def make_report(
    *,
    seed: int,
    basis: str,
    clients: Sequence[Client],
    unreached: int,
    entries: Iterable[Entry],
    timeline: Sequence[TimelinePoint],
    most_decisions: int,
    restarts: int,
    events: int,
    virtual_ns: int,
    digest: str,
    failure: Failure | None,
) -> SimulateReport:
    """The report of one run, from its clients and its ledger."""
    requests, spans, decisions = _sorted(entries)
    ttft, tpot, e2e = _client_times(clients)
    completion = sum(entry.tokens.completion for entry in requests)
    tokens = sum(entry.tokens.prompt for entry in requests) + completion
    nusd = sum(entry.cost_nusd for entry in requests) + sum(s.idle_cost_nusd + s.cold_cost_nusd for s in spans)
    uj = sum(entry.energy_uj for entry in requests) + sum(s.idle_energy_uj + s.cold_energy_uj for s in spans)
    return SimulateReport(
        seed=seed,
        step_time_basis=basis,
        requests=len(clients) + unreached,
        unreached=unreached,
        outcomes=_counted(client.outcome.value if client.outcome else "open" for client in clients),
        reasons=_counted(client.reason.value for client in clients if client.reason),
        ttft=ttft,
        tpot=tpot,
        e2e=e2e,
        queue=percentiles(entry.dispatched_ns - entry.arrived_ns for entry in requests if entry.dispatched_ns),
        prompt_tokens=tokens - completion,
        cached_tokens=sum(entry.tokens.cached_in for entry in requests),
        completion_tokens=completion,
        tokens_per_s=completion * NS_PER_S / virtual_ns if virtual_ns else 0.0,
        cold_starts=len({span.replica_id: None for span in spans if span.cold_ns}),
        useful_s=sum(entry.useful_ns for entry in requests) / NS_PER_S,
        idle_s=sum(span.idle_ns for span in spans) / NS_PER_S,
        cold_s=sum(span.cold_ns for span in spans) / NS_PER_S,
        usd=nusd / NUSD_PER_USD,
        joules=uj / UJ_PER_J,
        energy_basis=joint_basis(span.energy_basis for span in spans) or "none",
        usd_per_million_tokens=nusd / NUSD_PER_USD / tokens * 1e6 if tokens else 0.0,
        tokens_per_joule=tokens * UJ_PER_J / uj if uj else 0.0,
        timeline=thin(timeline, most=200),
        decisions=tuple(decisions[:most_decisions]),
        decisions_total=len(decisions),
        restarts=restarts,
        events=events,
        virtual_s=virtual_ns / NS_PER_S,
        digest=digest,
        failure=failure,
    )


def _sorted(entries: Iterable[Entry]) -> tuple[list[RequestEntry], list[ReplicaEntry], list[Decision]]:
    requests: list[RequestEntry] = []
    spans: list[ReplicaEntry] = []
    decisions: list[Decision] = []
    for entry in entries:
        match entry:
            case RequestEntry():
                requests.append(entry)
            case ReplicaEntry():
                spans.append(entry)
            case Decision():
                decisions.append(entry)
    return requests, spans, decisions


def _client_times(clients: Sequence[Client]) -> tuple[Percentiles, Percentiles, Percentiles]:
    """TTFT, TPOT and end to end, of the clients that were answered well."""
    good = [client for client in clients if client.outcome is Outcome.OK]
    streamed = [client for client in good if client.arrival.stream]
    tpot = percentiles(
        (client.ended_ns - client.first_byte_ns) // (client.finished_tokens.completion - 1)
        for client in streamed
        if client.finished_tokens.completion > 1
    )
    ttft = percentiles(client.first_byte_ns - client.arrived_ns for client in streamed)
    return ttft, tpot, percentiles(client.ended_ns - client.arrived_ns for client in good)


def _counted(names: Iterable[str]) -> dict[str, int]:
    table: dict[str, int] = {}
    for name in names:
        table[name] = table.get(name, 0) + 1
    return dict(sorted(table.items()))
