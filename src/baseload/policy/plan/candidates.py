"""A candidate: one option at one place, sized for a model's traffic: what it costs, draws, emits, how fast it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from baseload.limits.money import HOURS_PER_MONTH
from baseload.policy.plan.offers import Place, facility_w
from baseload.policy.plan.options import STEP_TOKENS, Option
from baseload.policy.plan.serve import Point, best_point, calm_point, day_of, point_at, unit_of
from baseload.policy.plan.spec import Levels, Objective, ServedModel, Traffic, peak_of


@dataclass(frozen=True, slots=True)
class Unit:
    """What is multiplied: a replica, or a group of prefill and decode workers. At its greatest load within levels."""

    option: Option
    rate: float  # requests per second
    gpus: int
    prefill_workers: int  # 0: aggregated
    decode_workers: int
    decode: Point
    prefill: Point | None
    binds: str
    share: float = 1.0  # of the formula's greatest load; less where a twin run asked for it


@dataclass(frozen=True, slots=True)
class Candidate:
    """A unit at a place, `replicas` times. Money and energy are means over the day; times are at the peak."""

    model: ServedModel
    place: Place
    unit: Unit
    replicas: int
    mean_replicas: float
    ttft_ms: float
    tpot_ms: float
    load: Point  # of a decoding worker at the peak
    usd_per_hour: float
    chip_w: float  # accelerators with cooling, mean: what tokens per joule count, for hosts are not known of all
    mean_w: float  # at the meter, hosts included where they are known
    peak_w: float
    tokens_per_s: float  # prompt and output, mean

    @property
    def accelerators(self) -> int:
        """At the peak."""
        return self.replicas * self.unit.gpus

    @property
    def step_tokens(self) -> int:
        """Token budget of a step; disaggregated: of a prefill worker, about a prompt at a time."""
        return self.unit.option.curve.step_tokens or max(STEP_TOKENS, self.model.traffic.prompt_tokens)

    @property
    def usd_per_mtok(self) -> float:
        """Dollars per million tokens, prompt and output."""
        return self.usd_per_hour / (self.tokens_per_s * 3600.0) * 1e6

    @property
    def tokens_per_joule(self) -> float:
        """Prompt and output tokens per joule of accelerators and cooling; 0 where power is not known."""
        return self.tokens_per_s / self.chip_w if self.chip_w else 0.0

    @property
    def answer_ms(self) -> float:
        """From asking to the last token: TTFT as in the level, and a mean answer."""
        return self.ttft_ms + self.model.traffic.output_tokens * self.tpot_ms

    @property
    def usd_per_month(self) -> float:
        """Dollars."""
        return self.usd_per_hour * HOURS_PER_MONTH

    @property
    def kg_co2_per_month(self) -> float | None:
        """Kilograms, where the site's carbon intensity is known."""
        intensity = self.place.site.gco2_per_kwh
        return None if intensity is None else self.mean_w / 1e3 * HOURS_PER_MONTH * intensity / 1e3


def unit_for(
    option: Option,
    traffic: Traffic,
    levels: Levels,
    *,
    network_ms: float = 0.0,
    objective: Objective = "usd_per_mtok",
    slow: float = 1.0,
) -> Unit | None:
    """The unit at its greatest load within the levels (with latency as objective: at a calm one); None: never."""
    ttft = max(1e-6, levels.ttft_ms - network_ms) if levels.ttft_ms else 0.0
    if option.prefill is None:
        if objective == "latency":
            point = calm_point(
                option.curve, output_tokens=traffic.output_tokens, ttft_ms=ttft, tpot_ms=levels.tpot_ms, slow=slow
            )
        else:
            point = best_point(option.curve, ttft_ms=ttft, tpot_ms=levels.tpot_ms, slow=slow)
        return None if point is None else Unit(option, point.rate, option.gpus, 0, 1, point, None, point.binds)
    decode = best_point(option.curve, ttft_ms=0.0, tpot_ms=levels.tpot_ms, slow=slow)
    if decode is None:
        return None
    left = max(1e-6, ttft - decode.tpot_ms) if ttft else 0.0
    prefill = best_point(option.prefill, ttft_ms=left, tpot_ms=0.0, slow=slow)
    if prefill is None:
        return None
    p, d = unit_of(prefill.rate, decode.rate)
    binds = prefill.binds if p * prefill.rate < d * decode.rate else decode.binds
    rate = min(p * prefill.rate, d * decode.rate)
    return Unit(option, rate, (p + d) * option.gpus, p, d, decode, prefill, binds)


