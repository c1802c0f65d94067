"""Files of fitted values: the same points give the same bytes, and a figure they rest on that moved is named."""

import tomllib
from collections.abc import Callable
from importlib.resources import files

import numpy as np
import pytest
from msgspec.structs import replace

from baseload.limits.catalogue.accelerators import Catalogue, read_catalogue
from baseload.limits.ridge import Form, form_mark, read_shipped, to_toml, unfitted
from baseload.limits.throughput.model import FORM
from baseload.limits.throughput.points import Row
from baseload.limits.throughput.predict import Predictor
from baseload.limits.training.fit import FORM as STEP_FORM
from baseload.limits.training.predict import Predictor as StepPredictor

SHIPPED = files("baseload.limits.catalogue")
MOVED = 0.005  # relative change of a counted time from which values fitted to it are out of date


def stale(data: bytes, form: Form, uncorrected_s: Callable[[str, str], float | None]) -> list[str]:
    """What a file of `to_toml` rests on that has moved since it was fitted: empty where it would be fitted alike.

    `uncorrected_s(accelerator, work)` counts anew; half a percent is let pass.
    """
    tables = tomllib.loads(data.decode())
    moved = [] if tables["form"] == form_mark(form) else ["the form's priors or widths"]
    for accelerator, works in tables["uncorrected_s"].items():
        for work, before in works.items():
            now = uncorrected_s(accelerator, work)
            if now is None or abs(now / before - 1.0) > MOVED:
                moved.append(f"{work} on {accelerator}: {before} s when fitted, {now} s now")
    return moved


def _results() -> list[Row]:
    """Results near the bare model's, with a factor for each site and a little noise."""
    bare, noise = Predictor(fitted=unfitted(FORM)), np.random.default_rng(7)
    rows = [
        Row(line=i, model=model, accelerator=chip, accelerators=8, submitter=site, platform=f"{site} {chip}")
        for i, (chip, model, site) in enumerate(
            (chip, model, site)
            for chip in ("h100_sxm", "h200_sxm", "mi325x")
            for model in ("llama2-70b", "mixtral-8x7b")
            for site in ("a", "b")
        )
    ]
    return [
        replace(row, value=(a.throughput or 0.0) * (1.3 if row.submitter == "a" else 0.9) * noise.lognormal(0, 0.05))
        for row, a in zip(rows, bare.predict(rows), strict=True)
    ]


def _file(rows: list[Row]) -> str:
    predictor = Predictor(fitted=unfitted(FORM))
    seconds = predictor.uncorrected_s("h100_sxm", "llama2-70b")
    assert seconds is not None
    counted = {("h100_sxm", "llama2-70b"): seconds}
    fitted = predictor.calibrate(rows).fitted
    return to_toml(fitted, basis="a test", kinds=("model", "accelerator", "site"), uncorrected_s=counted)


def test_the_same_points_give_the_same_bytes_in_any_order() -> None:
    rows = _results()
    first = _file(rows)
    assert first == _file(rows)
    assert first == _file(rows[::-1])
    values = read_shipped(first.encode())[0]
    assert values[("site", "a", "pace")] > 0 > values[("site", "b", "pace")]
    assert all(value == round(value, 3) for value in values.values())


def test_a_figure_that_moved_since_the_fit_is_named() -> None:
    data = _file(_results()).encode()
    assert stale(data, FORM, Predictor().uncorrected_s) == []
    catalogue = read_catalogue()
    sheet = replace(catalogue.entries["h100_sxm"], memory_gb_per_s=4000.0)
    other = Predictor(catalogue=Catalogue({**catalogue.entries, "h100_sxm": sheet}))
    (moved,) = stale(data, FORM, other.uncorrected_s)
    assert moved.startswith("llama2-70b on h100_sxm: 0.")
    assert stale(data.replace(form_mark(FORM).encode(), b"0"), FORM, Predictor().uncorrected_s) != []


@pytest.mark.parametrize("name", ["throughput.toml", "training.toml"])
def test_shipped_values_were_fitted_on_the_figures_of_today(name: str) -> None:
    data = (SHIPPED / name).read_bytes()
    form, predictor = {"throughput.toml": (FORM, Predictor()), "training.toml": (STEP_FORM, StepPredictor())}[name]
    moved = stale(data, form, predictor.uncorrected_s)
    assert moved == [], f"{name} is out of date; write it anew with bench/limits/fit_fleet.py"
