"""What an accelerator costs, draws and emits at a site, and what that figure rests on."""

from collections.abc import Sequence
from dataclasses import dataclass

from baseload.domain.errors import MissingFigure, SettingsError
from baseload.limits.catalogue.accelerators import Accelerator, Catalogue, InstancePrice
from baseload.limits.money import Offer, Ownership, Tier, cheapest, offers, own
from baseload.limits.power import AIR, PLANTS
from baseload.policy.plan.spec import Site, Stock

OUTSIDE_C = 15.0  # where a site says nothing of its cooling: air-cooled, at this temperature
NO_LIMIT = 10_000_000  # accelerators of a stock without a count


@dataclass(frozen=True, slots=True)
class Place:
    """One accelerator kind at one site on one tier."""

    site: Site
    stock: Stock
    chip: Accelerator
    accelerator: str  # catalogue identifier
    tier: str  # "on_demand" | "reserved" | "spot", or the kind of a site that owns: "owned" … "device"
    usd_per_hour: float  # of one accelerator
    basis: str
    follows_load: bool  # pays for what runs; else for the peak, always

    @property
    def most(self) -> int:
        """Accelerators to be had."""
        return self.stock.count or NO_LIMIT

    @property
    def pue(self) -> float:
        """Facility power over IT power."""
        return pue_of(self.site)[0]


def places_of(
    site: Site, stocks: Sequence[Stock], catalogue: Catalogue, prices: Sequence[InstancePrice]
) -> tuple[list[Place], list[tuple[Stock, str]]]:
    """The places of a site, and the stocks that cannot be priced with the figure that is missing."""
    found: list[Place] = []
    blank: list[tuple[Stock, str]] = []
    for stock in stocks:
        chip = catalogue.find(stock.accelerator)
        identifier = next(id_ for id_, entry in catalogue.entries.items() if entry is chip)
        known = offers(prices, catalogue, chip)
        tiers = site.tiers if site.kind == "cloud" else (site.kind,)
        for tier in tiers:
            try:
                usd, basis = _price(site, stock, chip, known, tier)
            except MissingFigure as error:
                blank.append((stock, error.figure))
                continue
            follows = tier in ("on_demand", "spot")
            found.append(Place(site, stock, chip, identifier, tier, usd, basis, follows))
    return found, blank


def pue_of(site: Site) -> tuple[float, str]:
    """PUE on average and its basis."""
    if site.pue is not None:
        return site.pue, "stated"
    plant = PLANTS[site.plant or AIR.name]
    outside_c = OUTSIDE_C if site.outside_c is None else site.outside_c
    return plant.at(outside_c), f"modelled: {plant.name}-cooled at {outside_c:.0f} °C outside"


def worst_pue_of(site: Site) -> float:
    """PUE on the hottest day."""
    if site.pue is not None or site.hottest_c is None:
        return pue_of(site)[0]
    return max(pue_of(site)[0], PLANTS[site.plant or AIR.name].at(site.hottest_c))


def says_cooling(site: Site) -> bool:
    """Whether the specification says anything of it."""
    return site.pue is not None or bool(site.plant) or site.outside_c is not None or site.hottest_c is not None


def host_w(chip: Accelerator) -> float:
    """Host, network and facility share of one accelerator where all-in power is known, else 0."""
    return max(0.0, chip.all_in_w - chip.tdp_w) if chip.all_in_w and chip.tdp_w else 0.0


def facility_w(place: Place, accelerator_w: float, accelerators: float, *, at_worst: bool = False) -> float:
    """Watts at the meter: accelerators as used, with the all-in overhead of each, or else with the site's PUE.

    `at_worst`: on the hottest day.
    """
    extra = host_w(place.chip)
    if extra and not says_cooling(place.site):
        return accelerator_w + extra * accelerators
    pue = worst_pue_of(place.site) if at_worst else place.pue
    return (accelerator_w + extra * accelerators / AIR.at(OUTSIDE_C)) * pue


def power_basis(place: Place) -> str:
    """What `facility_w` rests on."""
    if host_w(place.chip) and not says_cooling(place.site):
        return (
            "accelerators modelled by load; host, network and cooling from the all-in figure of the catalogue; "
            "tokens per joule count accelerators and cooling"
        )
    hosts = "" if host_w(place.chip) else "; hosts and network left out, for no source is known"
    return f"accelerators modelled by load, PUE {place.pue:.2f} {pue_of(place.site)[1]}{hosts}"


def _price(site: Site, stock: Stock, chip: Accelerator, known: Sequence[Offer], tier: str) -> tuple[float, str]:
    stated = {
        "on_demand": stock.usd_per_hour,
        "spot": stock.spot_usd_per_hour,
        "reserved": stock.reserved_usd_per_hour,
    }.get(tier, stock.usd_per_hour if stock.capex_usd is None else None)
    if stated is not None:
        return stated, "stated in the plan"
    if site.kind != "cloud":
        return _owned(site, stock, chip, known, tier)
    offer = cheapest(known, Tier(tier), accelerator=chip.name, provider=site.provider)
    who = f"{offer.provider} {offer.instance}".strip()
    return offer.usd_per_hour, f"{who + ': ' if who else ''}{offer.source}"


def _owned(site: Site, stock: Stock, chip: Accelerator, known: Sequence[Offer], tier: str) -> tuple[float, str]:
    if stock.capex_usd is None:
        if tier in ("edge", "device"):
            raise MissingFigure("capex_usd", chip.name, hint="State it in the plan: capex_usd of the accelerator.")
        offer = cheapest(known, Tier.OWNED, accelerator=chip.name, provider=site.provider)
        return offer.usd_per_hour, f"{offer.provider}: {offer.source}"
    cost = own(
        Ownership(
            capex_usd=stock.capex_usd,
            years=site.years,
            interest=site.interest,
            it_w=chip.need("tdp_w") + host_w(chip) / AIR.at(OUTSIDE_C),
            pue=pue_of(site)[0],
            usd_per_kwh=site.usd_per_kwh,
            usd_per_kw_month=site.usd_per_kw_month,
            people=site.people,
            usd_per_person_year=site.usd_per_person_year,
            fleet=max(1, stock.count),
            name=f"accelerators at {site.name!r}",
        )
    )
    parts = f"capital {cost.capital_usd:.3f}, power {cost.power_usd:.3f}, upkeep {cost.upkeep_usd:.3f}"
    if cost.total_usd <= 0.0:
        raise SettingsError(
            f"Site {site.name!r}: an hour of {chip.name} would cost ${cost.total_usd:.3g}: electricity pays for it.",
            hint="Mend usd_per_kwh: a plan needs prices above 0.",
        )
    return cost.total_usd, f"computed: {parts}, space and people {cost.space_usd + cost.people_usd:.3f} $/h"
