"""Our engine's step times on this CPU: a few measured points fit a step-time table, the rest are scored.

    python bench/limits/own_engine.py [--shape 386m] [--rounds 5] [--kernels auto] [--json OUT] [--table OUT.json]

Steps of 1 to 32 decoding rows over contexts to 4096 positions, and prompt chunks, with random weights. Every round
takes all points in another order; a point's time is its median. Nine points calibrate (marked), all others are
scored: the goal is a mean error of at most 10 %. --table writes the fitted table, which `baseload simulate` takes.
Run it on a quiet machine: what others do on it moves every figure.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from shapes import SHAPES, write_hf  # the other bench's shapes and weights

from baseload.domain.model import EngineSpec
from baseload.domain.rng import Rng
from baseload.engine.runner import open_runner
from baseload.engine.spans import Span
from baseload.limits.step_fit import MeasuredStep, fit_steps
from baseload.limits.step_time import StepTimeTable

GOAL = 0.10
MOST_POSITIONS = 33_000  # of cache, all rows together
FITTED = ((1, 128), (1, 4000), (8, 128), (8, 2048), (32, 128), (32, 1000))
FITTED_CHUNKS = ((128, 0), (512, 0), (512, 3072))
ROWS = (1, 2, 4, 8, 12, 16, 24, 32)
CONTEXTS = (128, 512, 1000, 2048, 4000)
CHUNKS = (64, 128, 256, 384, 512)
STARTS = (0, 1024, 3072)


def main():
    """Measure, fit, score, print."""
    options = arguments()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "baseload-bench" / options.shape
    folder = write_hf(options.shape, home)
    config = SHAPES[options.shape]
    per_token = 2 * 2 * config.layers * config.kv_heads * config.head_dim
    spec = EngineSpec(
        max_seqs=32, max_context=4096, kv_cache_bytes=per_token * (MOST_POSITIONS + 4096), kernels=options.kernels
    )
    points = [("decode", rows, context) for rows in ROWS for context in CONTEXTS if rows * context <= MOST_POSITIONS]
    points += [("prefill", chunk, start) for chunk in CHUNKS for start in STARTS]
    with tempfile.TemporaryDirectory() as cache:
        runner = open_runner(folder, spec=spec, cache_dir=Path(cache))
        runner.warm(background=False)
        times = measure(runner, points, rounds=options.rounds)
        runner.close()
    steps = {point: step_of(point, statistics.median(times[point]) * 1e3) for point in points}
    few = [point for point in points if is_fitted(point)]
    basis = f"measured: {options.shape}, kernels {options.kernels}, {os.cpu_count()} cores, {len(few)} points"
    table_spec = fit_steps([steps[point] for point in few], basis=basis)
    rows = scored(StepTimeTable(table_spec), points, steps, times)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps({"basis": basis, "points": rows}, indent=1))
    if options.table:
        options.table.write_bytes(msgspec.json.encode(table_spec))


def arguments():
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="386m", choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kernels", default="auto", help="auto, xla, avx2, avx512, amx")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    return parser.parse_args()


def is_fitted(point):
    """Whether it calibrates."""
    kind, count, context = point
    return (count, context) in (FITTED if kind == "decode" else FITTED_CHUNKS)


def step_of(point, ms):
    """As the limits model counts it."""
    kind, count, context = point
    if kind == "decode":
        return MeasuredStep(0, count, count * context, ms)
    return MeasuredStep(count, 0, context + count, ms, count * context + count * count // 2)


def measure(runner, points, *, rounds):
    """Seconds of each point in each round, after one that is not counted."""
    times = {point: [] for point in points}
    for turn in range(rounds + 1):
        rng = Rng(turn, "order")
        for point in sorted(points, key=lambda _, rng=rng: rng.u64()):
            took = once(runner, *point)
            if turn:
                times[point].append(took)
    return times


def once(runner, kind, count, context):
    """One step, whose cache holds whatever it holds: times do not depend on it. Decodes: the mean of three."""
    size = runner.block_tokens
    if kind == "prefill":
        blocks = np.arange(-(-(context + count) // size), dtype=np.int32)
        spans, repeats = [Span(np.zeros(count, np.int32), context, blocks, True)], 1
    else:
        each = -(-context // size)
        own = [np.arange(i * each, (i + 1) * each, dtype=np.int32) for i in range(count)]
        spans, repeats = [Span(np.ones(1, np.int32), context - 1, blocks, True) for blocks in own], 3
    began = time.perf_counter()
    for _ in range(repeats):
        runner.run(spans)
    return (time.perf_counter() - began) / repeats


def scored(table, points, steps, times):
    """A row a point: measured, predicted, error, noise."""
    rows = []
    for point in points:
        step = steps[point]
        said = (
            table.step_ns(
                prefill_tokens=step.prefill_tokens,
                decode_rows=step.decode_rows,
                context_tokens=step.context_tokens,
                prefill_pairs=step.prefill_pairs,
            )
            / 1e6
        )
        spread = (max(times[point]) - min(times[point])) * 1e3 / step.ms
        rows.append(
            {
                "kind": point[0],
                "count": point[1],
                "context": point[2],
                "ms": round(step.ms, 3),
                "predicted_ms": round(said, 3),
                "error": round(said / step.ms - 1, 4),
                "spread": round(spread, 3),
                "fitted": is_fitted(point),
            }
        )
    return rows


def show(rows):
    """The table and the goal."""
    print(f"{'step':8} {'count':>6} {'context':>8} {'ms':>9} {'predicted':>9} {'error':>7} {'spread':>7}")
    for row in rows:
        mark = "  calibrates" if row["fitted"] else ""
        print(
            f"{row['kind']:8} {row['count']:6} {row['context']:8} {row['ms']:9.2f} {row['predicted_ms']:9.2f} "
            f"{row['error']:+7.1%} {row['spread']:7.1%}{mark}"
        )
    held = [row for row in rows if not row["fitted"]]
    for kind in ("decode", "prefill"):
        errors = [abs(row["error"]) for row in held if row["kind"] == kind]
        print(f"{kind}: mean error {statistics.mean(errors):.1%} over {len(errors)} points (goal {GOAL:.0%})")
    spread = statistics.median(row["spread"] for row in rows)
    print(f"all: mean error {statistics.mean(abs(row['error']) for row in held):.1%}; median spread {spread:.1%}")


if __name__ == "__main__":
    main()
