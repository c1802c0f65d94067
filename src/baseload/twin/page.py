"""A run, or two side by side, as one self-contained HTML page: figures, charts, faults, decisions with reasons."""

from collections.abc import Callable, Sequence
from html import escape

from msgspec import Struct

from baseload.domain.work import Decision
from baseload.twin.charts import Line, Mark, line_chart, number, strip, took_words, unit_of
from baseload.twin.cluster.report import ClusterReport
from baseload.twin.page_style import SCRIPT, STYLE
from baseload.twin.report import SimulateReport
from baseload.twin.tally import FaultNote

Report = SimulateReport | ClusterReport
Card = tuple[str, str, str]  # name, figure, unit or remark
ROWS = 60  # decisions shown
_OF_BOTH = {  # units that hold of two runs alike, where those of one name its own numbers
    "Answered": "requests",
    "Jobs done": "jobs",
    "Preempted or stopped": "times, by the scheduler",
}
WATTS = ((1.0, "W"), (1e3, "kW"), (1e6, "MW"), (1e9, "GW"))
KWH = ((1e-3, "Wh"), (1.0, "kWh"), (1e3, "MWh"), (1e6, "GWh"))
GRAMS = ((1.0, "g CO₂"), (1e3, "kg CO₂"), (1e6, "t CO₂"))


def report_html(run: Report) -> str:
    """The page of one run."""
    is_fleet = isinstance(run, ClusterReport)
    charts = _fleet_charts([run]) if isinstance(run, ClusterReport) else _request_charts([run])
    end_s = run.hours * 3600 if isinstance(run, ClusterReport) else run.virtual_s
    body = [_cards(_cards_of(run)), *(_section(title, figures) for title, figures in charts)]
    body.append(_section("Faults and recoveries", [_fault_strip(run.faults, end_s), _fault_table(run)]))
    if isinstance(run, ClusterReport):
        body.append(_section("Jobs and services", [_waits_table(run), _services_table(run)], wide=True))
    body.append(_section("Decisions, with their reasons", [_decision_table(run, end_s)], wide=True))
    if run.failure is not None:
        body.insert(
            0, f'<p class="broken">{escape(run.failure.message)}<br><code>{escape(run.failure.command)}</code></p>'
        )
    kind = "Fleet simulation" if is_fleet else "Simulation"
    return _page(f"{kind}: {run.name or 'unnamed'}", _foot(run), body)


def compare_html(a: Report, b: Report, *, names: tuple[str, str] = ("", "")) -> str:
    """Two runs of one kind side by side: figures with their differences, and their lines in the same charts."""
    assert isinstance(a, ClusterReport) == isinstance(b, ClusterReport), "a fleet is compared with a fleet"
    called = (names[0] or a.name or "A", names[1] or b.name or "B")
    if called[0] == called[1]:
        called = (f"{called[0]} (A)", f"{called[1]} (B)")
    rows = compare_rows(a, b)
    head = ("", "unit", *called, "B against A")
    body = [_section("Side by side", [_table(head, rows, right=(2, 3, 4))], wide=True)]
    if isinstance(a, ClusterReport) and isinstance(b, ClusterReport):
        charts = _fleet_charts([a, b], called)
    else:
        assert isinstance(a, SimulateReport)
        assert isinstance(b, SimulateReport)
        charts = _request_charts([a, b], called)
    body += [_section(title, figures) for title, figures in charts]
    body.append(_section("Faults", [_fault_counts(a, b, called)], wide=True))
    return _page(f"{called[0]} against {called[1]}", f"{_foot(a)}<br>{_foot(b)}", body)


def compare_rows(a: Report, b: Report) -> list[tuple[str, str, str, str, str]]:
    """(name, unit, of a, of b, difference) of each figure at the top."""
    rows = []
    others = {name: figure for name, figure, _ in _cards_of(b, like=a)}
    for name, figure, unit in _cards_of(a):
        unit = _OF_BOTH.get(name, unit)
        other = others.get(name, "0")
        rows.append((name, unit, figure, other, _difference(figure, other)))
    return rows


# -- the figures at the top ---------------------------------------------------------------------------------------


