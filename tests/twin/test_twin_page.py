"""The page is whole and self-contained, says what the run says, and compares two; every shipped example runs."""

import multiprocessing
import re
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from html.parser import HTMLParser
from multiprocessing import connection
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from baseload.cli.main import app
from baseload.domain.errors import BaseloadError
from baseload.domain.model import ModelSpec, Scaling
from baseload.twin.cells import _run_all, cell_of, simulate_cells
from baseload.twin.charts import Line, Mark, line_chart, number, strip, time_words, took_words, unit_of
from baseload.twin.cluster.run import simulate_cluster
from baseload.twin.door import dealt
from baseload.twin.page import KWH, WATTS, compare_html, compare_rows, report_html
from baseload.twin.reading import load
from baseload.twin.report import SimulateReport
from baseload.twin.run import Simulation, simulate
from baseload.twin.sources import all_arrivals
from baseload.twin.spec import Energy, Faults, SimulateConfig, Slo, Source, Workload
from baseload.twin.tally import FleetSample, Tally

EXAMPLES = Path(__file__).parents[2] / "configs" / "simulate"
MODEL = ModelSpec(
    name="m<&>", source="simulated", scaling=Scaling(min_replicas=1, max_replicas=3), context_tokens=8192
)
CONFIG = SimulateConfig(
    name="A run & <more>",
    models=(MODEL,),
    workload=Workload(sources=(Source(rate_per_s=2.0, duration_s=60, prompt_tokens=60, output_tokens=10),)),
    faults=Faults(crash_every_s=20.0, flap_every_s=20.0),
    slo=Slo(ttft_ms=5000, tpot_ms=500),
    energy=Energy(pue=2.0, usd_per_kwh=(0.1,), carbon_g_per_kwh=(100.0,)),
)


class Tags(HTMLParser):
    """Which elements are open; complains where one closes that is not."""

    VOID = ("meta", "br", "line", "rect", "path", "i")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not re.search(r"(src|href)=|url\(|@import|https?://", page), "nothing from elsewhere"
    return tags


def test_a_run_is_one_whole_page_with_its_figures() -> None:
    report = simulate(CONFIG)
    assert report.failure is None
    page = report_html(report)
    tags = parsed(page)
    assert tags.seen["svg"] >= 9
    assert "A run &amp; &lt;more&gt;" in page
    assert f"{100 * report.attainment:.1f}" in page
    for word in ("Time to first token", "Power of the replicas", "accelerator", "link flap", "because"):
        assert word in page
    assert report.decisions[0].why.split(";")[0] in page
    assert report.step_time_basis.split(":")[0] in page


def test_what_the_report_says_adds_up() -> None:
    report = simulate(CONFIG)
    assert report.facility_kwh == pytest.approx(report.joules / 3.6e6 * 2.0)
    assert report.electricity_usd == pytest.approx(report.facility_kwh * 0.1)
    assert report.carbon_g == pytest.approx(report.facility_kwh * 100.0)
    assert sum(part.asked for part in report.series) == report.requests - report.unreached
    assert sum(part.ok for part in report.series) == report.outcomes["ok"]
    assert 0 < report.well_served <= report.outcomes["ok"]
    assert report.usd_per_1000_well_served == pytest.approx(1000 * report.usd / report.well_served)
    assert msgspec.json.decode(msgspec.json.encode(report), type=SimulateReport) == report


def test_two_runs_stand_side_by_side() -> None:
    dear = msgspec.structs.replace(CONFIG, faults=Faults(), name="calm")
    a, b = simulate(CONFIG), simulate(dear)
    rows = {row[0]: row for row in compare_rows(a, b)}
    assert rows["Cost"][4].endswith("%")
    page = compare_html(a, b)
    parsed(page)
    assert "calm" in page
    assert page.count('class="dash"') >= 8
    assert "B against A" in page
    parsed(compare_html(a, a))


