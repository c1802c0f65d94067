"""The wind tunnel for policies: two settings on the same arrivals and faults, seed by seed, with paired differences.

Both sides of a seed see the same arrivals, lengths and faults (common random numbers), so that what differs is the
setting. Differences are paired by seed; intervals are Student's t over the seeds. A warm-up is left out of all
figures: requests that came in it, and replica time spent in it.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from baseload.domain.errors import SettingsError
from baseload.domain.units import NS_PER_HOUR, NS_PER_S, UJ_PER_J
from baseload.domain.work import ReplicaEntry, RequestEntry
from baseload.twin.report import percentiles
from baseload.twin.run import Simulation
from baseload.twin.spec import SimulateConfig
from baseload.twin.tally import FleetSample

# Student's t, 97.5 %, by degrees of freedom from 1; beyond: the normal's.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip
FIGURES = (
    ("usd_per_1000_well_served", "$ per 1,000 requests within levels", -1),
    ("attainment", "share of requests within levels", 1),
    ("usd", "dollars", -1),
    ("replica_hours", "replica-hours", -1),
    ("ttft_p50_ms", "TTFT p50, ms", -1),
    ("ttft_p99_ms", "TTFT p99, ms", -1),
    ("tpot_p50_ms", "TPOT p50, ms", -1),
    ("tpot_p99_ms", "TPOT p99, ms", -1),
    ("kilojoules", "energy, kJ", -1),
    ("starts", "replica starts", -1),
)
"""Field of `Outcome`, its name for people, and whether more (1) or less (-1) is better."""


class Outcome(Struct, frozen=True, kw_only=True):
    """One side under one seed, after the warm-up."""

    requests: int
    unserved: int  # refused, failed, or never reached
    attainment: float
    usd: float
    usd_per_1000_well_served: float
    replica_hours: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_p50_ms: float
    tpot_p99_ms: float
    kilojoules: float
    starts: int


class Difference(Struct, frozen=True):
    """One figure on both sides, means over seeds; B less A with its 95 % interval, and the same over A."""

    name: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    relative: float  # of the difference, to A
    better: str  # "A", "B", or "" where the interval holds 0


class CompareReport(Struct, frozen=True, kw_only=True):
    """Two settings compared."""

    a: str
    b: str
    seeds: int
    requests: int
    warmup_s: float
    level: str
    differences: tuple[Difference, ...]
    outcomes_a: tuple[Outcome, ...]
    outcomes_b: tuple[Outcome, ...]
    timeline_a: tuple[FleetSample, ...]  # of the first seed
    timeline_b: tuple[FleetSample, ...]
    notes: tuple[str, ...]
    verdict: str


def compare(
    a: SimulateConfig,
    b: SimulateConfig,
    *,
    names: tuple[str, str] = ("A", "B"),
    seeds: int = 3,
    warmup_s: float = 0.0,
    progress: Callable[[], None] = lambda: None,
) -> CompareReport:
    """Run both under seeds `a.seed` … and compare. Call `common` first, so that both see the same world."""
    if seeds < 1:
        raise SettingsError("A comparison needs at least one seed.", hint="Give --seeds 3 or more.")
    sides: tuple[list[Outcome], list[Outcome]] = ([], [])
    lines: list[tuple[FleetSample, ...]] = []
    for seed in range(a.seed, a.seed + seeds):
        for side, config in zip(sides, (a, b), strict=True):
            outcome, timeline = measure(msgspec.structs.replace(config, seed=seed, seeds=0), warmup_s=warmup_s)
            side.append(outcome)
            if len(lines) < 2:
                lines.append(timeline)
            progress()
    differences = tuple(_difference(field, name, sign, *sides) for field, name, sign in FIGURES)
    return CompareReport(
        a=names[0],
        b=names[1],
        seeds=seeds,
        requests=sides[0][0].requests,
        warmup_s=warmup_s,
        level=f"TTFT ≤ {a.slo.ttft_ms:g} ms, TPOT ≤ {a.slo.tpot_ms:g} ms" + _e2e(a),
        differences=differences,
        outcomes_a=tuple(sides[0]),
        outcomes_b=tuple(sides[1]),
        timeline_a=lines[0],
        timeline_b=lines[1],
        notes=tuple(_notes(sides, seeds)),
        verdict=_verdict(differences, names),
    )


def common(
    a: SimulateConfig, b: SimulateConfig, *, trace: Path | None = None, requests: int | None = None
) -> tuple[SimulateConfig, SimulateConfig, list[str]]:
    """Both in one world: A's workload, faults, levels and seed for both, or the trace; and what of B's gave way."""
    notes = []
    workload = a.workload
    if trace is not None:
        workload = msgspec.structs.replace(
            workload, trace=str(trace.absolute()), sources=(), requests=requests or 0, stream=1.0
        )
    elif requests is not None:
        workload = msgspec.structs.replace(workload, requests=requests)
    for field, what in (("workload", "workload"), ("faults", "faults"), ("slo", "levels"), ("energy", "energy")):
        given = getattr(b, field)
        is_replaced = field == "workload" and trace is not None
        if given not in (getattr(a, field), getattr(SimulateConfig(), field)) and not is_replaced:
            notes.append(f"B's own {what} gave way to A's")
    first = [spec.name for spec in a.models]
    if first != [spec.name for spec in b.models]:
        raise SettingsError(
            "Both sides must serve the same models, by the same names.",
            hint=f"A serves {', '.join(first) or 'guide'}.",
        )
    if any(c.policies.scaling != "ours" and c.faults.control_restart_every_s for c in (a, b)):
        raise SettingsError(
            "Scaling on request rate is not kept over a restart of control.", hint="Leave those faults out."
        )
    made = [
        msgspec.structs.replace(
            c, workload=workload, faults=a.faults, slo=a.slo, energy=a.energy, seed=a.seed, checked=False,
            decisions=0, lean=False,
        )
        for c in (a, b)
    ]  # fmt: skip
    return made[0], made[1], notes


def measure(config: SimulateConfig, *, warmup_s: float = 0.0) -> tuple[Outcome, tuple[FleetSample, ...]]:
    """One run: its figures after the warm-up, and its timeline. SettingsError where a run breaks."""
    simulation = Simulation(config)
    report = simulation.run()
    if report.failure is not None:
        raise SettingsError(f"The run with seed {config.seed} broke: {report.failure.message}.")
    world = simulation.world
    warm_ns = round(warmup_s * NS_PER_S)
    table = world.tally.table()
    late = table.arrived >= warm_ns
    ok = late & table.is_ok()
    several = ok & (table.completion > 1)
    gaps = (table.ended - table.first_byte) // np.maximum(1, table.completion - 1)
    well = int((late & table.attained(config.slo)).sum())
    asked = int((late & ~table.is_gone()).sum()) + report.unreached
    hours, usd, joules = _spent(simulation, world.start_ns + warm_ns)
    ttft, tpot = percentiles((table.first_byte - table.arrived)[ok]), percentiles(gaps[several])
    outcome = Outcome(
        requests=asked,
        unserved=asked - int(ok.sum()),
        attainment=well / asked if asked else 0.0,
        usd=usd,
        usd_per_1000_well_served=1000.0 * usd / well if well else math.inf,
        replica_hours=hours,
        ttft_p50_ms=ttft.p50_ms,
        ttft_p99_ms=ttft.p99_ms,
        tpot_p50_ms=tpot.p50_ms,
        tpot_p99_ms=tpot.p99_ms,
        kilojoules=joules / 1e3,
        starts=report.cold_starts,
    )
    return outcome, report.timeline


def _spent(simulation: Simulation, from_ns: int) -> tuple[float, float, float]:
    """Replica-hours, dollars and joules from an instant on, out of the ledger (spans across it count in part)."""
    price = {spec.name: spec.price.usd_per_hour for spec in simulation.models}
    hours = usd = joules = 0.0
    for item in simulation.world.journal:
        for entry in item.entries():
            match entry:
                case ReplicaEntry():
                    length = entry.to_ns - entry.from_ns
                    after = max(0, entry.to_ns - max(entry.from_ns, from_ns))
                    hours += after / NS_PER_HOUR
                    usd += after / NS_PER_HOUR * price.get(entry.model, 0.0)
                    if length:
                        joules += (entry.idle_energy_uj + entry.cold_energy_uj) / UJ_PER_J * after / length
                case RequestEntry() if entry.ended_ns >= from_ns:
                    joules += entry.energy_uj / UJ_PER_J
                case _:
                    pass
    return hours, usd, joules


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval; one value alone has no interval (nan)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    t = _T[len(values) - 2] if len(values) - 2 < len(_T) else 1.96
    half = t * deviation / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _difference(field: str, name: str, sign: int, a: Sequence[Outcome], b: Sequence[Outcome]) -> Difference:
    first, second = [float(getattr(o, field)) for o in a], [float(getattr(o, field)) for o in b]
    mean, low, high = interval([y - x for x, y in zip(first, second, strict=True)])
    base = sum(first) / len(first)
    sure = not math.isnan(low) and (low > 0 or high < 0)
    better = ("B" if mean * sign > 0 else "A") if sure else ""
    relative = mean / base if base else 0.0
    return Difference(name, base, sum(second) / len(second), mean, low, high, relative, better)


def _verdict(differences: Sequence[Difference], names: tuple[str, str]) -> str:
    cost, attained = differences[0], differences[1]
    if not cost.better:
        return "No difference in cost per request within levels that the seeds confirm."
    cheaper, dearer = (names[1], names[0]) if cost.better == "B" else (names[0], names[1])
    low, high = sorted((cost.a, cost.b))
    part = f"{cheaper} costs {1 - low / high:.1%} less per request within levels than {dearer}"
    if not attained.better:
        return (
            f"{part}; that they attain {attained.a:.2%} (A) and {attained.b:.2%} (B) is no difference that the seeds "
            "confirm."
        )
    less = attained.better != cost.better
    return (
        f"{part}, {'but attains less' if less else 'and attains more'}: {attained.a:.2%} (A), {attained.b:.2%} (B)."
    )


def _notes(sides: tuple[list[Outcome], list[Outcome]], seeds: int) -> list[str]:
    notes = []
    if seeds == 1:
        notes.append("one seed: no interval, and nothing is confirmed; give --seeds 3 or more")
    for name, side in zip("AB", sides, strict=True):
        if any(o.unserved for o in side):
            notes.append(f"{name} left {max(o.unserved for o in side):,} requests of a seed without an answer")
    return notes


def _e2e(config: SimulateConfig) -> str:
    return f", whole answer ≤ {config.slo.e2e_ms:g} ms" if config.slo.e2e_ms else ""
