"""`baseload catalogue`: look at what the limits model knows, with the source of every entry; and the user's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from msgspec import Struct

from baseload.cli import settings
from baseload.cli.flags import AsJson, SettingsFile
from baseload.cli.screen import print_json, print_table, say
from baseload.domain.errors import DataError, ModelError, SettingsError
from baseload.limits.catalogue.accelerators import InstancePrice, key
from baseload.limits.catalogue.book import Book, read_book
from baseload.limits.catalogue.models import Models
from baseload.limits.catalogue.sheets import ModelSheet, failure_sheets, model_sheet, model_sheets, plant_sheets
from baseload.limits.shape_config import parse_config

OwnCatalogue = Annotated[
    Path | None,
    typer.Option("--catalogue", metavar="FILE", help="Your own entries: TOML. Default: limits.catalogue."),
]
KINDS = (
    "accelerators", "nodes", "racks", "fabrics", "zones", "sites", "prices", "transfer",
    "models", "plants", "failures",
)  # fmt: skip
COLUMNS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "accelerators": (
        ("name", "name"),
        ("bf16_tflops", "bf16 TFLOPS"),
        ("fp8_tflops", "fp8"),
        ("fp4_tflops", "fp4"),
        ("memory_gb", "memory GB"),
        ("memory_gb_per_s", "GB/s"),
        ("scale_up_gb_per_s", "link GB/s"),
        ("scale_up_domain", "joined"),
        ("tdp_w", "W"),
        ("usd_per_hour", "$/h"),
    ),
    "nodes": (
        ("name", "name"),
        ("accelerator", "accelerator"),
        ("accelerators", "count"),
        ("max_w", "W"),
        ("network_gbit_per_s", "Gb/s"),
        ("memory_gb", "memory GB"),
        ("capex_usd", "$"),
    ),
    "racks": (
        ("name", "name"),
        ("node", "node"),
        ("accelerators", "accelerators"),
        ("max_w", "W"),
        ("cooling", "cooling"),
    ),
    "fabrics": (
        ("name", "name"),
        ("kind", "kind"),
        ("gb_per_s", "GB/s one way"),
        ("joins", "joins"),
        ("latency_us", "latency µs"),
    ),
    "zones": (("name", "name"), ("place", "place"), ("gco2_per_kwh", "gCO2/kWh"), ("usd_per_mwh", "$/MWh")),
    "sites": (
        ("name", "name"),
        ("zone", "zone"),
        ("plant", "plant"),
        ("megawatts", "MW"),
        ("usd_per_kwh", "$/kWh"),
    ),
    "prices": (
        ("provider", "provider"),
        ("instance", "instance"),
        ("accelerator", "accelerator"),
        ("count", "count"),
        ("usd_per_hour", "$/h"),
        ("spot_usd_per_hour", "spot $/h"),
        ("tier", "tier"),
        ("region", "region"),
    ),
    "transfer": (("provider", "provider"), ("usd_per_gb", "$/GB"), ("steps", "steps: GB a month up to, $/GB")),
    "models": (
        ("params_b", "B parameters"),
        ("active_b", "active"),
        ("mixing", "mixing layers"),
        ("experts", "experts"),
        ("weights_gb", "weights GB"),
        ("kv_kb_per_token", "KV kB/token"),
        ("gflops_per_token", "GFLOP/token"),
    ),
    "plants": tuple((f"pue_{c}c", f"PUE at {c} °C") for c in (0, 10, 20, 30, 40)),
    "failures": (
        ("per_accelerator_hour", "per accelerator-hour"),
        ("hours_at_1000", "hours between at 1,000"),
        ("hours_at_16384", "at 16,384"),
        ("hours_at_100000", "at 100,000"),
    ),
}
"""Columns of each kind's table: the figure, and what it is called there."""


def catalogue(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}.")] = "accelerators",
    name: Annotated[
        str, typer.Argument(help="One entry: all its figures and its source. Of models also a config.json.")
    ] = "",
    own: OwnCatalogue = None,
    settings_file: SettingsFile = "",
    as_json: AsJson = False,
) -> None:
    """Accelerators, nodes, fabrics, zones, prices, models and plants known, with their sources."""
    if kind not in KINDS:
        raise SettingsError(f"No kind {kind!r} in the catalogue.", hint=f"Kinds: {', '.join(KINDS)}.")
    if kind == "models" and Path(name).is_file():
        config = read_config(Path(name))
        entries: dict[str, Struct] = {config.name: config}
    else:
        entries = entries_of(own_book(own, settings_file), kind)
    if name and not Path(name).is_file():
        entries = _one(entries, kind, name)
    if as_json:
        print_json({id_: msgspec.to_builtins(entry) for id_, entry in entries.items()})
    elif name:
        for id_, entry in entries.items():
            _show(id_, entry)
    else:
        _list(entries, kind)


