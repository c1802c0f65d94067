"""`baseload plan`: which accelerators, layouts, batches and sites for stated models, traffic, levels and limits."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from baseload.cli.flags import AsJson
from baseload.cli.screen import check_writable, err, print_json, print_table, say, write_file
from baseload.domain.errors import DataError, ModelError, SettingsError

if TYPE_CHECKING:
    from baseload.limits.carbon import Zone
    from baseload.limits.catalogue.book import Book
    from baseload.policy.plan.answer import Check, Choice, ModelAnswer, PlanReport
    from baseload.policy.plan.spec import PlanSpec, Traffic

INFEASIBLE = 3
LENGTHS_KEPT = 20_000  # of a trace, for the twin's run
PEAK_S = 60.0  # a trace's peak is its busiest minute
BEGIN = "`baseload plan --example > SPEC.toml` writes one to begin with; docs/plan.md has the settings."


def plan(
    spec: Annotated[
        Path | None,
        typer.Argument(metavar="SPEC.toml", help="What to plan for (docs/plan.md; --example prints one)."),
    ] = None,
    objective: Annotated[
        str, typer.Option("--objective", help="usd_per_mtok, tokens_per_joule or latency. Default: the file's.")
    ] = "",
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Leave out the twin runs that check the answer.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Tell of each accelerator that was left out.")] = False,
    example: Annotated[bool, typer.Option("--example", help="Print a specification to begin with.")] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Write a page with plots (HTML) here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Plan: ranked answers, what binds them, what would relax it, and a twin run beside each formula."""
    if example:
        print(example_text(), end="")
        return
    if spec is None:
        raise SettingsError("`baseload plan` needs a specification: a TOML file.", hint=BEGIN)
    check_writable(report)
    began = time.perf_counter()
    with err().status("reading", spinner="dots") as status, as_usage():
        result = answer(spec, objective=objective, check=not no_check, progress=status.update)
    result = msgspec.structs.replace(result, seconds=round(time.perf_counter() - began, 3))
    if report is not None:
        # Pages are drawn only where one is asked for.
        from baseload.cli.plan_page import page  # noqa: PLC0415

        write_file(report, page(result).encode())
    if as_json:
        print_json(result)
    else:
        show(result, every=every)
        if report is not None:
            say(f"The page is {report}.", style="dim")
    if not result.feasible:
        raise typer.Exit(INFEASIBLE)


def example_text() -> str:
    """A specification to begin with."""
    return (resources.files("baseload.policy.plan") / "example.toml").read_text()


@contextmanager
def as_usage() -> Iterator[None]:
    """What is wrong with the files given is the user's to mend: exit code 2."""
    try:
        yield
    except (DataError, ModelError) as error:
        raise SettingsError(error.message, hint=error.hint) from None


