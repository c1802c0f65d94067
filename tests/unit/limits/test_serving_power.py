"""Power under load: bounds, what raises it, caps, calibration, and a table answered whole."""

import csv
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from baseload.cli.main import app
from baseload.domain.errors import DataError
from baseload.limits.serving.power import MOST, REST, Draw, Phases, fit_draw
from baseload.limits.serving.power_held_out import read_power, score
from baseload.limits.serving.power_points import PowerPoint, PowerPredictor, parse_power

PREDICTOR = PowerPredictor()
POINT = PowerPoint(line=2, model="llama-2-70b", system="a100-80gb", gpus=4, prompt=512, batch=1, output=128)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.3))
def test_more_work_never_draws_less(memory: float, compute: float, more: float) -> None:
    draw = Draw()
    share = draw.share(memory, compute, prompt=True)
    assert REST <= share <= MOST
    assert draw.share(memory + more, compute, prompt=True) >= share
    assert draw.share(memory, compute + more, prompt=True) >= share
    assert draw.share(memory, compute, prompt=True, cap=0.5) <= 0.5


def test_a_measured_deployment_is_near() -> None:
    """Llama-2-70B on four A100: 0.60 of the sheet's power decoding, all of it in a prompt (Splitwise)."""
    (said,) = PREDICTOR.predict([msgspec.structs.replace(POINT, prompt_s=0.127, token_s=0.045)])
    assert said.average == pytest.approx(0.60, rel=0.08)
    assert said.peak == pytest.approx(1.0, rel=0.08)
    assert said.average_w == pytest.approx(said.average * 4 * 400)
    assert said.joules_per_token is not None
    assert said.joules_per_token == pytest.approx(0.045 * said.average * 1600, rel=0.1)


def test_a_cap_binds_and_a_batch_shares_the_energy() -> None:
    capped, wide, plain = PREDICTOR.predict(
        [
            msgspec.structs.replace(POINT, cap=0.5),
            msgspec.structs.replace(POINT, batch=32),
            POINT,
        ]
    )
    assert capped.peak == pytest.approx(0.5)
    assert capped.average == pytest.approx(0.5)
    assert capped.prompt_slowdown > 1.2
    assert capped.prompt_ms == pytest.approx(plain.prompt_ms * capped.prompt_slowdown)
    assert plain.prompt_slowdown == plain.token_slowdown == wide.token_slowdown == 1.0
    assert plain.joules_per_token is not None
    assert wide.joules_per_token is not None
    assert wide.joules_per_token < plain.joules_per_token / 8
    assert "times predicted" in plain.note


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.5, 0.999), st.floats(0.0, 0.3))
def test_a_tighter_cap_is_never_faster_and_never_draws_more(
    memory: float, compute: float, cap: float, less: float
) -> None:
    draw = Draw()
    wide = Phases(memory, compute, memory, compute, cap=cap).capped(draw)
    tight = Phases(memory, compute, memory, compute, cap=cap - less * cap).capped(draw)
    for a, b in zip(wide, tight, strict=True):
        assert 1.0 <= a.slowdown <= b.slowdown + 1e-9
        assert b.clock <= a.clock + 1e-9 <= 1.0 + 1e-9
        assert b.share <= a.share + 1e-9
        assert a.share <= cap + 1e-9
        assert a.slowdown <= 1.0 / a.clock + 1e-9  # no phase loses more than the clock does


def test_a_phase_that_waits_for_memory_loses_less_than_one_that_multiplies() -> None:
    """H100 at half its power: prompts take 1.30 times longer, tokens not at all (Splitwise)."""
    point = msgspec.structs.replace(POINT, system="h100_sxm", gpus=2, prompt=2048, cap=0.5)
    (said,) = PREDICTOR.predict([point])
    assert said.prompt_slowdown == pytest.approx(1.30, rel=0.2)
    assert said.token_slowdown == pytest.approx(1.0, abs=0.01)


def test_throughput_under_a_cap_is_near_what_was_published() -> None:
    """Llama-2-70B offline on H200, 500 instead of 700 W: 0.81 of the throughput (MLPerf inference v4.1, MaxQ)."""
    free = PowerPoint(
        line=2, model="llama-2-70b", system="h200_sxm", gpus=1, prompt=294, batch=1024, output=294, weights="fp8"
    )
    whole = [
        said.prompt_ms + 294 * said.token_ms
        for said in PREDICTOR.predict([free, msgspec.structs.replace(free, cap_w=500.0)])
    ]
    assert whole[0] / whole[1] == pytest.approx(0.81, rel=0.08)


