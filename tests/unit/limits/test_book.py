"""The whole catalogue: sources everywhere, references that lead somewhere, a user's own entries by section."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from baseload.cli.main import app
from baseload.domain.errors import DataError, MissingFigure
from baseload.limits.catalogue.book import Book, read_book
from baseload.limits.catalogue.names import mixture, recognise
from baseload.limits.goals import Row
from baseload.limits.money import transfer_usd

OWN = b"""
[accelerators.mine]
name = "My chip"
source = "measured here"
memory_gb = 10

[nodes.box]
name = "My box"
source = "me"
accelerator = "mine"
accelerators = 4

[sites.home]
name = "Home"
source = "our meters, 2026"
zone = "de_lu"
megawatts = 0.5
pue = [[0, 1.1], [30, 1.3]]

[zones.village]
name = "Village"
source = "the mill"
gco2_per_kwh = 12

[[prices]]
provider = "cousin"
accelerator = "mine"
source = "a letter"
usd_per_hour = 0.2
tier = "reserved"
"""


@pytest.fixture(scope="module")
def book() -> Book:
    return read_book()


def test_every_entry_has_a_source_and_every_reference_leads_somewhere(book: Book) -> None:
    parts = [book.accelerators.entries, book.nodes, book.racks, book.links, book.zones, book.transfer]
    assert all(entry.source for part in parts for entry in part.values())
    assert {node.accelerator for node in book.nodes.values()} <= set(book.accelerators.entries)
    assert {rack.node for rack in book.racks.values() if rack.node} <= set(book.nodes)
    assert all(book.accelerators.get(p.accelerator) for p in book.prices if p.accelerator)
    for rack in book.racks.values():
        if rack.node and rack.nodes:
            assert rack.accelerators == rack.nodes * book.nodes[rack.node].accelerators


def test_links_of_nodes_agree_with_the_accelerators_sheets(book: Book) -> None:
    for id_, link in (
        ("h100_sxm", "nvlink4"),
        ("b200_sxm", "nvlink5"),
        ("gb300", "nvlink5_nvl72"),
        ("a100_sxm", "nvlink3"),
    ):
        sheet = book.accelerators.entries[id_]
        assert sheet.scale_up_gb_per_s == book.links[link].gb_per_s
        assert sheet.scale_up_domain == book.links[link].joins
    for node in ("dgx_h100", "dgx_h200", "dgx_b200", "dgx_b300", "gb200_tray", "gb300_tray"):
        sheet = book.accelerators.entries[book.nodes[node].accelerator]
        if node != "gb200_tray":  # its sheet says 800 Gb/s (assumed there), the system measured had 400
            assert (
                sheet.scale_out_gbit_per_s
                == book.nodes[node].need("network_gbit_per_s") / book.nodes[node].accelerators
            )


def test_zones_have_a_day_whose_mean_is_the_year_s(book: Book) -> None:
    for zone in book.zones.values():
        assert len(zone.gco2_per_kwh_by_hour) == 24
        assert sum(zone.gco2_per_kwh_by_hour) / 24 == pytest.approx(zone.need("gco2_per_kwh"), rel=0.01)
    assert book.zones["us_cal_ciso"].carbon_at(20) < book.zones["us_cal_ciso"].carbon_at(6)  # noon there, and night


def test_moving_data_out_costs_by_steps(book: Book) -> None:
    assert transfer_usd(book.transfer["aws_internet"], 100) == 0
    assert transfer_usd(book.transfer["aws_internet"], 1_100) == pytest.approx(90)
    assert transfer_usd(book.transfer["aws_regions"], 50) == pytest.approx(1)


def test_a_user_s_own_entries_join_ours() -> None:
    own = read_book(OWN, name="own.toml")
    assert own.accelerators.find("mine").memory_gb == 10
    assert own.nodes["box"].accelerators == 4
    assert own.sites["home"].cooling().at(15) == pytest.approx(1.2)
    assert own.zones["village"].carbon_at(5) == 12
    assert own.prices[-1].tier == "reserved"
    assert read_book(b"[chip]\nname='Flat'\nsource='s'\n").accelerators.find("chip").name == "Flat"
    replaced = read_book(b"[nodes.dgx_h100]\nname='Ours'\nsource='s'\naccelerator='h100'\naccelerators=2\n")
    assert replaced.nodes["dgx_h100"].name == "Ours"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"[nodes.x]\nname='y'\n", r"own\.toml: nodes\.x: .*source"),
        (b"[accelerators.x]\nname='y'\nsource='z'\nmemory=3", r"own\.toml: accelerators\.x: .*memory"),
        (
            b"[accelerators.x]\nname='y'\nsource='z'\nmemory_gb=0",
            r"own\.toml: accelerators\.x: `memory_gb` .* above 0",
        ),
        (b"[x]\nname='y'\nsource='z'\nbf16_tflops=-4", r"own\.toml: x: `bf16_tflops` must be above 0, not -4"),
        (b"[x]\nname='y'\nsource='z'\ntdp_w=inf", r"own\.toml: x: `tdp_w` must be above 0, not inf"),
        (b"[[prices]]\nprovider='x'\nsource='y'\ntier='free'", r"own\.toml: prices\[1\]: no tier 'free'"),
        (b"version = 3", r"own\.toml: no section 'version'"),
        (b"[x", r"own\.toml: "),
        (b"\xff", r"own\.toml: "),
    ],
)
def test_a_bad_entry_is_refused_by_name(bad: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_book(bad, name="own.toml")


def test_blank_figures_are_asked_for_by_name(book: Book) -> None:
    with pytest.raises(MissingFigure, match="max_w for 8 × MI300X platform"):
        book.nodes["mi300x_8"].need("max_w")
    with pytest.raises(MissingFigure, match="megawatts for site Home"):
        read_book(OWN.replace(b"megawatts = 0.5\n", b"")).sites["home"].need("megawatts")


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        ("NVIDIA Blackwell GPU (B200-SXM-180GB)", "b200_sxm"),
        ("NVIDIA Blackwell GPU (GB200)", "gb200"),
        ("NVIDIA H200-NVL-141GB", "h200_nvl"),
        ("NVIDIA H200-SXM-141GB-CTS", "h200_sxm"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("AMD Instinct MI300X-NPS1-SPX-192GB-750W", "mi300x"),
        ("NVIDIA GH200 Grace Hopper Superchip 144GB", "gh200_144gb"),
        ("[MAXSUN] MS-Intel Arc Pro B60 Dual 48G Turbo", "arc_pro_b60_dual"),
        ("Intel Gaudi 3 OAM", "gaudi3"),
        ("AWS Trainium 2", "trainium2"),
        ("Intel(R) Xeon(R) 6980P", "xeon_6980p"),
        ("NVIDIA A100 SXM 40GB", "a100_40gb"),
        ("NVIDIA L 40S", "l40s"),
        ("Cerebras WSE-3", None),
        ("", None),
    ],
)
def test_accelerators_are_recognised_in_what_tables_say(book: Book, text: str, id_: str | None) -> None:
    assert recognise(text, book.accelerators) == id_


def test_an_accelerator_is_found_by_its_name_and_a_wrong_one_is_told_the_nearest(book: Book) -> None:
    for id_, entry in book.accelerators.entries.items():
        assert book.accelerators.find(entry.name) is entry, id_
    with pytest.raises(DataError, match=r"'h100_sxx' in the catalogue; the nearest: h100_sxm"):
        book.accelerators.find("h100_sxx")
    with pytest.raises(DataError, match=r"'Frobnicator' in the catalogue of \d+\. "):
        book.accelerators.find("Frobnicator")


def test_a_mixed_system_is_its_parts(book: Book) -> None:
    text = "AMD Instinct MI300X 192GB HBM3 (x32), AMD Instinct MI325X 256GB HBM3e (x16)"
    assert mixture(text, book.accelerators, total=48) == (("mi300x", 32), ("mi325x", 16))
    assert mixture("NVIDIA L40S", book.accelerators, total=8) == (("l40s", 8),)


def test_the_command_lists_shows_and_says_what_to_do(tmp_path: Path) -> None:
    run = CliRunner()
    listed = run.invoke(app, ["catalogue", "nodes"])
    assert listed.exit_code == 0
    assert "DGX H100" in listed.output
    shown = run.invoke(app, ["catalogue", "accelerators", "gb200"])
    assert "SemiAnalysis" in shown.output
    as_json = run.invoke(app, ["catalogue", "zones", "GB", "--json"])
    assert '"gco2_per_kwh": 128.6' in as_json.output
    own = tmp_path / "own.toml"
    own.write_bytes(OWN)
    mine = run.invoke(app, ["catalogue", "sites", "--catalogue", str(own)])
    assert "Home" in mine.output
    settings = tmp_path / "baseload.toml"
    settings.write_text('[limits]\ncatalogue = "own.toml"\n')
    assert "My box" in run.invoke(app, ["catalogue", "nodes", "--settings", str(settings)]).output
    with pytest.raises(DataError, match="No entry 'b20'"):
        run.invoke(app, ["catalogue", "accelerators", "b20"], catch_exceptions=False)


def test_a_figure_that_misses_its_goal_never_looks_as_if_it_met_it() -> None:
    def row(reached: float, **more: Any) -> Row:
        return Row(what="w", reached=reached, points=1, split="s", **more)

    near = row(0.0302, goal=0.03)
    assert (near.met, near.shown(near.reached), near.shown(near.goal)) == (False, "3.02%", "3.00%")
    met = row(0.0298, goal=0.03)
    assert (met.met, met.shown(met.reached), met.shown(met.goal)) == (True, "3.0%", "3.0%")
    tau = row(0.819, goal=0.82, higher_is_better=True, unit="")
    assert (tau.met, tau.shown(tau.reached)) == (False, "0.819")


def test_a_model_of_a_known_family_is_shown_by_its_own_name() -> None:
    shown = CliRunner().invoke(app, ["catalogue", "models", "deepseek-ai/DeepSeek-R1"], catch_exceptions=False)
    assert "671" in shown.output
    assert "another of its family" in shown.output
