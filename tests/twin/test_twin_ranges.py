"""A specification's values are held to their ranges: whatever stands in a key, a run ends cleanly or in one line."""

import math
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import fields

from baseload.cli.main import run
from baseload.domain.errors import BaseloadError, SettingsError
from baseload.domain.jobs import Quota
from baseload.domain.model import Admission, EngineSpec, ModelSpec, Price, Scaling
from baseload.domain.tenant import KeyLimits
from baseload.limits.quantization import BYTES
from baseload.limits.step_time import StepTimeSpec
from baseload.twin.baselines import ROUTINGS, SCALINGS
from baseload.twin.cluster.spec import Cluster, ClusterFaults, JobStream, Service, Site
from baseload.twin.hunts import run_or_hunt
from baseload.twin.range_tables import RULES
from baseload.twin.ranges import complaint
from baseload.twin.reading import accepted, load
from baseload.twin.spec import (
    Energy,
    Faults,
    Hardware,
    Physics,
    Policies,
    SimulateConfig,
    Slo,
    Source,
    Workload,
)

EXAMPLES = Path(__file__).parents[2] / "configs" / "simulate"
REQUESTS: dict[str, Any] = {
    "decisions": 5,
    "processes": 1,
    "models": [
        {"name": "m", "source": "simulated", "context_tokens": 4096, "scaling": {"max_replicas": 2},
         "admission": {}, "engine": {}, "price": {}}
    ],
    "workload": {
        "key_limits": {},
        "sources": [{"requests": 6, "rate_per_s": 5.0, "prompt_tokens": 20, "output_tokens": 5}],
    },
    "physics": {"step_time": {"basis": "stated", "fixed_ms": 1.0, "prefill": [[64, 1.0]], "decode": [[8, 1.0]]}},
    "faults": {}, "slo": {}, "energy": {}, "policies": {},
    "hardware": {"m": {"model": "llama-3.1-8b", "accelerator": "h100-sxm"}},
}  # fmt: skip
FLEET: dict[str, Any] = {
    "decisions": 5,
    "cluster": {
        "hours": 1.0,
        "sites": [{"name": "s", "nodes": 6}],
        "jobs": [{"name": "j", "per_hour": 3.0, "hours": 0.2}],
        "services": [{"name": "v", "rate_per_s": 1.0, "scaling": {"min_replicas": 1, "max_replicas": 2}}],
        "quotas": {"default": {}},
        "faults": {},
    },
}
PLACES: list[tuple[dict[str, Any], tuple[Any, ...], type[msgspec.Struct]]] = [
    (REQUESTS, (), SimulateConfig),
    (REQUESTS, ("models", 0), ModelSpec),
    (REQUESTS, ("models", 0, "scaling"), Scaling),
    (REQUESTS, ("models", 0, "admission"), Admission),
    (REQUESTS, ("models", 0, "engine"), EngineSpec),
    (REQUESTS, ("models", 0, "price"), Price),
    (REQUESTS, ("workload",), Workload),
    (REQUESTS, ("workload", "key_limits"), KeyLimits),
    (REQUESTS, ("workload", "sources", 0), Source),
    (REQUESTS, ("physics",), Physics),
    (REQUESTS, ("physics", "step_time"), StepTimeSpec),
    (REQUESTS, ("faults",), Faults),
    (REQUESTS, ("slo",), Slo),
    (REQUESTS, ("energy",), Energy),
    (REQUESTS, ("policies",), Policies),
    (REQUESTS, ("hardware", "m"), Hardware),
    (FLEET, ("cluster",), Cluster),
    (FLEET, ("cluster", "sites", 0), Site),
    (FLEET, ("cluster", "jobs", 0), JobStream),
    (FLEET, ("cluster", "services", 0), Service),
    (FLEET, ("cluster", "services", 0, "scaling"), Scaling),
    (FLEET, ("cluster", "quotas", "default"), Quota),
    (FLEET, ("cluster", "faults"), ClusterFaults),
]
KEYS = [(base, place, field.name) for base, place, kind in PLACES for field in fields(kind)]
ODD = st.sampled_from(
    [-1, -0.5, math.nan, math.inf, -math.inf, 0, 0.0, 1, 1.5, 2, 1e-9, 1e300, 1 << 70, -(1 << 70), "", "x", "trace",
     "sessions", "gamma", "diurnal", "bursts", "agents", True, [], [1], [[1, 2.0]], [-1.0], ["a"], {}, {"m": 1.0},
     {"m": -1.0}, {"a": {}}]
)  # fmt: skip
SMALL = st.one_of(st.integers(0, 12), st.floats(0.0, 3.0))
SLOW = {
    "seeds",
    "cells",
    "processes",
    "hours",
    "trace",
    "cluster",
    "requests",
    "burst",
    "turns",
    "rate_per_s",
    "tick_s",
}


def with_value(base: dict[str, Any], place: tuple[Any, ...], key: str, value: object) -> dict[str, Any]:
    changed: dict[str, Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(base))
    table: Any = changed
    for step in place:
        table = table[step]
    table[key] = value
    return changed


def read(raw: dict[str, Any]) -> SimulateConfig:
    """As `load` reads it, without the file."""
    wrong = complaint(raw, SimulateConfig)
    if wrong:
        raise SettingsError(wrong)
    return accepted(msgspec.convert(raw, SimulateConfig))


