"""The whole catalogue in one value, and a user's own entries merged into it.

A user's file has sections: `[accelerators.ID]`, `[nodes.ID]`, `[racks.ID]`, `[links.ID]`, `[zones.ID]`, `[sites.ID]`,
`[transfer.ID]` and `[[prices]]`. An entry under an identifier of ours takes its place; a wrong one is refused by
name.
Tables right at the top are accelerators, as in files written for `--accelerators`.
"""

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from baseload.domain.errors import DataError, MissingFigure
from baseload.limits.carbon import Zone
from baseload.limits.catalogue.accelerators import Accelerator, Catalogue, InstancePrice, read_catalogue, read_prices
from baseload.limits.money import Tier, TransferPrice
from baseload.limits.power import PLANTS, Cooling, PueCurve

_HINT = "See docs/catalogue.md for the keys of each section."
T = TypeVar("T")


class Node(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A machine as sold. Power in watts at full load, network in Gb/s of all its accelerator ports, one way."""

    name: str
    source: str
    accelerator: str
    accelerators: int
    provider: str = ""
    max_w: float | None = None
    network_gbit_per_s: float | None = None
    memory_gb: float | None = None
    vcpus: int | None = None
    capex_usd: float | None = None
    price_source: str = ""
    notes: str = ""

    def need(self, figure: str) -> float:
        """The figure, or MissingFigure."""
        return _need(self, figure, self.name)


class Rack(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A rack: nodes of one kind, power at most, and how it is cooled."""

    name: str
    source: str
    accelerators: int
    node: str = ""
    nodes: int | None = None
    max_w: float | None = None
    cooling: str = ""
    notes: str = ""

    def need(self, figure: str) -> float:
        """The figure, or MissingFigure."""
        return _need(self, figure, self.name)


class Link(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A kind of link: decimal GB a second one way out of one accelerator, and how many a fabric of it joins."""

    name: str
    source: str
    kind: str  # "scale-up" | "scale-out" | "host"
    gb_per_s: float | None = None
    latency_us: float | None = None
    joins: int | None = None
    notes: str = ""


class Site(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A place for machines: its electricity zone, plant and limits. Users' own; none are built in."""

    name: str
    source: str
    zone: str = ""
    plant: str = "air"  # a plant of limits/power.py, unless `pue` is given
    pue: tuple[tuple[float, float], ...] = ()  # measured (outside °C, PUE) points
    megawatts: float | None = None
    mean_c: float | None = None
    hottest_c: float | None = None
    usd_per_kwh: float | None = None
    usd_per_kw_month: float | None = None
    country: str = ""
    notes: str = ""

    def need(self, figure: str) -> float:
        """The figure, or MissingFigure."""
        return _need(self, figure, f"site {self.name}")

    def cooling(self) -> Cooling | PueCurve:
        """Its measured curve, or its plant."""
        if self.pue:
            return PueCurve(points=self.pue, basis=self.source)
        if self.plant not in PLANTS:
            raise DataError(f"Site {self.name}: no plant {self.plant!r}.", hint=f"There are {', '.join(PLANTS)}.")
        return PLANTS[self.plant]


class Book(Struct, frozen=True):
    """Everything the catalogue holds, by identifier."""

    accelerators: Catalogue
    nodes: dict[str, Node]
    racks: dict[str, Rack]
    links: dict[str, Link]
    zones: dict[str, Zone]
    sites: dict[str, Site]
    transfer: dict[str, TransferPrice]
    prices: tuple[InstancePrice, ...]


SECTIONS: Mapping[str, type[Struct]] = {
    "accelerators": Accelerator,
    "nodes": Node,
    "racks": Rack,
    "links": Link,
    "zones": Zone,
    "sites": Site,
    "transfer": TransferPrice,
}


def read_book(user_toml: bytes | None = None, *, name: str = "catalogue.toml") -> Book:
    """The built-in catalogue with a user's entries added or put in the place of ours; DataError names a bad one."""
    own: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    own_prices: list[InstancePrice] = []
    if user_toml is not None:
        own, own_prices = _parse(user_toml, name)
    catalogue = read_catalogue()
    return Book(
        accelerators=Catalogue({**catalogue.entries, **own["accelerators"]}),
        nodes=_builtin("nodes.toml", Node) | own["nodes"],
        racks=_builtin("racks.toml", Rack) | own["racks"],
        links=_builtin("links.toml", Link) | own["links"],
        zones=_builtin("zones.toml", Zone) | own["zones"],
        sites=own["sites"],
        transfer=_builtin("transfer.toml", TransferPrice) | own["transfer"],
        prices=(*read_prices(), *own_prices),
    )


def _parse(data: bytes, name: str) -> tuple[dict[str, dict[str, Any]], list[InstancePrice]]:
    try:
        tables = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: {error}.", hint=_HINT) from None
    own: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    prices: list[InstancePrice] = []
    for key, value in tables.items():
        if key in SECTIONS and isinstance(value, dict) and not _is_entry(value):
            for id_, entry in value.items():
                own[key][id_] = _entry(entry, SECTIONS[key], f"{name}: {key}.{id_}")
        elif key in ("prices", "price") and isinstance(value, list):
            for i, entry in enumerate(value, start=1):
                price = _entry(entry, InstancePrice, f"{name}: {key}[{i}]")
                if price.tier not in {str(tier) for tier in Tier}:
                    raise DataError(f"{name}: {key}[{i}]: no tier {price.tier!r}.", hint=f"Tiers: {', '.join(Tier)}.")
                prices.append(price)
        elif isinstance(value, dict):
            own["accelerators"][key] = _entry(value, Accelerator, f"{name}: {key}")
        else:
            raise DataError(f"{name}: no section {key!r}; it has {', '.join(SECTIONS)} and prices.", hint=_HINT)
    return own, prices


def _is_entry(value: Mapping[str, Any]) -> bool:
    """Whether a table is itself an entry (an accelerator called "nodes", say) rather than a section of entries."""
    return isinstance(value.get("source"), str)


def _entry(entry: object, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(entry, kind, strict=False)
    except msgspec.ValidationError as error:
        raise DataError(f"{where}: {error}.", hint=_HINT) from None


def _builtin(file: str, kind: type[T]) -> dict[str, T]:
    raw = (files("baseload.limits.catalogue") / file).read_bytes()
    return {id_: msgspec.convert(entry, kind, strict=False) for id_, entry in tomllib.loads(raw.decode()).items()}


def _need(entry: Struct, figure: str, owner: str) -> float:
    value = getattr(entry, figure)
    if value is None:
        raise MissingFigure(figure, owner)
    return float(value)
