"""What links give a group: a switch all of it, a mesh its members', a torus what its slice has."""

import pytest

from baseload.limits.catalogue.accelerators import read_catalogue
from baseload.limits.serving.links import inside, lateness

CHIPS = read_catalogue()


@pytest.mark.parametrize(
    ("name", "gpus", "group", "gb_per_s"),
    [
        ("h100", 2, 2, 450),
        ("h100", 16, 8, 450),
        ("mi300x", 2, 2, 64),  # one Infinity Fabric link of seven
        ("mi300x", 4, 4, 192),
        ("mi300x", 8, 8, 448),
        ("tpu_v6e", 4, 4, 200),  # two by two: two links of four
        ("tpu_v6e", 16, 16, 400),
        ("tpu_v5p", 8, 8, 300),
        ("h100_pcie", 2, 2, 300),
        ("h100_pcie", 4, 4, 64),  # beyond the bridge, over the host
        ("l40s", 4, 4, 32),
    ],
)
def test_a_group_has_the_links_to_its_own(name: str, gpus: int, group: int, gb_per_s: float) -> None:
    members, rate = inside(CHIPS.find(name), gpus)
    assert members == group
    assert rate == pytest.approx(gb_per_s * 1e9)


def test_a_ring_is_late_and_a_host_bus_later() -> None:
    switched = [lateness(CHIPS.find("h100"), n) for n in (2, 4, 8)]
    assert switched == [1.0, 1.5, 2.0]
    torus = CHIPS.find("trainium1")
    assert [lateness(torus, n) for n in (2, 4, 16)] == [1.0, 2.0, 6.0]
    assert lateness(CHIPS.find("tpu_v5p"), 8) == 3.0
    assert lateness(CHIPS.find("l40s"), 2) == pytest.approx(200 / 32)
    assert lateness(CHIPS.find("h100_pcie"), 4) > lateness(CHIPS.find("h100_pcie"), 2)
