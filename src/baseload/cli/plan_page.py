"""A plan as one self-contained HTML page: the answer, its check, the Pareto plot, costs by tier, sensitivity."""

from collections.abc import Sequence
from html import escape

from baseload.cli.plan_plot import bars_svg, pareto_svg
from baseload.cli.plan_words import (
    by_reason,
    choice_line,
    day_lines,
    day_rows,
    doubt,
    job_needs,
    leaving_lines,
    many,
    no_plan,
    power,
    summary,
)
from baseload.policy.plan.answer import Check, Choice, ModelAnswer, PlanReport

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#57606a;--line:#d0d7de;--paper:#fff;--front:#0969da;--other:#8c959f;
--good:#1a7f37;--bad:#cf222e}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e6edf3;--dim:#9198a1;--line:#30363d;--paper:#0d1117;
--front:#4493f8;
--other:#767e88;--good:#3fb950;--bad:#f85149}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:72rem;padding:1.5rem 1rem 3rem;color:var(--ink);
background:var(--paper);overflow-wrap:anywhere}
h1{font-size:1.6rem;margin:0 0 .2rem}
h2{font-size:1.2rem;margin:2.2rem 0 .4rem;border-top:1px solid var(--line);padding-top:1rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
table{border-collapse:collapse;font-size:.86rem;min-width:60%}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap;
overflow-wrap:normal}
th:first-child,td:first-child{position:sticky;left:0;background:var(--paper);padding-left:0}
th:first-child,td:first-child,td.l,th.l{text-align:left}
td.w{white-space:normal;min-width:16rem;text-align:left}.wrap{overflow-x:auto;max-width:100%}
.plot{overflow-x:auto}.plot svg{width:100%;min-width:34rem;height:auto;display:block}
.dim{color:var(--dim)}.good{color:var(--good)}.bad{color:var(--bad)}.big{font-size:1.1rem}details{margin:.6rem 0}
summary{cursor:pointer}svg{max-width:100%;height:auto}circle.front,rect.front{fill:var(--front)}circle.other{fill:var(--other)}
.joined{fill:none;stroke:var(--front);stroke-width:1.5}.grid{fill:none;stroke:var(--line)}
"""


def page(result: PlanReport) -> str:
    """The whole page."""
    body = [f"<h1>{escape(result.name)}</h1>"]
    if result.conflict is not None:
        body += [
            f'<p class="big bad">{escape(no_plan(result.conflict))}</p>',
            _list(result.conflict.limits) if result.conflict.limits else "",
            f"<p>{escape(result.conflict.why)}</p>",
        ]
        if result.conflict.relax:
            body += ["<p>What would do, smallest change first:</p>", _list(result.conflict.relax)]
    if result.totals is not None:
        body.append(
            f'<p class="big">{escape(summary(result.totals))}</p>'
            f'<p class="dim">Ranked by {escape(result.objective)}. Modelled figures; each says what it rests on.</p>'
        )
        body += [f"<p><b>{escape(doubt(result))}</b></p>"] if doubt(result) else []
        if len(result.answers) > 1:
            body.append(_overview(result))
    body += [_answer(one) for one in result.answers]
    body += [_training(result)] if result.training else []
    if result.day is not None:
        columns, hours = day_rows(result.day)
        body += ["<h2>By the hour (UTC)</h2>", _list(day_lines(result.day)), "<p>Requests per second:</p>"]
        body.append(table(columns, hours, left=2))
    beside = [*leaving_lines(result.leaving), *result.filled]
    body += ["<h2>Beside</h2>", _list(beside)] if beside else []
    body += [_sensitivity(result)] if result.sensitivity else []
    if result.not_judged:
        rows = [(n.accelerator, n.model or "all", n.site, n.why) for n in result.not_judged]
        every = table(("accelerator", "model", "site", "why"), rows, left=4)
        body += [
            "<h2>Left out</h2>",
            _list(by_reason(result.not_judged)),
            f"<details><summary>Every one ({len(rows)})</summary>{every}</details>",
        ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(result.name)}: plan</title><style>{STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, wide: int = -1) -> str:
    """An HTML table that scrolls by itself; the first `left` columns are aligned to the left, `wide` wraps."""

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = [
            " class=w" if i == wide and tag == "td" else " class=l" if i < left or i == wide else ""
            for i in range(len(row))
        ]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wrap"><table><tr>{cells("th", columns)}</tr>{lines}</table></div>'


def _answer(one: ModelAnswer) -> str:
    parts = [f'<h2>{escape(one.model)}</h2><p class="dim">{escape(one.shape)}; {escape(one.levels)}</p>']
    for number, choice in enumerate(one.chosen):
        parts.append(_choice(choice))
        if number < len(one.checks):
            parts.append(_check(one.checks[number]))
    relax = [f"{g.by}: {g.effect}" for g in one.explained.relax]
    parts += [
        f"<p><b>Binds: {escape(one.explained.binds)}.</b> {escape(one.explained.why)}</p>",
        "<h3>What would relax it</h3>",
        _list(relax),
        "<h3>Pareto: dollars against the time of an answer</h3>",
        f'<div class="plot">{pareto_svg(one)}</div>',
        "<h3>Ranked</h3>",
        _ranked(one.ranked),
    ]
    if len(one.by_tier) > 1:
        bars = [(f"{c.tier}: {c.accelerator} at {c.site}", c.usd_per_mtok) for c in one.by_tier]
        parts += ["<h3>By tier: total cost, $ per million tokens</h3>", f'<div class="plot">{bars_svg(bars)}</div>']
    if one.pays_back:
        parts.append(f"<p>{escape(one.pays_back)}.</p>")
    return "".join(parts)


def _overview(result: PlanReport) -> str:
    rows = []
    for one in result.answers:
        for number, c in enumerate(one.chosen):
            holds = "not run" if number >= len(one.checks) else "yes" if one.checks[number].holds else "NO"
            rows.append(
                (one.model, choice_line(c), f"{c.accelerators:,}", f"${c.usd_per_mtok:.3g}",
                 f"${c.usd_per_month:,.0f}", power(c.peak_kw / 1e3) if c.peak_kw else "–", holds)
            )  # fmt: skip
    return table(
        ("model", "choice", "accelerators", "per Mtok", "a month", "peak", "twin keeps levels"), rows, left=2
    )


def _choice(c: Choice) -> str:
    carbon = f" · {c.kg_co2_per_month:,.0f} kg CO2 a month" if c.kg_co2_per_month is not None else ""
    basis = c.basis
    return (
        f'<p class="big">{escape(choice_line(c))}</p>'
        f"<p>Batch {c.max_seqs} sequences, {c.max_step_tokens:,} tokens a step · ${c.usd_per_mtok:.3g} per million "
        f"tokens · ${c.usd_per_month:,.0f} a month · {c.tokens_per_joule:.2f} tokens per joule · TTFT "
        f"{c.ttft_ms:,.0f} ms · TPOT {c.tpot_ms:.1f} ms{carbon}</p>"
        f'<p class="dim">Times {escape(basis.times)}, expected error ±{basis.tpot_expected_error:.0%} TPOT, '
        f"±{basis.ttft_expected_error:.0%} TTFT. Price: {escape(basis.price)}. Power: {escape(basis.power)}. "
        f"{escape(basis.note)}</p>"
    )


def _check(check: Check) -> str:
    rows = [
        ("TTFT, ms", f"{check.formula_ttft_ms:,.0f}", f"{check.twin_ttft_ms:,.0f}", f"{check.gap_ttft:+.0%}"),
        ("TPOT, ms", f"{check.formula_tpot_ms:.1f}", f"{check.twin_tpot_ms:.1f}", f"{check.gap_tpot:+.0%}"),
    ]
    verdict = '<b class="good">keeps the levels</b>' if check.holds else '<b class="bad">does not keep the levels</b>'
    each = f"; {check.attainment:.1%} of requests keep them each for itself"
    if not check.levels and check.holds:
        verdict, each = "there is no level to keep", ""
    raised = f", with {many(check.raised, 'replica')} more than the formula alone" if check.raised else ""
    replicas = "1 replica" if check.replicas == 1 else f"{check.replicas:,} replicas"
    return (
        f"<p>Twin run of {check.requests:,} requests on {replicas}: {verdict}{raised}{each}. "
        f"{escape(check.note)}</p>" + table(("", "formula", "twin", "gap"), rows)
    )


def _ranked(ranked: Sequence[Choice]) -> str:
    columns = (
        "accelerator",
        "site",
        "tier",
        "layout",
        "replicas",
        "$/Mtok",
        "$/month",
        "tok/J",
        "TTFT ms",
        "TPOT ms",
        "batch",
    )
    rows = [
        (c.accelerator, c.site, c.tier, f"{c.layout} {c.precision} {c.mode}", f"{c.replicas:,}",
         f"{c.usd_per_mtok:.3f}", f"{c.usd_per_month:,.0f}",
         _or_dash(c.tokens_per_joule), f"{c.ttft_ms:,.0f}", f"{c.tpot_ms:.1f}", str(c.max_seqs), c.binds)
        for c in ranked
    ]  # fmt: skip
    return table([*columns, "binds"], rows, left=4)


def _or_dash(value: float) -> str:
    return f"{value:.2f}" if value else "–"


def _training(result: PlanReport) -> str:
    parts = ["<h2>Training</h2>"]
    columns = ("accelerator", "site", "tier", "layout", "count", "days", "$", "goodput", "of peak", "checkpoint, min")
    for job in result.training:
        rows = [
            (j.accelerator, j.site, j.tier, j.layout, f"{j.accelerators:,}", f"{j.days:,.1f}", f"{j.usd:,.0f}",
             f"{j.goodput:.1%}", f"{j.mfu:.0%}", f"{j.checkpoint_interval_s / 60:.1f}")
            for j in (job, *job.ranked)
        ]  # fmt: skip
        note = f"{escape(job.binds)} {escape(job_needs(job))} Basis: {escape(job.basis)}. {escape(job.note)}"
        parts += [f"<h3>{escape(job.job)}</h3><p>{note}</p>", table(columns, rows, left=4)]
    return "".join(parts)


def _sensitivity(result: PlanReport) -> str:
    rows = [
        (s.what, "infeasible" if s.usd_share is None else f"{s.usd_share:+.1%}", s.changes or "same choice")
        for s in result.sensitivity
    ]
    rows += [(f"{g.what} {g.by}", f"{g.usd_share:+.1%}", g.effect) for g in result.tight]
    return "<h2>If it is otherwise</h2>" + table(("assumption", "dollars", "choice"), rows, wide=2)


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
