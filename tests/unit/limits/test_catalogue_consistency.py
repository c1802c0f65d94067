"""Figures of the catalogue held against each other: what an architecture fixes, and what adds up."""

from itertools import pairwise
from statistics import mean

import pytest

from baseload.limits.catalogue.accelerators import Accelerator
from baseload.limits.catalogue.book import read_book
from baseload.limits.catalogue.names import recognise

BOOK = read_book()
CHIPS = BOOK.accelerators.entries
HALVES = {  # 8-bit over 16-bit where a vendor says otherwise: twice everywhere else
    "trainium2": (1.9, 2.0),  # 1,299 over 667
    "trainium3": (3.7, 3.8),  # MXFP8 at 2,517 over 671
    "gaudi3": (1.0, 1.0),  # one matrix engine for both
}
ULTRA = ("b300_sxm", "gb300")  # three times FP4, and hardly any int8
GEFORCE = ("rtx_3080", "rtx_3090", "rtx_4080", "rtx_4090", "rtx_5090")  # floats sum in 32 bits at half the rate


@pytest.mark.parametrize("id_", CHIPS)
def test_formats_are_in_the_ratio_of_their_architecture(id_: str) -> None:
    chip = CHIPS[id_]
    least, most = HALVES.get(id_, (1.97, 2.03))
    if chip.bf16_tflops and chip.fp8_tflops:
        assert least <= chip.fp8_tflops / chip.bf16_tflops <= most
    if chip.fp8_tflops and chip.fp4_tflops and id_ != "trainium3":  # MXFP4 at the rate of MXFP8
        times = 4.0 if id_ in GEFORCE else 3.0 if id_ in ULTRA else 2.0
        assert chip.fp4_tflops / chip.fp8_tflops == pytest.approx(times, rel=0.01)
    if chip.int8_tops and chip.bf16_tflops and id_ not in ULTRA:
        assert chip.int8_tops / chip.bf16_tflops == pytest.approx(4.0 if id_ in GEFORCE else 2.0, rel=0.02)


@pytest.mark.parametrize("id_", CHIPS)
def test_figures_lie_where_machines_of_their_time_lie(id_: str) -> None:
    chip = CHIPS[id_]
    assert chip.source
    ranges = {
        "bf16_tflops": (10, 6_000),
        "memory_gb": (8, 512),
        "memory_gb_per_s": (200, 23_000),
        "scale_up_gb_per_s": (15, 2_000),
        "scale_out_gbit_per_s": (25, 1_600),
        "tdp_w": (40, 2_500),
        "usd_per_hour": (0.1, 20),
    }
    for figure, (least, most) in ranges.items():
        value = getattr(chip, figure)
        assert value is None or least <= value <= most, figure
    if chip.memory_gb_per_s and chip.memory_gb:
        assert 1.5 <= chip.memory_gb_per_s / chip.memory_gb <= 80  # times a second that memory can be read through
    if chip.bf16_tflops and chip.memory_gb_per_s and chip.family != "cpu":
        assert 25 <= 1e3 * chip.bf16_tflops / chip.memory_gb_per_s <= 1_000  # operations a byte
    if chip.tdp_w and chip.bf16_tflops:
        assert 0.15 <= chip.bf16_tflops / chip.tdp_w <= 3.0
    if chip.all_in_w and chip.tdp_w:
        assert chip.all_in_w > chip.tdp_w


def test_every_entry_names_its_source() -> None:
    everything = {**CHIPS, **BOOK.nodes, **BOOK.racks, **BOOK.links, **BOOK.zones, **BOOK.transfer}
    assert all(len(entry.source) > 15 for entry in everything.values())  # type: ignore[attr-defined]
    assert all(price.source for price in BOOK.prices)
    assert all(node.price_source for node in BOOK.nodes.values() if node.capex_usd is not None)


