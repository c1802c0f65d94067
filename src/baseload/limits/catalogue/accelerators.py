"""The catalogue of accelerators: single figures with a source, as frozen values; users add their own in TOML.

A figure nobody trustworthy published is None, and `need` says which one is missing instead of guessing.
"""

import tomllib
from difflib import get_close_matches
from importlib.resources import files
from math import inf
from typing import Any, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from baseload.domain.errors import DataError, MissingFigure

_HINT = "See docs/limits.md for the keys of an accelerator."
_FIGURES = (
    "bf16_tflops", "fp8_tflops", "fp4_tflops", "int8_tops", "memory_gb", "memory_gb_per_s", "scale_up_gb_per_s",
    "scale_up_domain", "host_bus_gb_per_s", "scale_out_gbit_per_s", "tdp_w", "all_in_w", "usd_per_hour",
)  # fmt: skip


class Accelerator(Struct, frozen=True, forbid_unknown_fields=True):
    """One accelerator. Peaks are dense TFLOPS, memory is decimal GB, links are per direction."""

    name: str
    source: str
    vendor: str = ""
    family: str = ""
    aliases: tuple[str, ...] = ()
    bf16_tflops: float | None = None
    fp8_tflops: float | None = None
    fp4_tflops: float | None = None
    int8_tops: float | None = None
    memory_gb: float | None = None
    memory_type: str = ""
    memory_gb_per_s: float | None = None
    scale_up_gb_per_s: float | None = None
    scale_up_domain: int | None = None  # accelerators joined by the fast links
    scale_up_topology: Literal["switch", "mesh", "torus2", "torus3"] = "switch"  # how: limits/serving/links.py
    host_bus_gb_per_s: float | None = None  # of a card with bridges: to the other cards of its node
    scale_out_gbit_per_s: float | None = None
    tdp_w: float | None = None
    all_in_w: float | None = None
    usd_per_hour: float | None = None
    price_source: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        for figure in _FIGURES:
            value = getattr(self, figure)
            if value is not None and not 0 < value < inf:
                raise ValueError(f"`{figure}` must be above 0, not {value:g}; leave out what is not known")

    def need(self, figure: str) -> float:
        """The figure, or MissingFigure saying which one is blank and how to supply it."""
        value = getattr(self, figure)
        if value is None:
            raise MissingFigure(figure, self.name)
        return float(value)

    def tflops(self, form: str) -> float:
        """Dense peak for weights of this format; a chip without it computes at its next wider rate."""
        wider = {"nvfp4": ("fp4_tflops", "fp8_tflops"), "fp8": ("fp8_tflops",), "int8": ("int8_tops",)}
        for figure in wider.get(form, ()):
            if getattr(self, figure) is not None:
                return self.need(figure)
        return self.need("bf16_tflops")

    def filled(self, like: "Accelerator") -> "Accelerator":
        """This sheet with its blank figures taken from another, in proportion to what is known.

        Rates follow the memory's bandwidth (or it them). For answers that measured points of this very accelerator
        will correct, never for answers from the sheet.
        """
        known, usual = self.memory_gb_per_s, like.need("memory_gb_per_s")
        if known is None and self.bf16_tflops is not None:
            known = self.bf16_tflops * usual / like.need("bf16_tflops")
        share = (known or usual) / usual
        blanks: dict[str, float | None] = {
            "memory_gb_per_s": known or usual,
            "bf16_tflops": like.need("bf16_tflops") * share,
        }
        blanks |= {figure: getattr(like, figure) for figure in ("memory_gb", "scale_up_gb_per_s", "scale_up_domain")}
        blanks["scale_out_gbit_per_s"] = like.scale_out_gbit_per_s
        return replace(self, **{figure: value for figure, value in blanks.items() if getattr(self, figure) is None})


class InstancePrice(Struct, frozen=True, forbid_unknown_fields=True):
    """What an instance costs an hour, and where that was read."""

    provider: str
    source: str
    instance: str = ""
    accelerator: str = ""
    region: str = ""
    count: int = 1
    vcpus: int = 0
    memory_gib: int = 0
    usd_per_hour: float | None = None
    spot_usd_per_hour: float | None = None
    tier: str = "on_demand"  # of usd_per_hour: "on_demand", "reserved" or "owned"


class Fabric(Struct, frozen=True, forbid_unknown_fields=True):
    """Latencies of one collective, and what they rest on."""

    latency_us_inside: float
    latency_us_outside: float
    basis: str


class Catalogue:
    """Accelerators by identifier, alias or name."""

    def __init__(self, entries: dict[str, Accelerator]) -> None:
        self.entries = entries
        self._by_name = {key(entry.name): id_ for id_, entry in entries.items()}
        self._by_name |= {key(alias): id_ for id_, entry in entries.items() for alias in entry.aliases}
        self._by_name |= {key(id_): id_ for id_ in entries}

    def find(self, name: str) -> Accelerator:
        """The accelerator under an identifier, alias or name; DataError names the nearest there are."""
        id_ = self._by_name.get(key(name))
        if id_ is None:
            near = dict.fromkeys(
                self._by_name[near] for near in get_close_matches(key(name), self._by_name, n=4, cutoff=0.75)
            )
            raise DataError(
                f"No accelerator {name!r} in the catalogue"
                + (f"; the nearest: {', '.join(near)}." if near else f" of {len(self.entries)}."),
                hint="`baseload catalogue` lists them; add yours in a TOML file (docs/catalogue.md).",
            )
        return self.entries[id_]

    def get(self, name: str) -> Accelerator | None:
        """The accelerator under an identifier, alias or name, or None."""
        id_ = self._by_name.get(key(name))
        return None if id_ is None else self.entries[id_]


def key(name: str) -> str:
    """A name without case, blanks, dashes or underscores."""
    return "".join(c for c in name.lower() if c.isalnum())


def read_catalogue(user_toml: bytes | None = None, *, name: str = "accelerators.toml") -> Catalogue:
    """The built-in catalogue, with a user's entries added or put in the place of ours."""
    entries = parse_accelerators(_data("accelerators.toml"), name="catalogue")
    if user_toml is not None:
        entries |= parse_accelerators(user_toml, name=name)
    return Catalogue(entries)


def parse_accelerators(data: bytes, *, name: str) -> dict[str, Accelerator]:
    """Accelerators by identifier from TOML; errors name the file."""
    try:
        return msgspec.convert(tomllib.loads(data.decode()), dict[str, Accelerator], strict=False)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise DataError(f"{name}: {error}.", hint=_HINT) from None


def read_prices() -> tuple[InstancePrice, ...]:
    """The prices known, each with its source."""
    return msgspec.convert(tomllib.loads(_data("prices.toml").decode())["price"], tuple[InstancePrice, ...])


def read_fabric() -> Fabric:
    """The default fabric."""
    return msgspec.convert(tomllib.loads(_data("fabrics.toml").decode())["default"], Fabric)


def read_model_facts() -> dict[str, dict[str, Any]]:
    """The counts of published models, by repository name."""
    return tomllib.loads(_data("models.toml").decode())


def _data(name: str) -> bytes:
    return (files("baseload.limits.catalogue") / name).read_bytes()
