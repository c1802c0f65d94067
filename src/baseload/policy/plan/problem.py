"""A plan as a problem to solve again and again: options are judged once, then units, columns and an allocation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed

from msgspec.structs import replace

from baseload.limits.catalogue.accelerators import InstancePrice
from baseload.limits.money import HOURS_PER_MONTH
from baseload.limits.serving.predict import Predictor
from baseload.limits.shapes import ModelShape
from baseload.policy.plan.allocate import Bound, Column, allocate
from baseload.policy.plan.candidates import Candidate, Unit, better, candidate_for, eased, unit_for
from baseload.policy.plan.learned import Learned
from baseload.policy.plan.offers import NO_LIMIT, Place, places_of
from baseload.policy.plan.options import Judged, Option, judge, refined
from baseload.policy.plan.spec import Levels, PlanSpec, ServedModel, Stock, peak_of, stocks_of

Slow = float | Mapping[str, float]  # times as much longer: of all models, or by name
TIGHTENINGS = 6  # of bounds, where the program's straight lines left an allocation that breaks one
KEPT = 3  # units of a model at a place that enter the allocation


@dataclass(frozen=True, slots=True)
class Solved:
    """An allocation: who runs where."""

    chosen: dict[str, list[Candidate]]  # by model
    jobs: dict[str, "Extra"]

    @property
    def usd_per_hour(self) -> float:
        """All of it."""
        return sum(c.usd_per_hour for many in self.chosen.values() for c in many) + sum(
            j.column.usd_per_hour for j in self.jobs.values()
        )

    @property
    def peak_w(self) -> float:
        """At the meters."""
        return sum(c.peak_w for many in self.chosen.values() for c in many) + sum(
            j.column.peak_w for j in self.jobs.values()
        )

    @property
    def mean_w(self) -> float:
        """At the meters."""
        return sum(c.mean_w for many in self.chosen.values() for c in many) + sum(
            j.column.mean_w for j in self.jobs.values()
        )


@dataclass(frozen=True, slots=True)
class Extra:
    """A column that is no serving unit: a way to do a training job. `answer` is its own business."""

    column: Column
    days: float
    region: str
    answer: object


@dataclass(slots=True)
class Problem:
    """What was judged, and how to solve it under a specification that may differ in levels, limits or traffic."""

    predictor: Predictor
    prices: Sequence[InstancePrice]
    shapes: dict[str, ModelShape]
    judged: dict[tuple[str, str], Judged] = field(default_factory=dict)
    extras: dict[str, list[Extra]] = field(default_factory=dict)  # by training job
    learned: Learned = field(default_factory=Learned)  # from twin runs
    _units: dict[tuple[object, ...], Unit | None] = field(default_factory=dict)

    @property
    def known(self) -> tuple[str, ...]:
        """Accelerators of the catalogue."""
        return tuple(self.predictor.catalogue.entries)

    def judge_all(self, spec: PlanSpec) -> None:
        """Judge each model on each accelerator of any site; good options also get other step budgets."""
        for model in spec.models:
            for place in self.places(spec):
                key = (model.name, place.accelerator)
                if key not in self.judged:
                    self.judged[key] = judge(model, self.shapes[model.name], place.accelerator, self.predictor)
            tops = sorted(self.candidates(spec, model), key=lambda c: better(c, spec.objective))
            for option in list({id(c.unit.option): c.unit.option for c in tops[:12]}.values()):
                key = (model.name, option.accelerator)
                more = tuple(refined(option, model))[1:]
                self.judged[key] = Judged((*self.judged[key].options, *more))

    def places(self, spec: PlanSpec) -> list[Place]:
        """Every accelerator, site and tier that has a price."""
        return [p for site in spec.sites for p in self._places(spec, site.name)[0]]

    def blanks(self, spec: PlanSpec) -> list[tuple[str, Stock, str]]:
        """(site, stock, missing figure) of what cannot be priced."""
        return [(s.name, stock, why) for s in spec.sites for stock, why in self._places(spec, s.name)[1]]

    def candidates(
        self, spec: PlanSpec, model: ServedModel, *, slow: float = 1.0, partial: bool = False
    ) -> list[Candidate]:
        """All that meet the model's levels and residency, each alone on all of its traffic, within the stock.

        `partial`: where the stock does not hold all of it, as much as it holds.
        """
        found = []
        for place in self.places(spec):
            if not allowed(model.residency, place.site.region):
                continue
            for option in self._options(model, place):
                unit = self.unit(option, model, place, spec, slow=slow)
                if unit is not None:
                    candidate = candidate_for(unit, model, place, slow=slow)
                    if candidate.accelerators <= place.most:
                        found.append(candidate)
                    elif partial and place.most // unit.gpus > model.spare_replicas:
                        count = place.most // unit.gpus
                        share = (count - model.spare_replicas) * unit.rate / peak_of(model.traffic)
                        found.append(candidate_for(unit, model, place, replicas=count, share=share, slow=slow))
        return found

    def unit(self, option: Option, model: ServedModel, place: Place, spec: PlanSpec, *, slow: float) -> Unit | None:
        """The option's unit under the levels, remembered; eased where twin runs asked for it (None: to nothing)."""
        levels, network_ms = model.levels, place.site.network_ms
        share = self.learned.share(model, option, network_ms)
        if share <= 0.0:
            return None
        key = (id(option), levels.ttft_ms, levels.tpot_ms, network_ms, spec.objective, slow, share)
        if key not in self._units:
            unit = unit_for(option, model.traffic, levels, network_ms=network_ms, objective=spec.objective, slow=slow)
            self._units[key] = unit if unit is None or share == 1.0 else eased(unit, share, slow=slow)
        return self._units[key]

    def solve(
        self, spec: PlanSpec, *, slow: Slow = 1.0, dearer: dict[str, float] | None = None, polish: bool = True
    ) -> Solved | None:
        """The best allocation, or None. `slow` stretches times, `dearer` multiplies prices by accelerator.

        `polish`: where the program's straight lines misjudge a cost, a better single place is taken instead.
        """
        columns: list[Column] = []
        sources: list[tuple[Unit, ServedModel, Place] | Extra] = []
        demands = {f"model {m.name}": peak_of(m.traffic) for m in spec.models}
        demands |= {f"job {name}": 1.0 for name in self.extras}
        for model in spec.models:
            for place in self.places(spec):
                factor = (dearer or {}).get(place.accelerator, 1.0)
                if allowed(model.residency, place.site.region):
                    for unit in self._kept(model, place, spec, slow_of(slow, model.name)):
                        columns.append(_column(unit, model, place, spec, factor))
                        sources.append((unit, model, place))
        for job in spec.training:
            for extra in self.extras.get(job.name, ()):
                in_time = not job.deadline_days or extra.days <= job.deadline_days
                if in_time and allowed(job.residency, extra.region):
                    columns.append(extra.column)
                    sources.append(extra)
        bounds = bounds_of(spec)
        for _ in range(TIGHTENINGS):
            counts = allocate(demands, columns, bounds)
            if counts is None:
                return None
            solved = _solved(counts, columns, sources, spec, slow)
            over = excess(spec, solved)
            if not over:
                return self._polished(solved, spec, slow, dearer or {}) if polish else solved
            bounds = [changed(bound, most=bound.most / over.get(bound.name, 1.0)) for bound in bounds]
        return None

    def _polished(self, solved: Solved, spec: PlanSpec, slow: Slow, dearer: dict[str, float]) -> Solved:
        for model in spec.models:
            now = sum(_worth(c, spec, dearer) for c in solved.chosen[model.name])
            others = self.candidates(spec, model, slow=slow_of(slow, model.name))
            rivals = [(_worth(c, spec, dearer), i, c) for i, c in enumerate(others)]
            for worth, _, rival in sorted(rivals, key=lambda r: r[:2]):
                if worth >= now * (1.0 - 1e-6):
                    break
                if not rival.mean_w and (spec.objective == "tokens_per_joule" or has_power_limit(spec, rival.place)):
                    continue
                other = Solved({**solved.chosen, model.name: [rival]}, solved.jobs)
                if not broken(spec, other):
                    solved = other
                    break
        return solved

    def _places(self, spec: PlanSpec, site_name: str) -> tuple[list[Place], list[tuple[Stock, str]]]:
        site = next(s for s in spec.sites if s.name == site_name)
        key = ("places", site)
        if key not in self._place_cache:
            self._place_cache[key] = places_of(
                site, stocks_of(site, self.known), self.predictor.catalogue, self.prices
            )
        return self._place_cache[key]

    _place_cache: dict[object, tuple[list[Place], list[tuple[Stock, str]]]] = field(default_factory=dict)

    def _options(self, model: ServedModel, place: Place) -> Sequence[Option]:
        judged = self.judged.get((model.name, place.accelerator))
        if judged is None or (place.tier == "spot" and not model.interruptible):
            return ()
        return judged.options

    def _kept(self, model: ServedModel, place: Place, spec: PlanSpec, slow: float) -> list[Unit]:
        """Units worth allocating: best by accelerators, by power and by speed."""
        needs_power = spec.objective == "tokens_per_joule" or has_power_limit(spec, place)
        units = [self.unit(option, model, place, spec, slow=slow) for option in self._options(model, place)]
        found = [u for u in units if u is not None and (u.option.cost.busy_w > 0 or not needs_power)]
        found = [u for u in found if u.gpus <= place.most]
        if not found:
            return []
        alone = min(
            (candidate_for(u, model, place, slow=slow) for u in found), key=lambda c: better(c, spec.objective)
        )
        kept = {
            id(alone.unit): None,
            id(min(found, key=lambda u: (u.gpus / u.rate, u.decode.ttft_ms))): None,
            id(min(found, key=lambda u: (u.gpus, u.gpus / u.rate))): None,
            id(min(found, key=lambda u: u.decode.watts * u.decode_workers / u.rate)): None,
        }
        return [u for u in found if id(u) in kept][: KEPT + 1]


