"""Throughput of published inference results: counting, calibration, splits, power, and the two commands."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from baseload.cli.main import app
from baseload.domain.errors import DataError
from baseload.limits.catalogue.accelerators import read_catalogue
from baseload.limits.catalogue.models import Models
from baseload.limits.ridge import unfitted
from baseload.limits.throughput.held_out import score
from baseload.limits.throughput.model import FORM, costs_of
from baseload.limits.throughput.points import Row, distinct, groups, read_rows
from baseload.limits.throughput.predict import Predictor, added

CATALOGUE = read_catalogue()
LLAMA = Models().find("meta-llama/Llama-2-70B")[0]
CHIPS = ("NVIDIA H100-SXM-80GB", "NVIDIA H200-SXM-141GB", "NVIDIA B200-SXM-180GB", "AMD Instinct MI325X 256GB HBM3e")


def _row(**fields: object) -> Row:
    base = {"line": 1, "model": "llama2-70b", "accelerator": CHIPS[0], "accelerators": 8, "unit": "Tokens/s"}
    base |= {"precision": "fp8", "engine": "tensorrt", "round": "v5.1", "submitter": "me", "platform": "p"}
    return Row(**(base | fields))  # type: ignore[arg-type]


def _results(factor: float = 1.0) -> list[Row]:
    """Results that are the bare model's, times a factor for one chip."""
    bare = Predictor(fitted=unfitted(FORM))
    rows = [
        _row(line=i, accelerator=chip, model=model, submitter=site, platform=f"{site} {chip}", scenario=scenario)
        for i, (chip, model, site, scenario) in enumerate(
            (chip, model, site, scenario)
            for chip in CHIPS
            for model in ("llama2-70b", "llama3.1-8b", "mixtral-8x7b")
            for site in ("a", "b", "c")
            for scenario in ("offline", "server")
        )
    ]
    said = bare.predict(rows)
    return [
        replace(row, value=(a.throughput or 0) * (factor if "H200" in row.accelerator else 1.0))
        for row, a in zip(rows, said, strict=True)
    ]


def _errors(said: Sequence[object], rows: Sequence[Row]) -> list[float]:
    return [abs(a.throughput / row.value - 1) for a, row in zip(said, rows, strict=True)]  # type: ignore[attr-defined]


def test_costs_answer_to_sheet_format_and_lengths() -> None:
    h100, h200 = CATALOGUE.find("h100"), CATALOGUE.find("h200")
    base = costs_of(LLAMA, h100, form="fp8", isl=294, osl=294, accelerators=8)
    assert base.tensor in (2, 4, 8)  # 70 GB of weights leave one of 80 GB no room
    more = costs_of(LLAMA, h200, form="fp8", isl=294, osl=294, accelerators=8)
    assert more.sequences / more.tensor > base.sequences / base.tensor  # more room, more of them together
    assert costs_of(LLAMA, h100, form="bf16", isl=294, osl=294, accelerators=8).prefill_s > base.prefill_s
    long = costs_of(LLAMA, h100, form="fp8", isl=8_000, osl=294, accelerators=8)
    assert long.prefill_s > 20 * base.prefill_s
    alone = costs_of(LLAMA, h100, form="fp8", isl=294, osl=294, accelerators=8, sequences=1)
    assert alone.read_s > 50 * base.read_s
    with pytest.raises(DataError, match=r"do not fit 1 × L4"):
        costs_of(LLAMA, CATALOGUE.find("l4"), form="fp8", isl=1, osl=1, accelerators=1)


def test_rows_are_read_with_their_traps() -> None:
    head = "model,accelerator,accelerators_total,scenario,unit,software,value,platform,round,nodes,precision\n"
    text = (
        head
        + 'llama2-70b-99.9,NVIDIA H100-SXM-80GB,8,Offline,Tokens/s,"TensorRT 10.11, CUDA 12.9",9,MaxQ_x,v5.1,1,fp8\n'
    )
    text += "llama3.1-8b,NVIDIA B200,8,Interactive,Queries/s,vLLM v0.9.2,5,p,v5.1,2,fp4\n"
    text += "gptj-99,N/A,,Server,Queries/s,PyTorch,5,p,v4.1,1,int4\n"
    one, two, three = read_rows(text.encode(), name="r.csv")
    assert (one.model, one.engine, one.engine_version, one.capped) == ("llama2-70b", "tensorrt", "10.11", True)
    assert (two.counts, two.engine, two.engine_version) == ("tokens", "vllm", "0.9")  # the table says queries
    assert (three.counts, three.accelerators) == ("samples", 0)
    with pytest.raises(DataError, match=r"r\.csv, line 2: `value` is 'x'"):
        read_rows(b"model,accelerator,value\na,b,x\n", name="r.csv")
    with pytest.raises(DataError, match="no column `accelerator`"):
        read_rows(b"model\na\n", name="r.csv")


def test_one_system_under_two_accuracy_targets_is_one_measurement() -> None:
    rows = [_row(value=10.0), _row(value=10.0), _row(value=11.0, scenario="server")]
    assert distinct(rows) == [0, 2]
    assert sorted(groups(rows).values()) == [[0, 1], [2]]


def test_calibration_learns_a_chip_and_carries_it_to_another_site_and_model() -> None:
    rows = _results(factor=0.6)
    bare = Predictor(fitted=unfitted(FORM))
    known = [row for row in rows if row.submitter != "c"]
    new = [row for row in rows if row.submitter == "c" and "H200" in row.accelerator]
    assert np.mean(_errors(bare.predict(new), new)) > 0.4
    said = bare.calibrate(known).predict(new)
    assert np.mean(_errors(said, new)) < 0.06
    assert said[0].basis == "calibrated: llama-2-70b on h200_sxm" or said[0].basis.startswith(
        "calibrated: llama2-70b"
    )
    unseen = [row for row in rows if row.model == "mixtral-8x7b" and "H200" in row.accelerator]
    others = [row for row in rows if row.model != "mixtral-8x7b"]
    apart = bare.calibrate(others).predict(unseen)
    assert np.mean(_errors(apart, unseen)) < np.mean(_errors(bare.predict(unseen), unseen))
    assert (apart[0].expected_error or 0) > (said[0].expected_error or 1)