def _cards_of(run: Report, *, like: Report | None = None) -> list[Card]:
    """The figures, in units that suit `like`, or the run itself."""
    like = like or run
    if isinstance(run, ClusterReport):
        assert isinstance(like, ClusterReport)
        energy, energy_unit = unit_of(1e3 * like.energy_mwh, KWH)
        carbon, carbon_unit = unit_of(1e6 * like.carbon_t, GRAMS)
        return [
            ("Utilisation", f"{100 * run.utilisation:.1f}", "% of accelerator-hours held"),
            ("Goodput of jobs", f"{100 * run.goodput:.1f}", "% of held time that is saved work"),
            ("Jobs done", f"{run.done:,}", f"of {run.jobs:,} submitted"),
            ("Cost", number(run.usd), "US$"),
            ("Electricity", number(run.electricity_usd), "US$ of that"),
            ("Energy", number(1e3 * run.energy_mwh * energy), f"{energy_unit} at the meters"),
            ("Carbon", number(1e6 * run.carbon_t * carbon), carbon_unit),
            ("Lost to stops", number(run.lost_accelerator_hours), "accelerator-hours"),
            ("Preempted or stopped", f"{run.stops:,}", f"{run.failures:,} failed by themselves"),
            ("Faults", f"{sum(run.faults_by_kind.values()):,}", "of all kinds"),
        ]
    assert isinstance(like, SimulateReport)
    energy, energy_unit = unit_of(like.facility_kwh, KWH)
    carbon, carbon_unit = unit_of(like.carbon_g, GRAMS)
    ok = run.outcomes.get("ok", 0)
    cards = [
        ("Within service level", f"{100 * run.attainment:.1f}", _slo_words(run)),
        ("Answered", f"{ok:,}", f"of {run.requests:,} requests"),
        ("First token, p50", f"{run.ttft.p50_ms:,.0f}", "ms"),
        ("First token, p99", f"{run.ttft.p99_ms:,.0f}", "ms"),
        ("Between tokens, p50", f"{run.tpot.p50_ms:,.1f}", "ms"),
        ("Between tokens, p99", f"{run.tpot.p99_ms:,.1f}", "ms"),
        ("Cost", number(run.usd), "US$"),
        ("Cost per 1,000 served well", number(run.usd_per_1000_well_served), "US$"),
        ("Energy", number(run.facility_kwh * energy), f"{energy_unit} at the meter"),
        ("Tokens out", number(run.tokens_per_s), "per second"),
        ("Replica time used", f"{_used(run):.1f}", "% of replica seconds"),
        ("Cold starts", f"{run.cold_starts:,}", "replicas started"),
    ]
    if run.carbon_g or like.carbon_g:
        cards.append(("Carbon", number(run.carbon_g * carbon), carbon_unit))
    return cards


def _used(run: SimulateReport) -> float:
    return 100 * run.useful_s / max(1e-9, run.useful_s + run.idle_s + run.cold_s)


def _slo_words(run: SimulateReport) -> str:
    slo = run.slo
    asked = [(slo.ttft_ms, "first token"), (slo.tpot_ms, "between tokens"), (slo.e2e_ms, "whole answer")]
    return "%: " + (", ".join(f"{name} ≤ {limit:,.0f} ms" for limit, name in asked if limit) or "answered")


# -- charts -------------------------------------------------------------------------------------------------------


