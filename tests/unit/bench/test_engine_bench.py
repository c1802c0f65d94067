"""The engine bench without any peer: its tables and picture from given turns, its engine part, and the GPU's."""

import json
import mmap
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

BENCH = Path(__file__).parents[3] / "bench" / "engine"
sys.path.append(str(BENCH))

import child  # noqa: E402
import cold  # noqa: E402
import gpu  # noqa: E402
import gpu_engine  # noqa: E402
import plot  # noqa: E402
import roster  # noqa: E402
import run  # noqa: E402
import tables  # noqa: E402

OURS, LLAMA, VINO = roster.OURS[0], roster.PEERS["llama"][0], roster.PEERS["openvino"][0]


def turn(name: str, number: int, rate: float, start_s: float) -> dict[str, object]:
    point = {"what": "decode", "batch": 8, "context": 128, "steps": 2}
    return {
        "shape": "tiny",
        "round": number,
        "part": "main",
        "name": name,
        "points": [{"point": point, "rate": rate}, {"point": {"what": "mixed"}, "unsupported": "no"}],
        "failed": "",
        "start_s": start_s,
        "peak_bytes": 5e6,
        "about": f"{name} 1",
    }


@pytest.fixture
def result() -> dict[str, object]:
    """Three engines in three rounds; the machine is slower in the second, so rounds must not be mixed."""
    turns = []
    for number, speed in enumerate((1.0, 0.1, 1.0)):
        turns += [
            turn(OURS.name, number, 300 * speed, 0.5 / speed),
            turn(LLAMA.name, number, 100 * speed, 0.25 / speed),
        ]
        turns.append(turn(VINO.name, number, 200 * speed, 1 / speed))
    limits = {"shape": "tiny", "round": 0, "read_bytes_per_s": 1e9, "int8_ops_per_s": 1e9, "bf16_flops_per_s": 1e9}
    return {
        "machine": {
            "processor": "P",
            "cores": 2,
            "features": ["avx2"],
            "memory_gb": 1,
            "system": "S",
            "python": "3",
            "load": 0.0,
        },
        "date": "2026-11-21",
        "turns": turns,
        "limits": [{**limits, "int8_by": "I", "bf16_by": "B"}],
        "environments": {"llama-native": "without AMX"},
        "absent": {"vLLM bf16": "no wheel"},
    }


def test_ratios_are_taken_within_rounds_and_against_the_best(result: dict[str, object]) -> None:
    series = tables.figures(result, "tiny")[("decode ×8 @128", "tok/s")]
    others = {name: values for name, values in series.items() if name != OURS.name}
    assert tables.ratio_to_best(series[OURS.name], others, "tok/s") == (pytest.approx(1.5), VINO.name)
    starts = tables.figures(result, "tiny")[("start → first token", "s")]
    others = {name: values for name, values in starts.items() if name != OURS.name}
    assert tables.ratio_to_best(starts[OURS.name], others, "s") == (pytest.approx(0.5), LLAMA.name)
    assert tables.ratio_to_best({7: 1.0}, others, "s") is None


def test_the_report_names_what_was_not_measured_and_the_picture_is_whole(
    result: dict[str, object], tmp_path: Path
) -> None:
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    tables.print_tables(result, [OURS, LLAMA, VINO], console)
    text = console.export_text()
    assert f"3.00 {LLAMA.name}" in text.replace(" ", " ")  # to the best of its own bits
    assert f"1.50 {VINO.name}" in text.replace(" ", " ")  # to any
    assert "vLLM bf16: not at hand: no wheel" in text
    assert f"{OURS.name}, mixed: not measured: no" in text
    assert "without AMX" in text
    console.file.close()
    plot.write_svg(tmp_path / "out.svg", result, [OURS, LLAMA, VINO])
    bars = [e for e in ElementTree.parse(tmp_path / "out.svg").iter() if e.tag.endswith("title")]
    assert f"{OURS.name}: 300 tok/s" in [bar.text for bar in bars]