def allowed(residency: Sequence[str], region: str) -> bool:
    """Whether a region is among those allowed (none named: any)."""
    return not residency or region in residency


def has_power_limit(spec: PlanSpec, place: Place) -> bool:
    """Whether power or carbon is limited there."""
    limits = spec.limits
    return bool(place.site.power_mw or limits.megawatts or limits.tonnes_co2_per_month)


def bounds_of(spec: PlanSpec) -> list[Bound]:
    """The limits that the allocation itself must keep."""
    bounds = []
    for site in spec.sites:
        bounds += [
            Bound(f"{item.accelerator} at {site.name}", float(item.count), "gpus", site.name, item.accelerator)
            for item in site.accelerators
            if isinstance(item, Stock) and item.count
        ]
        if site.power_mw:
            bounds.append(Bound(f"power at {site.name}", site.power_mw * 1e6, "peak_w", site.name))
    limits = spec.limits
    if limits.usd_per_month:
        bounds.append(Bound("budget", limits.usd_per_month / HOURS_PER_MONTH, "usd_per_hour"))
    if limits.megawatts:
        bounds.append(Bound("megawatts", limits.megawatts * 1e6, "peak_w"))
    if limits.tonnes_co2_per_month:
        bounds.append(Bound("carbon", limits.tonnes_co2_per_month * 1e3 / HOURS_PER_MONTH, "kg_per_hour"))
    return bounds


