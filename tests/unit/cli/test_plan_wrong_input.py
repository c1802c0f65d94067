"""Whatever a plan's specification holds: an answer, limits that conflict, or one line that names the key."""

import copy
import math
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baseload.cli.plan import answer, as_usage, example_text
from baseload.domain.errors import SettingsError

ROOT = Path(__file__).parents[3]
SPEC = tomllib.loads(
    """
name = "x"
[[models]]
name = "a"
model = "meta-llama/Meta-Llama-3.1-8B"
engine = "vllm"
precisions = ["fp8"]
modes = ["aggregated", "disaggregated"]
residency = ["eu"]
spare_replicas = 1
max_accelerators = 1
[models.traffic]
requests_per_s = 4.0
peak_requests_per_s = 8.0
prompt_tokens = 500
output_tokens = 100
prompt_cv = 1.0
output_cv = 0.8
shared_prefix = 0.2
[models.levels]
ttft_ms = 1000.0
tpot_ms = 40.0
[[training]]
name = "t"
model = "meta-llama/Meta-Llama-3.1-8B"
tokens = 1e9
sequence_tokens = 4096
batch_tokens = 1_000_000
precision = "bf16"
deadline_days = 30.0
accelerators = [8]
[[sites]]
name = "hall"
kind = "owned"
region = "eu"
power_mw = 0.5
usd_per_kwh = 0.1
gco2_per_kwh = 300.0
pue = 1.2
network_ms = 5.0
years = 5.0
interest = 0.08
usd_per_kw_month = 100.0
people = 1.0
usd_per_person_year = 100000.0
[[sites.accelerators]]
accelerator = "h100_sxm"
count = 64
capex_usd = 30000.0
[limits]
usd_per_month = 1e6
megawatts = 1.0
tonnes_co2_per_month = 1000.0
"""
)


def leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key, below in value.items() for leaf in leaves(below, (*at, key))]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [leaf for i, below in enumerate(value) for leaf in leaves(below, (*at, i))]
    return [at]


def written(value: Any) -> str:
    """As TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {written(of)}" for key, of in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def ask(spec: dict[str, Any], folder: Path) -> str:
    """Exit code 0 or 3's report as JSON, or the one line of exit code 2."""
    path = folder / "plan.toml"
    path.write_text("\n".join(f"{key} = {written(of)}" for key, of in spec.items()))
    try:
        with as_usage():
            report = answer(path, check=False)
    except SettingsError as error:
        return "refused" if str(error) and "\n" not in str(error) else "unclear"
    plain = msgspec.json.encode(report).decode()
    assert "NaN" not in plain
    if not report.feasible:
        assert report.conflict is not None
        assert report.conflict.limits or report.not_judged or report.conflict.why
        return "infeasible"
    return "feasible"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    leaf=st.sampled_from(leaves(SPEC)),
    value=st.sampled_from(
        [-1, 0, math.nan, math.inf, 1e30, 1e-30, 10**15, -0.5, 2, "zz", "", True, [], ["zz"], [1], {}]
    ),
)
def test_no_value_of_any_key_breaks_a_plan(tmp_path: Path, leaf: tuple[Any, ...], value: Any) -> None:
    spec = copy.deepcopy(SPEC)
    table = spec
    for key in leaf[:-1]:
        table = table[key]
    table[leaf[-1]] = value
    assert ask(spec, tmp_path) != "unclear"


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("sites", "pue", 0.5, "sites.pue"),
        ("sites", "interest", 8, "a share a year"),
        ("sites", "years", 1e30, "sites.years"),
        ("sites", "years", 0, "sites.years"),
        ("sites", "usd_per_kwh", -9, "electricity pays"),
        ("sites", "accelerators", [], "no accelerators"),
        ("sites", "accelerators", ["h100_sxm", {"accelerator": "H100 SXM", "count": 5}], "twice"),
        ("sites", "accelerators", [{"accelerator": "h100_sxm", "capex_usd": 1.0, "usd_per_hour": 0.0}], "an hour"),
        ("models", "model", "nope/config.json", "cannot be read"),
        ("sites", "name", " ", "must not be empty"),
        ("models", "engine", "zz", "unknown engine"),
        ("models", "max_accelerators", 0, "max_accelerators"),
        ("training", "precision", "fp3", "unknown precision"),
        ("training", "accelerators", [0], "training.accelerators"),
        ("training", "tokens", math.nan, "training.tokens"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, section: str, key: str, value: Any, said: str) -> None:
    spec = copy.deepcopy(SPEC)
    spec[section][0][key] = value
    path = tmp_path / "plan.toml"
    path.write_text("\n".join(f"{name} = {written(of)}" for name, of in spec.items()))
    with pytest.raises(SettingsError, match=said):
        answer(path, check=False)


def test_carbon_is_no_limit_where_nobody_knows_it(tmp_path: Path) -> None:
    spec = copy.deepcopy(SPEC)
    del spec["sites"][0]["gco2_per_kwh"]
    path = tmp_path / "plan.toml"
    path.write_text("\n".join(f"{name} = {written(of)}" for name, of in spec.items()))
    with pytest.raises(SettingsError, match="site 'hall' does not say what a kWh emits"):
        answer(path, check=False)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ttft=st.sampled_from([1.0, 30.0, 1000.0]),
    tpot=st.sampled_from([0.01, 40.0]),
    budget=st.sampled_from([1.0, 1e6]),
    megawatts=st.sampled_from([1e-5, 1.0]),
    region=st.sampled_from(["eu", "mars"]),
)
def test_what_conflicts_is_minimal(
    tmp_path: Path, ttft: float, tpot: float, budget: float, megawatts: float, region: str
) -> None:
    """Each limit named is needed: without it alone the others among those named can be kept."""
    spec = copy.deepcopy(SPEC)
    del spec["training"]
    spec["models"][0]["levels"] = {"ttft_ms": ttft, "tpot_ms": tpot}
    spec["models"][0]["residency"] = [region]
    spec["limits"] = {"usd_per_month": budget, "megawatts": megawatts}
    path = tmp_path / "plan.toml"
    path.write_text("\n".join(f"{name} = {written(of)}" for name, of in spec.items()))
    report = answer(path, check=False)
    wrong = [ttft < 2.0, tpot < 1.0, budget < 100.0, megawatts < 1e-3, region == "mars"]
    if not any(wrong):
        assert report.feasible or ttft == 30.0
        return
    assert report.conflict is not None
    assert report.conflict.limits
    words = ("TTFT", "TPOT", "budget", "power", "residency")
    told = [any(word in limit for limit in report.conflict.limits) for word in words]
    assert all(
        bad or not said or (word == "TTFT" and ttft == 30.0)
        for word, bad, said in zip(words, wrong, told, strict=True)
    )
    alone = sum(wrong) + (ttft == 30.0) == 1
    if alone:
        assert told == wrong


def test_the_example_is_the_start_up_of_the_configs() -> None:
    assert example_text() == (ROOT / "configs" / "plan" / "startup.toml").read_text()
