"""What zones, weather, transfer and capital do to a plan."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from baseload.domain.errors import SettingsError
from baseload.limits.carbon import Zone
from baseload.limits.catalogue.book import Book, read_book
from baseload.limits.money import TransferPrice
from baseload.policy.plan.offers import pue_of, worst_pue_of
from baseload.policy.plan.search import Found
from baseload.policy.plan.spec import PlanSpec, Site, Stock, Traffic, with_hours
from baseload.policy.plan.surroundings import leaving, with_zones

Ask = Callable[[PlanSpec], Found]
Question = Callable[..., PlanSpec]
OWN = (Stock(accelerator="h100_sxm", capex_usd=40_000, count=64),)
WARM = Zone(
    name="W-1", source="test", gco2_per_kwh=300.0, usd_per_mwh=90.0, mean_c=20.0, hottest_c=41.0,
    gco2_per_kwh_by_hour=tuple(200.0 if 9 <= hour < 15 else 333.0 for hour in range(24)),
    usd_per_mwh_by_hour=tuple(50.0 + hour for hour in range(24)),
)  # fmt: skip


@pytest.fixture(scope="module")
def book() -> Book:
    return read_book()


def filled(spec: PlanSpec, zones: dict[str, Zone], **transfer: TransferPrice) -> PlanSpec:
    return with_hours(with_zones(spec, zones, transfer, name="plan.toml")[0])


def test_a_zone_fills_what_is_blank_and_nothing_else(question: Question) -> None:
    owned = Site(name="hall", kind="owned", zone="w-1", accelerators=OWN)
    stated = replace(owned, name="stated", gco2_per_kwh=12.0, usd_per_kwh=0.2, outside_c=3.0, pue=1.3)
    cloud = Site(name="cloud", zone="W_1")
    spec, notes = with_zones(question(sites=(owned, stated, cloud)), {"w": WARM}, {}, name="plan.toml")
    hall, kept, rented = with_hours(spec).sites
    assert (hall.usd_per_kwh, hall.gco2_per_kwh) == (pytest.approx(0.09), 300.0)
    assert hall.usd_per_kwh_by_hour[5] == pytest.approx(0.055)
    assert hall.gco2_per_kwh_by_hour == WARM.gco2_per_kwh_by_hour
    assert (hall.outside_c, hall.hottest_c) == (20.0, 41.0)
    assert kept == replace(stated, hottest_c=None)
    assert (rented.usd_per_kwh, rented.gco2_per_kwh) == (None, 300.0)  # a cloud's power is in its price
    assert [note.partition(",")[0] for note in notes] == ["hall", "cloud"]
    assert "wholesale" in notes[0]


def test_every_zone_of_the_catalogue_is_found_by_identifier_and_name(book: Book, question: Question) -> None:
    for id_, zone in book.zones.items():
        for asked in (id_, zone.name, zone.name.lower()):
            site = Site(name="s", kind="owned", zone=asked, accelerators=OWN)
            (made,) = filled(question(sites=(site,)), book.zones).sites
            assert made.gco2_per_kwh == zone.gco2_per_kwh


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (Site(name="s", zone="atlantis"), "unknown zone 'atlantis'"),
        (Site(name="s", transfer="pigeon"), "unknown transfer 'pigeon'"),
    ],
)
def test_what_nobody_knows_is_refused_by_name(question: Question, site: Site, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        filled(question(sites=(site,)), {"w": WARM})


def test_cooling_and_weather_reach_power_and_its_limit(ask: Ask, question: Question) -> None:
    mild = Site(name="hall", kind="owned", accelerators=OWN, usd_per_kwh=0.1, plant="air", outside_c=10)
    hot = replace(mild, hottest_c=41)
    assert worst_pue_of(hot) > pue_of(hot)[0] == pue_of(mild)[0] == worst_pue_of(mild)
    assert pue_of(replace(hot, plant="liquid"))[0] < pue_of(hot)[0]
    assert pue_of(replace(hot, pue=1.4)) == (1.4, "stated")
    one, other = (ask(question(sites=(site,))).report.answers[0].chosen[0] for site in (mild, hot))
    assert other.mean_kw == one.mean_kw
    assert other.peak_kw == pytest.approx(one.peak_kw * worst_pue_of(hot) / pue_of(hot)[0])


def test_answers_that_leave_cost_what_the_price_says(ask: Ask, question: Question) -> None:
    price = TransferPrice(provider="p", source="s", steps=((100.0, 0.0), (1e9, 0.1)))
    traffic = Traffic(requests_per_s=10, peak_requests_per_s=20, prompt_tokens=500, output_tokens=100)
    spec = question(sites=(Site(name="cloud", transfer="p"), Site(name="other", transfer="p")), traffic=traffic)
    report = ask(filled(spec, {}, p=price)).report
    found = leaving(spec, report.answers, {"p": price})
    gigabytes = 10 * 100 * 240 * 730.5 * 3600 / 1e9
    assert sum(one.gb_per_month for one in found) == pytest.approx(gigabytes)
    assert {one.site for one in found} == {choice.site for choice in report.answers[0].chosen}
    if len(found) == 1:
        assert found[0].usd_per_month == pytest.approx(0.1 * (gigabytes - 100))
    free = replace(spec, sites=(Site(name="cloud"), Site(name="other")))
    assert leaving(free, report.answers, {}) == ()


def test_owning_pays_back_sooner_the_dearer_the_rent(ask: Ask, question: Question) -> None:
    def said(rent: float) -> str:
        hall = Site(name="hall", kind="owned", accelerators=OWN, usd_per_kwh=0.1)
        cloud = Site(name="cloud", accelerators=(Stock(accelerator="h100_sxm", usd_per_hour=rent),))
        return ask(question(sites=(hall, cloud))).report.answers[0].pays_back

    months = [int(said(rent).partition(" months")[0].rpartition(" ")[2]) for rent in (3.0, 6.0)]
    assert 0 < months[1] < months[0] < 60
    assert "never pay for themselves" in said(0.05)
    assert "written off in 60" in said(0.85)
    assert ask(question()).report.answers[0].pays_back == ""