def _request_charts(runs: Sequence[SimulateReport], names: Sequence[str] = ("",)) -> list[tuple[str, list[str]]]:
    bins, samples = [run.series for run in runs], [_instants(run) for run in runs]
    power, power_unit = unit_of(max((s.power_w for table in samples for s in table), default=0.0), WATTS)
    carbon, carbon_unit = unit_of(max((s.carbon for table in samples for s in table), default=0.0), GRAMS)
    end_s = max(run.virtual_s for run in runs)

    def over_bins(title: str, unit: str, *columns: tuple[str, str], scale: float = 1.0, log: bool = False) -> str:
        return _chart(title, unit, bins, names, columns, end_s=end_s, scale=scale, log=log)

    def over_samples(title: str, unit: str, *columns: tuple[str, str], scale: float = 1.0) -> str:
        marks = [Mark(f.at_s, f.at_s, f"{f.kind}: {f.subject}") for f in runs[0].faults[:200]]
        marks = marks if len(runs) == 1 else []
        return _chart(title, unit, samples, names, columns, end_s=end_s, scale=scale, marks=marks)

    return [
        (
            "Service",
            [
                over_bins(
                    "Within service level", "% of requests asked for at that time", ("attained", ""), scale=100
                ),
                over_bins(
                    "Requests", "per stretch of time", ("asked", "asked"), ("ok", "answered"), ("unserved", "not")
                ),
                over_bins("Time to first token", "ms", ("ttft_p50_ms", "p50"), ("ttft_p99_ms", "p99"), log=True),
                over_bins("Time between tokens", "ms", ("tpot_p50_ms", "p50"), ("tpot_p99_ms", "p99")),
                over_bins("Whole answer", "ms", ("e2e_p99_ms", "p99")),
            ],
        ),
        (
            "Fleet",
            [
                over_samples("Replicas", "", ("ready", "ready"), ("busy", "busy"), ("starting", "starting")),
                over_samples("Requests in the system", "", ("in_flight", "in replicas"), ("queued", "queued")),
                over_samples("Utilisation", "% of ready replicas that compute", ("used", ""), scale=100),
                over_samples("Power of the replicas", power_unit, ("power_w", ""), scale=power),
                over_samples("Cost of the replicas", "US$ per hour", ("usd_per_hour", "")),
                *(
                    [over_samples("Carbon", f"{carbon_unit} per hour", ("carbon", ""), scale=carbon)]
                    if any(run.carbon_g for run in runs)
                    else []
                ),
            ],
        ),
    ]


class _Instant(Struct, frozen=True):
    """A sample of the fleet with what follows from it."""

    at_s: float
    queued: int
    in_flight: int
    starting: int
    ready: int
    busy: int
    power_w: float
    usd_per_hour: float
    used: float  # share of the ready replicas; -1: none is ready
    carbon: float  # g an hour, at the meter


