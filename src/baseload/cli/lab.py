"""`baseload train` and `baseload simulate`: make a model, or see what a fleet would do."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from baseload.cli.flags import AsJson
from baseload.cli.screen import FAILURE, INTERRUPTED, err, print_json, print_table, say

if TYPE_CHECKING:
    from baseload.twin.report import Percentiles, SimulateReport
    from baseload.twin.spec import SimulateConfig

DECISIONS_SHOWN = 12


def train(
    config: Annotated[Path, typer.Option("--config", help="What to train: a TOML file.")],
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew, forgetting earlier checkpoints.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model; goes on from its newest checkpoint. Ctrl-C ends it with a checkpoint."""
    # JAX takes a second to import; no other command should wait for it.
    from baseload.train.config import load  # noqa: PLC0415
    from baseload.train.run import train as run  # noqa: PLC0415

    result = run(load(config), progress=not as_json, fresh=fresh)
    if as_json:
        fields = msgspec.to_builtins(result)
        print_json({name: None if _is_nan(value) else value for name, value in fields.items()})
    elif not result.stopped:
        minutes = result.seconds / 60
        say(f"Step {result.step}, loss {result.loss:.4f}, {result.tokens_per_s:,.0f} tokens/s, {minutes:.1f} min.")
        say(f"Serve it with: baseload models add NAME {result.output_dir}")
    if result.stopped:
        raise typer.Exit(INTERRUPTED)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def simulate(
    spec: Annotated[
        Path | None, typer.Argument(help="What to simulate: a TOML file. Without: a small example.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The (first) seed.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=0, help="Hunt: so many seeds, faults drawn from each.")] = 0,
    trace: Annotated[str, typer.Option("--trace", help="Replay this CSV (arrival, input, output tokens).")] = "",
    requests: Annotated[int | None, typer.Option("--requests", min=0, help="How many requests.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Requests per second, Poisson.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the same decisions on a virtual clock: what would happen, how long it takes, what it costs."""
    # The twin is a world of its own; commands for the live one should not wait for its import.
    from baseload.twin.run import describe_failures  # noqa: PLC0415
    from baseload.twin.run import simulate as run  # noqa: PLC0415
    from baseload.twin.spec import SimulateConfig, load  # noqa: PLC0415

    config = load(spec) if spec is not None else SimulateConfig()
    config = _changed(config, seed=seed, seeds=seeds, trace=trace, requests=requests, rate=rate)
    bar = Progress(
        TextColumn("seeds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=err(),
        disable=as_json or not seeds,
    )  # fmt: skip
    with bar:
        task = bar.add_task("seeds", total=config.seeds or None)
        report = run(config, progress=lambda done, _: bar.update(task, completed=done))
    failures = list(report.hunt.failures) if report.hunt else []
    if not report.hunt and report.failure:
        failures = [report.failure]
    if as_json:
        print_json(report)
    else:
        for line in describe_failures(failures):
            say(line, style="red")
        if report.hunt is not None:
            hunt = report.hunt
            say(f"{hunt.passed} of {hunt.seeds} seeds pass: {hunt.requests:,} requests, {hunt.events:,} events.")
        else:
            _print_report(report)
    if failures:
        raise typer.Exit(FAILURE)


def _changed(
    config: "SimulateConfig",
    *,
    seed: int | None,
    seeds: int,
    trace: str,
    requests: int | None,
    rate: float | None,
) -> "SimulateConfig":
    workload = config.workload
    if trace:
        workload = msgspec.structs.replace(workload, trace=str(Path(trace).absolute()))
    if requests is not None:
        workload = msgspec.structs.replace(workload, requests=requests)
    if rate is not None:
        workload = msgspec.structs.replace(workload, rate_per_s=rate)
    return msgspec.structs.replace(
        config, workload=workload, seeds=seeds or config.seeds, seed=config.seed if seed is None else seed
    )


def _print_report(report: "SimulateReport") -> None:
    ended = ", ".join(f"{count:,} {outcome}" for outcome, count in report.outcomes.items())
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
    for decision in report.decisions[:DECISIONS_SHOWN]:
        say(f"  {decision.what.replace('_', ' ')}: {decision.why}", style="dim")
    if report.decisions_total > DECISIONS_SHOWN:
        say(f"  … {report.decisions_total:,} decisions in all; --json has more.", style="dim")
    say(f"Step times: {report.step_time_basis}. Seed {report.seed}, digest {report.digest[:16]}.", style="dim")


def _times(times: "Percentiles") -> tuple[str, ...]:
    if not times.count:
        return ("",) * 5
    return tuple(f"{value:,.1f}" for value in (times.mean_ms, times.p50_ms, times.p90_ms, times.p99_ms, times.max_ms))
