"""Power of racks and facilities, and carbon by hour."""

import pytest

from baseload.domain.errors import DataError, MissingFigure
from baseload.limits.carbon import Hourly, Zone, cleanest_start, energy_usd, grams, grams_per_token, parse_hourly
from baseload.limits.power import (
    AIR,
    LEGACY,
    LIQUID,
    PLANTS,
    PueCurve,
    accelerator_w,
    accelerators_within,
    facility_power,
    host_w,
    joules_per_token,
    kwh,
    node_w,
)


@pytest.mark.parametrize("plant", PLANTS.values(), ids=list(PLANTS))
def test_pue_never_falls_as_it_warms_and_stays_believable(plant: object) -> None:
    values = [plant.at(c) for c in range(-20, 46)]  # type: ignore[attr-defined]
    assert values == sorted(values)
    assert 1.0 < values[0] < values[-1] < 1.8


def test_warm_water_beats_air_beats_old_halls_on_a_hot_day() -> None:
    assert LIQUID.at(32) < AIR.at(32) < LEGACY.at(32)


def test_a_measured_curve_is_followed_and_flat_beyond() -> None:
    curve = PueCurve(points=((0, 1.1), (20, 1.2), (40, 1.6)), basis="measured here")
    assert [curve.at(c) for c in (-5, 0, 10, 30, 50)] == pytest.approx([1.1, 1.1, 1.15, 1.4, 1.6])
    with pytest.raises(DataError):
        PueCurve(points=(), basis="").at(3)


def test_an_accelerator_between_idle_and_its_cap() -> None:
    assert accelerator_w(700, utilisation=0, idle_w=70) == 70
    assert accelerator_w(700, utilisation=1) == 700
    assert accelerator_w(700, utilisation=1, cap_w=500) == 500
    assert accelerator_w(700, utilisation=0.5, idle_w=100, cap_w=500) == 300
    assert accelerator_w(700, utilisation=1, cap_w=900) == 700


def test_a_node_s_host_is_what_its_rating_leaves() -> None:
    assert host_w(node_max_w=10_200, accelerators=8, sheet_w=700, node="DGX H100") == 4_600
    with pytest.raises(MissingFigure, match="max_w for mine"):
        host_w(node_max_w=None, accelerators=8, sheet_w=700, node="mine")
    with pytest.raises(MissingFigure, match="tdp_w"):
        host_w(node_max_w=1, accelerators=8, sheet_w=None, node="mine")
    full = node_w(sheet_w=700, accelerators=8, node_host_w=4_600, utilisation=1)
    assert full == 10_200
    assert node_w(sheet_w=700, accelerators=8, node_host_w=4_600, utilisation=0) < full / 2


def test_the_facility_adds_up() -> None:
    power = facility_power(
        accelerators=1000, sheet_w=1000, host_w_per_accelerator=400, network_w_per_accelerator=100, utilisation=1,
        plant=PueCurve(points=((0, 1.25),), basis="stated"), outside_c=10,
    )  # fmt: skip
    assert power.it_w == pytest.approx(1.5e6)
    assert power.total_w == pytest.approx(1.875e6)
    assert power.overhead_w == pytest.approx(power.total_w - power.it_w)


def test_a_connection_carries_what_it_can_on_the_hottest_day() -> None:
    curve = PueCurve(points=((20, 1.2), (40, 1.5)), basis="stated")
    cool = accelerators_within(10, sheet_w=1000, host_w_per_accelerator=500, plant=curve, hottest_c=20)
    hot = accelerators_within(10, sheet_w=1000, host_w_per_accelerator=500, plant=curve, hottest_c=40)
    assert (cool, hot) == (5555, 4444)
    assert (
        accelerators_within(10, sheet_w=1000, host_w_per_accelerator=500, plant=curve, hottest_c=40, cap_w=500) > cool
    )


def test_energy_of_a_token() -> None:
    assert joules_per_token(10_000, 50_000) == pytest.approx(0.2)
    assert kwh(1000, 3600) == pytest.approx(1.0)
    with pytest.raises(DataError):
        joules_per_token(1, 0)


SUNNY = Zone(
    name="S", source="test", gco2_per_kwh_by_hour=tuple(400.0 if h < 10 or h > 15 else 100.0 for h in range(24))
)


def test_work_that_waits_finds_the_sun() -> None:
    assert cleanest_start(SUNNY, 4, within=24, start_hour=0) == 10
    assert cleanest_start(SUNNY, 1, within=0, start_hour=7) == 7
    assert grams(SUNNY, [1.0, 0.0, 2.0], start_hour=9) == pytest.approx(400 + 200)
    assert grams_per_token(3.6, 500) == pytest.approx(0.0005)
    with pytest.raises(DataError):
        cleanest_start(SUNNY, 0, within=3)


def test_blank_figures_of_a_zone_are_named() -> None:
    with pytest.raises(MissingFigure, match="gco2_per_kwh for zone N"):
        Zone(name="N", source="").carbon_at(3)
    with pytest.raises(MissingFigure, match="usd_per_mwh for zone N"):
        energy_usd(Zone(name="N", source=""), [1.0])


def test_hourly_series_from_a_csv() -> None:
    text = b"zone,hour_utc,carbon_gco2_per_kwh_direct,price_usd_per_mwh\nA,2023-01-01 00:00:00,100,20\n"
    text += b"A,2023-01-01 00:30:00,200,40\nA,2023-01-01 01:00:00,50,\nB,2023-01-01 00:00:00,7,8\n"
    series = parse_hourly(text, name="h.csv")
    assert series["A"] == Hourly("A", "2023-01-01 00", (150.0, 50.0), (30.0, None))
    assert series["A"].price_at(0) == pytest.approx(0.03)
    assert series["A"].carbon_at(3) == 50.0
    with pytest.raises(MissingFigure, match="price of hour 1"):
        series["A"].price_at(1)
    with pytest.raises(DataError, match=r"h\.csv, line 2: 'x'"):
        parse_hourly(b"zone,hour_utc,carbon_gco2_per_kwh_direct\nA,2023-01-01 00,x\n", name="h.csv")
    with pytest.raises(DataError, match="no column `zone`"):
        parse_hourly(b"a,b\n1,2\n", name="h.csv")
