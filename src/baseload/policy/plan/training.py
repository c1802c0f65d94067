"""Ways to do a training job: counts of each accelerator at each site, with time, dollars, goodput and checkpoints.

Times, memory, failures and checkpoint intervals are those of `limits.training.plan`; here they become columns of the
allocation. A job takes its accelerators for as long as it lasts; its dollars an hour stand beside the serving ones.
"""

from collections.abc import Sequence

from baseload.domain.errors import BaseloadError
from baseload.limits.carbon import Zone, grams
from baseload.limits.catalogue.accelerators import Catalogue, InstancePrice
from baseload.limits.goodput import LLAMA3, spares_needed
from baseload.limits.power import AIR
from baseload.limits.shapes import ModelShape
from baseload.limits.training.plan import Job, Terms, TrainingPlan, plan
from baseload.limits.training.predict import words
from baseload.policy.plan.allocate import Column
from baseload.policy.plan.answer import TrainingAnswer
from baseload.policy.plan.offers import OUTSIDE_C, Place, host_w, places_of, pue_of, worst_pue_of
from baseload.policy.plan.problem import Extra
from baseload.policy.plan.spec import HOURS, PlanSpec, Site, TrainingJob, stocks_of

LORA_RANK = 16
COUNTS = tuple(1 << power for power in range(19))  # up to 262,144
LONGEST_DAYS = 3650.0  # beyond that a way is none
FASTER = 16.0  # times faster than the deadline is fast enough to stop trying more accelerators
REPAIR_HOURS = 24.0  # until a broken machine is back; assumed
SHORT_H = 48.0  # of a longer job, the hour of its start makes no difference
HOST_W = 400.0  # of a host, for each accelerator, where the catalogue has no all-in figure; assumed


def ways(
    job: TrainingJob, shape: ModelShape, spec: PlanSpec, catalogue: Catalogue, prices: Sequence[InstancePrice]
) -> list[Extra]:
    """Every count, accelerator, site and tier that can do the job, cheapest first."""
    found: list[Extra] = []
    timed: dict[tuple[str, int], TrainingPlan | None] = {}
    task = Job(
        shape=shape,
        tokens=job.tokens,
        batch_tokens=job.batch_tokens,
        seq_len=job.sequence_tokens,
        form=job.precision,
        lora_rank=LORA_RANK if job.method == "lora" else 0,
    )
    for site in spec.sites:
        for place in places_of(site, stocks_of(site, tuple(catalogue.entries)), catalogue, prices)[0]:
            for count in job.accelerators or COUNTS:
                if count > place.most:
                    break
                key = (place.accelerator, count)
                if key not in timed:
                    timed[key] = _timed(task, place, count)
                made = timed[key]
                if made is None:
                    continue
                way = _way(job, place, made, spec)
                if way is not None:
                    found.append(way)
                if made.wall_hours / 24.0 < (job.deadline_days or LONGEST_DAYS) / FASTER:
                    break  # more accelerators would only be dearer
    found.sort(key=lambda extra: extra.column.score)
    return found


def _timed(task: Job, place: Place, count: int) -> TrainingPlan | None:
    """The job on so many accelerators, without prices; None where it does not fit, or a figure is blank."""
    terms = Terms(host_w_per_accelerator=host_w(place.chip) or HOST_W, outside_c=OUTSIDE_C)
    try:
        return plan(task, place.chip, accelerators=count, terms=terms)
    except BaseloadError:  # too little memory, or a blank figure: this way is none
        return None


def _way(job: TrainingJob, place: Place, made: TrainingPlan, spec: PlanSpec) -> Extra | None:
    site = place.site
    days, usd = made.wall_hours / 24.0, made.accelerator_hours * place.usd_per_hour
    if days > LONGEST_DAYS or made.goodput.work <= 0.0:
        return None
    it_w = (made.power_w or 0.0) / AIR.at(OUTSIDE_C)
    watts, most_w = it_w * pue_of(site)[0], it_w * worst_pue_of(site)
    if watts <= 0.0 and (site.power_mw or spec.limits.megawatts):
        return None
    match spec.objective:
        case "usd_per_mtok":
            score = usd
        case "tokens_per_joule":
            score = watts * made.wall_hours
        case "latency":
            score = made.wall_hours
    column = Column(
        f"job {job.name}", site.name, place.stock.accelerator, 1.0, made.accelerators, score,
        place.usd_per_hour * made.accelerators, most_w,
        watts, watts / 1e3 * (site.gco2_per_kwh or 0.0) / 1e3, whole=True,
    )  # fmt: skip
    return Extra(column, days, site.region, _answer(job, place, made, watts, usd))


def _answer(job: TrainingJob, place: Place, made: TrainingPlan, watts: float, usd: float) -> TrainingAnswer:
    kg, start = _carbon(place.site, watts, made.wall_hours)
    note = f"mean time between failures {made.goodput.mean_time_between_failures_s / 3600:.1f} h"
    if job.method == "lora":
        note += f"; LoRA of rank {LORA_RANK}"
    return TrainingAnswer(
        job=job.name,
        site=place.site.name,
        tier=place.tier,
        accelerator=place.accelerator,
        accelerators=made.accelerators,
        layout=words(made.layout.parallel),
        days=made.wall_hours / 24.0,
        usd=usd,
        usd_per_hour=place.usd_per_hour * made.accelerators,
        step_s=made.step_s,
        mfu=made.model_flops_share,
        goodput=made.goodput.work,
        checkpoint_interval_s=made.goodput.interval_s,
        mean_kw=watts / 1e3,
        basis=f"modelled: {made.basis}; price {place.basis}",
        note=note + start,
        binds=f"Most time goes to {made.binds}.",
        spares=spares_needed(LLAMA3, made.accelerators, repair_hours=REPAIR_HOURS),
        kg_co2=kg,
    )


def _carbon(site: Site, watts: float, hours: float) -> tuple[float | None, str]:
    """(kilograms of CO2 of a job, when to start a short one so that it emits least)."""
    if site.gco2_per_kwh is None:
        return None, ""
    kg = watts / 1e3 * hours * site.gco2_per_kwh / 1e3
    if len(site.gco2_per_kwh_by_hour) != HOURS or hours > SHORT_H:
        return kg, ""
    zone = Zone(name=site.name, source="", gco2_per_kwh_by_hour=site.gco2_per_kwh_by_hour)
    whole = int(hours)
    energy = [watts / 1e3] * whole + [watts / 1e3 * (hours - whole)]
    emitted = [grams(zone, energy, start_hour=start) / 1e3 for start in range(HOURS)]
    best = emitted.index(min(emitted))
    return (
        kg,
        f"; begun at {best:02d}:00 UTC it emits {emitted[best]:,.1f} kg CO2, at the worst hour {max(emitted):,.1f}",
    )
