"""Collectives on a hierarchical fabric: bounds from bandwidth, order of algorithms, where latency rules."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from baseload.domain.errors import DataError
from baseload.limits.catalogue.accelerators import read_catalogue, read_fabric
from baseload.limits.collectives import (
    Fabric,
    Group,
    Level,
    all_gather,
    all_reduce,
    all_to_all,
    fabric_of,
    send,
)

QUIET = Fabric((Level("in", 8, 100.0, 0.0), Level("out", 0, 10.0, 0.0)))
SLOW_START = Fabric((Level("in", 8, 100.0, 5e-6), Level("out", 0, 10.0, 20e-6)))


def test_a_ring_inside_moves_each_byte_once_but_its_own() -> None:
    assert all_gather(QUIET, Group((8, 1)), 8e9) == pytest.approx(7 / 8 * 8e9 / 100e9)
    assert all_reduce(QUIET, Group((8, 1)), 8e9) == pytest.approx(2 * 7 / 8 * 8e9 / 100e9)
    assert all_gather(QUIET, Group((1, 1)), 8e9) == all_reduce(QUIET, Group((1, 1)), 8e9) == 0


def test_what_crosses_nodes_is_first_cut_inside_them() -> None:
    both = all_gather(QUIET, Group((8, 4)), 8e9)
    assert both == pytest.approx(7 / 8 * 8e9 / 100e9 + 3 / 4 * 1e9 / 10e9)
    assert both < all_gather(QUIET, Group((1, 32)), 8e9) / 5


def test_trees_take_over_where_messages_are_small() -> None:
    wide = Group((8, 128))
    small = all_reduce(SLOW_START, wide, 1e3)
    assert small == pytest.approx(2 * 3 * 5e-6 + 2 * 7 * 20e-6, rel=0.05)
    assert small < 2 * all_gather(SLOW_START, wide, 1e3)
    assert all_reduce(SLOW_START, wide, 1e10) == pytest.approx(2 * all_gather(SLOW_START, wide, 1e10))


def test_all_to_all_is_bound_by_its_slowest_level() -> None:
    assert all_to_all(QUIET, Group((8, 1)), 8e9) == pytest.approx(7 / 8 * 8e9 / 100e9)
    assert all_to_all(QUIET, Group((8, 4)), 32e9) == pytest.approx(24 / 32 * 32e9 / 10e9)
    assert all_to_all(QUIET, Group((1, 1)), 1e9) == 0


def test_one_to_one() -> None:
    assert send(SLOW_START, 1e9, level=1) == pytest.approx(0.1 + 20e-6)
    assert send(SLOW_START, 1e9, level=0) == pytest.approx(0.01 + 5e-6)


@pytest.mark.parametrize(
    ("size", "stride", "counts"),
    [
        (8, 1, (8, 1)),
        (32, 1, (8, 4)),
        (4, 8, (1, 4)),
        (4, 4, (2, 2)),
        (12, 1, (6, 2)),
        (2, 1, (2, 1)),
        (1, 1, (1, 1)),
    ],
)
def test_groups_are_placed_by_stride(size: int, stride: int, counts: tuple[int, int]) -> None:
    assert QUIET.place(size, stride=stride).counts == counts


@given(size=st.integers(1, 512), stride=st.sampled_from([1, 2, 4, 8, 16]), sent=st.floats(1, 1e12))
def test_placing_keeps_every_member_and_more_bytes_never_take_less(size: int, stride: int, sent: float) -> None:
    group = SLOW_START.place(size, stride=stride)
    assert group.size == size
    for collective in (all_gather, all_reduce, all_to_all):
        assert 0 <= collective(SLOW_START, group, sent) <= collective(SLOW_START, group, 2 * sent)


def test_a_sheet_s_fabric() -> None:
    catalogue = read_catalogue()
    fabric = fabric_of(catalogue.find("gb200"), read_fabric())
    assert [(level.size, level.gb_per_s) for level in fabric.levels] == [(72, 900.0), (0, 50.0)]
    assert fabric_of(catalogue.find("gb200"), read_fabric(), domain=8).levels[0].size == 8
    lonely = fabric_of(catalogue.find("l40s"), read_fabric())
    assert all_gather(lonely, lonely.place(8), 1e9) > 0
    with pytest.raises(DataError, match="scale-out links is blank"):
        all_gather(lonely, lonely.place(16), 1e9)


def test_cards_with_bridges_reach_their_node_over_its_bus() -> None:
    catalogue = read_catalogue()
    fabric = fabric_of(catalogue.find("h200_nvl"), read_fabric())
    assert [(level.name, level.size, level.gb_per_s) for level in fabric.levels[:2]] == [
        ("scale-up", 4, 450.0),
        ("host bus", 8, 64.0),
    ]
    assert fabric.place(8).counts == (4, 2, 1)
    wires = fabric.wires()
    inside, across = all_gather(wires, wires.place(4), 1e9), all_gather(wires, wires.place(8), 1e9)
    assert across == pytest.approx(inside + 1e9 / 4 / 2 / 64e9)
    with pytest.raises(DataError, match="scale-out links is blank"):
        all_gather(fabric, fabric.place(16), 1e9)
    assert len(fabric_of(catalogue.find("h200_sxm"), read_fabric()).levels) == 2