def test_a_fleet_has_its_page_too() -> None:
    cluster = load(EXAMPLES / "fleet.toml").cluster
    assert cluster is not None
    report = simulate_cluster(cluster, seed=2, name="fleet")
    assert report.failure is None
    page = report_html(report)
    parsed(page)
    for word in ("Goodput of jobs", "Power at the meters", "pretrain", "spot reclaim", "accelerators under"):
        assert word in page
    parsed(compare_html(report, report))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_a_specification_and_runs(path: Path) -> None:
    config = load(path)
    assert config.name
    if config.cluster is not None:
        if config.cluster.hours * sum(site.nodes for site in config.cluster.sites) > 50_000:
            cluster = msgspec.structs.replace(config.cluster, hours=0.5)
            config = msgspec.structs.replace(config, cluster=cluster)
        assert config.cluster is not None
        assert simulate_cluster(config.cluster, seed=1, decisions=0).failure is None
        return
    if config.cells > 1:
        config = msgspec.structs.replace(config, cells=1)
        scaling = msgspec.structs.replace(config.models[0].scaling, min_replicas=4, max_replicas=4)
        config = msgspec.structs.replace(config, models=(msgspec.structs.replace(config.models[0], scaling=scaling),))
    sources = tuple(
        msgspec.structs.replace(
            source, duration_s=min(source.duration_s, 60.0), rate_per_s=min(source.rate_per_s, 20.0)
        )
        for source in config.workload.sources
    )
    workload = msgspec.structs.replace(config.workload, sources=sources)
    report = simulate(msgspec.structs.replace(config, workload=workload))
    assert report.failure is None
    assert report.outcomes["ok"] > 0
    assert report.step_time_basis.startswith("limits model")


def test_cells_are_parts_of_the_whole() -> None:
    model = msgspec.structs.replace(MODEL, scaling=Scaling(min_replicas=4, max_replicas=4))
    config = msgspec.structs.replace(CONFIG, models=(model,), cells=3, processes=1, lean=True, faults=Faults())
    report = simulate_cells(config)
    work = dealt(config)
    parts = [Simulation(cell_of(config, cell), arrivals=work[cell]).run() for cell in range(3)]
    assert report.failure is None
    assert report.requests == sum(part.requests for part in parts)
    assert report.usd == pytest.approx(sum(part.usd for part in parts))
    assert report.cold_starts == sum(part.cold_starts for part in parts) == 4
    assert report.requests == len(all_arrivals(config.workload, models=["m"], seed=config.seed))
    assert max(sample.ready for sample in report.timeline) == 4
    assert report.timeline[-1].at_s == max(part.timeline[-1].at_s for part in parts)


def test_parts_that_look_at_unlike_instants_are_added_by_time() -> None:
    def looked(*at_s: float) -> Tally:
        tally = Tally(start_ns=0, most_decisions=0)
        tally.samples = [FleetSample(at, 0, 0, 0, round(at), 0) for at in at_s]
        return tally

    whole = looked(0, 15, 30, 45)
    whole.join(looked(0, 16, 32, 48, 64))
    assert [(one.at_s, one.ready) for one in whole.samples] == [
        (0, 0),
        (15, 15),
        (30, 46),
        (45, 77),
        (48, 48),
        (64, 64),
    ]
    whole.join(looked())
    assert len(whole.samples) == 6


def test_cells_that_run_end_with_who_asked_for_them() -> None:
    model = msgspec.structs.replace(MODEL, scaling=Scaling(min_replicas=4, max_replicas=4))
    config = msgspec.structs.replace(CONFIG, models=(model,), cells=4, lean=True, faults=Faults())
    runs = _run_all(config, 2)
    next(runs)
    children = multiprocessing.active_children()
    assert children
    runs.close()
    left = {child.sentinel for child in children}  # not `join`: the pool's own thread may be the one that reaps
    while left:
        ended = connection.wait(left, timeout=30.0)
        assert ended, f"{len(left)} of {len(children)} processes outlive who asked for them"
        left.difference_update(ended)


def test_a_process_that_is_killed_ends_the_run_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(futures: Sequence[object]) -> Iterator[object]:
        raise BrokenProcessPool("a process was terminated abruptly")

    monkeypatch.setattr("baseload.twin.cells.as_completed", broken)
    model = msgspec.structs.replace(MODEL, scaling=Scaling(min_replicas=4, max_replicas=4))
    config = msgspec.structs.replace(CONFIG, models=(model,), cells=4, processes=2, lean=True, faults=Faults())
    with pytest.raises(BaseloadError, match="was ended from outside") as ended:
        simulate_cells(config)
    assert "processes = 1" in ended.value.hint


