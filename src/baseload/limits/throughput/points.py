"""Rows of published inference results (the columns of MLPerf inference), as points.

Needed: `model`, `accelerator`, `accelerators_total` (or `nodes` and `accelerators_per_node`). Used where given:
`scenario`, `precision`, `unit`, `software`, `round`, `submitter`, `division`, `platform`, `nodes`, `host_cpu`,
`cpus_per_node`, `isl` and `osl` (tokens in and out of a sample), `value` (measured, in `unit`) and `power` (measured,
watts at the wall). A cell that is no number is an error that names its line.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from msgspec import Struct

from baseload.domain.errors import DataError
from baseload.limits.tables import number_of, read_table

NEEDED = ("model", "accelerator")
_ENGINE = re.compile(r"(tensorrt[- ]?llm|tensorrt|vllm|sglang|llmboost|openvino|pytorch|cuda)", re.I)
_VERSION = re.compile(r"\D{0,24}(\d+\.\d+)")
LATENCY_S = {"ns": 1e-9, "latency (ms)": 1e-3, "ms": 1e-3, "s": 1.0}
"""Units of rows that measure the time of one sample, in seconds."""
COUNTS_SAMPLES = ("gptj",)
"""Models whose results count samples (or queries); all others count tokens, even where a table says queries."""


class Row(Struct, frozen=True, kw_only=True):
    """One result. Blank texts and zeros: not given."""

    line: int
    model: str  # as written, without the accuracy target
    accelerator: str
    accelerators: int
    nodes: int = 1
    scenario: str = "offline"
    precision: str = ""
    unit: str = ""
    engine: str = ""  # "tensorrt", "vllm", …
    engine_version: str = ""
    round: str = ""
    submitter: str = ""
    division: str = ""
    platform: str = ""
    host_cpu: str = ""
    cpus: int = 0  # of all nodes
    isl: float = 0.0
    osl: float = 0.0
    value: float = 0.0
    power_w: float = 0.0

    @property
    def counts(self) -> str:
        """What `value` counts a second: "tokens" or "samples"; or "latency", of one sample."""
        if self.unit.lower() in LATENCY_S:
            return "latency"
        return "samples" if self.model.lower().startswith(COUNTS_SAMPLES) else "tokens"

    @property
    def capped(self) -> bool:
        """Whether the system ran at reduced power, as its name says (MaxQ)."""
        return "maxq" in self.platform.lower().replace("-", "").replace("_", "")


def read_rows(data: bytes, *, name: str) -> list[Row]:
    """Rows of a CSV file; DataError names file, line and column."""
    hint = f"It needs {', '.join(NEEDED)}; see docs/limits-training.md."
    rows = read_table(data, name=name, hint=hint, needed=NEEDED)[1]
    return [_row(cells, f"{name}, line {line}", line) for line, cells in rows]


def distinct(rows: Sequence[Row]) -> list[int]:
    """One row of each measurement, whatever its accuracy target."""
    seen: dict[tuple[object, ...], int] = {}
    for i, row in enumerate(rows):
        seen.setdefault(measurement(row), i)
    return sorted(seen.values())


def measurement(row: Row) -> tuple[object, ...]:
    """What two rows share if they are one measurement, or one system measured under two accuracy targets."""
    return (row.submitter, row.platform, row.accelerator, row.accelerators, row.model, row.scenario, row.round)


def groups(rows: Sequence[Row]) -> dict[tuple[object, ...], list[int]]:
    """Row numbers by measurement, so that a split never parts copies."""
    found: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        found[measurement(row)].append(i)
    return dict(found)


def _row(cells: Mapping[str, str | None], where: str, line: int) -> Row:
    def text(column: str) -> str:
        return (cells.get(column) or "").strip()

    def number(column: str) -> float:
        raw = text(column)
        if not raw or raw.upper() in ("N/A", "NA", "-"):
            return 0.0
        try:
            value = number_of(raw)
        except ValueError:
            raise DataError(
                f"{where}: `{column}` is {text(column)!r}, not a number.", hint="Leave blank what is not known."
            ) from None
        if not 0 <= value < 1e18:
            raise DataError(
                f"{where}: `{column}` must be a number from 0 to 1e18, not {text(column)!r}.", hint="Mend the cell."
            )
        return value

    nodes = int(number("nodes")) or 1
    total = int(number("accelerators_total")) or nodes * int(number("accelerators_per_node"))
    engine, version = _engine(text("software"))
    return Row(
        line=line,
        model=re.sub(r"-99(\.9)?$", "", text("model")),
        accelerator=text("accelerator"),
        accelerators=total,
        nodes=nodes,
        scenario=(text("scenario") or "offline").lower(),
        precision=text("precision").lower(),
        unit=text("unit"),
        engine=engine,
        engine_version=version,
        round=text("round"),
        submitter=text("submitter"),
        division=text("division"),
        platform=text("platform"),
        host_cpu=text("host_cpu"),
        cpus=nodes * (int(number("cpus_per_node")) or 1),
        isl=number("isl"),
        osl=number("osl"),
        value=number("value") or number("silicon_value"),
        power_w=number("power") or number("power_w"),
    )


def _engine(software: str) -> tuple[str, str]:
    found = _ENGINE.search(software)
    if found is None:
        return "", ""
    version = _VERSION.match(software[found.end() :])
    return re.sub(r"[- ]", "", found[1].lower()), version[1] if version else ""
