"""The catalogue of accelerators: sources, blanks, and a user's own entries."""

import pytest

from baseload.domain.errors import DataError
from baseload.limits.catalogue.accelerators import parse_accelerators, read_catalogue, read_fabric, read_prices

OWN = b"""
[mine]
name = "My chip"
source = "measured here"
memory_gb = 10
memory_gb_per_s = 100
bf16_tflops = 5
"""


def test_every_figure_has_a_source() -> None:
    entries = read_catalogue().entries
    assert len(entries) >= 32
    assert all(entry.source for entry in entries.values())
    assert all(entry.price_source for entry in entries.values() if entry.usd_per_hour is not None)
    assert all(price.source for price in read_prices())
    assert read_fabric().basis.startswith("assumed")


def test_found_by_any_of_its_names() -> None:
    catalogue = read_catalogue()
    assert catalogue.find("h200_sxm") is catalogue.find("H200") is catalogue.find("H200-SXM")
    with pytest.raises(DataError, match=r"No accelerator 'x9000' in the catalogue of"):
        catalogue.find("x9000")


def test_a_blank_figure_is_named_and_never_guessed() -> None:
    chip = read_catalogue().find("m4_pro")
    assert chip.bf16_tflops is None
    with pytest.raises(DataError, match="no bf16_tflops for M4 Pro"):
        chip.tflops("bf16")


def test_a_format_without_its_own_rate_runs_at_the_next_wider() -> None:
    catalogue = read_catalogue()
    assert catalogue.find("b200").tflops("nvfp4") == 9000
    assert catalogue.find("h100").tflops("nvfp4") == catalogue.find("h100").tflops("fp8") == 1979
    assert catalogue.find("a100").tflops("fp8") == 312


def test_users_add_and_replace() -> None:
    catalogue = read_catalogue(OWN, name="own.toml")
    assert catalogue.find("mine").need("memory_gb") == 10
    assert read_catalogue(OWN.replace(b"[mine]", b"[l4]")).find("l4").name == "My chip"


@pytest.mark.parametrize("bad", [b"[x", b"[x]\nname = 'y'", b"[x]\nname='y'\nsource='z'\nmemory=3", b"\xff"])
def test_a_bad_file_is_named(bad: bytes) -> None:
    with pytest.raises(DataError, match=r"own\.toml"):
        parse_accelerators(bad, name="own.toml")
