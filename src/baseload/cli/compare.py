"""`baseload compare`: two settings or policies on the same arrivals and faults, with intervals over seeds."""

import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from baseload.cli.flags import AsJson
from baseload.cli.plan import as_usage
from baseload.cli.screen import check_writable, err, print_json, print_table, say, write_file
from baseload.domain.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from baseload.twin.compare import CompareReport, Difference
    from baseload.twin.tally import FleetSample


def compare(
    first: Annotated[Path, typer.Argument(metavar="A.toml", help="What to simulate, as docs/simulate.md has it.")],
    second: Annotated[Path, typer.Argument(metavar="B.toml", help="The other; workload, faults and levels are A's.")],
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Arrivals for both: a CSV (or Mooncake JSON lines).")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds, from A's on.")] = 3,
    warmup: Annotated[float, typer.Option("--warmup", min=0.0, help="Seconds left out of all figures.")] = 0.0,
    requests: Annotated[int | None, typer.Option("--requests", min=1, help="At most so many requests.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write a page with plots (HTML) here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two settings or policies: cost per request within levels, attainment, latency, energy."""
    # The twin is a world of its own; commands for the live one should not wait for its import.
    from baseload.twin.compare import common  # noqa: PLC0415
    from baseload.twin.compare import compare as run  # noqa: PLC0415
    from baseload.twin.reading import load  # noqa: PLC0415

    check_writable(report)
    a, b, notes = common(load(first), load(second), trace=trace, requests=requests)
    names = (first.stem, second.stem) if first.stem != second.stem else (f"{first.stem} (A)", f"{second.stem} (B)")
    bar = Progress(
        TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=err(), disable=as_json
    )
    with bar, as_usage():
        task = bar.add_task("runs", total=2 * seeds)
        result = run(a, b, names=names, seeds=seeds, warmup_s=warmup, progress=lambda: bar.advance(task))
    if not result.requests:
        raise SettingsError(
            f"No request is left after the first {warmup:g} s.", hint="Lower --warmup, or compare over more requests."
        )
    result = msgspec.structs.replace(result, notes=(*notes, *result.notes))
    if report is not None:
        write_file(report, page(result).encode())
    if as_json:
        print_json(_finite(msgspec.to_builtins(result)))
        return
    show(result)
    if report is not None:
        say(f"The page is {report}.", style="dim")


def show(result: "CompareReport") -> None:
    """The comparison in the terminal."""
    say(
        f"A = {result.a}, B = {result.b}: {result.requests:,} requests a seed, {result.seeds} seeds, "
        f"the first {result.warmup_s:g} s left out. Levels: {result.level}."
    )
    columns = ("", "A", "B", "B - A", "95 % interval", "relative", "better")
    print_table(columns, rows_of(result.differences), right=columns[1:-1])
    say(result.verdict, style="bold")
    for note in result.notes:
        say(f"  {note}", style="dim")


def rows_of(differences: "Sequence[Difference]") -> list[tuple[str, ...]]:
    """The differences as cells."""
    return [
        (
            d.name,
            _number(d.a),
            _number(d.b),
            _number(d.difference),
            "–" if math.isnan(d.low) else f"{_number(d.low)} … {_number(d.high)}",
            f"{d.relative:+.1%}",
            d.better or "–",
        )
        for d in differences
    ]


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1 else f"{value:.4f}"


def _finite(value: Any) -> Any:
    """The value with every number that is none (nan, infinite) as null."""
    if isinstance(value, dict):
        return {key: _finite(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(below) for below in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- the page -------------------------------------------------------------------------------------------------------


def page(result: "CompareReport") -> str:
    """The comparison as one self-contained HTML page."""
    # Pages are drawn only where one is asked for.
    from baseload.cli.plan_page import STYLE, table  # noqa: PLC0415

    title = f"{result.a} against {result.b}"
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="big">{escape(result.verdict)}</p>',
        f'<p class="dim">A = {escape(result.a)}, B = {escape(result.b)}. {result.requests:,} requests a seed, '
        f"{result.seeds} seeds; the same arrivals and faults on both sides; the first {result.warmup_s:g} s are left "
        f"out. Levels: {escape(result.level)}.</p>",
        table(("", "A", "B", "B − A", "95 % interval", "relative", "better"), rows_of(result.differences)),
        "<h2>Replicas over time (first seed)</h2>",
        lines_svg([(result.a, result.timeline_a), (result.b, result.timeline_b)], "replicas"),
        "<h2>Requests in flight and waiting (first seed)</h2>",
        lines_svg([(result.a, result.timeline_a), (result.b, result.timeline_b)], "requests"),
        *(f'<p class="dim">{escape(note)}</p>' for note in result.notes),
    ]
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def lines_svg(sides: "Sequence[tuple[str, tuple[FleetSample, ...]]]", what: str) -> str:
    """Two step lines over virtual time: replicas (in any state) or requests (in flight and queued)."""
    width, height, edge = 760, 260, 44

    def value(sample: "FleetSample") -> int:
        if what == "replicas":
            return sample.starting + sample.ready + sample.draining
        return sample.in_flight + sample.queued

    end_s = max((s.at_s for _, samples in sides for s in samples), default=1.0) or 1.0
    most = max((value(s) for _, samples in sides for s in samples), default=1) or 1
    parts = [f'<path d="M{edge} 12V{height - edge}H{width}" fill="none" stroke="#8c959f"/>']
    for number, ((name, samples), color) in enumerate(zip(sides, ("#0969da", "#bf3989"), strict=True)):
        points = []
        for sample in samples:
            x = edge + sample.at_s / end_s * (width - edge - 8)
            y = height - edge - value(sample) / most * (height - edge - 20)
            points.append(f"{x:.1f},{y:.1f}")
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        parts.append(
            f'<text x="{edge + 12 + 260 * number}" y="{height - 8}" font-size="12" fill="{color}">'
            f"{escape(name)}</text>"
        )
    parts.append(f'<text x="{edge - 6}" y="20" font-size="11" text-anchor="end">{most:,}</text>')
    parts.append(
        f'<text x="{width - 8}" y="{height - edge + 16}" font-size="11" text-anchor="end">{end_s:,.0f} s</text>'
    )
    return f'<svg viewBox="0 0 {width} {height}" role="img" fill="currentColor">{"".join(parts)}</svg>'
