"""A day of the plan by the hour: where each model's requests are served, and when its flexible work is done.

What is installed is given (it was sized for the peak, without shifting); within it, each hour's requests go to the
site where one costs the least electricity (or carbon), among those the model was given, which residency allows.
Flexible work goes to the cheapest hours of the day, on its own units and on accelerators of the same kind and place
that other models leave idle then. Places that are rented by the hour cost their rent. All costs are proportional to
the work, so filling the cheapest first is exact for each model alone; models are taken in the order they stand in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from baseload.policy.plan.answer import Day, HourOfModel
from baseload.policy.plan.candidates import Candidate
from baseload.policy.plan.offers import facility_w
from baseload.policy.plan.problem import Solved
from baseload.policy.plan.serve import day_of, point_at
from baseload.policy.plan.spec import HOURS, PlanSpec, Site

J_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class _Place:
    """A choice, as a place for requests. Costs are of one request, by the hour."""

    candidate: Candidate
    rate: tuple[float, ...]  # requests per second it may serve in each hour
    usd: tuple[float, ...]
    kg: tuple[float, ...]


def day_by_hour(spec: PlanSpec, solved: Solved) -> Day | None:
    """The day, and what shifting saves; None where no hour differs from another and nothing is flexible."""
    by_hour = any(s.usd_per_kwh_by_hour or s.gco2_per_kwh_by_hour for s in spec.sites)
    if not spec.models or not (by_hour or any(m.flexible for m in spec.models)):
        return None
    idle = _idle(spec, solved)
    rows: list[HourOfModel] = []
    usd = [0.0, 0.0]
    kg = [0.0, 0.0]
    words: list[str] = []
    for model in spec.models:
        own = [_place(c) for c in solved.chosen[model.name]]
        if not own:
            continue
        wanted = list(day_of(model.traffic)) if not model.flexible else [model.traffic.requests_per_s] * HOURS
        plain = _evenly(own, wanted)
        places = [*own, *_borrowed(own, idle)] if model.flexible else own
        shifted = _whole_day(places, wanted, spec) if model.flexible else _each_hour(places, wanted, spec)
        if model.flexible:
            _take(places[len(own) :], shifted[len(own) :], idle)
        for i, (where, loads) in enumerate(((own, plain), (places, shifted))):
            dollars, kilograms = _sum(where, loads)
            usd[i] += dollars
            kg[i] += kilograms
        moved = _moved(plain, shifted, wanted)
        if moved > 0.005:
            what = "done at other hours or on idle accelerators" if model.flexible else "served elsewhere"
            words.append(f"{model.name}: {moved:.0%} of a day's requests {what}")
        rows += [
            HourOfModel(
                model.name, hour, tuple((_name(p), load[hour]) for p, load in zip(places, shifted, strict=True))
            )
            for hour in range(HOURS)
        ]
    told = all(s.gco2_per_kwh is not None for s in spec.sites)
    return Day(
        by=spec.shift_by,
        usd_per_day=usd[1],
        usd_per_day_unshifted=usd[0],
        kg_co2_per_day=kg[1] if told else None,
        kg_co2_per_day_unshifted=kg[0] if told else None,
        moves=tuple(words),
        hours=tuple(rows),
    )


def _place(candidate: Candidate, *, units: Sequence[float] | None = None) -> _Place:
    """A choice with all its units, or so many of them in each hour."""
    site, unit = candidate.place.site, candidate.unit
    spare = candidate.model.spare_replicas
    count = units or [float(candidate.replicas - spare)] * HOURS
    joules = _joules(candidate)
    prices, grams = _hours(site)
    rent = candidate.place.usd_per_hour * unit.gpus / (unit.rate * 3600.0) if candidate.place.follows_load else None
    usd = tuple(rent if rent is not None else joules / J_PER_KWH * price for price in prices)
    kg = tuple(joules / J_PER_KWH * gram / 1e3 for gram in grams)
    return _Place(candidate, tuple(n * unit.rate for n in count), usd, kg)


def _joules(candidate: Candidate) -> float:
    """What one more request takes at the meter, on units that are on anyway."""
    unit, option = candidate.unit, candidate.unit.option
    if not option.cost.busy_w:
        return 0.0
    decode = point_at(option.curve, unit.rate / unit.decode_workers)
    watts = (decode.watts - option.curve.idle_w) * unit.decode_workers
    if option.prefill is not None:
        prefill = point_at(option.prefill, unit.rate / unit.prefill_workers)
        watts += (prefill.watts - option.prefill.idle_w) * unit.prefill_workers
    return facility_w(candidate.place, watts, 0.0) / unit.rate


def _hours(site: Site) -> tuple[Sequence[float], Sequence[float]]:
    prices = site.usd_per_kwh_by_hour or (site.usd_per_kwh or 0.0,) * HOURS
    return prices, site.gco2_per_kwh_by_hour or (site.gco2_per_kwh or 0.0,) * HOURS


def _idle(spec: PlanSpec, solved: Solved) -> dict[tuple[str, str], list[float]]:
    """Accelerators by site and kind that are paid for and that nobody needs in an hour."""
    found: dict[tuple[str, str], list[float]] = {}
    for model in spec.models:
        chosen = [] if model.flexible else solved.chosen[model.name]
        whole = sum((c.replicas - model.spare_replicas) * c.unit.rate for c in chosen)
        for c in chosen:
            if c.place.follows_load or not whole:
                continue
            active = c.replicas - model.spare_replicas
            free = [active * (1.0 - min(1.0, load / whole)) * c.unit.gpus for load in day_of(model.traffic)]
            before = found.setdefault((c.place.site.name, c.place.accelerator), [0.0] * HOURS)
            found[c.place.site.name, c.place.accelerator] = [a + b for a, b in zip(before, free, strict=True)]
    return found


def _borrowed(own: Sequence[_Place], idle: dict[tuple[str, str], list[float]]) -> list[_Place]:
    """Whole units that fit on idle accelerators of the kinds and places the model uses."""
    found = []
    for place in own:
        free = idle.get((place.candidate.place.site.name, place.candidate.place.accelerator))
        if free is not None and not place.candidate.place.follows_load:
            units = [float(int(gpus / place.candidate.unit.gpus)) for gpus in free]
            if any(units):
                found.append(_place(place.candidate, units=units))
    return found


def _take(
    places: Sequence[_Place], loads: Sequence[Sequence[float]], idle: dict[tuple[str, str], list[float]]
) -> None:
    """What one model borrows, another cannot."""
    for place, load in zip(places, loads, strict=True):
        free = idle[place.candidate.place.site.name, place.candidate.place.accelerator]
        unit = place.candidate.unit
        for hour in range(HOURS):
            free[hour] = max(0.0, free[hour] - load[hour] / unit.rate * unit.gpus)


def _evenly(places: Sequence[_Place], wanted: Sequence[float]) -> list[list[float]]:
    """By capacity, whatever it costs."""
    return [
        [wanted[h] * p.rate[h] / max(1e-12, sum(q.rate[h] for q in places)) for h in range(HOURS)] for p in places
    ]


def _each_hour(places: Sequence[_Place], wanted: Sequence[float], spec: PlanSpec) -> list[list[float]]:
    """Each hour's requests at the cheapest places that have room."""
    loads = [[0.0] * HOURS for _ in places]
    for hour in range(HOURS):
        _fill(loads, [(i, hour) for i in range(len(places))], places, wanted[hour], spec)
    return loads


