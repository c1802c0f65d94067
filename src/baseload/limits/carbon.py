"""Carbon by hour and zone, and the best hours for work that can wait.

A `Zone` carries published statistics of a year: mean intensity by hour of the day (UTC) and the mean price. A
`Hourly` series (the year, from a user's CSV) is exact where there is one. Intensities are direct (operational)
grams of CO2 per kWh.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence

from msgspec import Struct

from baseload.domain.errors import DataError, MissingFigure


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

    def price_at(self, hour: int) -> float:
        """Dollars per kWh, wholesale, at an hour counted from midnight UTC."""
        if len(self.usd_per_mwh_by_hour) == 24:
            return self.usd_per_mwh_by_hour[hour % 24] / 1e3
        return self.need("usd_per_mwh") / 1e3


class Hourly(Struct, frozen=True):
    """A zone's series, hour by hour from its first. Blank cells are None."""

    zone: str
    start: str  # as written in the file
    gco2_per_kwh: tuple[float | None, ...]
    usd_per_mwh: tuple[float | None, ...]

    def carbon_at(self, hour: int) -> float:
        """Grams per kWh `hour` hours after the start; a year of data repeats."""
        return self._cell(self.gco2_per_kwh, hour, "carbon")

    def price_at(self, hour: int) -> float:
        """Dollars per kWh `hour` hours after the start."""
        return self._cell(self.usd_per_mwh, hour, "price") / 1e3

    def _cell(self, series: tuple[float | None, ...], hour: int, what: str) -> float:
        value = series[hour % len(series)] if series else None
        if value is None:
            raise MissingFigure(f"{what} of hour {hour}", f"zone {self.zone}", hint="Fill the hourly CSV.")
        return value


def grams(source: Zone | Hourly, kwh_by_hour: Sequence[float], *, start_hour: int = 0) -> float:
    """CO2 of energy used hour by hour from `start_hour`."""
    return sum(energy * source.carbon_at(start_hour + i) for i, energy in enumerate(kwh_by_hour) if energy)


def energy_usd(source: Zone | Hourly, kwh_by_hour: Sequence[float], *, start_hour: int = 0) -> float:
    """Wholesale cost of energy used hour by hour from `start_hour`."""
    return sum(energy * source.price_at(start_hour + i) for i, energy in enumerate(kwh_by_hour) if energy)


def cleanest_start(source: Zone | Hourly, hours: int, *, within: int, start_hour: int = 0) -> int:
    """When to start steady work of `hours` hours so that it emits least, at most `within` hours from now."""
    if hours < 1 or within < 0:
        raise DataError("Work lasts at least an hour, and waits no less than none.", hint="Give whole hours.")
    series = [source.carbon_at(start_hour + i) for i in range(within + hours)]
    running = sum(series[:hours])
    best, best_sum = 0, running
    for first in range(1, within + 1):
        running += series[first + hours - 1] - series[first - 1]
        if running < best_sum - 1e-9:
            best, best_sum = first, running
    return start_hour + best


def grams_per_token(joules: float, gco2_per_kwh: float) -> float:
    """CO2 of a token that took so many joules at the meter."""
    return joules / 3.6e6 * gco2_per_kwh


def parse_hourly(data: bytes, *, name: str) -> dict[str, Hourly]:
    """Series by zone from a CSV: `zone`, `hour_utc`, `carbon_gco2_per_kwh_direct`, `price_usd_per_mwh`.

    Several rows in one hour are averaged. DataError names file and line.
    """
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 text: {error}.", hint="Save the table as CSV in UTF-8.") from None
    needed = ("zone", "hour_utc", "carbon_gco2_per_kwh_direct")
    missing = [column for column in needed if column not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{name}: no column `{missing[0]}`.", hint=f"It needs {', '.join(needed)}.")
    cells: dict[str, dict[str, tuple[list[float], list[float]]]] = defaultdict(dict)
    for row in reader:
        hour = (row["hour_utc"] or "")[:13]
        carbon, price = cells[row["zone"] or ""].setdefault(hour, ([], []))
        for text, values in ((row["carbon_gco2_per_kwh_direct"], carbon), (row.get("price_usd_per_mwh"), price)):
            if text and text.strip():
                try:
                    values.append(float(text))
                except ValueError:
                    raise DataError(
                        f"{name}, line {reader.line_num}: {text!r} is not a number.",
                        hint="Leave blank what is blank.",
                    ) from None
    return {zone: _series(zone, of) for zone, of in cells.items()}


def _series(zone: str, of: dict[str, tuple[list[float], list[float]]]) -> Hourly:
    hours = sorted(of)
    carbon = tuple(_mean(of[hour][0]) for hour in hours)
    price = tuple(_mean(of[hour][1]) for hour in hours)
    return Hourly(zone=zone, start=hours[0] if hours else "", gco2_per_kwh=carbon, usd_per_mwh=price)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
