"""What a simulation showed, as plain values: for the command line to print, for JSON, for pages and comparisons."""

import math
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from msgspec import Struct

from baseload.domain.units import NS_PER_HOUR, NS_PER_MS, NS_PER_S, NUSD_PER_USD, UJ_PER_J
from baseload.domain.work import Decision, joint_basis
from baseload.twin.spec import Energy, Slo
from baseload.twin.tally import OUTCOMES, REASONS, FaultNote, FleetSample, Ints, Table, Tally

BINS = 96  # points of time in a report's series
SAMPLES = 200
UJ_PER_KWH = 3_600_000_000_000


class Percentiles(Struct, frozen=True):
    """Of one kind of time, in milliseconds; `count` 0: there was none, and the rest is 0."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


TimelinePoint = FleetSample


class Bin(Struct, frozen=True):
    """A stretch of time. Percentiles are of requests that ended in it; nan-free: 0 where there were none."""

    at_s: float  # its beginning
    asked: int
    ok: int
    unserved: int  # refused, rejected or failed
    attained: float  # share of those asked in it, and not given up by the client, that were served well; -1: none
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_p50_ms: float
    tpot_p99_ms: float
    e2e_p99_ms: float


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


class Hunted(Struct, frozen=True):
    """What one seed of a hunt adds to it."""

    requests: int
    events: int
    virtual_s: float
    restarts: int
    failure: Failure | None


def hunt_of(first_seed: int, runs: Sequence[Hunted]) -> Hunt:
    """The hunt over so many seeds, one after the other from `first_seed` on."""
    failures = tuple(run.failure for run in runs if run.failure is not None)
    return Hunt(
        first_seed=first_seed,
        seeds=len(runs),
        passed=len(runs) - len(failures),
        requests=sum(run.requests for run in runs),
        events=sum(run.events for run in runs),
        virtual_s=sum(run.virtual_s for run in runs),
        restarts=sum(run.restarts for run in runs),
        failures=failures,
    )


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
    timeline: tuple[FleetSample, ...]
    decisions: tuple[Decision, ...]  # the first ones
    decisions_total: int
    restarts: int
    events: int
    virtual_s: float
    digest: str  # SHA-256 of all actions with their times
    name: str = ""
    slo: Slo = Slo()
    energy: Energy = Energy()
    well_served: int = 0  # requests within the service level
    attainment: float = 0.0  # their share of all that were sent and not given up by the client
    usd_per_1000_well_served: float = 0.0
    facility_kwh: float = 0.0  # energy of the replicas times PUE
    electricity_usd: float = 0.0  # where its price is given; not part of `usd`
    carbon_g: float = 0.0  # where the intensity is given
    accelerators: int = 0  # of one replica of each model, added; 0: not known
    series: tuple[Bin, ...] = ()
    faults: tuple[FaultNote, ...] = ()
    faults_by_kind: dict[str, int] = {}  # those above, and those of single occasions: a message, a step, a start
    failure: Failure | None = None
    hunt: Hunt | None = None


def empty_report(*, seed: int, hunt: Hunt) -> SimulateReport:
    """A hunt's report where there is no run of requests to show."""
    tally = Tally(start_ns=0, most_decisions=0)
    made = make_report(
        tally, name="", seed=seed, basis="none", slo=Slo(), energy=Energy(), unreached=0, restarts=0, events=0,
        virtual_ns=0, digest="", failure=None,
    )  # fmt: skip
    return msgspec.structs.replace(made, hunt=hunt)


