"""A table of training jobs from a checkout of a round's published results (mlcommons/training_results_vX.Y).

python bench/limits/mlperf_logs.py CHECKOUT -o OUT.csv

One row per submitted system and benchmark, of its second run: step time and throughput are medians of what it logged.
Columns are those that `baseload predict training` reads.
"""

import csv
import json
import re
import statistics
import sys
from pathlib import Path

COLUMNS = (
    "submitter", "system", "nodes", "accelerators_total", "accelerator", "framework", "benchmark",
    "global_batch_size", "seq_len", "median_logged_step_time", "median_logged_throughput",
    "time_to_train_min_olympic",
)  # fmt: skip


def row_of(log: Path, root: Path) -> dict[str, object] | None:
    """The row of one run's log, or None where its system is not described."""
    submitter, _, system, benchmark, _ = log.relative_to(root).parts
    try:
        sheet = json.loads((root / submitter / "systems" / f"{system}.json").read_text())
        total = int(sheet["number_of_nodes"]) * int(sheet["accelerators_per_node"])
    except (OSError, ValueError, KeyError):
        return None
    text = log.read_text(errors="replace")
    steps = [float(x) for x in re.findall(r'"(?:train_step_time|step_time)": ([\d.e+-]+)', text)]
    rates = [float(x) for x in re.findall(r'"throughput": ([\d.e+-]+)', text)]
    start, stop = (re.search(rf'"time_ms": (\d+)[^\n]*"{key}"', text) for key in ("run_start", "run_stop"))
    length = _found(r'"max_sequence_length", "value": (\d+)', text) if "lora" not in benchmark else ""
    return {
        "submitter": submitter,
        "system": system,
        "nodes": sheet["number_of_nodes"],
        "accelerators_total": total,
        "accelerator": sheet["accelerator_model_name"],
        "framework": sheet.get("framework", ""),
        "benchmark": benchmark,
        "global_batch_size": _found(r'"global_batch_size", "value": (\d+)', text),
        "seq_len": length,
        "median_logged_step_time": statistics.median(steps) if steps else "",
        "median_logged_throughput": statistics.median(rates) if rates else "",
        "time_to_train_min_olympic": (int(stop[1]) - int(start[1])) / 60_000 if start and stop else "",
    }


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def main(root: Path, out: Path) -> None:
    rows = [row_of(log, root) for log in sorted(root.glob("*/results/*/*/result_1.txt"))]
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(row for row in rows if row)
    print(f"{sum(row is not None for row in rows)} jobs in {out}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[sys.argv.index("-o") + 1]))
