"""`baseload simulate run` and `diff`: a fleet on a virtual clock, its report, and two of them side by side."""

import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from baseload.cli.flags import AsJson
from baseload.cli.screen import FAILURE, check_writable, err, print_json, print_table, say, write_file
from baseload.domain.errors import DataError

if TYPE_CHECKING:
    from baseload.twin.cluster.report import ClusterReport
    from baseload.twin.page import Report
    from baseload.twin.report import Failure, Percentiles, SimulateReport
    from baseload.twin.spec import SimulateConfig

DECISIONS_SHOWN = 12


def simulate(
    spec: Annotated[
        Path | None, typer.Argument(help="What to simulate: a TOML file. Without: a small example.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The (first) seed.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=0, help="Hunt: so many seeds, faults drawn from each.")] = 0,
    trace: Annotated[str, typer.Option("--trace", help="Replay this trace (CSV, or Mooncake's JSON lines).")] = "",
    requests: Annotated[int | None, typer.Option("--requests", min=0, help="How many requests.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Requests per second, Poisson.")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write the run as one HTML page.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the run as JSON, for `diff`.")] = None,
    cell: Annotated[int, typer.Option("--cell", min=-1, help="Of a run in cells: this one alone.")] = -1,
    exact: Annotated[bool, typer.Option("--exact", help="Engines step one by one: slower, the same result.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the same decisions on a virtual clock: what would happen, how long it takes, what it costs."""
    # The twin is a world of its own; commands for the live one should not wait for its import.
    from baseload.twin.hunts import run_or_hunt  # noqa: PLC0415
    from baseload.twin.reading import accepted, load  # noqa: PLC0415
    from baseload.twin.run import describe_failures  # noqa: PLC0415
    from baseload.twin.spec import SimulateConfig  # noqa: PLC0415

    check_writable(report, output)
    config = load(spec) if spec is not None else SimulateConfig()
    config = accepted(
        _changed(config, seed=seed, seeds=seeds, trace=trace, requests=requests, rate=rate, cell=cell, exact=exact)
    )
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=err(),
        disable=as_json,
    )  # fmt: skip
    with bar:
        parts = "seeds" if config.seeds else "cells" if config.cells > 1 else "run"
        task = bar.add_task(parts, total=config.seeds or config.cells)
        run = run_or_hunt(config, progress=lambda done, _: bar.update(task, completed=done))
    failures = _failures_of(run)
    if report is not None or output is not None:
        _write(run, report, output)
    if as_json:
        print_json(run)
    else:
        _print(run, config)
        if report is not None:
            say(f"The page: {report}")
        for line in describe_failures(failures):
            say(line, style="red")
    if failures:
        raise typer.Exit(FAILURE)


def diff(
    first: Annotated[Path, typer.Argument(help="A run, as `simulate -o A.json` wrote it.")],
    second: Annotated[Path, typer.Argument(help="Another run of the same kind.")],
    report: Annotated[Path | None, typer.Option("--report", help="Write both as one HTML page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Two runs side by side: what differs, and by how much."""
    from baseload.twin.page import compare_html, compare_rows  # noqa: PLC0415  # as above

    check_writable(report)
    a, b = _read(first), _read(second)
    if type(a) is not type(b):
        raise DataError("One run is of a fleet of jobs, the other of requests.", hint="Compare two of one kind.")
    rows = compare_rows(a, b)
    if report is not None:
        write_file(report, compare_html(a, b, names=(first.stem, second.stem)).encode())
    if as_json:
        print_json([dict(zip(("name", "unit", "a", "b", "difference"), row, strict=True)) for row in rows])
        return
    columns = ("", "unit", first.stem, second.stem, "difference")
    print_table(columns, rows, right=columns[2:])
    if report is not None:
        say(f"The page: {report}")


def _failures_of(run: "Report") -> "list[Failure]":
    hunt = getattr(run, "hunt", None)
    if hunt is not None:
        return list(hunt.failures)
    return [run.failure] if run.failure is not None else []


def _write(run: "Report", report: Path | None, output: Path | None) -> None:
    from baseload.twin.page import report_html  # noqa: PLC0415  # as above

    if report is not None:
        write_file(report, report_html(run).encode())
    if output is not None:
        write_file(output, msgspec.json.encode(run))


def _read(path: Path) -> "Report":
    from baseload.twin.cluster.report import ClusterReport  # noqa: PLC0415  # as above
    from baseload.twin.report import SimulateReport  # noqa: PLC0415

    try:
        data = path.read_bytes()
        is_fleet = b'"lost_accelerator_hours"' in data
        if is_fleet:
            return msgspec.json.decode(data, type=ClusterReport)
        return msgspec.json.decode(data, type=SimulateReport)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    except msgspec.DecodeError as error:
        raise DataError(
            f"{path}: not a run: {error}.", hint="Write one with `baseload simulate SPEC -o RUN.json`."
        ) from None


def _changed(
    config: "SimulateConfig",
    *,
    seed: int | None,
    seeds: int,
    trace: str,
    requests: int | None,
    rate: float | None,
    cell: int,
    exact: bool,
) -> "SimulateConfig":
    workload, flags = config.workload, ""
    if trace:
        workload = msgspec.structs.replace(workload, trace=str(Path(trace).absolute()))
        flags += f" --trace {shlex.quote(trace)}"
    if requests is not None:
        workload = msgspec.structs.replace(workload, requests=requests)
        flags += f" --requests {requests}"
    if rate is not None:
        workload = msgspec.structs.replace(workload, rate_per_s=rate)
        flags += f" --rate {rate:g}"
    return msgspec.structs.replace(
        config,
        workload=workload,
        seeds=seeds or config.seeds,
        seed=config.seed if seed is None else seed,
        exact=exact or config.exact,
        only_cell=cell,
        flags=flags + (" --exact" if exact else ""),
    )


def _print(run: "Report", config: "SimulateConfig") -> None:
    from baseload.twin.cluster.report import ClusterReport  # noqa: PLC0415  # as above

    if isinstance(run, ClusterReport):
        _print_fleet(run)
    elif run.hunt is not None:
        hunt = run.hunt
        asked = "requests" if config.cluster is None else "jobs"
        say(f"{hunt.passed} of {hunt.seeds} seeds pass: {hunt.requests:,} {asked}, {hunt.events:,} events.")
    else:
        _print_report(run)


def _print_report(report: "SimulateReport") -> None:
    ended = ", ".join(f"{count:,} {outcome}" for outcome, count in report.outcomes.items()) or "none ended"
    say(f"{report.requests:,} requests in {report.virtual_s:,.0f} virtual seconds: {ended}.")
    rows = [
        ("to the first token", *_times(report.ttft)),
        ("between tokens", *_times(report.tpot)),
        ("whole answer", *_times(report.e2e)),
        ("in the queue", *_times(report.queue)),
    ]
    columns = ("milliseconds", "mean", "p50", "p90", "p99", "max")
    print_table(columns, rows, right=columns[1:])
    say(
        f"{report.prompt_tokens:,} tokens in ({report.cached_tokens:,} cached), {report.completion_tokens:,} out, "
        f"{report.tokens_per_s:,.1f} out per second."
    )
    say(
        f"{report.cold_starts} cold starts; replica seconds: {report.useful_s:,.0f} useful, "
        f"{report.idle_s:,.0f} idle, {report.cold_s:,.0f} cold."
    )
    say(
        f"${report.usd:,.4f}, {report.joules:,.0f} J {report.energy_basis}; "
        f"${report.usd_per_million_tokens:,.2f} per million tokens, {report.tokens_per_joule:,.2f} tokens per joule."
    )
    say(
        f"{report.well_served:,} within the service level ({100 * report.attainment:.2f} %), "
        f"${report.usd_per_1000_well_served:,.4f} per thousand of them."
    )
    _print_faults(report.faults_by_kind)
    made = Counter(f"{decision.what.replace('_', ' ')}: {decision.why}" for decision in report.decisions)
    for words, times in list(made.items())[:DECISIONS_SHOWN]:
        say(f"  {words}" + (f" ({times:,} times)" if times > 1 else ""), style="dim")
    if report.decisions_total > made.total() or len(made) > DECISIONS_SHOWN:
        say(f"  … {report.decisions_total:,} decisions in all; --json has more.", style="dim")
    say(f"Step times: {report.step_time_basis}. Seed {report.seed}, digest {report.digest[:16]}.", style="dim")


def _print_fleet(report: "ClusterReport") -> None:
    say(
        f"{report.accelerators:,} accelerators, {report.hours:g} hours: {report.jobs:,} jobs, {report.done:,} done, "
        f"{report.stops:,} stopped, {report.failures:,} failed and went on, {report.refused:,} refused."
    )
    rows = [
        (w.name, f"{w.submitted:,}", f"{w.done:,}", f"{w.p50_s:,.0f}", f"{w.p99_s:,.0f}", f"{100 * w.goodput:.1f}")
        for w in report.waits
    ]
    columns = ("jobs", "submitted", "done", "wait p50, s", "wait p99, s", "goodput, %")
    print_table(columns, rows, right=columns[1:])
    services = [
        (s.name, f"{s.asked:,.0f}", f"{100 * s.attained:.2f}", f"{100 * s.refused:.2f}", f"{s.mean_replicas:,.1f}")
        for s in report.services
    ]
    if services:
        named = ("service", "requests", "in time, %", "refused, %", "replicas")
        print_table(named, services, right=named[1:])
    _print_faults(report.faults_by_kind)
    say(
        f"{100 * report.utilisation:.1f} % of accelerator-hours held, goodput {100 * report.goodput:.1f} %, "
        f"{report.lost_accelerator_hours:,.0f} accelerator-hours of work lost."
    )
    say(
        f"${report.usd:,.0f}, of which electricity ${report.electricity_usd:,.0f}; {report.energy_mwh:,.1f} MWh, "
        f"{report.carbon_t:,.1f} t CO2."
    )
    settled = "every job got done after the faults" if report.settled else "not settled"
    say(f"{report.steps:,} events, {settled}. Seed {report.seed}, digest {report.digest[:16]}.", style="dim")


def _print_faults(by_kind: Mapping[str, int]) -> None:
    faults = ", ".join(f"{count:,} {kind}" for kind, count in by_kind.items())
    say(f"Faults: {faults or 'none'}.")


def _times(times: "Percentiles") -> tuple[str, ...]:
    if not times.count:
        return ("",) * 5
    return tuple(f"{value:,.1f}" for value in (times.mean_ms, times.p50_ms, times.p90_ms, times.p99_ms, times.max_ms))
