"""Carbon and price of electricity by zone and hour of the day.

A `Zone` carries statistics of a year: mean intensity and wholesale price, and both by hour of the day (UTC);
published ones, or those of a user's own hourly CSV (`parse_hourly`). Intensities are direct (operational) grams of
CO2 per kWh.
"""

from collections import defaultdict
from collections.abc import Sequence
from math import isfinite, nan
from statistics import fmean

from msgspec import Struct

from baseload.domain.errors import DataError, MissingFigure
from baseload.limits.tables import number_of, read_table


class Zone(Struct, frozen=True, forbid_unknown_fields=True):
    """An electricity zone: a year's means, with their source. Hours of the day are UTC."""

    name: str
    source: str
    place: str = ""
    gco2_per_kwh: float | None = None  # mean of the year
    gco2_per_kwh_by_hour: tuple[float, ...] = ()  # 24 means, UTC
    usd_per_mwh: float | None = None  # wholesale, mean of the year
    usd_per_mwh_by_hour: tuple[float, ...] = ()
    mean_c: float | None = None  # outside temperature
    hottest_c: float | None = None

    def need(self, figure: str) -> float:
        """The figure, or MissingFigure."""
        value = getattr(self, figure)
        if value is None:
            raise MissingFigure(figure, f"zone {self.name}")
        return float(value)

    def carbon_at(self, hour: int) -> float:
        """Grams per kWh at an hour counted from midnight UTC: that hour of the day's mean, or the year's."""
        if len(self.gco2_per_kwh_by_hour) == 24:
            return self.gco2_per_kwh_by_hour[hour % 24]
        return self.need("gco2_per_kwh")


def grams(zone: Zone, kwh_by_hour: Sequence[float], *, start_hour: int = 0) -> float:
    """Grams of CO2 of energy used hour by hour from `start_hour` (UTC)."""
    return sum(energy * zone.carbon_at(start_hour + i) for i, energy in enumerate(kwh_by_hour) if energy)


def parse_hourly(data: bytes, *, name: str) -> dict[str, Zone]:
    """Zones from a CSV: `zone`, `hour_utc` (2025-06-01 13:00), `carbon_gco2_per_kwh_direct`, `price_usd_per_mwh`.

    Each zone gets the means of all rows, and of those of each hour of the day. DataError names file and line.
    """
    needed = ("zone", "hour_utc", "carbon_gco2_per_kwh_direct")
    _, rows = read_table(data, name=name, hint=f"It needs {', '.join(needed)}.", needed=needed)
    cells: dict[str, tuple[_Day, _Day]] = {}
    for line, row in rows:
        where = f"{name}, line {line}"
        hour = _hour_of(row["hour_utc"] or "", where)
        days = cells.setdefault(row["zone"] or "", (defaultdict(list), defaultdict(list)))
        for column, day in zip(("carbon_gco2_per_kwh_direct", "price_usd_per_mwh"), days, strict=True):
            text = (row.get(column) or "").strip()
            if text:
                day[hour].append(_number(text, where))
    return {zone: _zone(zone, name, *days) for zone, days in cells.items()}


_Day = dict[int, list[float]]  # what was said of each hour of the day


def _hour_of(text: str, where: str) -> int:
    hour = text[11:13]
    if not hour.isdecimal() or int(hour) > 23:
        raise DataError(f"{where}: {text!r} is not an hour.", hint="Write hour_utc as 2025-06-01 13:00.")
    return int(hour)


def _number(text: str, where: str) -> float:
    try:
        value = number_of(text)
    except ValueError:
        value = nan
    if not isfinite(value):
        raise DataError(f"{where}: {text!r} is not a number.", hint="Leave blank what is blank.")
    return value


def _zone(zone: str, file: str, carbon: _Day, price: _Day) -> Zone:
    return Zone(
        name=zone,
        source=f"means of {file}",
        gco2_per_kwh=_mean([value for values in carbon.values() for value in values]),
        gco2_per_kwh_by_hour=_by_hour(carbon),
        usd_per_mwh=_mean([value for values in price.values() for value in values]),
        usd_per_mwh_by_hour=_by_hour(price),
    )


def _by_hour(day: _Day) -> tuple[float, ...]:
    return tuple(fmean(day[hour]) for hour in range(24)) if all(day[hour] for hour in range(24)) else ()


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None