@pytest.mark.parametrize("id_", BOOK.nodes)
def test_a_node_is_the_sum_of_its_accelerators(id_: str) -> None:
    node = BOOK.nodes[id_]
    chip = CHIPS[node.accelerator]
    if node.network_gbit_per_s and chip.scale_out_gbit_per_s and id_ != "p4d":  # p4d: 400 Gb/s for eight A100
        assert node.network_gbit_per_s == node.accelerators * chip.scale_out_gbit_per_s
    if node.max_w and chip.tdp_w:
        assert 1.05 <= node.max_w / (node.accelerators * chip.tdp_w) <= 2.2
    if node.capex_usd:
        assert 5_000 <= node.capex_usd / node.accelerators <= 120_000


@pytest.mark.parametrize("id_", BOOK.racks)
def test_a_rack_is_the_sum_of_its_nodes(id_: str) -> None:
    rack = BOOK.racks[id_]
    assert rack.cooling in ("air", "liquid")
    if not rack.node:
        return
    node = BOOK.nodes[rack.node]
    assert rack.nodes is not None
    assert rack.accelerators == rack.nodes * node.accelerators
    if rack.max_w and node.max_w:
        assert 0.99 <= rack.max_w / (rack.nodes * node.max_w) <= 1.4


def test_accelerators_send_what_their_links_carry() -> None:
    def sends(*ids: str) -> set[float | None]:
        return {CHIPS[id_].scale_up_gb_per_s for id_ in ids}

    assert sends("a100_sxm", "a100_40gb") == {BOOK.links["nvlink3"].gb_per_s}
    assert sends("h100_sxm", "h200_sxm") == {BOOK.links["nvlink4"].gb_per_s}
    assert sends("b200_sxm", "b300_sxm", "gb200", "gb300") == {BOOK.links["nvlink5"].gb_per_s}
    assert sends("mi300x", "mi325x") == {BOOK.links["infinity_fabric_4"].gb_per_s}
    assert sends("tpu_v5p") == {BOOK.links["ici_v5p"].gb_per_s}
    for link in BOOK.links.values():
        if link.name.startswith("InfiniBand"):
            assert link.gb_per_s in (25, 50, 100)


def test_prices_are_per_unit_sold_and_spot_is_never_dearer() -> None:
    for price in BOOK.prices:
        if price.count and price.usd_per_hour is not None:
            assert 0.3 <= price.usd_per_hour / price.count <= 12, price.instance
        if price.spot_usd_per_hour is not None and price.usd_per_hour is not None:
            assert price.spot_usd_per_hour <= price.usd_per_hour
        if price.accelerator:
            assert recognise(price.accelerator, BOOK.accelerators) is not None, price.accelerator


def test_transfer_gets_cheaper_by_the_step_and_zones_are_the_mean_of_their_hours() -> None:
    for price in BOOK.transfer.values():
        assert all(a[0] < b[0] for a, b in pairwise(price.steps))
        charged = [usd for _, usd in price.steps if usd > 0]
        assert charged == sorted(charged, reverse=True)
        assert price.steps or price.usd_per_gb
    for zone in BOOK.zones.values():
        for whole, hours in (
            (zone.gco2_per_kwh, zone.gco2_per_kwh_by_hour),
            (zone.usd_per_mwh, zone.usd_per_mwh_by_hour),
        ):
            if hours:
                assert len(hours) == 24
                assert mean(hours) == pytest.approx(whole, rel=0.02)


def test_every_kind_of_machine_asked_for_is_there() -> None:
    asked = (
        "A100", "H100", "H200", "B200", "B300", "GB200", "GB300", "L4", "L40S", "MI300X", "MI325X", "MI355X",
        "TPU v5e", "TPU v5p", "TPU v6e", "TPU7x", "TPU 8t", "TPU 8i", "Trainium1", "Trainium2", "Trainium3",
        "Gaudi 3", "Inferentia2", "M4 Max", "Jetson AGX Orin", "Jetson AGX Thor", "Xeon 6980P",
    )  # fmt: skip
    for name in asked:
        found = BOOK.accelerators.find(name)
        assert isinstance(found, Accelerator)
        assert found.source