def test_the_command_writes_page_and_json_and_compares(tmp_path: Path) -> None:
    cli = CliRunner()
    runs = []
    for seed in ("1", "2"):
        run, page = tmp_path / f"run{seed}.json", tmp_path / f"run{seed}.html"
        done = cli.invoke(
            app, ["simulate", str(EXAMPLES / "trace.toml"), "--seed", seed, "-o", str(run), "--report", str(page)]
        )
        assert done.exit_code == 0, done.output
        parsed(page.read_text())
        runs.append(str(run))
    page = tmp_path / "both.html"
    done = cli.invoke(app, ["simulate", "diff", *runs, "--report", str(page)])
    assert done.exit_code == 0, done.output
    assert "First token, p50" in done.output
    parsed(page.read_text())


def test_axes_and_numbers_are_round() -> None:
    assert [number(x) for x in (0, 7, 0.1234, 99.5, 12_345, 2.5e6, 7.25e9)] == [
        "0", "7", "0.123", "99.5", "12.3 k", "2.5 M", "7.25 G",
    ]  # fmt: skip
    assert (time_words(5400, 86_400), time_words(30, 60), time_words(120, 600)) == ("1.5 h", "30 s", "2 min")
    chart = line_chart("t", "ms", [0, 1, 2], [Line("a", [1.0, None, 1000.0])], log=True, marks=[Mark(0, 1, "<x>")])
    assert ">1,000<" in chart
    assert "&lt;x&gt;" in chart
    assert chart.count('<path class="line"') == 2, "a gap is a gap"
    assert "nothing to show" in line_chart("t", "ms", [], [])
    assert "none" in strip("t", [], end_s=1)


def test_figures_come_in_units_that_suit_them() -> None:
    assert unit_of(2.0, WATTS) == (1.0, "W")
    assert unit_of(2_000.0, WATTS) == (1e-3, "kW")
    assert unit_of(0.0, KWH)[1] == "Wh"
    assert [took_words(s) for s in (5.0, 130.0, 10_000.0, 200_000.0)] == ["5.0 s", "2.2 min", "2.8 h", "2.3 d"]
    small = simulate(CONFIG)
    page = report_html(small)
    assert "W</small>" in page
    assert "MW" not in page
    assert "CO₂ per hour" in page
    large = msgspec.structs.replace(small, facility_kwh=5e6, carbon_g=9e9)
    names = {name: (unit, a, b) for name, unit, a, b, _ in compare_rows(small, large)}
    assert names["Energy"][0] == {name: unit for name, unit, _, _, _ in compare_rows(small, small)}["Energy"]
    assert "GWh" in report_html(large)


def test_an_axis_of_nothing_but_zeros_ends_at_one() -> None:
    chart = line_chart("t", "", [0, 1], [Line("", [0.0, 0.0])])
    assert ">1<" in chart
    assert "e-" not in chart.split("data-x")[0]


def test_tables_scroll_and_text_grows_on_narrow_screens() -> None:
    page = report_html(simulate(CONFIG))
    assert page.count('<div class="scroll') == page.count("<table>")
    assert "@media(max-width:640px)" in page
    assert "width=device-width" in page


def test_two_runs_of_unlike_length_are_drawn_to_their_ends() -> None:
    """Found by looking: the longer run's line ended with the shorter's, which had more rows."""
    short, long = (
        simulate(SimulateConfig(seed=2, workload=Workload(requests=count, rate_per_s=rate)))
        for count, rate in ((200, 4.0), (60, 0.2))
    )
    assert long.virtual_s > 2 * short.virtual_s
    html = compare_html(short, long, names=("short", "long"))
    for figure in re.findall(r'<figure data-x="([^"]*)" data-end="[^"]*" data-y="([^"]*)"', html):
        xs = [float(x) for x in figure[0].split(",")]
        ends = {line.split("|")[0].split()[0]: line.split("|")[1].split(",") for line in figure[1].split(";")}
        last = max(at for at, value in enumerate(ends["long"]) if value)
        assert xs[last] > 0.8 * long.virtual_s
    assert ("Answered", "requests") in [row[:2] for row in compare_rows(short, long)]


def test_decisions_are_spread_over_the_run_and_say_when() -> None:
    run = simulate(SimulateConfig(seed=2, workload=Workload(requests=5)))
    first = msgspec.structs.replace(run.decisions[0], what="start")
    made = [msgspec.structs.replace(first, at_ns=first.at_ns + at * 60 * 10**9, why=f"why {at}") for at in range(200)]
    html = report_html(msgspec.structs.replace(run, decisions=tuple(made), decisions_total=200))
    assert "why 0<" in html
    assert "why 199<" in html
    assert html.count("<td>why ") == 60
    assert "3:19:00" in html