def ended(raw: dict[str, Any], *, is_slow: bool) -> str:
    """What a typed error tells; "" where the run is clean (or would be, and takes long)."""
    try:
        config = read(raw)
        report = run_or_hunt(config) if not is_slow else None
    except (BaseloadError, msgspec.ValidationError) as error:  # the latter is `wire.toml`'s to word
        return str(error) or "no words\n"
    return "" if report is None or report.failure is None else f"{report.failure}\n"


def commanded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `baseload simulate` tells in one line and a hint, with exit code 2."""
    monkeypatch.setattr("sys.argv", ["baseload", "simulate", *arguments])
    with pytest.raises(SystemExit) as ended_with:
        run()
    assert ended_with.value.code == 2
    told = capsys.readouterr()
    assert "Traceback" not in told.err + told.out
    return " ".join(told.err.split())


def test_the_bases_run() -> None:
    for base in (REQUESTS, FLEET):
        assert run_or_hunt(read(base)).failure is None


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(KEYS), st.one_of(ODD, ODD, SMALL))
def test_whatever_stands_in_a_key_a_run_is_clean_or_an_error_tells_why(
    where: tuple[dict[str, Any], tuple[Any, ...], str], value: object
) -> None:
    base, place, key = where
    told = ended(with_value(base, place, key, value), is_slow=key in SLOW and isinstance(value, int) and value > 12)
    assert "\n" not in told, (place, key, value, told)


@pytest.mark.parametrize("value", [2.2250738585e-313, 5e-324])
def test_what_is_too_rare_for_a_number_never_happens(value: float) -> None:  # found by the search above
    assert ended(with_value(FLEET, ("cluster", "faults"), "published", value), is_slow=False) == ""


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "x", [], True, {}], ids=str)
def test_each_number_tells_its_table_key_and_range(value: object) -> None:
    told = 0
    for base, place, kind in PLACES:
        for field in fields(kind):
            rule = RULES.get((kind.__name__, field.name))
            if field.type not in (int, float) or (rule is not None and value == -1 and rule.low <= -1):
                continue
            if field.name in ("cell", "only_cell"):
                continue
            wrong = complaint(with_value(base, place, field.name, value), SimulateConfig)
            assert f"`{field.name}` must be a" in wrong, (place, field.name, wrong)
            assert "number" in wrong
            assert " to " in wrong or "at least" in wrong
            table = ".".join(str(step) for step in place if not isinstance(step, int))
            assert wrong.replace("[0]", "").startswith(f"[{table}]" if table else "the top of the file"), wrong
            told += 1
    assert told > 150


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        ("[workload]\nrate_per_s = -1", "[workload]: `rate_per_s` must be a number (0.000001 to 1,000,000)", "Mend"),
        ("[faults]\ncrsh_every_s = 1", "unknown key `faults.crsh_every_s`", "crash_every_s"),
        ('[[models]]\nname = "m"', "[models[0]] needs a `source`", "Mend"),
        ('[[models]]\nname = "m"\nsource = "s"\n[models.scaling]\nmin_replicas = 3', "`min_replicas` is 3", "Mend"),
        ("[hardware.m]\nmodel = 'llama-3.1-8b'", "there is no model 'm'", "Mend"),
        ("[energy]\npue = 0.5", "[energy]: `pue` must be a number (1 to 10)", "Mend"),
        ("[cluster]\nhours = -1\nsites = []", "[cluster]: `hours` must be", "Mend"),
        ("[cluster]\nhours = 1\nsites = []", "at least one of `[[cluster.sites]]`", "Mend"),
        ("[[workload.sources]]\nkind = 'tides'", "one of poisson, gamma", "Mend"),
        ("cell = 3", "`cell` is filled by the program", "Mend"),
        ("seed = 1.5", "`seed` must be a whole number", "Mend"),
        ("[workload", "not valid TOML", "Mend the file"),
    ],
)
def test_the_command_ends_in_one_line_a_hint_and_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    told: str,
    hint: str,
) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(text)
    words = commanded(monkeypatch, capsys, str(path))
    assert told in words
    assert hint in words.partition("Next:")[2]


def test_a_file_that_is_not_there_and_odd_flags_are_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, told in (
        ([str(tmp_path / "none.toml")], "configs/simulate holds examples"),
        (["--rate", "nan"], "`rate_per_s` must be"),
        (["--seed", "-4"], "`seed` must be"),
        (["--cell", "0"], "not in cells"),
    ):
        assert told in commanded(monkeypatch, capsys, *arguments)


def test_a_model_of_no_catalogue_is_not_guessed() -> None:
    hardware = {"m": Hardware(model="made-up-900b", accelerator="h100-sxm")}
    config = msgspec.structs.replace(read(REQUESTS), hardware=hardware)
    with pytest.raises(SettingsError, match="its shape would be a guess"):
        run_or_hunt(config)
    with pytest.raises(BaseloadError, match="made-up-chip"):
        made_up = {"m": Hardware(model="llama-3.1-8b", accelerator="made-up-chip")}
        run_or_hunt(msgspec.structs.replace(config, hardware=made_up))


def test_ranges_name_settings_that_exist_and_examples_keep_them() -> None:
    kinds = {kind.__name__: {field.name for field in fields(kind)} for _, _, kind in PLACES}
    for struct, name in RULES:
        assert name in kinds[struct], (struct, name)
    assert set(RULES["Hardware", "weights"].words) == {"", *BYTES}
    assert RULES["Policies", "routing"].words == ROUTINGS
    assert RULES["Policies", "scaling"].words == SCALINGS
    for path in sorted(EXAMPLES.glob("*.toml")):
        assert complaint(tomllib.loads(path.read_text()), SimulateConfig) == ""
        load(path)
