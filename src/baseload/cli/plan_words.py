"""How a plan's sums are said, in the terminal and on the page alike."""

from collections.abc import Sequence

from baseload.policy.plan.answer import Choice, Conflict, Day, Leaving, NotJudged, PlanReport, Totals, TrainingAnswer

BEGIN_A_PLAN = "`baseload plan --example > SPEC.toml` writes one to begin with; docs/plan.md has the settings."


def many(count: int, what: str) -> str:
    """A count and its noun."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def power(megawatts: float) -> str:
    """Watts in the unit that leaves two to four digits."""
    if megawatts >= 1:
        return f"{megawatts:,.1f} MW"
    kilowatts = 1e3 * megawatts
    return f"{kilowatts:,.1f} kW" if kilowatts >= 1 else f"{1e3 * kilowatts:,.0f} W"


def money(totals: Totals) -> str:
    """What serving costs a month, and training once."""
    parts = [f"${totals.usd_per_month:,.0f} a month"] if totals.usd_per_month else []
    parts += [f"${totals.training_usd:,.0f} to train"] if totals.training_usd else []
    return " and ".join(parts) or "$0"


def summary(totals: Totals) -> str:
    """The whole plan in one line."""
    carbon = totals.tonnes_co2_per_month
    parts = [money(totals), many(totals.accelerators, "accelerator")]
    if totals.peak_mw:
        parts.append(f"{power(totals.peak_mw)} at the peak, {power(totals.mean_mw)} on average")
    if carbon is not None:
        parts.append(f"{carbon:,.1f} t CO2 a month" if carbon >= 0.1 else f"{1e3 * carbon:,.0f} kg CO2 a month")
    return " · ".join(parts)


def doubt(report: PlanReport) -> str:
    """That no twin run checked the plan; empty where runs confirmed it (a checked plan that they do not is none)."""
    return "" if report.checked or not report.answers else "By the formula alone: no twin run has confirmed it."


def no_plan(conflict: Conflict) -> str:
    """The first line where there is none."""
    return "No plan keeps all limits. These conflict:" if conflict.limits else "There is no plan."


def choice_line(c: Choice) -> str:
    """A choice in one line."""
    pools = f", each {c.prefill_workers} prefill + {c.decode_workers} decode workers" if c.prefill_workers else ""
    return f"{c.replicas:,} × {c.accelerator} {c.layout} {c.precision} {c.mode}{pools} at {c.site} ({c.tier})"


def left_out(report: PlanReport) -> list[NotJudged]:
    """What was judged nowhere: an accelerator that is ranked at another site, or for another model, is not told."""
    judged = dict.fromkeys(name for one in report.answers for _, _, name in one.cloud)
    return [n for n in report.not_judged if n.accelerator not in judged]


def by_reason(rows: Sequence[NotJudged]) -> list[str]:
    """One line a reason, with how many accelerators it left out, most first; and a few of their names."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        found.setdefault(_reason(row.why), {})[row.accelerator] = None
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return [f"{len(names)} × {why}: {_some(list(names))}" for why, names in ordered]


def _reason(why: str) -> str:
    """The kind of a cause: what is missing is named, how much too large something is, is not."""
    if why.startswith("weights need"):
        return "weights do not fit"
    return why.removeprefix("cannot be judged: ")


def _some(names: Sequence[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def job_needs(job: TrainingAnswer) -> str:
    """What a training job wants beside its accelerators."""
    carbon = "" if job.kg_co2 is None else f", {job.kg_co2:,.0f} kg CO2"
    return f"{many(job.spares, 'spare')} for what is being mended, {job.mean_kw:,.1f} kW{carbon}."


def leaving_lines(leaving: Sequence[Leaving]) -> list[str]:
    """What it costs that answers leave."""
    return [
        f"answers that leave {one.site}: {one.gb_per_month:,.0f} GB a month, ${one.usd_per_month:,.0f} beside the "
        f"dollars above ({one.basis})"
        for one in leaving
    ]


def day_lines(day: Day) -> list[str]:
    """What moving work between sites and hours brings."""
    saved = round(day.usd_per_day_unshifted - day.usd_per_day, 6) + 0.0  # no minus before nothing
    share = f" ({saved / day.usd_per_day_unshifted:.1%})" if day.usd_per_day_unshifted else ""
    lines = [
        f"moved for {day.by}: requests cost ${day.usd_per_day:,.2f} of electricity and hourly rent a day instead of "
        f"${day.usd_per_day_unshifted:,.2f}, ${saved:,.2f} less{share}"
    ]
    if day.kg_co2_per_day is not None and day.kg_co2_per_day_unshifted is not None:
        lines.append(f"{day.kg_co2_per_day:,.1f} kg CO2 a day instead of {day.kg_co2_per_day_unshifted:,.1f}")
    return [*lines, *(day.moves or ("nothing is worth moving",))]


def day_rows(day: Day) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table: requests per second by model and place, every third hour."""
    hours = sorted({row.hour for row in day.hours})[::3]
    places: dict[tuple[str, str], dict[int, float]] = {}
    for row in day.hours:
        for name, load in row.places:
            at = places.setdefault((row.model, name), {})
            at[row.hour] = at.get(row.hour, 0.0) + load
    rows = [[model, name, *(f"{loads.get(h, 0.0):.3g}" for h in hours)] for (model, name), loads in places.items()]
    return ["model", "place", *(f"{h:02d}:00" for h in hours)], rows