def _instants(run: SimulateReport) -> list[_Instant]:
    grams, made = run.energy.carbon_g_per_kwh, []
    for s in run.timeline:
        now = grams[int(s.at_s // 3600) % len(grams)] if grams else 0.0
        used = s.busy / s.ready if s.ready else -1.0
        carbon = s.power_w / 1000.0 * run.energy.pue * now
        made.append(
            _Instant(
                s.at_s, s.queued, s.in_flight, s.starting, s.ready, s.busy, s.power_w, s.usd_per_hour, used, carbon
            )
        )
    return made


def _fleet_charts(runs: Sequence[ClusterReport], names: Sequence[str] = ("",)) -> list[tuple[str, list[str]]]:
    samples = [run.samples for run in runs]
    power, power_unit = unit_of(max((s.power_w for table in samples for s in table), default=0.0), WATTS)
    carbon, carbon_unit = unit_of(max((s.carbon_g_per_hour for table in samples for s in table), default=0.0), GRAMS)
    end_s = max(run.hours for run in runs) * 3600

    def over(title: str, unit: str, *columns: tuple[str, str], scale: float = 1.0) -> str:
        return _chart(title, unit, samples, names, columns, end_s=end_s, scale=scale)

    up = (("accelerators_up", "up"), ("busy", "at work"), ("serving", "serving"))
    return [
        (
            "Work",
            [
                over("Accelerators", "", *up),
                over("Accelerators asked for and not there", "", ("pending_accelerators", "")),
                over("Jobs", "", ("running_jobs", "running"), ("pending_jobs", "waiting")),
                over("Load of the services", "requests per second", ("rate_per_s", "")),
            ],
        ),
        (
            "Money, power and carbon",
            [
                over("Power at the meters", power_unit, ("power_w", ""), scale=power),
                over("Cost", "US$ per hour", ("usd_per_hour", "")),
                over("Carbon", f"{carbon_unit} per hour", ("carbon_g_per_hour", ""), scale=carbon),
            ],
        ),
    ]


def _chart(
    title: str,
    unit: str,
    tables: Sequence[Sequence[object]],
    names: Sequence[str],
    columns: Sequence[tuple[str, str]],
    *,
    end_s: float,
    scale: float = 1.0,
    log: bool = False,
    marks: Sequence[Mark] = (),
) -> str:
    """Columns of one run as lines; of two runs the first two columns of each, the second run's dashed."""
    at_s = sorted({float(getattr(row, "at_s")) for table in tables for row in table})  # noqa: B009  # all rows have it
    lines = []
    shown = columns if len(tables) == 1 else columns[:2]
    for run, (table, name) in enumerate(zip(tables, names, strict=True)):
        for at, (column, called) in enumerate(shown):
            values = _resampled(table, column, at_s, scale)
            words = " ".join(part for part in (name, called) if part)
            kind = ("area" if at == 0 else "line") if len(tables) == 1 else ("line" if run == 0 else "dash")
            lines.append(Line(words, values, at if len(tables) == 1 else 2 * run + at, kind))
    top = 100.0 if column in ("attained", "used") else 0.0
    return line_chart(title, unit, at_s, lines, top=top, log=log, marks=marks, end_s=end_s)


def _resampled(table: Sequence[object], column: str, at_s: Sequence[float], scale: float) -> list[float | None]:
    """The column at these instants: the last row at or before each; None beyond the table and where nothing was."""
    values: list[float | None] = []
    at, last_s = -1, float(getattr(table[-1], "at_s")) if table else -1.0  # noqa: B009
    zero_is_none = column.endswith("_ms")
    for instant in at_s:
        while at + 1 < len(table) and float(getattr(table[at + 1], "at_s")) <= instant + 1e-9:  # noqa: B009
            at += 1
        value = float(getattr(table[at], column)) if at >= 0 and instant <= last_s + 1e-9 else -1.0
        values.append(None if value < 0 or (zero_is_none and value == 0) else value * scale)
    return values


# -- tables -------------------------------------------------------------------------------------------------------


def _marks(faults: Sequence[FaultNote], colour: int = 3) -> list[Mark]:
    return [Mark(f.at_s, f.recovered_s or f.at_s, f"{f.kind}: {f.subject}", colour) for f in faults[:200]]


def _fault_strip(faults: Sequence[FaultNote], end_s: float) -> str:
    kinds = dict.fromkeys(fault.kind for fault in faults)
    rows = [(kind, _marks([f for f in faults if f.kind == kind], at % 5)) for at, kind in enumerate(kinds)]
    return strip("When, and for how long", rows, end_s=end_s)


def _fault_table(run: Report) -> str:
    """Every kind with its count; how long mending took, where something was to mend."""
    rows = []
    shown = dict.fromkeys([*(fault.kind for fault in run.faults), *run.faults_by_kind])
    for kind in shown:
        mine = [fault for fault in run.faults if fault.kind == kind]
        took = sorted(fault.recovered_s - fault.at_s for fault in mine if fault.recovered_s)
        middle = took_words(took[len(took) // 2]) if took else ""
        worst = took_words(took[-1]) if took else ""
        times = run.faults_by_kind.get(kind, len(mine))
        rows.append((kind, f"{times:,}", f"{len(took):,}" if took else "–", middle or "–", worst or "–"))
    head = ("kind", "times", "mended", "median", "longest")
    return _table(head, rows, right=(1, 2, 3, 4), title="Kinds and recoveries") if rows else ""


def _fault_counts(a: Report, b: Report, called: tuple[str, str]) -> str:
    kinds = dict.fromkeys([*a.faults_by_kind, *b.faults_by_kind])
    rows = [(kind, f"{a.faults_by_kind.get(kind, 0):,}", f"{b.faults_by_kind.get(kind, 0):,}") for kind in kinds]
    return _table(("kind", *called), rows, right=(1, 2), title="How often") if rows else ""


def _decision_table(run: Report, end_s: float) -> str:
    start_ns = 0 if isinstance(run, ClusterReport) else (run.decisions[0].at_ns if run.decisions else 0)
    chosen = _varied(run.decisions, ROWS)
    rows = [(_after(d.at_ns - start_ns), d.what.replace("_", " "), _short(d.subject), d.why) for d in chosen]
    title = f"{len(rows)} of {run.decisions_total:,}, some of each kind"
    return _table(("after", "decision", "about", "because"), rows, right=(0,), title=title, kind="why")


def _after(since_ns: int) -> str:
    """Seconds and tenths; from two minutes on hours, minutes and seconds."""
    since_s = since_ns / 1e9
    if since_s < 120:
        return f"{since_s:.1f} s"
    minutes, whole_s = divmod(round(since_s), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{whole_s:02}"


def _short(subject: str) -> str:
    """A request's long number without its zeros."""
    head, _, figures = subject.partition("_")
    return f"{head}…{figures.lstrip('0') or '0'}" if head == "req" else subject


def _varied(decisions: Sequence[Decision], most: int) -> list[Decision]:
    """Some of each kind, spread over the run, in order of time."""
    places: dict[str, list[int]] = {}
    for at, decision in enumerate(decisions):
        places.setdefault(decision.what, []).append(at)
    each = max(4, most // max(1, len(places)))
    chosen: list[int] = []
    for mine in places.values():
        count = min(each, len(mine))
        chosen += [mine[at * (len(mine) - 1) // max(1, count - 1)] for at in range(count)]
    return [decisions[at] for at in sorted(chosen)][:most]


def _waits_table(run: ClusterReport) -> str:
    rows = [
        (w.name, f"{w.submitted:,}", f"{w.done:,}", f"{w.p50_s:,.0f}", f"{w.p90_s:,.0f}", f"{w.p99_s:,.0f}",
         f"{100 * w.goodput:.1f}")
        for w in run.waits
    ]  # fmt: skip
    head = ("jobs", "submitted", "done", "wait p50, s", "p90, s", "p99, s", "goodput, %")
    return _table(head, rows, right=range(1, 7), title="Jobs: wait for the first place")


def _services_table(run: ClusterReport) -> str:
    rows = [
        (s.name, f"{s.asked:,.0f}", f"{100 * s.attained:.2f}", f"{100 * s.refused:.2f}", f"{s.mean_replicas:,.1f}",
         f"{s.most_replicas:,}")
        for s in run.services
    ]  # fmt: skip
    head = ("service", "requests", "in time, %", "refused, %", "replicas, mean", "most")
    return _table(head, rows, right=range(1, 6), title="Services") if rows else ""


def _difference(first: str, second: str) -> str:
    try:
        a, b = (_value(text) for text in (first, second))
    except ValueError:
        return ""
    return f"{100 * (b / a - 1):+.1f} %" if a else ("" if not b else "new")


def _value(text: str) -> float:
    figure, _, sign = text.replace(",", "").partition(" ")
    return float(figure) * {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}[sign]


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] | range = (),
    title: str = "",
    kind: str = "",
) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=r' if at in right else ''}>{escape(str(cell))}</{tag}>" for at, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    caption = f"<figcaption><b>{escape(title)}</b></figcaption>" if title else ""
    rows_html = f"<thead><tr>{cells(head, 'th')}</tr></thead><tbody>{body}</tbody>"
    table = f'<div class="scroll {kind}" tabindex=0><table>{rows_html}</table></div>'
    return f"<figure>{caption}{table}</figure>"


# -- the page -----------------------------------------------------------------------------------------------------


def _cards(cards: Sequence[Card]) -> str:
    made = "".join(
        f"<div class=card><span>{escape(name)}</span><b>{escape(figure)}</b><small>{escape(unit)}</small></div>"
        for name, figure, unit in cards
    )
    return f"<div class=cards>{made}</div>"


def _section(title: str, figures: Sequence[str], *, wide: bool = False) -> str:
    inner = "".join(figure for figure in figures if figure)
    return f'<section><h2>{escape(title)}</h2><div class="grid{" wide" if wide else ""}">{inner}</div></section>'


def _foot(run: Report) -> str:
    if isinstance(run, ClusterReport):
        about = f"{run.accelerators:,} accelerators at {', '.join(run.sites)}, {run.hours:g} h, {run.steps:,} events"
        rests = "scheduling and scaling are production code; jobs, load, machines and prices are modelled"
    else:
        about = f"{run.virtual_s:,.0f} virtual seconds, {run.events:,} events"
        rests = f"admission, routing, scaling and batching are production code; step times: {run.step_time_basis}"
    return f"{escape(about)}. {escape(rests)}. Seed {run.seed}, digest {run.digest[:16]}."


def _page(title: str, foot: str, body: Sequence[str]) -> str:
    shown: Callable[[str], str] = escape
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{shown(title)}</title><style>{STYLE}</style>"
        f"<header><h1>{shown(title)}</h1><button type=button id=theme>light or dark</button></header>"
        f"<main>{''.join(body)}</main><footer>{foot}</footer><div id=tip hidden></div>"
        f"<script>{SCRIPT}</script></html>"
    )
