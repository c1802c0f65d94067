"""A plan's report in the terminal."""

import math

from baseload.cli.plan_words import by_reason, day_lines, doubt, job_needs, leaving_lines, left_out, no_plan, summary
from baseload.cli.screen import print_table, say
from baseload.policy.plan.answer import Check, Choice, ModelAnswer, PlanReport, TrainingAnswer


def show(result: PlanReport, *, every: bool = False) -> None:
    """The report in the terminal; `every` tells of each accelerator that was left out."""
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


def _show_answer(one: ModelAnswer) -> None:
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


def _is_part(choice: Choice, one: ModelAnswer) -> bool:
    """Whether a ranked choice serves less than all of the model's traffic."""
    whole = sum(c.requests_per_s * c.replicas * c.used for c in one.chosen)
    return choice.requests_per_s * choice.replicas * choice.used < 0.98 * whole


def _show_check(check: Check) -> None:
    verdict = "keeps the levels" if check.holds else "does NOT keep the levels"
    each = f"; {check.attainment:.1%} of requests keep them each for itself"
    if not check.levels and check.holds:
        verdict, each = "no level to keep", ""
    raised = f" with {check.raised:,} more replica{'' if check.raised == 1 else 's'}" if check.raised else ""
    say(
        f"  Twin ({check.requests:,} requests, {check.replicas:,} replica{'' if check.replicas == 1 else 's'}): "
        f"TTFT {check.twin_ttft_ms:,.0f} ms ({check.gap_ttft:+.0%}), TPOT {check.twin_tpot_ms:.1f} ms "
        f"({check.gap_tpot:+.0%}); {verdict}{raised}{each}. {check.note}".rstrip()
    )


def _show_ranked(ranked: tuple[Choice, ...]) -> None:
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


def _show_jobs(ranked: tuple[TrainingAnswer, ...]) -> None:
    columns = ("accelerators", "kind", "site", "tier", "layout", "days", "$", "goodput", "of peak")
    rows = [
        (f"{j.accelerators:,}", j.accelerator, j.site, j.tier, j.layout, f"{j.days:,.1f}", f"{j.usd:,.0f}",
         f"{j.goodput:.1%}", f"{j.mfu:.0%}")
        for j in ranked
    ]  # fmt: skip
    print_table(columns, rows, right=("accelerators", "days", "$", "goodput", "of peak"))


def _show_left_out(result: PlanReport, *, every: bool) -> None:
    rows = left_out(result)
    if every:
        for one in result.not_judged:
            say(f"  left out: {one.accelerator} ({one.model or one.site}): {one.why}", style="dim")
    elif rows:
        say("Left out (--all names each):", style="dim")
        for line in by_reason(rows):
            say(f"  {line}", style="dim")


def text_plot(one: ModelAnswer, *, width: int = 56, height: int = 10) -> list[str]:
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
