"""Wrong files and cells at each `baseload predict` command: one line, what to do next, exit 2, nothing written."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baseload.cli.main import app
from baseload.cli.screen import exit_code
from baseload.domain.errors import BaseloadError

TABLES = {  # a good table of each kind, and a column of numbers in it
    "serving": (
        "backend,model_path,system,precision,mode,isl,osl,tp_size,concurrency\n"
        "vllm,Qwen/Qwen3-32B,h100_sxm,fp8,agg,1024,1024,2,8\n",
        "concurrency",
    ),
    "power": (
        "model,hardware,prompt_size,batch_size,token_size,tensor_parallel\nllama2-70b,h100-80gb,512,1,128,8\n",
        "batch_size",
    ),
    "training": (
        "benchmark,accelerator,accelerators_total,global_batch_size\nllama31_8b,H200,8,32\n",
        "global_batch_size",
    ),
    "throughput": ("model,accelerator,accelerators_total\nllama2-70b-99,H200,8\n", "accelerators_total"),
}
KINDS = list(TABLES)


def refused(kind: str, points: Path, output: Path, *more: object) -> str:
    """The message with its hint, after checking all that a refusal has in common."""
    before = output.read_bytes() if output.is_file() else None
    result = CliRunner().invoke(app, ["predict", kind, str(points), "-o", str(output), *map(str, more)])
    error = result.exception
    assert isinstance(error, BaseloadError), f"{kind}: {error!r}"
    assert exit_code(error) == 2
    assert error.hint
    assert "\n" not in error.message
    assert (output.read_bytes() if output.is_file() else None) == before
    return f"{error.message} {error.hint}"


def write(folder: Path, text: str | bytes, name: str = "points.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_good_tables_are_answered(kind: str, tmp_path: Path) -> None:
    points, output = write(tmp_path, TABLES[kind][0]), tmp_path / "out.csv"
    result = CliRunner().invoke(app, ["predict", kind, str(points), "-o", str(output)], catch_exceptions=False)
    assert result.exit_code == 0
    assert len(output.read_text().splitlines()) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("separator", [";", "\t"])
def test_tables_of_other_programs_are_answered_alike(kind: str, separator: str, tmp_path: Path) -> None:
    """Other separators, an upper-case head with blanks, a byte-order mark, Windows' line ends: the same answers."""
    plain, output = write(tmp_path, TABLES[kind][0]), tmp_path / "out.csv"
    CliRunner().invoke(app, ["predict", kind, str(plain), "-o", str(output)], catch_exceptions=False)
    wanted = output.read_text().splitlines()
    head, row = TABLES[kind][0].splitlines()
    head = separator.join(f" {name.upper()} " for name in head.split(","))
    other = f"{head}\r\n\r\n{row.replace(',', separator)}\r\n".encode("utf-8-sig")
    points = write(tmp_path, other, "other.csv")
    CliRunner().invoke(app, ["predict", kind, str(points), "-o", str(output)], catch_exceptions=False)
    said = output.read_text().splitlines()
    assert said[1] == wanted[1]
    assert [name.strip().lower() for name in said[0].split(",")] == wanted[0].split(",")


@pytest.mark.parametrize("kind", ["training", "throughput"])
def test_thousands_are_grouped_and_decimal_commas_refused(kind: str, tmp_path: Path) -> None:
    text, column = TABLES[kind]
    head, row = (line.split(",") for line in text.splitlines())
    at, output = head.index(column), tmp_path / "out.csv"
    row[at] = "1,024"
    points = write(tmp_path, f"{';'.join(head)}\n{';'.join(row)}\n")
    result = CliRunner().invoke(app, ["predict", kind, str(points), "-o", str(output)], catch_exceptions=False)
    assert result.exit_code == 0
    row[at] = "12,5"
    assert "'12,5', not a number" in refused(kind, write(tmp_path, f"{';'.join(head)}\n{';'.join(row)}\n"), output)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        ("model,system\n".encode("utf-16"), "UTF-8"),
        (bytes(range(256)), "UTF-8"),
        (b"colour,taste\nred,sour\n", "column"),
        (b"a,a\n1,2\n", "`a` stands twice"),
        (b"a,b\n1,2,3\n", "line 2: more cells than the 2 columns"),
        (b'a,b\n"' + b"x" * 200_000, "not CSV"),
    ],
)
def test_files_that_are_no_table(kind: str, content: bytes, word: str, tmp_path: Path) -> None:
    assert word in refused(kind, write(tmp_path, content), tmp_path / "out.csv")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", ["-3", "nan", "inf", "1e400", "many", "9" * 40])
def test_cells_that_are_no_figure_are_named_with_their_line(kind: str, cell: str, tmp_path: Path) -> None:
    text, column = TABLES[kind]
    head, row = text.splitlines()
    cells = row.split(",")
    cells[head.split(",").index(column)] = cell
    said = refused(kind, write(tmp_path, f"{head}\n{','.join(cells)}\n"), tmp_path / "out.csv")
    assert column in said
    assert "line 2" in said


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_none_and_outputs_that_cannot_be(kind: str, tmp_path: Path) -> None:
    points, output = write(tmp_path, TABLES[kind][0]), tmp_path / "out.csv"
    assert "a folder" in refused(kind, tmp_path, output)
    assert "cannot be read" in refused(kind, tmp_path / "absent.csv", output)
    assert "a folder" in refused(kind, points, tmp_path)
    assert "does not exist" in refused(kind, points, tmp_path / "no" / "out.csv")
    assert "cannot be read" in refused(kind, points, output, "--catalogue", tmp_path)
    assert "x: " in refused(kind, points, output, "--catalogue", write(tmp_path, "[x]\nname = 3", "own.toml"))
    assert "not a folder" in refused(kind, points, output, "--configs", points)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_measured_calibrates_nothing(kind: str, tmp_path: Path) -> None:
    points = write(tmp_path, TABLES[kind][0])
    said = refused(kind, points, tmp_path / "out.csv", "--calibrate", points)
    assert "no row with a measured value" in said


@pytest.mark.parametrize("kind", ["training", "throughput"])
def test_names_nobody_knows_are_flagged_and_never_stop_the_rest(kind: str, tmp_path: Path) -> None:
    text = TABLES[kind][0]
    points = write(tmp_path, text + text.splitlines()[1].replace("H200", "Frobnicator 9") + "\n")
    output = tmp_path / "out.csv"
    result = CliRunner().invoke(app, ["predict", kind, str(points), "-o", str(output)], catch_exceptions=False)
    assert "1 of 2 rows answered" in result.output
    assert "frobnicator 9" in output.read_text().lower().splitlines()[2].split("missing", 1)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_json_is_all_that_is_said(kind: str, tmp_path: Path) -> None:
    (tmp_path / "asked.csv").write_text(TABLES[kind][0])
    out = tmp_path / "answers.csv"
    told = CliRunner().invoke(app, ["predict", kind, str(tmp_path / "asked.csv"), "-o", str(out), "--json"])
    said = json.loads(told.stdout)
    assert (said["output"], said["rows"], said["calibrated"]) == (str(out), 1, 0)
    assert out.read_text().count("\n") == 2