def percentiles(times_ns: Iterable[int] | Ints) -> Percentiles:
    """Nearest-rank percentiles."""
    ordered = np.sort(np.fromiter(times_ns, np.int64) if not isinstance(times_ns, np.ndarray) else times_ns)
    if not len(ordered):
        return Percentiles(0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def rank(share: float) -> float:
        return float(ordered[math.ceil(share * len(ordered)) - 1]) / NS_PER_MS

    mean = float(ordered.mean()) / NS_PER_MS
    return Percentiles(len(ordered), mean, rank(0.5), rank(0.9), rank(0.99), float(ordered[-1]) / NS_PER_MS)


def thin(points: Sequence[FleetSample], *, most: int) -> tuple[FleetSample, ...]:
    """At most so many of the points, evenly, the last one among them."""
    stride = -(-len(points) // most) if points else 1
    kept = list(points[::stride])
    if points and kept[-1] is not points[-1]:
        kept.append(points[-1])
    return tuple(kept)


def make_report(
    tally: Tally,
    *,
    name: str,
    seed: int,
    basis: str,
    slo: Slo,
    energy: Energy,
    unreached: int,
    restarts: int,
    events: int,
    virtual_ns: int,
    digest: str,
    failure: Failure | None,
) -> SimulateReport:
    """The report of one run."""
    table = tally.table()
    tokens = tally.prompt_tokens + tally.completion_tokens
    usd = tally.nusd / NUSD_PER_USD
    ttft, tpot, e2e = _latencies(table)
    report = SimulateReport(
        name=name,
        seed=seed,
        step_time_basis=basis,
        requests=len(table.arrived) + unreached,
        unreached=unreached,
        outcomes=_counted([outcome.value for outcome in OUTCOMES], table.outcome),
        reasons=_counted([reason.value for reason in REASONS], table.reason),
        ttft=ttft,
        tpot=tpot,
        e2e=e2e,
        queue=percentiles(np.array(tally.queue_ns, np.int64)),
        prompt_tokens=tally.prompt_tokens,
        cached_tokens=tally.cached_tokens,
        completion_tokens=tally.completion_tokens,
        tokens_per_s=tally.completion_tokens * NS_PER_S / virtual_ns if virtual_ns else 0.0,
        cold_starts=len(tally.cold_replicas),
        useful_s=tally.useful_ns / NS_PER_S,
        idle_s=tally.idle_ns / NS_PER_S,
        cold_s=tally.cold_ns / NS_PER_S,
        usd=usd,
        joules=tally.uj / UJ_PER_J,
        energy_basis=joint_basis(tally.bases) or "none",
        usd_per_million_tokens=usd / tokens * 1e6 if tokens else 0.0,
        tokens_per_joule=tokens * UJ_PER_J / tally.uj if tally.uj else 0.0,
        timeline=thin(tally.samples, most=SAMPLES),
        decisions=tuple(tally.decisions),
        decisions_total=tally.decisions_total,
        restarts=restarts,
        events=events,
        virtual_s=virtual_ns / NS_PER_S,
        digest=digest,
        slo=slo,
        series=series(table, slo, end_ns=virtual_ns),
        faults=tuple(tally.faults),
        faults_by_kind=_by_kind(tally),
        failure=failure,
    )
    return _judged(report, tally, table, energy)


def _judged(report: SimulateReport, tally: Tally, table: Table, energy: Energy) -> SimulateReport:
    """With what was served well, what that cost, and what came through the meter."""
    well = int(table.attained(report.slo).sum())
    counted = report.requests - int(table.is_gone().sum())
    kwh, electricity_usd, carbon_g = facility(tally, energy)
    return msgspec.structs.replace(
        report,
        well_served=well,
        attainment=well / counted if counted else 0.0,
        energy=energy,
        usd_per_1000_well_served=1000 * report.usd / well if well else 0.0,
        facility_kwh=kwh,
        electricity_usd=electricity_usd,
        carbon_g=carbon_g,
    )


def series(table: Table, slo: Slo, *, end_ns: int, bins: int = BINS) -> tuple[Bin, ...]:
    """Equal stretches from 0 to `end_ns`, whole seconds or shorter runs' parts."""
    if not len(table.arrived) or end_ns <= 0:
        return ()
    width_ns = max(1, -(-end_ns // bins))
    asked_in, ended_in = table.arrived // width_ns, table.ended // width_ns
    ok, well, gone = table.is_ok(), table.attained(slo), table.is_gone()
    streamed, gaps = ok & (table.stream > 0), _gaps(table)
    made = []
    for at in range(-(-end_ns // width_ns)):
        mine, ended = asked_in == at, ended_in == at
        counted = int((mine & ~gone).sum())
        ttft = percentiles((table.first_byte - table.arrived)[ended & streamed])
        tpot = percentiles(gaps[ended & streamed & (table.completion > 1)])
        made.append(
            Bin(
                at_s=at * width_ns / NS_PER_S,
                asked=int(mine.sum()),
                ok=int((ended & ok).sum()),
                unserved=int((ended & ~ok & ~gone).sum()),
                attained=float((mine & well).sum()) / counted if counted else -1.0,
                ttft_p50_ms=ttft.p50_ms,
                ttft_p99_ms=ttft.p99_ms,
                tpot_p50_ms=tpot.p50_ms,
                tpot_p99_ms=tpot.p99_ms,
                e2e_p99_ms=percentiles((table.ended - table.arrived)[ended & ok]).p99_ms,
            )
        )
    return tuple(made)


def facility(tally: Tally, energy: Energy) -> tuple[float, float, float]:
    """(kWh at the meter, dollars of electricity, grams of CO2): the ledger's energy, spread as power was sampled."""
    kwh = tally.uj / UJ_PER_KWH * energy.pue
    weights = [max(sample.power_w, 1e-9) for sample in tally.samples] or [1.0]
    hours = [int(sample.at_s * NS_PER_S // NS_PER_HOUR) for sample in tally.samples] or [0]
    price = _mean_over(energy.usd_per_kwh, hours, weights)
    carbon = _mean_over(energy.carbon_g_per_kwh, hours, weights)
    return kwh, kwh * price, kwh * carbon


def _latencies(table: Table) -> tuple[Percentiles, Percentiles, Percentiles]:
    """TTFT, TPOT and end to end, of the requests that were answered well."""
    ok = table.is_ok()
    streamed = ok & (table.stream > 0)
    return (
        percentiles((table.first_byte - table.arrived)[streamed]),
        percentiles(_gaps(table)[streamed & (table.completion > 1)]),
        percentiles((table.ended - table.arrived)[ok]),
    )


def _mean_over(values: Sequence[float], hours: Sequence[int], weights: Sequence[float]) -> float:
    if not values:
        return 0.0
    return sum(values[hour % len(values)] * w for hour, w in zip(hours, weights, strict=True)) / sum(weights)


def _gaps(table: Table) -> Ints:
    """Mean time between the tokens of each answer."""
    return (table.ended - table.first_byte) // np.maximum(1, table.completion - 1)


def _by_kind(tally: Tally) -> dict[str, int]:
    counts = dict(tally.small_faults)
    for fault in tally.faults:
        counts[fault.kind] = counts.get(fault.kind, 0) + 1
    return dict(sorted(counts.items()))


def _counted(names: Sequence[str], indices: Ints) -> dict[str, int]:
    counts = np.bincount(indices[indices >= 0], minlength=len(names))
    return {name: int(count) for name, count in sorted(zip(names, counts, strict=True)) if count}
