"""`baseload predict serving` and `baseload validate`, as typed."""

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baseload.cli.main import app
from baseload.domain.errors import DataError

HEAD = (
    "id,backend,backend_version,model_path,system,precision,mode,isl,osl,tp_size,concurrency,"
    "silicon_ttft_ms,silicon_tpot_ms"
)
ROWS = (
    "a,vllm,,Qwen/Qwen3-32B,h100_sxm,fp8,agg,1024,1024,2,8,120,14",
    "b,vllm,,own/Thing,mine,bf16,agg,100,10,1,1,,",
)
OWN = "[mine]\nname = 'Mine'\nsource = 'measured'\nmemory_gb = 40\nmemory_gb_per_s = 1000\nbf16_tflops = 100\n"
SHAPE = {
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "vocab_size": 1000,
}


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def table(path: Path, *rows: str, head: str = HEAD) -> Path:
    path.write_text("\n".join((head, *rows)) + "\n")
    return path


def answers(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_rows_come_back_with_times_and_what_they_rest_on(tmp_path: Path) -> None:
    asked, own, configs = table(tmp_path / "p.csv", *ROWS), tmp_path / "own.toml", tmp_path / "configs"
    own.write_text(OWN)
    configs.mkdir()
    (configs / "own--Thing_config.json").write_text(json.dumps(SHAPE))
    output = tmp_path / "out.csv"
    said = run("predict", "serving", asked, "--accelerators", own, "--configs", configs, "-o", output)
    assert said.startswith("2 rows answered (0 calibrated, 0 with a note)")
    rows = answers(output)
    assert [row["id"] for row in rows] == ["a", "b"]
    assert all(float(row["tpot_ms"]) > 0 and float(row["ttft_ms"]) > 0 for row in rows)
    assert rows[0]["basis"] in ("sheet only", "shipped values for h100_sxm/vllm")  # as the fit had it
    assert rows[1]["basis"] == "sheet only"
    assert rows[0]["silicon_tpot_ms"] == "14"


def test_calibration_points_pull_answers_to_them(tmp_path: Path) -> None:
    asked = table(tmp_path / "p.csv", ROWS[0])
    output = tmp_path / "out.csv"
    slow = table(tmp_path / "c.csv", *(ROWS[0].replace(",8,120,14", f",{c},400,30") for c in (4, 8, 12)))
    run("predict", "serving", asked, "-o", output)
    before = float(answers(output)[0]["tpot_ms"])
    run("predict", "serving", asked, "--calibrate", slow, "-o", output)
    after = answers(output)[0]
    assert before < float(after["tpot_ms"]) <= 31
    assert after["basis"] == "calibrated: 3 points of h100_sxm/vllm/agg"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (ROWS[0].replace("fp8,agg", "fp8,mixed"), "line 2: mode must be agg or disagg"),
        (ROWS[0].replace(",8,120", ",none,120"), r"line 2: `concurrency` must be a number"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: str, what: str) -> None:
    asked = table(tmp_path / "p.csv", row)
    with pytest.raises(DataError, match=what):
        run("predict", "serving", asked, "-o", tmp_path / "out.csv")
    with pytest.raises(DataError, match="cannot be read"):
        run("predict", "serving", tmp_path / "none.csv", "-o", tmp_path / "out.csv")


def test_validate_skips_with_a_word_where_there_are_no_measurements(tmp_path: Path) -> None:
    assert "Skipped: no measurements" in run("validate")
    assert "Skipped: no measurements" in run("validate", "--data", tmp_path)
    assert json.loads(run("validate", "--data", tmp_path, "--json")) == []


def test_validate_prints_goals_and_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "serving_measured"
    folder.mkdir()
    rows = [
        f"{c},{engine},,{model},{system},fp8,agg,1024,1024,2,{c},{100 + 9 * c},{10 + c / 4}"
        for c in range(1, 60)
        for engine in ("vllm",)
        for model in ("Qwen/Qwen3-32B", "Qwen/Qwen3-8B")
        for system in ("h100_sxm", "h200_sxm")
    ]
    table(folder / "serving_measured.csv", *rows)
    said = run("validate", "--data", tmp_path)
    assert "known groups, aggregated: TPOT median" in said
    assert "Skipped, not in the folder: vllm_replay" in said.replace("\n", " ")
    rows = {row["what"]: row for row in json.loads(run("validate", "--data", tmp_path, "--json"))}
    assert rows["known groups, disaggregated: TPOT mean"]["points"] == 0
    assert rows["known groups, disaggregated: TPOT mean"]["reached"] is None
    assert rows["known groups, aggregated: TPOT median"]["reached"] > 0
    assert rows["known groups, aggregated: TPOT median"]["goal"] == 0.06


@pytest.mark.parametrize("kind", ["serving", "power", "training", "throughput"])
@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "empty"), (b"\xaa\xbb\n", "UTF-8"), (b'a,b\n"' + b"x" * 200_000, "not CSV")],
)
def test_what_is_no_table_is_refused_before_anything_is_written(
    tmp_path: Path, kind: str, content: bytes, what: str
) -> None:
    points, output = tmp_path / "points.csv", tmp_path / "out.csv"
    points.write_bytes(content)
    found = CliRunner().invoke(app, ["predict", kind, str(points), "-o", str(output)])
    assert isinstance(found.exception, DataError)
    assert what in found.exception.message
    assert not output.exists()


def test_a_calibration_of_other_engines_says_that_nothing_rests_on_it(tmp_path: Path) -> None:
    asked, output = table(tmp_path / "p.csv", ROWS[0]), tmp_path / "out.csv"
    other = table(tmp_path / "c.csv", ROWS[0].replace("vllm", "sglang"))
    assert "No answer rests on" in run("predict", "serving", asked, "--calibrate", other, "-o", output)
    same = table(tmp_path / "c.csv", ROWS[0])
    assert "No answer rests on" not in run("predict", "serving", asked, "--calibrate", same, "-o", output)