def answer(
    path: Path, *, objective: str = "", check: bool = True, progress: Callable[[str], None] = lambda _: None
) -> "PlanReport":
    """The report for a specification in a file."""
    # SciPy, NumPy and the twin take a second to import; no other command should wait for them.
    from baseload.limits.catalogue.models import Models  # noqa: PLC0415
    from baseload.limits.serving.predict import Predictor  # noqa: PLC0415
    from baseload.policy.plan.ranges import check_stocks  # noqa: PLC0415
    from baseload.policy.plan.search import search  # noqa: PLC0415
    from baseload.policy.plan.spec import OBJECTIVES, check_spec, with_hours  # noqa: PLC0415
    from baseload.policy.plan.surroundings import leaving, with_zones  # noqa: PLC0415
    from baseload.twin.plan_verify import confirming  # noqa: PLC0415

    spec = read_spec(path)
    if objective:
        if objective not in OBJECTIVES:
            raise SettingsError(f"--objective: unknown {objective!r}.", hint=f"Known: {', '.join(OBJECTIVES)}.")
        spec = msgspec.structs.replace(spec, objective=objective)
    spec, lengths = with_traces(spec, path.parent)
    book = _book(spec, path.parent)
    spec, filled = with_zones(spec, _zones(spec, path.parent) | book.zones, book.transfer, name=str(path))
    check_spec(spec := with_hours(spec), name=str(path))
    spec, configs = with_configs(spec, path.parent)
    catalogue, prices = book.accelerators, book.prices
    check_stocks(spec, catalogue, name=str(path))
    providers = sorted({price.provider for price in prices})
    for site in spec.sites:
        if site.provider and site.provider not in providers:
            known = ", ".join(providers)
            raise SettingsError(
                f"{path}: site {site.name!r}: unknown provider {site.provider!r}.", hint=f"Known: {known}."
            )
    predictor = Predictor(catalogue=catalogue, models=Models(configs))
    asked = [(m.name, m.model) for m in spec.models] + [(t.name, t.model) for t in spec.training]
    shapes = {name: _shape(predictor.models, model, name) for name, model in asked}
    extras: dict[str, Any] = {}
    if spec.training:
        from baseload.policy.plan.training import ways  # noqa: PLC0415  # as above

        progress("timing training")
        extras = {job.name: ways(job, shapes[job.name], spec, catalogue, prices) for job in spec.training}
    confirm = confirming(lengths=lengths, progress=progress) if check else None
    report = search(
        spec, predictor=predictor, prices=prices, shapes=shapes, extras=extras, confirm=confirm, progress=progress
    ).report
    return msgspec.structs.replace(
        report, filled=filled, leaving=leaving(spec, report.answers, book.transfer) if report.feasible else ()
    )


def _book(spec: "PlanSpec", base: Path) -> "Book":
    """The catalogue, with the user's own entries where the specification names a file of them."""
    from baseload.limits.catalogue.book import read_book  # noqa: PLC0415  # as above

    if not spec.accelerators_file:
        return read_book()
    own = base / spec.accelerators_file
    return read_book(_read(own), name=str(own))


def _zones(spec: "PlanSpec", base: Path) -> dict[str, "Zone"]:
    from baseload.limits.carbon import parse_hourly  # noqa: PLC0415  # as above

    return parse_hourly(_read(base / spec.zones_file), name=spec.zones_file) if spec.zones_file else {}


def read_spec(path: Path) -> "PlanSpec":
    """The specification in a TOML file; SettingsError names the file and the key at fault."""
    from baseload.policy.plan.ranges import HINT, check_ranges  # noqa: PLC0415  # as above
    from baseload.policy.plan.spec import PlanSpec  # noqa: PLC0415
    from baseload.wire.toml import parse_toml  # noqa: PLC0415

    spec = parse_toml(_read(path), PlanSpec, name=str(path), hint=HINT)
    check_ranges(msgspec.to_builtins(spec), spec, name=str(path))
    return spec


def with_traces(spec: "PlanSpec", base: Path) -> tuple["PlanSpec", dict[str, list[tuple[int, int]]]]:
    """The specification with the blanks of traffic filled from its traces, and the lengths found there."""
    from baseload.twin.traces import read_trace, shared_of  # noqa: PLC0415  # as above

    lengths: dict[str, list[tuple[int, int]]] = {}
    models = []
    for model in spec.models:
        if model.traffic.trace:
            rows = read_trace(base / model.traffic.trace)
            rows = [row for row in rows if row.model in ("", model.name)]
            lengths[model.name] = [(r.input_tokens, r.output_tokens) for r in rows[:LENGTHS_KEPT]]
            times = [row.at_ns / 1e9 for row in rows]
            traffic = _filled(model.traffic, times, lengths[model.name])
            if not traffic.shared_prefix:
                traffic = msgspec.structs.replace(traffic, shared_prefix=round(shared_of(rows), 3))
            model = msgspec.structs.replace(model, traffic=traffic)
        models.append(model)
    return msgspec.structs.replace(spec, models=tuple(models)), lengths