def _worth(candidate: Candidate, spec: PlanSpec, dearer: dict[str, float]) -> float:
    """What a candidate adds to the objective: dollars, watts or milliseconds."""
    usd = candidate.usd_per_hour * dearer.get(candidate.place.accelerator, 1.0)
    match spec.objective:
        case "usd_per_mtok":
            return usd * (1.0 + 1e-7 * candidate.answer_ms)
        case "tokens_per_joule":
            return candidate.chip_w
        case "latency":
            share = candidate.tokens_per_s / (
                candidate.model.traffic.requests_per_s
                * (candidate.model.traffic.prompt_tokens + candidate.model.traffic.output_tokens)
            )
            return share * candidate.answer_ms + 1e-6 * usd


def broken(spec: PlanSpec, solved: Solved) -> list[str]:
    """The limits of the whole plan that an allocation breaks."""
    return list(excess(spec, solved))


def excess(spec: PlanSpec, solved: Solved) -> dict[str, float]:
    """By name, each limit of the whole plan that an allocation breaks, and how many times it what is used is."""
    found = {}
    everyone = [c for many in solved.chosen.values() for c in many]
    for bound in bounds_of(spec):
        total = sum(
            _figure(c, bound.figure)
            for c in everyone
            if bound.site in ("", c.place.site.name) and bound.stock in ("", c.place.stock.accelerator)
        )
        total += sum(
            getattr(j.column, bound.figure)
            for j in solved.jobs.values()
            if bound.site in ("", j.column.site) and bound.stock in ("", j.column.stock)
        )
        if total > bound.most:
            found[bound.name] = total / bound.most * (1.0 + 1e-9)
    return found


