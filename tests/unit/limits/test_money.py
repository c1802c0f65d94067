"""Money: tiers with their sources, owning by its parts, transfer by steps, tokens."""

import pytest

from baseload.domain.errors import DataError, MissingFigure
from baseload.limits.catalogue.accelerators import read_catalogue, read_prices
from baseload.limits.money import (
    HOURS_PER_YEAR,
    Ownership,
    Tier,
    TransferPrice,
    annuity,
    break_even_hours,
    cheapest,
    offers,
    own,
    transfer_usd,
)

BOX = Ownership(capex_usd=30_000, it_w=1_000, pue=1.2, usd_per_kwh=0.1, interest=0.0, upkeep_share=0.0, years=5)


def test_offers_are_per_accelerator_and_carry_their_tier_and_source() -> None:
    catalogue = read_catalogue()
    h100 = catalogue.find("h100")
    found = offers(read_prices(), catalogue, h100)
    assert {offer.tier for offer in found} == set(Tier)
    assert all(offer.source for offer in found)
    assert [o.usd_per_hour for o in found] == sorted(o.usd_per_hour for o in found)
    assert cheapest(found, Tier.ON_DEMAND, accelerator=h100.name).usd_per_hour == pytest.approx(2.95)
    assert cheapest(found, Tier.SPOT, accelerator=h100.name).usd_per_hour == pytest.approx(1.25)
    assert cheapest(found, Tier.OWNED, accelerator=h100.name).usd_per_hour == pytest.approx(1.3)
    lambda_ = cheapest(found, Tier.ON_DEMAND, accelerator=h100.name, provider="lambda")
    assert lambda_.usd_per_hour == pytest.approx(31.92 / 8)
    assert cheapest(found, Tier.ON_DEMAND, accelerator="h", region="eu-north1").provider == "nebius"


def test_a_price_nobody_published_is_named() -> None:
    catalogue = read_catalogue()
    chip = catalogue.find("gaudi3")
    with pytest.raises(MissingFigure, match="no spot price in 'mars' for Gaudi 3") as caught:
        cheapest(offers(read_prices(), catalogue, chip), Tier.SPOT, accelerator=chip.name, region="mars")
    assert caught.value.figure == "spot price in 'mars'"


def test_owning_is_the_sum_of_its_parts() -> None:
    cost = own(BOX)
    assert cost.capital_usd == pytest.approx(30_000 / 5 / HOURS_PER_YEAR)
    assert cost.power_usd == pytest.approx(0.12)
    assert cost.space_usd == cost.upkeep_usd == cost.people_usd == 0
    staffed = Ownership(
        capex_usd=30_000, it_w=1_000, pue=1.2, usd_per_kwh=0.1, people=2, usd_per_person_year=HOURS_PER_YEAR * 50,
        fleet=100, usd_per_kw_month=HOURS_PER_YEAR / 12,
    )  # fmt: skip
    parts = own(staffed)
    assert parts.people_usd == pytest.approx(1.0)
    assert parts.space_usd == pytest.approx(1.0)
    assert parts.capital_usd > cost.capital_usd  # interest
    assert parts.total_usd == pytest.approx(
        parts.capital_usd + parts.power_usd + parts.space_usd + parts.upkeep_usd + parts.people_usd
    )


@pytest.mark.parametrize("figure", ["capex_usd", "it_w", "pue", "usd_per_kwh"])
def test_owning_asks_for_what_it_was_not_told(figure: str) -> None:
    figures = {"capex_usd": 1.0, "it_w": 1.0, "pue": 1.0, "usd_per_kwh": 1.0} | {figure: None}
    with pytest.raises(MissingFigure) as caught:
        own(Ownership(**figures))
    assert caught.value.figure == figure


def test_an_annuity_repays_the_capital_with_interest() -> None:
    paid = annuity(1000, 3, 0.1, residual_share=0.2)
    owed = 1000.0
    for _ in range(3):
        owed = owed * 1.1 - paid
    assert owed == pytest.approx(200)
    with pytest.raises(DataError):
        annuity(1, 0, 0.1)


def test_transfer_by_steps() -> None:
    price = TransferPrice(provider="cloud", source="test", steps=((100, 0.0), (1000, 0.1), (5000, 0.05)))
    assert transfer_usd(price, 50) == 0
    assert transfer_usd(price, 600) == pytest.approx(50)
    assert transfer_usd(price, 2000) == pytest.approx(90 + 50)
    assert transfer_usd(price, 6000) == pytest.approx(90 + 200 + 50)
    with pytest.raises(MissingFigure, match="usd_per_gb"):
        transfer_usd(TransferPrice(provider="x", source="y"), 1)


def test_break_even() -> None:
    assert break_even_hours(1000, 1, 3) == 500
    assert break_even_hours(1000, 3, 3) is None