def _filled(traffic: "Traffic", times_s: list[float], lengths: list[tuple[int, int]]) -> "Traffic":
    if len(times_s) < 2:
        raise DataError(f"{traffic.trace}: a trace needs at least two requests.", hint="Give a longer one.")
    span_s = max(times_s[-1] - times_s[0], 1e-9)
    counts: dict[int, int] = {}
    for at_s in times_s:
        counts[int(at_s // PEAK_S)] = counts.get(int(at_s // PEAK_S), 0) + 1
    mean = len(times_s) / span_s
    rate = traffic.requests_per_s or mean
    peak = max(max(counts.values()) / PEAK_S, mean) * rate / mean
    prompts, outputs = [p for p, _ in lengths], [o for _, o in lengths]
    return msgspec.structs.replace(
        traffic,
        requests_per_s=rate,
        peak_requests_per_s=traffic.peak_requests_per_s or peak,
        prompt_tokens=traffic.prompt_tokens or max(1, round(sum(prompts) / len(prompts))),
        output_tokens=traffic.output_tokens or max(1, round(sum(outputs) / len(outputs))),
        prompt_cv=_cv(prompts),
        output_cv=_cv(outputs),
    )


def _cv(values: list[int]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)) / mean


def with_configs(spec: "PlanSpec", base: Path) -> tuple["PlanSpec", dict[str, dict[str, Any]]]:
    """The specification with each path of a config.json replaced by a name, and the configurations by that name."""
    configs: dict[str, dict[str, Any]] = {}

    def named(item: Any) -> Any:
        if not item.model.endswith(".json"):
            return item
        path = base / item.model
        try:
            configs[f"{item.name} (config)"] = msgspec.json.decode(_read(path), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise DataError(f"{path}: not a JSON object: {error}.", hint="Give the model's config.json.") from None
        return msgspec.structs.replace(item, model=f"{item.name} (config)")

    models, training = tuple(named(m) for m in spec.models), tuple(named(t) for t in spec.training)
    return msgspec.structs.replace(spec, models=models, training=training), configs


def _shape(models: Any, model: str, name: str) -> Any:
    shape, origin = models.find(model)
    if origin != "config":
        raise SettingsError(
            f"Model {name!r}: no shape is known for {model!r}.",
            hint="Give the path of its config.json, or a name of limits/catalogue/models.toml.",
        )
    return shape


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}.", hint=BEGIN) from None


# -- for people -----------------------------------------------------------------------------------------------------


def show(result: "PlanReport", *, every: bool = False) -> None:
    """The report in the terminal; `every` tells of each accelerator that was left out."""
    from baseload.cli.plan_words import day_lines, doubt, job_needs, leaving_lines, no_plan, summary  # noqa: PLC0415  # as above

    if result.conflict is not None:
        say(no_plan(result.conflict), style="bold red")
        for limit in result.conflict.limits:
            say(f"  {limit}")
        say(result.conflict.why)
        if result.conflict.relax:
            say("What would do, smallest change first:")
        for way in result.conflict.relax:
            say(f"  {way}")
        _show_left_out(result, every=every)
        return
    totals = result.totals
    assert totals is not None
    say(f"{result.name}: {summary(totals)}. Ranked by {result.objective}.", style="bold")
    if doubt(result):
        say(doubt(result), style="bold")
    for one in result.answers:
        _show_answer(one)
    for job in result.training:
        say(
            f"\n{job.job}: {job.accelerators:,} × {job.accelerator} ({job.layout}) at {job.site}, {job.tier}: "
            f"{job.days:,.1f} days, ${job.usd:,.0f}, goodput {job.goodput:.1%}, "
            f"a checkpoint every {job.checkpoint_interval_s / 60:.1f} min.",
            style="bold",
        )
        say(f"  Step {job.step_s:.2f} s, {job.mfu:.0%} of peak. {job.binds}")
        say(f"  {job_needs(job)}")
        say(f"  Basis: {job.basis}. {job.note}", style="dim")
        _show_jobs(job.ranked)
    if result.day is not None:
        say("\nBy the hour:", style="bold")
        for said in day_lines(result.day):
            say(f"  {said}")
    if result.sensitivity:
        say("\nIf it is otherwise:")
    for line in result.sensitivity:
        share = "infeasible" if line.usd_share is None else f"{line.usd_share:+.1%} dollars"
        say(f"  {line.what}: {share}{'; then ' + line.changes if line.changes else ', same choice'}")
    for gain in result.tight:
        say(f"  {gain.what} {gain.by}: {gain.effect}")
    for said in (*leaving_lines(result.leaving), *result.filled):
        say(f"  {said}", style="dim")
    _show_left_out(result, every=every)
    say(f"{result.seconds:.1f} s.", style="dim")


def _show_answer(one: "ModelAnswer") -> None:
    say(f"\n{one.model} ({one.shape}); {one.levels}", style="bold")
    for number, choice in enumerate(one.chosen):
        workers = (
            f", {choice.prefill_workers} prefill + {choice.decode_workers} decode" if choice.prefill_workers else ""
        )
        say(
            f"→ {choice.replicas:,} × {choice.accelerator} {choice.layout} {choice.precision} {choice.mode}{workers} "
            f"at {choice.site} ({choice.tier}); batch {choice.max_seqs}, step {choice.max_step_tokens} tokens"
        )
        say(
            f"  ${choice.usd_per_mtok:.3f} per million tokens, ${choice.usd_per_hour:,.2f}/h, "
            f"{choice.tokens_per_joule:.2f} tokens/J, TTFT {choice.ttft_ms:,.0f} ms, TPOT {choice.tpot_ms:.1f} ms"
        )
        if choice.prompt_tokens_per_s:
            tokens = f"{choice.prompt_tokens_per_s:,.0f} prompt or {choice.output_tokens_per_s:,.0f} output tokens/s"
            say(f"  A replica carries {choice.requests_per_s:.3g} requests/s of this mix; for scaling: {tokens}")
        if number < len(one.checks):
            _show_check(one.checks[number])
        basis = choice.basis
        say(
            f"  Basis: times {basis.times}, expected error ±{basis.tpot_expected_error:.0%} TPOT, "
            f"±{basis.ttft_expected_error:.0%} TTFT; price {basis.price}; power: {basis.power}",
            style="dim",
        )
    say(f"  Binds: {one.explained.binds}. {one.explained.why}")
    for gain in one.explained.relax:
        say(f"    {gain.by}: {gain.effect}")
    if one.ranked and one.ranked[0].usd_per_hour and all(_is_part(c, one) for c in one.ranked):
        say("  No single place holds all of it; ranked by what each place holds:", style="dim")
    _show_ranked(one.ranked)
    if len(one.by_tier) > 1:
        tiers = ", ".join(f"{c.tier} ${c.usd_per_mtok:.3f} ({c.accelerator}, {c.site})" for c in one.by_tier)
        say(f"  By total cost per million tokens: {tiers}")
    if one.pays_back:
        say(f"  {one.pays_back}.")
    for line in text_plot(one):
        say(line, style="dim")


def _is_part(choice: "Choice", one: "ModelAnswer") -> bool:
    """Whether a ranked choice serves less than all of the model's traffic."""
    whole = sum(c.requests_per_s * c.replicas * c.used for c in one.chosen)
    return choice.requests_per_s * choice.replicas * choice.used < 0.98 * whole


def _show_check(check: "Check") -> None:
    verdict = "keeps the levels" if check.holds else "does NOT keep the levels"
    raised = f" with {check.raised:,} more replica{'' if check.raised == 1 else 's'}" if check.raised else ""
    say(
        f"  Twin ({check.requests:,} requests, {check.replicas:,} replica{'' if check.replicas == 1 else 's'}): "
        f"TTFT {check.twin_ttft_ms:,.0f} ms ({check.gap_ttft:+.0%}), TPOT {check.twin_tpot_ms:.1f} ms "
        f"({check.gap_tpot:+.0%}); "
        f"{verdict}{raised}; {check.attainment:.1%} of requests keep them each for itself. {check.note}"
    )


def _show_ranked(ranked: tuple["Choice", ...]) -> None:
    columns = (
        "rank",
        "accelerator",
        "site",
        "tier",
        "replicas",
        "layout",
        "$/Mtok",
        "tok/J",
        "TTFT ms",
        "TPOT ms",
        "batch",
        "binds",
    )
    rows = [
        (
            str(i),
            c.accelerator,
            c.site,
            c.tier,
            f"{c.replicas:,}",
            f"{c.layout} {c.precision} {'disagg' if c.prefill_workers else ''}".strip(),
            f"{c.usd_per_mtok:.3f}",
            f"{c.tokens_per_joule:.2f}" if c.tokens_per_joule else "–",
            f"{c.ttft_ms:,.0f}",
            f"{c.tpot_ms:.1f}",
            str(c.max_seqs),
            c.binds,
        )
        for i, c in enumerate(ranked, 1)
    ]
    print_table(columns, rows, right=("rank", "replicas", "$/Mtok", "tok/J", "TTFT ms", "TPOT ms", "batch"))


def _show_jobs(ranked: tuple[Any, ...]) -> None:
    columns = ("accelerators", "kind", "site", "tier", "layout", "days", "$", "goodput", "of peak")
    rows = [
        (f"{j.accelerators:,}", j.accelerator, j.site, j.tier, j.layout, f"{j.days:,.1f}", f"{j.usd:,.0f}",
         f"{j.goodput:.1%}", f"{j.mfu:.0%}")
        for j in ranked
    ]  # fmt: skip
    print_table(columns, rows, right=("accelerators", "days", "$", "goodput", "of peak"))


def _show_left_out(result: "PlanReport", *, every: bool) -> None:
    from baseload.cli.plan_words import by_reason, left_out  # noqa: PLC0415  # as above

    rows = left_out(result)
    if every:
        for one in result.not_judged:
            say(f"  left out: {one.accelerator} ({one.model or one.site}): {one.why}", style="dim")
    elif rows:
        say("Left out (--all names each):", style="dim")
        for line in by_reason(rows):
            say(f"  {line}", style="dim")


def text_plot(one: "ModelAnswer", *, width: int = 56, height: int = 10) -> list[str]:
    """A small scatter: dollars per million tokens to the right, time of an answer upwards; # is on the front."""
    points = [(usd, ms) for usd, ms, _ in one.cloud if usd > 0]
    front = [(c.usd_per_mtok, c.answer_ms) for c in one.pareto]
    if len(points) < 2:
        return []
    xs, ys = [math.log(x) for x, _ in points + front], [math.log(y) for _, y in points + front]
    span_x, span_y = max(max(xs) - min(xs), 1e-9), max(max(ys) - min(ys), 1e-9)
    grid = [[" "] * width for _ in range(height)]
    for mark, some in (("·", points), ("#", front)):
        for x, y in some:
            column = round((math.log(x) - min(xs)) / span_x * (width - 1))
            row = round((max(ys) - math.log(y)) / span_y * (height - 1))
            grid[row][column] = mark
    top, low = math.exp(max(ys)), math.exp(min(ys))
    lines = [f"  {'answer ms':>10}   (# Pareto front, · others)"]
    for i, cells in enumerate(grid):
        label = f"{top:,.0f}" if i == 0 else f"{low:,.0f}" if i == height - 1 else ""
        lines.append(f"  {label:>10} │{''.join(cells).rstrip()}")
    lines.append(f"  {'':>10} └{'─' * width} $/Mtok")
    lines.append(f"  {'':>10}  {math.exp(min(xs)):<.3f}{math.exp(max(xs)):>{width - 5}.3f}")
    return lines
