"""Serving points: one row of a table each, with its parallelism made sense of.

Tables in the wild state parallelism in more than one way. An id with `tpN_epM` is believed first. Without it,
`moe_tp` equal to `moe_ep` above 1 with a tensor-parallel width (or data-parallel width) of their product is one
deployment counted twice, so its accelerators are one of the two; zeros and blanks are 1.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from msgspec import Struct

from baseload.domain.errors import DataError
from baseload.limits.catalogue.models import family_of
from baseload.limits.quantization import format_of
from baseload.limits.serving.engines import engine_of
from baseload.limits.tables import number_of

T = TypeVar("T")

_IN_ID = re.compile(r"_tp(\d+)(?:_0)?_ep(\d+)")
NEEDED = ("model_path", "system")
USUAL_TOKENS = 1024
SPAN = 8  # accelerators of a node: a tensor-parallel group spans one, at most two
CROWDED = 20  # users an accelerator beyond which attention is replicated
_MODES = {"agg": "agg", "aggregated": "agg", "disagg": "disagg", "disaggregated": "disagg"}
_PLAIN = ("none", "no", "off", "false", "0", "0.0")
_HINT = "The columns are those of docs/limits.md, section Points."


class Layout(Struct, frozen=True):
    """How one worker spreads over accelerators."""

    gpus: int
    dp: int = 1  # attention replicas inside the worker
    ep: int = 1  # expert-parallel width
    pp: int = 1
    cp: int = 1  # ranks that share a context: `gpus` is that many whole groups
    workers: int = 1
    workers_known: bool = True
    usual: bool = False  # taken apart from a total: its size is what is usual beside such decoders
    total: int = 0  # accelerators of the deployment, where a row tells only those


class Point(Struct, frozen=True):
    """One deployment under one load, and what was measured there (0: nothing)."""

    line: int
    id: str
    engine: str
    version: str
    model: str
    system: str
    dense_format: str  # "" where the table says nothing: the model's own
    expert_format: str
    isl: int
    osl: int
    concurrency: float
    decode: Layout
    prefill: Layout | None = None  # of its own only where disaggregated
    tpot_ms: float = 0.0
    ttft_ms: float = 0.0
    mode: str = "agg"  # as the table has it: "agg" or "disagg"
    note: str = ""  # what the row left out, and what was taken for it
    guessed: bool = False  # the layout is a guess of `hidden`
    speculates: bool | None = None  # drafts tokens ahead (MTP, EAGLE, a draft model); None: nobody says

    @property
    def family(self) -> str:
        """The model without publisher, release and weight format."""
        return family_of(self.model)

    @property
    def format(self) -> str:
        """One word for how the weights are kept; "own" where the table says nothing, so as the model has them."""
        return self.expert_format or self.dense_format or "own"


def parse_point(row: Mapping[str, str | None], *, line: int, name: str) -> Point:
    """A point from a row of text; DataError names file, line and column."""
    cells = _Cells(row, line, name)
    formats = (cells.form("gemm_quant_mode"), cells.form("moe_quant_mode"))
    if not any(formats):
        formats = (cells.form("precision"),) * 2
    stated = cells.text("mode", "agg")
    mode = _MODES.get(stated.casefold(), "")
    if not mode:
        raise DataError(f"{name} line {line}: mode must be agg or disagg, not {stated!r}.", hint=_HINT)
    id_ = cells.text("id", "")
    prefill = _layout(cells, "prefill_", id_="") if mode == "disagg" else None
    decode = _layout(cells, "decode_", id_="") if mode == "disagg" else _layout(cells, "", id_=id_)
    if mode == "agg" and (
        decode.workers > 1 or decode.gpus > 2 * SPAN * decode.cp
    ):  # a total of several workers: prefill has accelerators of its own
        prefill = Layout(gpus=SPAN // 2, usual=True)
    return Point(
        line=line,
        id=id_,
        engine=engine_of(cells.text("backend", "")) or cells.taken("backend", "", "no engine stated: a usual one"),
        version=cells.text("backend_version", ""),
        model=cells.text("model_path"),
        system=cells.text("system"),
        mode=mode,
        dense_format=formats[0] or formats[1],
        expert_format=formats[1] or formats[0],
        isl=cells.count("isl", default=0, floor=1)
        or cells.taken("isl", USUAL_TOKENS, f"isl not stated: {USUAL_TOKENS}"),
        osl=cells.count("osl", default=0, floor=1)
        or cells.taken("osl", USUAL_TOKENS, f"osl not stated: {USUAL_TOKENS}"),
        concurrency=_concurrency(cells, decode),
        decode=decode,
        prefill=prefill,
        tpot_ms=cells.number("silicon_tpot_ms", default=0.0),
        ttft_ms=cells.number("silicon_ttft_ms", default=0.0),
        speculates=_speculates(cells),
        note="; ".join(cells.notes),
    )


def check_columns(columns: Sequence[str], *, name: str) -> None:
    """DataError where a table lacks a column that every point needs."""
    missing = [column for column in NEEDED if column not in columns]
    if missing:
        raise DataError(f"{name}: the columns {', '.join(missing)} are missing.", hint=_HINT)


def parse_points(rows: list[dict[str, str | None]], *, name: str, first_line: int = 2) -> list[Point]:
    """Points of a whole table; DataError where a column is missing, or names the line of a bad row."""
    if rows:
        check_columns(list(rows[0]), name=name)
    return [parse_point(row, line=first_line + i, name=name) for i, row in enumerate(rows)]


def _several(cells: "_Cells", prefix: str, gpus: int) -> Layout:
    """What is stated as one tensor-parallel group wider than any engine runs: the total of several workers.

    Such totals are those of deployments with a prefill worker of half a node, and decoding workers of a node each or,
    where users crowd, one wide group that replicates attention.
    """
    if prefix == "prefill_":
        return Layout(gpus=SPAN // 2, usual=True)
    decode = max(SPAN, gpus - SPAN // 2)
    if cells.number("concurrency", default=0.0) > CROWDED * decode:
        width = 1 << (decode.bit_length() - 1)
        return Layout(gpus=width, dp=width, ep=width, total=gpus)
    return Layout(gpus=SPAN, ep=SPAN, workers=decode // SPAN, total=gpus)


class _Cells:
    """Reads typed cells of one row."""

    def __init__(self, row: Mapping[str, str | None], line: int, name: str) -> None:
        self.row, self.where = row, f"{name} line {line}"
        self.notes: list[str] = []

    def taken(self, column: str, value: T, note: str) -> T:
        """What is taken where `column` is empty, and that it was."""
        assert not (self.row.get(column) or "").strip()
        self.notes.append(note)
        return value

    def text(self, column: str, default: str | None = None) -> str:
        value = (self.row.get(column) or "").strip()
        if not value:
            if default is None:
                raise DataError(f"{self.where}: `{column}` is empty.", hint=_HINT)
            return default
        return value

    def number(self, column: str, *, default: float | None = None, floor: float = 0.0) -> float:
        value = self.text(column, None if default is None else "")
        if not value:
            assert default is not None
            return default
        try:
            number = number_of(value)
        except ValueError:
            number = float("nan")
        if not floor <= number < 1e12:
            raise DataError(
                f"{self.where}: `{column}` must be a number from {floor:g} to 1e12, not {value!r}.", hint=_HINT
            )
        return number

    def count(self, column: str, *, default: int | None = None, floor: int = 0) -> int:
        number = self.number(column, default=default, floor=floor)
        if number != int(number):
            raise DataError(f"{self.where}: `{column}` must be a whole number, not {number:g}.", hint=_HINT)
        return int(number)

    def form(self, column: str) -> str:
        value = self.text(column, "")
        form = format_of(value) if value else ""
        if form is None:
            self.notes.append(f"weight format {value!r} unknown: the model's own")
            return ""
        return form


def _speculates(cells: "_Cells") -> bool | None:
    """What `speculation` says: a count of drafted tokens, yes or no, or how it is done."""
    word = cells.text("speculation", "").casefold()
    return None if not word else word not in _PLAIN


def _concurrency(cells: _Cells, decode: Layout) -> float:
    """As stated, or what the stated batches add up to."""
    stated = cells.number("concurrency", default=0.0)
    if stated:
        return stated
    batch = cells.number("batch_size", default=0.0) or cells.number("decode_batch_size", default=0.0)
    if not batch:
        return cells.taken("concurrency", 1.0, "neither concurrency nor a batch size stated: one user")
    return batch * decode.dp * decode.workers


def _layout(cells: _Cells, prefix: str, *, id_: str) -> Layout:
    def count(column: str) -> int:
        return max(1, cells.count(prefix + column, default=1))

    tp, dp, pp = count("tp_size"), count("attention_dp_size"), count("pp_size")
    moe_tp, ep = count("moe_tp_size"), count("moe_ep_size")
    in_id = _IN_ID.search(id_)
    if in_id:
        gpus, ep = max(1, int(in_id[1])), max(1, int(in_id[2]))
    elif not prefix and moe_tp == ep > 1 and tp * dp == ep * moe_tp:
        gpus = ep
    elif tp == dp > 1 and ep == tp * dp:
        gpus = tp
    else:
        gpus = tp * dp
    if ep == 1 and (gpus > 2 * SPAN or gpus == SPAN + SPAN // 2):
        return _several(cells, prefix, gpus)
    workers = cells.count(prefix + "num_workers", default=0) if prefix else 1
    cp = count("cp_size")
    return Layout(
        gpus=gpus * pp * cp,
        cp=cp,
        dp=min(dp, gpus),
        ep=min(ep, gpus),
        pp=pp,
        workers=max(1, workers),
        workers_known=workers > 0,
    )