def _whole_day(places: Sequence[_Place], wanted: Sequence[float], spec: PlanSpec) -> list[list[float]]:
    """The day's requests in the cheapest hours and places that have room."""
    loads = [[0.0] * HOURS for _ in places]
    _fill(loads, [(i, h) for i in range(len(places)) for h in range(HOURS)], places, sum(wanted), spec)
    return loads


def _fill(
    loads: list[list[float]], slots: list[tuple[int, int]], places: Sequence[_Place], left: float, spec: PlanSpec
) -> None:
    def cost(slot: tuple[int, int]) -> tuple[float, float, int, int]:
        place, hour = places[slot[0]], slot[1]
        usd, kg = place.usd[hour], place.kg[hour]
        return (usd, kg, *slot) if spec.shift_by == "price" else (kg, usd, *slot)

    for i, hour in sorted(slots, key=cost):
        taken = min(left, places[i].rate[hour])
        loads[i][hour] = taken
        left -= taken
    if left > 0 and slots:  # rounding: what was sized for the peak holds it
        i, hour = slots[-1]
        loads[i][hour] += left


def _sum(places: Sequence[_Place], loads: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Dollars and kilograms of a day."""
    usd = kg = 0.0
    for place, load in zip(places, loads, strict=True):
        usd += sum(3600.0 * n * each for n, each in zip(load, place.usd, strict=True))
        kg += sum(3600.0 * n * each for n, each in zip(load, place.kg, strict=True))
    return usd, kg


def _moved(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]], wanted: Sequence[float]) -> float:
    """Share of the day's requests that are at another place or hour than without shifting."""
    padded = [*before, *([[0.0] * HOURS] * (len(after) - len(before)))]
    more = sum(max(0.0, b - a) for x, y in zip(padded, after, strict=True) for a, b in zip(x, y, strict=True))
    return more / sum(wanted) if sum(wanted) else 0.0


def _name(place: _Place) -> str:
    return f"{place.candidate.place.site.name}: {place.candidate.place.accelerator}"
