"""Why nothing works: a minimal set of limits that conflict, and how far each must give way for the rest to hold.

The set is found by deletion: limits are dropped one after another, and those without which a plan exists are kept.
So each of them is needed for the conflict, and without any one of them there is none.
"""

from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from baseload.policy.plan.problem import Problem, with_levels
from baseload.policy.plan.spec import PlanSpec, Stock

MOST_FACTOR = 4096.0
CLOSE = 1.01  # a relaxation is found to one percent


@dataclass(frozen=True, slots=True)
class Limit:
    """One thing the specification asks for. `change(spec, factor)` relaxes it; factor 0 drops it altogether."""

    name: str
    value: float  # as stated; 0 where it is no number
    unit: str
    change: Callable[[PlanSpec, float], PlanSpec]
    is_number: bool = True


@dataclass(frozen=True, slots=True)
class Way:
    """One limit, relaxed so far that the plan holds with all others. 0: only without it; -1: not even so."""

    limit: Limit
    factor: float
    others: tuple[str, ...] = ()  # where not even so: what cannot be kept either


def limits_of(spec: PlanSpec) -> list[Limit]:
    """Everything that could be relaxed, softest first: what is dropped early seldom stays in the set."""
    found: list[Limit] = []
    for model in spec.models:
        name, levels = model.name, model.levels
        if levels.tpot_ms:
            found.append(_level(name, "TPOT", "tpot_ms", levels.tpot_ms, levels.tpot_of))
        if levels.ttft_ms:
            found.append(_level(name, "TTFT", "ttft_ms", levels.ttft_ms, levels.ttft_of))
    found += [_residency(m.name, m.residency, of_job=False) for m in spec.models if m.residency]
    for job in spec.training:
        if job.residency:
            found.append(_residency(job.name, job.residency, of_job=True))
        if job.deadline_days:
            found.append(_deadline(job.name, job.deadline_days))
    for site in spec.sites:
        found += [_stock(site.name, item) for item in site.accelerators if isinstance(item, Stock) and item.count]
        if site.power_mw:
            found.append(_site_power(site.name, site.power_mw))
    for field, name, unit in (
        ("tonnes_co2_per_month", "carbon limit", "t CO2 a month"),
        ("megawatts", "power limit", "MW"),
        ("usd_per_month", "budget", "$ a month"),
    ):
        value = getattr(spec.limits, field)
        if value:
            found.append(_overall(field, name, value, unit))
    return found


def conflict(problem: Problem, spec: PlanSpec) -> tuple[list[Limit], list[Way]]:
    """The minimal set, and what each member would have to become; an empty set: not even without all limits."""
    limits = limits_of(spec)
    kept = _minimal(problem, spec, limits)
    ways = [_way(problem, spec, limit, limits) for limit in kept]
    return kept, sorted(ways, key=lambda w: w.factor if w.factor > 0 else MOST_FACTOR)


def _minimal(problem: Problem, spec: PlanSpec, limits: list[Limit]) -> list[Limit]:
    """The fewest of these limits that conflict; none where the rest alone has no plan."""

    def feasible(kept: list[Limit]) -> bool:
        changed = spec
        for limit in limits:
            if limit not in kept:
                changed = limit.change(changed, 0.0)
        return problem.solve(changed, polish=False) is not None

    if not feasible([]):
        return []
    kept = list(limits)
    for limit in limits:
        fewer = [one for one in kept if one is not limit]
        if not feasible(fewer):
            kept = fewer
    return kept


def _way(problem: Problem, spec: PlanSpec, limit: Limit, limits: list[Limit]) -> Way:
    """How far this one must give way; where that is not enough, what else conflicts once it is gone."""
    factor = _least(problem, spec, limit)
    if factor >= 0:
        return Way(limit, factor)
    changed, left, others = limit.change(spec, 0.0), [one for one in limits if one is not limit], []
    while problem.solve(changed, polish=False) is None:
        more = _minimal(problem, changed, left)
        if not more:
            break
        others += more
        left = [one for one in left if one not in more]
        for one in more:
            changed = one.change(changed, 0.0)
    return Way(limit, factor, tuple(one.name for one in others))


def _least(problem: Problem, spec: PlanSpec, limit: Limit) -> float:
    """The least factor with which the whole plan holds; 0: only without it; -1: not even so (others conflict too)."""
    if problem.solve(limit.change(spec, 0.0), polish=False) is None:
        return -1.0
    if not limit.is_number:
        return 0.0
    high = 1.25
    while problem.solve(limit.change(spec, high), polish=False) is None:
        high *= 2.0
        if high > MOST_FACTOR:
            return 0.0
    low = 1.0 if high == 1.25 else high / 2.0
    while high / low > CLOSE:
        middle = (low * high) ** 0.5
        if problem.solve(limit.change(spec, middle), polish=False) is None:
            low = middle
        else:
            high = middle
    return high


def _level(name: str, word: str, field: str, value: float, of: str) -> Limit:
    def change(spec: PlanSpec, factor: float) -> PlanSpec:
        model = next(m for m in spec.models if m.name == name)
        return with_levels(spec, name, replace(model.levels, **{field: value * factor}))

    return Limit(f"{of} {word} of {name}", value, "ms", change)


def _residency(name: str, regions: tuple[str, ...], *, of_job: bool) -> Limit:
    def change(spec: PlanSpec, factor: float) -> PlanSpec:
        if of_job:
            return replace(spec, training=tuple(_free(job, name) for job in spec.training))
        return replace(spec, models=tuple(_free(model, name) for model in spec.models))

    return Limit(f"residency of {name} ({', '.join(regions)})", 0.0, "", change, is_number=False)


def _free(item: object, name: str) -> object:
    return replace(item, residency=()) if item.name == name else item  # type: ignore[attr-defined, type-var]


def _deadline(name: str, days: float) -> Limit:
    def change(spec: PlanSpec, factor: float) -> PlanSpec:
        jobs = tuple(replace(j, deadline_days=days * factor) if j.name == name else j for j in spec.training)
        return replace(spec, training=jobs)

    return Limit(f"deadline of {name}", days, "days", change)


def _stock(site_name: str, stock: Stock) -> Limit:
    def change(spec: PlanSpec, factor: float) -> PlanSpec:
        def one(item: str | Stock) -> str | Stock:
            if isinstance(item, Stock) and item.accelerator == stock.accelerator:
                return replace(item, count=int(stock.count * factor))
            return item

        sites = tuple(
            replace(s, accelerators=tuple(one(item) for item in s.accelerators)) if s.name == site_name else s
            for s in spec.sites
        )
        return replace(spec, sites=sites)

    return Limit(f"{stock.accelerator} at {site_name}", float(stock.count), "accelerators", change)


def _site_power(site_name: str, megawatts: float) -> Limit:
    def change(spec: PlanSpec, factor: float) -> PlanSpec:
        sites = tuple(replace(s, power_mw=megawatts * factor) if s.name == site_name else s for s in spec.sites)
        return replace(spec, sites=sites)

    return Limit(f"power at {site_name}", megawatts, "MW", change)


def _overall(field: str, name: str, value: float, unit: str) -> Limit:
    def change(spec: PlanSpec, factor: float) -> PlanSpec:
        return replace(spec, limits=replace(spec.limits, **{field: value * factor}))

    return Limit(name, value, unit, change)