def test_what_is_asked_wrongly_ends_with_two(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--peers", "ollama"])
    with pytest.raises(SystemExit) as ended:
        run.arguments()
    assert ended.value.code == 2
    assert "--peers ollama: choose of llama" in capsys.readouterr().err


def test_arrivals_are_handed_in_when_due_and_tokens_are_timed() -> None:
    class Engine:
        def __init__(self) -> None:
            self.open: dict[int, int] = {}
            self.order: list[int] = []

        def submit(self, number: int, prompt: list[int], answer: int) -> None:
            self.open[number] = answer
            self.order.append(number)

        def advance(self) -> list[int]:
            got = list(self.open)
            self.open = {number: left - 1 for number, left in self.open.items() if left > 1}
            return got

    engine = Engine()
    seen, began = child.replay(engine, [[1]] * 3, [0.0, 0.0, 0.01], 4)
    assert engine.order == [0, 1, 2]
    assert [len(times) for times in seen] == [4, 4, 4]
    assert seen[2][0] >= began + 0.01


def test_our_engine_answers_every_kind_of_point(tiny_model: Path, tmp_path: Path) -> None:
    spec = {
        "model": str(tiny_model),
        "cache": str(tmp_path),
        "threads": 1,
        "vocab": 64,
        "kv_bytes": 1 << 20,
        "longest": 256,
        "most": 2,
        "options": {"max_seqs": 2, "max_step_tokens": 32},
        "points": [
            {"what": "prefill", "tokens": 40, "repeats": 1},
            {"what": "decode", "batch": 2, "context": 20, "steps": 2},
            {"what": "mixed", "requests": 2, "per_s": 100, "prompt": 8, "answer": 3},
            {"what": "decode", "batch": 200, "context": 200, "steps": 1},
        ],
    }
    done = subprocess.run(
        [sys.executable, BENCH / "child.py", "ours", json.dumps(spec)], capture_output=True, text=True, check=True
    )
    first, *points, end = [json.loads(line) for line in done.stdout.splitlines()]
    assert first["what"] == "first"
    assert [point["rate"] > 0 for point in points[:3]] == [True] * 3
    assert points[2]["tpot_p99"] >= points[2]["tpot_p50"] > 0
    assert "do not hold" in points[3]["failed"]  # one that fails does not end the others
    assert end["peak_bytes"] > 1 << 20


def test_the_gpu_bench_says_not_measured_and_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "cuda_devices", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--json", str(tmp_path / "out.json")])
    assert gpu.main() == 0
    assert json.loads((tmp_path / "out.json").read_text())["measured"] is False


def test_the_gpu_bench_compares_what_it_was_given(tmp_path: Path) -> None:
    ours = {"decode_tokens_per_s": 200.0, "decode_of_ceiling": 0.75, "prefill_tokens_per_s": 10.0}
    found = {"baseload": [ours], "transformers": [{"decode_tokens_per_s": 100.0}, {"failed": "out of memory"}]}
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))
    gpu.show(found, 1, console)
    text = console.export_text()
    console.file.close()
    assert "75%" in text
    assert "2.00" in text
    assert text.count("not measured") == 4  # prefill's share, theirs and the ratio, and why
    assert "out of memory" in text


def test_the_gpu_benchs_engine_part_runs_interpreted_on_a_cpu() -> None:
    found = gpu_engine.measure("tiny", prefill=32, context=40, steps=3, repeats=1, interpret=True)
    assert found["platform"] == "cpu"
    assert found["decode_tokens_per_s"] > 0
    assert found["flops_of_prefill"] > 2 * 32 * 2 * 64 * (64 + 64 + 3 * 128)


def test_what_memory_holds_of_files_is_told_after_they_are_thrown_out(tmp_path: Path) -> None:
    folder, drop = tmp_path / "model", tmp_path / "drop"
    folder.mkdir()
    (folder / "weights").write_bytes(b"x" * 2_500_000)
    (folder / "empty").touch()
    with (folder / "weights").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        assert len(held[:]) == 2_500_000  # every page is touched: what a process has mapped stays
        assert cold.resident_bytes(cold.files_of([folder])) == 2_500_000
        words = cold.make_cold({"the model": [folder], "nothing": [tmp_path / "absent"]}, drop)
    assert drop.read_text() == "3"
    assert words.startswith("all files thrown out; in memory stayed ")
    assert words.endswith(" of 2 MB of the model, 0 of 0 MB of nothing")
    assert cold.make_cold({}, tmp_path).startswith("these files only")  # a folder cannot be written to
