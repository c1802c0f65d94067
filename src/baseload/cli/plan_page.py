"""A plan as one self-contained HTML page: the answer, its check, the Pareto plot, costs by tier, sensitivity."""

import math
from collections.abc import Sequence
from html import escape

from baseload.policy.plan.answer import Check, Choice, ModelAnswer, PlanReport

WIDTH, HEIGHT, EDGE = 720, 380, 56
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem;color:#1b1f24;background:#fff}
h1{font-size:1.6rem;margin:0 0 .2rem}
h2{font-size:1.2rem;margin:2.2rem 0 .4rem;border-top:1px solid #d0d7de;padding-top:1rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}table{border-collapse:collapse;width:100%;font-size:.86rem}
th,td{padding:.25rem .5rem;border-bottom:1px solid #e5e9ee;text-align:right;white-space:nowrap}
th:first-child,td:first-child,td.l,th.l{text-align:left}.wrap{overflow-x:auto}.dim{color:#57606a}.good{color:#1a7f37}
.bad{color:#cf222e}svg{max-width:100%;height:auto}.big{font-size:1.1rem}
@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}th,td{border-color:#30363d}
h2{border-color:#30363d}.dim{color:#9198a1}svg text{fill:#e6edf3}}
"""


def page(result: PlanReport) -> str:
    """The whole page."""
    body = [f"<h1>{escape(result.name)}</h1>"]
    if result.conflict is not None:
        body += [
            '<p class="big bad">No plan keeps all limits. These conflict:</p>',
            _list(result.conflict.limits),
            f"<p>{escape(result.conflict.why)}</p>",
        ]
        if result.conflict.relax:
            body += ["<p>What would do, smallest change first:</p>", _list(result.conflict.relax)]
    if result.totals is not None:
        t = result.totals
        carbon = f", {t.tonnes_co2_per_month:,.1f} t CO2 a month" if t.tonnes_co2_per_month is not None else ""
        body.append(
            f'<p class="big">${t.usd_per_month:,.0f} a month to serve, ${t.training_usd:,.0f} to train · '
            f"{t.accelerators:,} accelerator{'' if t.accelerators == 1 else 's'} · "
            f"{t.peak_mw:,.3f} MW at the peak, {t.mean_mw:,.3f} MW on average{carbon}</p>"
            f'<p class="dim">Ranked by {escape(result.objective)}. Modelled figures; each says what it rests on.</p>'
        )
    body += [_answer(one) for one in result.answers]
    body += [_training(result)] if result.training else []
    body += [_sensitivity(result)] if result.sensitivity else []
    if result.not_judged:
        rows = [(n.accelerator, n.model or "all", n.site, n.why) for n in result.not_judged]
        body += ["<h2>Left out</h2>", table(("accelerator", "model", "site", "why"), rows, left=4)]
    head = f'<meta charset="utf-8"><title>{escape(result.name)}: plan</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """An HTML table; the first `left` columns are aligned to the left."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=l' if i < left else ''}>{escape(cell)}</{tag}>" for i, cell in enumerate(row))

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
        pareto_svg(one),
        "<h3>Ranked</h3>",
        _ranked(one.ranked),
    ]
    if len(one.by_tier) > 1:
        bars = [(f"{c.tier}: {c.accelerator} at {c.site}", c.usd_per_mtok) for c in one.by_tier]
        parts += ["<h3>Cloud, owned, edge: total cost, $ per million tokens</h3>", bars_svg(bars)]
    return "".join(parts)


def _choice(c: Choice) -> str:
    pools = f", {c.prefill_workers} prefill + {c.decode_workers} decode workers each" if c.prefill_workers else ""
    carbon = f" · {c.kg_co2_per_month:,.0f} kg CO2 a month" if c.kg_co2_per_month is not None else ""
    basis = c.basis
    return (
        f'<p class="big">{c.replicas:,} × {escape(c.accelerator)} {escape(c.layout)} {escape(c.precision)} '
        f"{escape(c.mode)}{pools} at {escape(c.site)} ({escape(c.tier)})</p>"
        f"<p>Batch {c.max_seqs} sequences, {c.max_step_tokens:,} tokens a step · ${c.usd_per_mtok:.3f} per million "
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
    raised = f", {check.raised} replicas added because the twin asked for them" if check.raised else ""
    replicas = "1 replica" if check.replicas == 1 else f"{check.replicas:,} replicas"
    return (
        f"<p>Twin run of {check.requests:,} requests on {replicas}: {check.attainment:.1%} of requests "
        f"within the levels, {verdict}{raised}. {escape(check.note)}</p>"
        + table(("", "formula", "twin", "gap"), rows)
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
        note = f"{escape(job.binds)} Basis: {escape(job.basis)}. {escape(job.note)}"
        parts += [f"<h3>{escape(job.job)}</h3><p>{note}</p>", table(columns, rows, left=4)]
    return "".join(parts)


def _sensitivity(result: PlanReport) -> str:
    rows = [
        (s.what, "infeasible" if s.usd_share is None else f"{s.usd_share:+.1%}", s.changes or "same choice")
        for s in result.sensitivity
    ]
    rows += [(f"{g.what} {g.by}", f"{g.usd_share:+.1%}", g.effect) for g in result.tight]
    return "<h2>If it is otherwise</h2>" + table(("assumption", "dollars", "choice"), rows)


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def pareto_svg(one: ModelAnswer) -> str:
    """Dollars per million tokens against milliseconds of an answer, both logarithmic; the best are joined."""
    points = [(usd, ms, name) for usd, ms, name in one.cloud if usd > 0 and ms > 0]
    front = sorted((c.usd_per_mtok, c.answer_ms, c.accelerator) for c in one.pareto)
    if not points:
        return ""
    xs, ys = [math.log(p[0]) for p in points + front], [math.log(p[1]) for p in points + front]
    x0, x1, y0, y1 = min(xs) - 0.1, max(xs) + 0.1, min(ys) - 0.1, max(ys) + 0.1

    def at(usd: float, ms: float) -> tuple[float, float]:
        x = EDGE + (math.log(usd) - x0) / (x1 - x0) * (WIDTH - EDGE - 90)
        return x, HEIGHT - EDGE - (math.log(ms) - y0) / (y1 - y0) * (HEIGHT - 2 * EDGE)

    parts = []
    for usd, ms, name in points:
        x, y = at(usd, ms)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#8c959f"/>')
        parts.append(f'<text x="{x + 6:.1f}" y="{y + 4:.1f}" font-size="10" opacity=".75">{escape(name)}</text>')
    # The front is one of three measures (tokens per joule too): only what nothing drawn beats is joined.
    joined = [
        (usd, ms)
        for usd, ms, _ in front
        if not any(u <= usd and m <= ms and (u, m) != (usd, ms) for u, m, _ in front)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(usd, ms) for usd, ms in joined))
    parts.append(f'<polyline points="{path}" fill="none" stroke="#0969da" stroke-width="1.5"/>')
    for usd, ms, name in front:
        x, y = at(usd, ms)
        title = f"<title>{escape(name)}: ${usd:.3f}/Mtok, {ms:,.0f} ms</title>"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#0969da">{title}</circle>')
    for share in (0.0, 0.5, 1.0):
        usd, ms = math.exp(x0 + share * (x1 - x0)), math.exp(y0 + share * (y1 - y0))
        x, _ = at(usd, math.exp(y0))
        _, y = at(math.exp(x0), ms)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - EDGE + 18}" font-size="11" text-anchor="middle">${usd:.3f}</text>'
        )
        parts.append(f'<text x="{EDGE - 6}" y="{y + 4:.1f}" font-size="11" text-anchor="end">{ms:,.0f}</text>')
    parts.append(
        f'<path d="M{EDGE} {EDGE / 2}V{HEIGHT - EDGE}H{WIDTH - 80}" fill="none" stroke="#8c959f"/>'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" font-size="12" text-anchor="middle">$ per million tokens</text>'
        f'<text x="12" y="{EDGE / 2}" font-size="12">answer, ms</text>'
    )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" fill="currentColor">{"".join(parts)}</svg>'


def bars_svg(bars: Sequence[tuple[str, float]]) -> str:
    """Horizontal bars with their values."""
    most = max(value for _, value in bars) or 1.0
    parts = []
    for i, (label, value) in enumerate(bars):
        y = 6 + 30 * i
        width = 320 * value / most
        parts.append(
            f'<text x="0" y="{y + 14}" font-size="12">{escape(label)}</text>'
            f'<rect x="330" y="{y}" width="{width:.1f}" height="18" fill="#0969da"/>'
            f'<text x="{336 + width:.1f}" y="{y + 14}" font-size="12">{value:.3f}</text>'
        )
    return f'<svg viewBox="0 0 {WIDTH} {12 + 30 * len(bars)}" role="img" fill="currentColor">{"".join(parts)}</svg>'