def test_a_time_measured_under_the_cap_is_not_stretched_again() -> None:
    (said,) = PREDICTOR.predict([msgspec.structs.replace(POINT, cap=0.5, prompt_s=0.2, token_s=0.05)])
    assert (said.prompt_ms, said.token_ms) == (200.0, 50.0)
    assert said.prompt_slowdown == said.token_slowdown == 1.0


def test_a_cap_below_what_the_slowest_clock_draws_is_said() -> None:
    (said,) = PREDICTOR.predict([msgspec.structs.replace(POINT, cap=0.1)])
    assert said.peak > 0.1
    assert "below what the slowest clock draws" in said.note


def test_rows_are_read_under_both_tables_names() -> None:
    row = {"model": "llama2-70b", "hardware": "h100-80gb-pcap", "prompt_size": "512", "batch_size": "2"}
    point = parse_power({**row, "tensor_parallel": "8", "token_time": "30"}, line=2, name="t.csv")
    assert (point.model, point.system, point.cap, point.gpus) == ("llama-2-70b", "h100-80gb", 0.5, 8)
    other = {
        "model_path": "meta-llama/Llama-3.1-8B",
        "system": "h200",
        "isl": "1000",
        "osl": "10",
        "concurrency": "4",
    }
    assert parse_power(other, line=2, name="t.csv").batch == 4
    for bad in ({"hardware": "h100"}, {**row, "prompt_size": "many"}):
        with pytest.raises(DataError, match=r"t\.csv line 2"):
            parse_power(bad, line=2, name="t.csv")


def test_an_accelerator_without_power_on_its_sheet_gets_shares() -> None:
    (said,) = PREDICTOR.predict([msgspec.structs.replace(POINT, system="tpu_v5e", gpus=8)])
    assert said.average_w is None
    assert 0 < said.average < MOST
    assert "tdp_w" in said.note


def test_calibration_finds_another_curve() -> None:
    hidden = Draw(gain=0.6, bend=0.7, prompt_weight=1.2, decode_weight=2.0)
    phases = [Phases(0.1 * k, 0.08 * k, 0.09 * k, 0.01 * k) for k in range(1, 10)]
    shares = [p.shares(hidden) for p in phases]
    found = fit_draw(phases, [max(s) for s in shares], [s[1] for s in shares], start=Draw())
    for p, (prompt, token) in zip(phases, shares, strict=True):
        assert p.shares(found)[1] == pytest.approx(token, rel=0.06)
        assert max(p.shares(found)) == pytest.approx(max(prompt, token), rel=0.06)
    assert fit_draw(phases, [0.0] * 9, [0.0] * 9, start=Draw()) == Draw()


def table() -> str:
    lines = [
        "model,hardware,prompt_size,batch_size,token_size,peak_power,average_power,prompt_time,token_time,tensor_parallel"
    ]
    for gpus, average in ((2, 0.74), (4, 0.60), (8, 0.44)):
        for batch in (1, 2, 4):
            lines.append(
                f"llama2-70b,a100-80gb,512,{batch},128,1.0,{average},{400 / gpus * batch},{45 + 20 / gpus},{gpus}"
            )
    return "\n".join(lines)


def test_groups_are_scored_by_the_others() -> None:
    figures = score(table().encode())
    assert [figure.points for figure in figures] == [9, 9, 9, 9]
    assert figures[0].reached < 0.15


def test_the_command_answers_every_row(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(table())
    out = tmp_path / "out.csv"
    args = ["predict", "power", str(tmp_path / "points.csv"), "-o", str(out)]
    for extra in ([], ["--calibrate", str(tmp_path / "points.csv")]):
        result = CliRunner().invoke(app, [*args, *extra])
        assert result.exit_code == 0, result.output
        with out.open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 9
        assert all(0 < float(row["predicted_average_power"]) <= MOST for row in rows)
    assert rows[0]["basis"].startswith("calibrated: 9 points of a100_sxm")
    assert len(read_power(table().encode(), name="t")) == 9
