"""Training and throughput held against published results: the table of goals. Nothing is fetched; name the data.

python bench/limits/training.py DATA_DIR [--json]     (DATA_DIR holds mlperf_training/ and mlperf_inference/)
python bench/limits/training.py DATA_DIR --beyond OTHER.csv     jobs of another round beyond 72 accelerators

OTHER.csv is written from a checkout of a round's results by bench/limits/mlperf_logs.py.
"""

import json
import sys
from pathlib import Path

import msgspec

from baseload.limits.goals import Row
from baseload.limits.throughput import held_out as throughput
from baseload.limits.training import held_out as training


def main(data: Path, *, as_json: bool, beyond: Path | None) -> None:
    rows: list[Row] = []
    if beyond is not None:
        rows = training.score_beyond((data / training.FILE).read_bytes(), beyond.read_bytes(), name=beyond.name)
    for part in () if beyond else (training, throughput):
        path = data / part.FILE
        if not path.is_file():
            print(f"Skipped: {path} is not there.", file=sys.stderr)
            continue
        rows += part.score(path.read_bytes(), name=str(path))
    if as_json:
        print(json.dumps([msgspec.to_builtins(row) for row in rows], indent=2))
        return
    width = max((len(row.what) for row in rows), default=0)
    for row in rows:
        goal = "" if row.goal is None else f"goal {row.shown(row.goal)} "
        met = {True: "met", False: "missed", None: ""}[row.met]
        print(f"{row.what:<{width}}  {row.shown(row.reached):>7}  {goal}{met:<7} {row.points:4d} points; {row.split}")


if __name__ == "__main__":
    other = Path(sys.argv[sys.argv.index("--beyond") + 1]) if "--beyond" in sys.argv else None
    main(Path(sys.argv[1]), as_json="--json" in sys.argv, beyond=other)