def test_answers_come_in_the_row_s_own_unit() -> None:
    tokens, samples, latency = Predictor().predict(
        [
            _row(),
            _row(model="gptj", unit="Samples/s"),
            _row(model="llama3.1-8b-edge", unit="Latency (ms)", scenario="singlestream", accelerators=1),
        ]
    )
    assert tokens.throughput == tokens.tokens_per_s
    assert samples.tokens_per_s == pytest.approx((samples.throughput or 0) * 69)
    assert latency.throughput == pytest.approx(128 / (latency.tokens_per_s or 1) * 1e3)


def test_every_row_is_answered_or_says_what_is_missing() -> None:
    rows = [
        _row(accelerator="Foo 9000"),
        _row(model="my-new-70b"),
        _row(accelerators=0),
        _row(accelerator="NVIDIA L4", accelerators=1),
        _row(accelerator="AMD Instinct MI300X (x8), AMD Instinct MI325X (x8)", accelerators=16),
        _row(accelerator="N/A", host_cpu="Intel Xeon 9999", cpus=2),
    ]
    said = Predictor().predict(rows)
    assert [a.throughput is not None for a in said] == [False, True, False, False, True, False]
    assert "the sheet of 'foo 9000'" in said[0].note
    assert "guessed from its name" in said[1].note
    assert "1000 in and 1000 out assumed" in said[1].note
    assert said[2].note == "missing: accelerators_total"
    assert "do not fit" in said[3].note
    assert "intel xeon 9999" in said[5].note
    assert added(said[0])["throughput"] == ""
    both = Predictor().predict([_row(accelerator="AMD Instinct MI300X"), _row(accelerator="AMD Instinct MI325X")])
    assert said[4].throughput == pytest.approx(sum(a.throughput or 0 for a in both))


def test_power_at_the_wall_is_calibrated_apart() -> None:
    rows = [replace(row, power_w=8 * 700 * 1.1) for row in _results() if "H200" in row.accelerator]
    start = Predictor(fitted=unfitted(FORM))
    plain = start.predict(rows[:1])[0]
    assert plain.power_w == pytest.approx(8 * 700 * 1.25)
    known = start.calibrate(rows[2:]).predict(rows[:1])[0]
    assert known.power_w == pytest.approx(8 * 700 * 1.1, rel=0.02)
    assert known.power_basis.startswith("calibrated")
    assert start.predict([_row(accelerator="Google TPU v5e", model="llama3.1-8b")])[0].power_w is None


HEAD = (
    "model",
    "accelerator",
    "accelerators_total",
    "scenario",
    "unit",
    "value",
    "submitter",
    "platform",
    "precision",
)


def _write(path: Path, rows: Sequence[Row]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEAD)
        for r in rows:
            writer.writerow(
                [
                    r.model,
                    r.accelerator,
                    r.accelerators,
                    r.scenario,
                    r.unit,
                    r.value,
                    r.submitter,
                    r.platform,
                    r.precision,
                ]
            )
    return path


def test_the_examination_keeps_systems_whole(tmp_path: Path) -> None:
    figures = score(_write(tmp_path / "r.csv", _results()).read_bytes())
    offline = next(f for f in figures if f.what == "MLPerf LLM offline throughput, mean")
    assert offline.points == 36
    assert offline.met is True
    assert any(f.what.startswith("MLPerf LLM power") and f.points == 0 for f in figures)


def test_predict_throughput_writes_the_columns_given_and_ours(tmp_path: Path) -> None:
    points, out = _write(tmp_path / "p.csv", _results()[:3]), tmp_path / "o.csv"
    done = CliRunner().invoke(app, ["predict", "throughput", str(points), "--calibrate", str(points), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert "3 of 3 rows answered (3 calibrated)" in done.output
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert list(rows[0])[: len(HEAD)] == list(HEAD)
    assert all(float(row["throughput"]) > 0 and row["basis"] for row in rows)


def test_predict_training_goes_on_past_what_it_does_not_know(tmp_path: Path) -> None:
    points, out = tmp_path / "p.csv", tmp_path / "o.csv"
    points.write_text(
        "accelerator,accelerators_total,benchmark,global_batch_size,mine\n"
        "NVIDIA H100,64,llama31_8b,64,keep\nCerebras WSE-3,8,llama31_8b,64,me\n"
    )
    done = CliRunner().invoke(app, ["predict", "training", str(points), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert "1 of 2 rows answered (0 calibrated, 1 flagged with the missing figure)" in done.output
    known, unknown = csv.DictReader(out.read_text().splitlines())
    assert float(known["step_time"]) > 0
    assert known["mine"] == "keep"
    assert unknown["step_time"] == ""
    assert "Cerebras WSE-3" in unknown["note"]
    own = tmp_path / "own.toml"
    own.write_text(
        "[accelerators.wse]\nname='Cerebras WSE-3'\naliases=['cerebras wse 3']\nsource='me'\nbf16_tflops=1000\n"
        "memory_gb=80\n"
        "memory_gb_per_s=3000\nscale_up_gb_per_s=450\nscale_up_domain=8\n"
    )
    again = CliRunner().invoke(app, ["predict", "training", str(points), "-o", str(out), "--catalogue", str(own)])
    assert "2 of 2 rows answered" in again.output
