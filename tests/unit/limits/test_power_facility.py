"""Power of racks and facilities, and carbon by hour."""

import pytest

from baseload.domain.errors import DataError, MissingFigure
from baseload.limits.carbon import Zone, grams, parse_hourly
from baseload.limits.power import (
    AIR,
    LEGACY,
    LIQUID,
    PLANTS,
    PueCurve,
    accelerator_w,
    facility_power,
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


def test_the_facility_adds_up() -> None:
    power = facility_power(
        accelerators=1000, sheet_w=1000, host_w_per_accelerator=400, network_w_per_accelerator=100, utilisation=1,
        plant=PueCurve(points=((0, 1.25),), basis="stated"), outside_c=10,
    )  # fmt: skip
    assert power.it_w == pytest.approx(1.5e6)
    assert power.total_w == pytest.approx(1.875e6)


SUNNY = Zone(
    name="S", source="test", gco2_per_kwh_by_hour=tuple(400.0 if h < 10 or h > 15 else 100.0 for h in range(24))
)


def test_work_that_waits_finds_the_sun() -> None:
    assert grams(SUNNY, [1.0, 0.0, 2.0], start_hour=9) == pytest.approx(400 + 200)


def test_blank_figures_of_a_zone_are_named() -> None:
    with pytest.raises(MissingFigure, match="gco2_per_kwh for zone N"):
        Zone(name="N", source="").carbon_at(3)


def test_a_zone_from_an_hourly_csv() -> None:
    rows = ["zone,hour_utc,carbon_gco2_per_kwh_direct,price_usd_per_mwh"]
    rows += [f"A,2025-06-{day:02d} {hour:02d}:00,{100 * day + hour},{hour}" for day in (1, 2) for hour in range(24)]
    rows += ["B,2025-06-01T05:00:00Z,7,", "B,2025-06-01T05:30:00Z,9,"]
    zones = parse_hourly("\n".join(rows).encode(), name="h.csv")
    a, b = zones["A"], zones["B"]
    assert a.gco2_per_kwh_by_hour == tuple(150.0 + hour for hour in range(24))
    assert (a.gco2_per_kwh, a.usd_per_mwh) == (pytest.approx(161.5), pytest.approx(11.5))
    assert a.usd_per_mwh_by_hour == tuple(float(hour) for hour in range(24))
    assert (b.gco2_per_kwh, b.gco2_per_kwh_by_hour, b.usd_per_mwh) == (8.0, (), None)  # no whole day, and no prices
    assert b.carbon_at(3) == 8.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"zone,hour_utc,carbon_gco2_per_kwh_direct\nA,2023-01-01 00,x\n", r"h\.csv, line 2: 'x'"),
        (b"zone,hour_utc,carbon_gco2_per_kwh_direct\nA,2023-01-01 00,nan\n", r"h\.csv, line 2: 'nan'"),
        (b"zone,hour_utc,carbon_gco2_per_kwh_direct\nA,yesterday,3\n", "'yesterday' is not an hour"),
        (b"a,b\n1,2\n", "no column `zone`"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_an_hourly_csv_at_fault_is_named(text: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_hourly(text, name="h.csv")