def _figure(candidate: Candidate, figure: str) -> float:
    match figure:
        case "gpus":
            return float(candidate.accelerators)
        case "kg_per_hour":
            return candidate.mean_w / 1e3 * (candidate.place.site.gco2_per_kwh or 0.0) / 1e3
        case _:
            return float(getattr(candidate, figure))


def _column(unit: Unit, model: ServedModel, place: Place, spec: PlanSpec, factor: float) -> Column:
    whole = candidate_for(unit, model, place, replicas=_units_needed(unit, model, place))
    share = model.traffic.requests_per_s / peak_of(model.traffic) if place.follows_load else 1.0
    usd = place.usd_per_hour * factor * unit.gpus
    on = usd * (1.0 - share) * (1 + model.spare_replicas)  # the first unit and the spares never sleep
    per_unit = 1.0 / whole.replicas
    kg = whole.mean_w * per_unit / 1e3 * (place.site.gco2_per_kwh or 0.0) / 1e3
    score_on = 0.0
    match spec.objective:
        case "usd_per_mtok":
            faster = 1.0 + 1e-7 * whole.answer_ms  # of equals, the faster
            score, score_on = usd * share * faster, on * faster
        case "tokens_per_joule":
            score = whole.chip_w * per_unit
        case "latency":
            score = unit.rate / peak_of(model.traffic) * whole.answer_ms + 1e-6 * usd
    return Column(
        f"model {model.name}", place.site.name, place.stock.accelerator, unit.rate, unit.gpus, score, usd * share,
        whole.peak_w * per_unit, whole.mean_w * per_unit, kg, model.spare_replicas, score_on=score_on, usd_on=on,
    )  # fmt: skip


def _units_needed(unit: Unit, model: ServedModel, place: Place) -> int:
    needed = int(peak_of(model.traffic) / unit.rate + 0.999999)
    return (
        max(1, min(needed, (place.most if place.most < NO_LIMIT else NO_LIMIT) // unit.gpus)) + model.spare_replicas
    )


def _solved(
    counts: list[int],
    columns: list[Column],
    sources: list["tuple[Unit, ServedModel, Place] | Extra"],
    spec: PlanSpec,
    slow: Slow,
) -> Solved:
    chosen: dict[str, list[Candidate]] = {m.name: [] for m in spec.models}
    jobs: dict[str, Extra] = {}
    used = [(n, c, s) for n, c, s in zip(counts, columns, sources, strict=True) if n > 0]
    capacity: dict[str, float] = {}
    for count, column, _ in used:
        capacity[column.demand] = capacity.get(column.demand, 0.0) + (count - column.spare) * column.rate
    for count, column, source in used:
        if isinstance(source, Extra):
            jobs[column.demand.removeprefix("job ")] = source
            continue
        unit, model, place = source
        share = (count - column.spare) * column.rate / capacity[column.demand]
        own = slow_of(slow, model.name)
        chosen[model.name].append(candidate_for(unit, model, place, replicas=count, share=share, slow=own))
    return Solved({name: sorted(many, key=lambda c: -c.replicas) for name, many in chosen.items()}, jobs)


def slow_of(slow: Slow, name: str) -> float:
    """How many times longer a model's times are taken to be."""
    return slow if isinstance(slow, int | float) else slow.get(name, 1.0)


def scaled_traffic(spec: PlanSpec, factor: float) -> PlanSpec:
    """The same with all request rates multiplied."""
    models = tuple(
        replace(
            m,
            traffic=replace(
                m.traffic,
                requests_per_s=m.traffic.requests_per_s * factor,
                peak_requests_per_s=m.traffic.peak_requests_per_s * factor,
                hours=tuple(rate * factor for rate in m.traffic.hours),
            ),
        )
        for m in spec.models
    )
    return replace(spec, models=models)


def with_levels(spec: PlanSpec, name: str, levels: Levels) -> PlanSpec:
    """The same with other levels for one model."""
    return replace(spec, models=tuple(replace(m, levels=levels) if m.name == name else m for m in spec.models))