def eased(unit: Unit, share: float, *, slow: float = 1.0) -> Unit:
    """A unit at its greatest load by the formula, given only this share of it."""
    option, rate = unit.option, unit.rate * share
    decode = point_at(option.curve, unit.decode.rate * share, slow=slow, binds=unit.decode.binds)
    prefill = unit.prefill
    if prefill is not None and option.prefill is not None:
        prefill = point_at(option.prefill, prefill.rate * share, slow=slow, binds=prefill.binds)
    return replace(unit, rate=rate, decode=decode, prefill=prefill, share=share)


def candidate_for(
    unit: Unit, model: ServedModel, place: Place, *, replicas: int = 0, share: float = 1.0, slow: float = 1.0
) -> Candidate:
    """The unit sized for `share` of the model's traffic (or with the replicas given)."""
    traffic = model.traffic
    peak, mean = share * peak_of(traffic), share * traffic.requests_per_s
    count = replicas or replicas_for(peak, unit.rate, model.spare_replicas)
    mean_count = float(count)
    if place.follows_load:
        hourly = [replicas_for(share * load, unit.rate, model.spare_replicas) for load in day_of(traffic)]
        mean_count = min(mean_count, sum(hourly) / len(hourly))
    busy = _loads(unit, peak / max(1, count - model.spare_replicas), slow)  # with the spares down
    calm = _loads(unit, min(unit.rate, mean / mean_count), slow)
    gpus = unit.gpus * mean_count
    tokens = mean * (traffic.prompt_tokens + traffic.output_tokens)
    known = unit.option.cost.busy_w > 0
    return Candidate(
        model=model,
        place=place,
        unit=unit,
        replicas=count,
        mean_replicas=mean_count,
        ttft_ms=busy[0] + place.site.network_ms,
        tpot_ms=busy[1],
        load=busy[2],
        usd_per_hour=place.usd_per_hour * gpus,
        chip_w=calm[3] * mean_count * place.pue if known else 0.0,
        mean_w=facility_w(place, calm[3] * mean_count, gpus) if known else 0.0,
        peak_w=facility_w(place, busy[3] * count, unit.gpus * count, at_worst=True) if known else 0.0,
        tokens_per_s=tokens,
    )


def replicas_for(rate: float, unit_rate: float, spare: int) -> int:
    """Enough units for a rate, at least one, and spares."""
    return max(1, math.ceil(rate / unit_rate - 1e-9)) + spare


def better(a: Candidate, objective: Objective) -> tuple[float, float, float]:
    """Sort key: the objective first, then money, then speed."""
    match objective:
        case "usd_per_mtok":
            return (a.usd_per_mtok, a.answer_ms, -a.tokens_per_joule)
        case "tokens_per_joule":
            return (-a.tokens_per_joule, a.usd_per_mtok, a.answer_ms)
        case "latency":
            return (a.answer_ms, a.usd_per_mtok, -a.tokens_per_joule)


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in dollars, joules and speed at once; cheapest first."""
    kept: list[Candidate] = []
    for one in sorted(candidates, key=lambda c: (c.usd_per_mtok, c.answer_ms, -c.tokens_per_joule)):
        if not any(k.answer_ms <= one.answer_ms and k.tokens_per_joule >= one.tokens_per_joule for k in kept):
            kept.append(one)
    return kept


def _loads(unit: Unit, rate: float, slow: float) -> tuple[float, float, Point, float]:
    """TTFT, TPOT, the decoding worker's point and watts of a unit at a rate."""
    option = unit.option
    decode = point_at(option.curve, rate / unit.decode_workers, slow=slow)
    if option.prefill is None:
        return decode.ttft_ms, decode.tpot_ms, decode, decode.watts
    prefill = point_at(option.prefill, rate / unit.prefill_workers, slow=slow)
    watts = prefill.watts * unit.prefill_workers + decode.watts * unit.decode_workers
    return prefill.ttft_ms + decode.ttft_ms, decode.tpot_ms, decode, watts
