"""Rows whose unit cannot be what their column says: found by physics and by siblings, left out, and told."""

import csv
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from baseload.cli.main import app
from baseload.limits.plausible import Measured, left_out, notes_of
from baseload.limits.ridge import unfitted
from baseload.limits.throughput.model import FORM
from baseload.limits.throughput.points import Row
from baseload.limits.throughput.predict import Predictor
from baseload.limits.training.fit import FORM as STEP_FORM
from baseload.limits.training.points import Row as Job
from baseload.limits.training.predict import Predictor as StepPredictor

CHIPS = ("h100_sxm", "h200_sxm", "b200_sxm", "mi325x")


def _rows(*seconds: float, floor_s: float = 0.2, usual_s: float = 1.0, tokens: float = 300.0) -> list[Measured]:
    return [
        Measured(line=i + 2, group="m", seconds=s, floor_s=floor_s, usual_s=usual_s, tokens=tokens)
        for i, s in enumerate(seconds)
    ]


def test_nothing_is_left_out_of_rows_that_merely_differ() -> None:
    assert left_out(_rows(1.0, 0.5, 2.0, 4.0, 0.3)) == {}
    assert left_out(_rows(1.0, 300.0)) == {}  # one sibling is none
    assert left_out(_rows(1.0, 1.0, 1.0, 1.0, 10.0, tokens=10.0)) == {}  # slow, and not by an answer's length
    assert left_out(_rows(1.0, 1.0, 1.0, 1.0, 30.0)) == {}  # slow, by a tenth of it


def test_a_time_below_the_sheet_s_arithmetic_is_named_with_its_likely_cause() -> None:
    (odd,) = left_out(_rows(1.0, 1.0 / 300, 1.1)).items()
    assert odd[0] == 1
    assert odd[1].words == (
        "line 3 of m left out of the calibration: "
        "60 times faster than its sheet's arithmetic (its log counts tokens, not samples?)"
    )
    (bare,) = left_out(_rows(1e-5)).values()
    assert "tokens" not in bare.why  # nor would its tokens explain it


@pytest.mark.parametrize(("seconds", "how"), [(280.0, "slower"), (1 / 280.0, "faster")])
def test_a_row_off_its_siblings_by_the_tokens_of_a_sample_is_named(seconds: float, how: str) -> None:
    rows = _rows(1.0, 1.2, 0.9, 1.1, seconds, floor_s=1e-6)
    (odd,) = left_out(rows).items()
    assert odd[0] == 4
    assert how in odd[1].why
    assert "about the 300 tokens of a sample" in odd[1].why


def test_uncounted_work_is_held_against_siblings_alone() -> None:
    rows = _rows(1.0, 2.0, 3.0, 2.5, 0.01, floor_s=0.0, tokens=1.0)
    assert list(left_out(rows)) == [4]
    assert left_out([replace(row, usual_s=0.0) for row in rows]) == {}  # a stand-in's sheet compares nothing


def test_a_note_names_three_and_counts_the_rest() -> None:
    left = list(left_out(_rows(*[0.001] * 5)).values())
    assert notes_of(left, "other") == ""
    assert notes_of(left, "m").count("line ") == 3
    assert notes_of(left, "m").endswith("and 2 more")


def _jobs() -> list[Job]:
    bare = StepPredictor(fitted=unfitted(STEP_FORM))
    jobs = [
        Job(line=i, benchmark="gpt3", accelerator=chip, accelerators=64, batch=2048, submitter="a")
        for i, chip in enumerate(CHIPS, start=2)
    ]
    return [
        replace(job, logged_step_s=1.1 * (a.step_s or 0)) for job, a in zip(jobs, bare.predict(jobs), strict=True)
    ]


def test_a_job_that_logged_tokens_does_not_move_the_calibration() -> None:
    jobs = _jobs()
    logged = Job(line=9, benchmark="gpt3", accelerator="b200_sxm", accelerators=64, batch=2048, throughput=103_917.0)
    sound = StepPredictor(fitted=unfitted(STEP_FORM)).calibrate(jobs)
    mixed = StepPredictor(fitted=unfitted(STEP_FORM)).calibrate([*jobs, logged])
    assert [one.line for one in mixed.left_out] == [9]
    assert sound.left_out == ()
    asked = replace(jobs[0], accelerators=128)
    (with_it,), (without,) = mixed.predict([asked]), sound.predict([asked])
    assert with_it.step_s == without.step_s
    assert "line 9 of gpt3 left out of the calibration" in with_it.note
    assert without.note == ""
    other = replace(asked, benchmark="llama31_8b")
    assert "left out" not in mixed.predict([other])[0].note


def test_a_result_in_the_wrong_unit_does_not_move_the_calibration() -> None:
    bare = Predictor(fitted=unfitted(FORM))
    rows = [
        Row(line=i, model="llama2-70b", accelerator=chip, accelerators=8, submitter="a", platform=chip)
        for i, chip in enumerate(CHIPS, start=2)
    ]
    rows = [replace(row, value=0.9 * (a.throughput or 0)) for row, a in zip(rows, bare.predict(rows), strict=True)]
    sound = bare.calibrate(rows)
    for line, factor in ((8, 1 / 294.45), (9, 294.45)):  # samples where tokens are meant, and the other way round
        wrong = replace(rows[0], line=line, platform="other", value=rows[0].value * factor)
        mixed = bare.calibrate([*rows, wrong])
        assert [one.line for one in mixed.left_out] == [line]
        assert mixed.predict(rows)[0].throughput == sound.predict(rows)[0].throughput
        assert f"line {line} of llama2-70b left out" in mixed.predict(rows)[0].note


def test_the_command_says_which_rows_it_left_out(tmp_path: Path) -> None:
    head = "benchmark,accelerator,accelerators_total,global_batch_size,median_logged_throughput\n"
    (tmp_path / "points.csv").write_text(head + "gpt3,b200_sxm,128,2048,\n")
    (tmp_path / "cal.csv").write_text(head + "gpt3,b200_sxm,64,2048,103917\ngpt3,b200_sxm,64,1024,49\n")
    out = tmp_path / "out.csv"
    told = CliRunner().invoke(
        app,
        [
            "predict",
            "training",
            str(tmp_path / "points.csv"),
            "--calibrate",
            str(tmp_path / "cal.csv"),
            "-o",
            str(out),
        ],
    )
    assert told.exit_code == 0, told.output
    assert "Line 2 of gpt3 left out of the calibration" in " ".join(told.output.split())
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert "line 2 of gpt3 left out of the calibration" in row["note"]
    assert float(row["step_time"]) == pytest.approx(20.0, rel=0.5)  # as the row in samples has it