def own_book(own: Path | None, settings_file: str = "") -> Book:
    """The catalogue with the user's file: the one named, or the setting `limits.catalogue`."""
    path = own
    if path is None:
        named = settings.load(settings_file=settings_file).limits.catalogue
        path = Path(named).expanduser() if named else None
    if path is None:
        return read_book()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.", hint="Name a TOML file.") from None
    return read_book(data, name=str(path))


def read_config(path: Path) -> ModelSheet:
    """The figures of a model from its config.json."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.", hint="Name a config.json.") from None
    try:
        return model_sheet(parse_config(data, name=str(path)), source="its config.json")
    except ModelError as error:
        raise DataError(error.message, hint=error.hint) from None


def entries_of(book: Book, kind: str) -> dict[str, Struct]:
    """A kind's entries by identifier; prices are numbered."""
    match kind:
        case "accelerators":
            return dict(book.accelerators.entries)
        case "nodes":
            return dict(book.nodes)
        case "racks":
            return dict(book.racks)
        case "fabrics":
            return dict(book.links)
        case "zones":
            return dict(book.zones)
        case "sites":
            return dict(book.sites)
        case "transfer":
            return dict(book.transfer)
        case "models":
            return dict(model_sheets())
        case "plants":
            return dict(plant_sheets())
        case "failures":
            return dict(failure_sheets())
        case _:
            return {str(i): price for i, price in enumerate(book.prices, start=1)}


def _one(entries: dict[str, Struct], kind: str, name: str) -> dict[str, Struct]:
    wanted = key(name)
    found = {id_: e for id_, e in entries.items() if wanted in (key(id_), *(key(alias) for alias in _names(e)))}
    if not found and kind == "prices":
        found = {id_: e for id_, e in entries.items() if any(wanted in key(alias) for alias in _names(e))}
    if not found and kind == "models":
        shape, basis = Models().find(name)
        if basis == "config":
            return {name: model_sheet(shape, source="another of its family has the same shape")}
    if not found:
        near = [id_ for id_, e in entries.items() if any(wanted in key(alias) for alias in (id_, *_names(e)))]
        hint = f"Did you mean {', '.join(near[:6])}?" if near else f"See baseload catalogue {kind}."
        raise DataError(f"No entry {name!r} among the {kind} of the catalogue.", hint=hint)
    return found


def _names(entry: Struct) -> tuple[str, ...]:
    if isinstance(entry, InstancePrice):
        return (entry.provider, entry.instance, entry.accelerator)
    names = [getattr(entry, "name", ""), getattr(entry, "provider", "")]
    if isinstance(entry, ModelSheet):
        names.append(entry.name.rsplit("/", 1)[-1])
    return (*(name for name in names if name), *getattr(entry, "aliases", ()))


def _list(entries: Mapping[str, Struct], kind: str) -> None:
    if not entries:
        say(f"No {kind} yet. Add your own: docs/catalogue.md.")
        return
    columns = COLUMNS[kind]
    right = tuple(label for figure, label in columns if _is_number(entries, figure))
    rows = [(id_, *(_cell(getattr(entry, figure)) for figure, _ in columns)) for id_, entry in entries.items()]
    print_table(("id", *(label for _, label in columns)), rows, right=right)
    say(f"{len(rows)} {kind}; – where no source worth trusting was found. Sources: baseload catalogue {kind} ID.")


def _is_number(entries: Mapping[str, Struct], figure: str) -> bool:
    values = [getattr(entry, figure) for entry in entries.values()]
    return all(value is None or isinstance(value, int | float) for value in values)


def _show(id_: str, entry: Struct) -> None:
    say(id_, style="bold")
    rows = [(figure, _cell(getattr(entry, figure))) for figure in entry.__struct_fields__]
    print_table(("figure", "value"), rows)


def _cell(value: Any) -> str:
    if value is None or value in ("", ()):
        return "–"
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, tuple):
        return ", ".join(_cell(part) for part in value)
    return str(value)
