"""Money: what an accelerator-hour costs by tier, what it costs to own one, what moving bytes costs, and a token.

Four tiers. On demand, spot and reserved are offers with a source (`offers`, `cheapest`); owned is either a published
figure of that kind or computed from capital, interest, power, space, upkeep and people (`own`). What is not known is
None, and the question that needs it raises MissingFigure.
"""

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct

from baseload.domain.errors import DataError, MissingFigure
from baseload.limits.catalogue.accelerators import Accelerator, Catalogue, InstancePrice

HOURS_PER_YEAR = 8766.0
HOURS_PER_MONTH = HOURS_PER_YEAR / 12.0


class Tier(StrEnum):
    """How accelerators are had."""

    ON_DEMAND = "on_demand"
    SPOT = "spot"
    RESERVED = "reserved"
    OWNED = "owned"


class Offer(Struct, frozen=True):
    """A price for an hour of one accelerator, with its host, and where it was read."""

    tier: Tier
    usd_per_hour: float
    provider: str
    source: str
    instance: str = ""
    region: str = ""
    count: int = 1  # accelerators in the smallest unit sold


def offers(prices: Sequence[InstancePrice], catalogue: Catalogue, accelerator: Accelerator) -> tuple[Offer, ...]:
    """All prices known for an accelerator, dearest last; ties in the catalogue's order."""
    found: list[Offer] = []
    for price in prices:
        if not price.accelerator or price.count < 1:
            continue
        if catalogue.get(price.accelerator) is not accelerator:
            continue
        for tier, usd in ((Tier(price.tier), price.usd_per_hour), (Tier.SPOT, price.spot_usd_per_hour)):
            if usd is not None:
                found.append(
                    Offer(
                        tier=tier,
                        usd_per_hour=usd / price.count,
                        provider=price.provider,
                        source=price.source,
                        instance=price.instance,
                        region=price.region,
                        count=price.count,
                    )
                )
    if accelerator.usd_per_hour is not None and not any(o.tier is Tier.ON_DEMAND for o in found):
        found.append(
            Offer(
                tier=Tier.ON_DEMAND,
                usd_per_hour=accelerator.usd_per_hour,
                provider="",
                source=accelerator.price_source,
            )
        )
    return tuple(sorted(found, key=lambda offer: offer.usd_per_hour))


def cheapest(found: Sequence[Offer], tier: Tier, *, accelerator: str, provider: str = "", region: str = "") -> Offer:
    """The cheapest offer of a tier (at a provider, in a region); MissingFigure where none is known."""
    fitting = [
        offer
        for offer in found
        if offer.tier is tier
        and (not provider or provider in offer.provider)
        and (not region or offer.region in ("", "all") or region in offer.region.split("/"))
    ]
    if not fitting:
        at = "".join(f" {word} {name!r}" for word, name in (("from", provider), ("in", region)) if name)
        raise MissingFigure(f"{tier} price{at}", accelerator)
    return min(fitting, key=lambda offer: offer.usd_per_hour)


class Ownership(Struct, frozen=True, forbid_unknown_fields=True):
    """What it takes to own accelerators. Figures per accelerator unless said otherwise; None: not known."""

    capex_usd: float | None = None  # accelerator with its share of node, rack and network
    years: float = 5.0  # of use
    residual_share: float = 0.0  # of the capital left at the end
    interest: float = 0.08  # a year, on the capital
    it_w: float | None = None  # mean power, host and network share included
    pue: float | None = None
    usd_per_kwh: float | None = None
    usd_per_kw_month: float | None = None  # space and connection, by IT power; None: own building, in the capital
    upkeep_share: float = 0.03  # of the capital a year: spares, support contracts
    people: float = 0.0  # full-time people for the whole fleet
    usd_per_person_year: float | None = None
    fleet: int = 1  # accelerators these people look after
    name: str = "owned accelerators"

    def need(self, figure: str) -> float:
        """The figure, or MissingFigure."""
        value = getattr(self, figure)
        if value is None:
            raise MissingFigure(figure, self.name, hint="Give it in the plan, or in your own catalogue TOML.")
        return float(value)


class OwnedCost(Struct, frozen=True):
    """Dollars per accelerator-hour, by what they go to."""

    capital_usd: float
    power_usd: float
    space_usd: float
    upkeep_usd: float
    people_usd: float

    @property
    def total_usd(self) -> float:
        """All of it."""
        return self.capital_usd + self.power_usd + self.space_usd + self.upkeep_usd + self.people_usd


def own(ownership: Ownership) -> OwnedCost:
    """Cost of an owned accelerator-hour, whether it is used or not. MissingFigure names what is blank."""
    capex = ownership.need("capex_usd")
    kilowatts = ownership.need("it_w") / 1e3
    people = 0.0
    if ownership.people > 0:
        people = ownership.people * ownership.need("usd_per_person_year") / ownership.fleet / HOURS_PER_YEAR
    return OwnedCost(
        capital_usd=annuity(capex, ownership.years, ownership.interest, ownership.residual_share) / HOURS_PER_YEAR,
        power_usd=kilowatts * ownership.need("pue") * ownership.need("usd_per_kwh"),
        space_usd=kilowatts * (ownership.usd_per_kw_month or 0.0) / HOURS_PER_MONTH,
        upkeep_usd=capex * ownership.upkeep_share / HOURS_PER_YEAR,
        people_usd=people,
    )


def annuity(capital: float, years: float, interest: float, residual_share: float = 0.0) -> float:
    """Equal yearly payments that return the capital less its residual, with interest."""
    if years <= 0:
        raise DataError("Capital is written off over a number of years above 0.", hint="Give years of use.")
    left = capital * residual_share
    if interest * years < 1e-9:  # none, or so little that the formula below would divide nothing by nothing
        return (capital - left) / years
    growth = float((1.0 + interest) ** years)
    return (capital - left / growth) * interest * growth / (growth - 1.0)


class TransferPrice(Struct, frozen=True, forbid_unknown_fields=True):
    """What leaving a place costs: steps of (gigabytes a month up to, dollars per gigabyte); the last has no end."""

    provider: str
    source: str
    steps: tuple[tuple[float, float], ...] = ()
    usd_per_gb: float | None = None


def transfer_usd(price: TransferPrice, gigabytes: float) -> float:
    """Cost of moving `gigabytes` out in a month."""
    if not price.steps:
        if price.usd_per_gb is None:
            raise MissingFigure("usd_per_gb", price.provider)
        return gigabytes * price.usd_per_gb
    total, below = 0.0, 0.0
    for upto, usd in price.steps:
        total += max(0.0, min(gigabytes, upto) - below) * usd
        below = upto
    return total + max(0.0, gigabytes - below) * price.steps[-1][1]


def break_even_hours(capex_usd: float, owned_running_usd_per_hour: float, rent_usd_per_hour: float) -> float | None:
    """Hours of use after which owning (capital and running cost) is cheaper than renting; None: never."""
    saved = rent_usd_per_hour - owned_running_usd_per_hour
    return capex_usd / saved if saved > 0 else None
