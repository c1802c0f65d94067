"""Whether buying is worth it: after how long owned accelerators have paid for themselves, against rented ones."""

from collections.abc import Sequence

from baseload.limits.money import HOURS_PER_MONTH, HOURS_PER_YEAR, annuity, break_even_hours
from baseload.policy.plan.candidates import Candidate


def pays_back(everyone: Sequence[Candidate]) -> str:
    """In words, for the cheapest owned way with a stated price beside the cheapest rented one; "" without such two.

    Each way must serve all of the model. Capital is set against the rent saved, less power, upkeep, space and people.
    """
    owned = [c for c in everyone if c.place.site.kind != "cloud" and c.place.stock.capex_usd is not None]
    rented = [c for c in everyone if c.place.site.kind == "cloud"]
    if not owned or not rented:
        return ""
    ours = min(owned, key=lambda c: c.usd_per_hour)
    theirs = min(rented, key=lambda c: c.usd_per_hour)
    site = ours.place.site
    capital = (ours.place.stock.capex_usd or 0.0) * ours.accelerators
    running = ours.usd_per_hour - annuity(capital, site.years, site.interest) / HOURS_PER_YEAR
    hours = break_even_hours(capital, running, theirs.usd_per_hour)
    what = f"{ours.accelerators:,} × {ours.place.accelerator} at {site.name} for ${capital:,.0f}"
    against = f"{theirs.place.accelerator} at {theirs.place.site.name} ({theirs.place.tier})"
    if hours is None:
        return f"{what} never pay for themselves: to run them costs more than {against}"
    months = hours / HOURS_PER_MONTH
    late = f", and are written off in {12 * site.years:.0f}" if months > 12 * site.years else ""
    return f"{what} pay for themselves in {months:,.0f} months against {against}{late}"
