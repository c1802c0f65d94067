"""Training and throughput held against published results: the table of goals. Nothing is fetched; name the data.

python bench/limits/training.py DATA_DIR [--json]     (DATA_DIR holds mlperf_training/ and mlperf_inference/)
"""

import json
import sys
from pathlib import Path

import msgspec

from baseload.limits.goals import Row
from baseload.limits.throughput import held_out as throughput
from baseload.limits.training import held_out as training


def main(data: Path, *, as_json: bool) -> None:
    rows: list[Row] = []
    for part in (training, throughput):
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
    main(Path(sys.argv[1]), as_json="--json" in sys.argv)
