"""Where a native step's time goes: processor time of one thread, so that neighbours disturb little.

    .venv/bin/python bench/engine/native.py PACKED_DIR [--kv int8] [--kernels avx2] [--threads 1] [--json FILE]

Decoding 1, 8 and 32 sequences at context 128 and 600 (their caches filled first) and prefill of 512 tokens; beside
each the bytes of weights and cache it reads per second of processor time, and what share that is of what one thread
reads.
With --threads above 1 wall time is measured instead: only on a quiet machine.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from baseload.domain.model import EngineSpec
from baseload.engine.native import library
from baseload.engine.runner import open_runner
from baseload.engine.spans import Span

SEQUENCES, CONTEXT, PREFILL, ROUNDS = 32, 600, 512, 8


def best(call, clock, rounds=ROUNDS):
    """Seconds of the fastest of some rounds."""
    found = []
    for _ in range(rounds):
        start = clock()
        call()
        found.append(clock() - start)
    return min(found)


def read_speed(clock):
    """Bytes/s that one thread reads from memory."""
    part = np.ones(64 << 20, np.float32)
    return part.nbytes / best(lambda: np.max(part), clock, 5)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    per_sequence = -(-(CONTEXT + ROUNDS + 16) // 16)
    spec = EngineSpec(kernels=args.kernels, kv_dtype=args.kv, max_seqs=SEQUENCES, max_step_tokens=PREFILL)
    runner = open_runner(args.model, spec=spec, cache_dir=None)
    tokens = np.random.default_rng(0).integers(0, runner.vocab_size, CONTEXT + ROUNDS + 8).astype(np.int32)
    count = min(SEQUENCES, runner.num_blocks // per_sequence)
    tables = [np.arange(i * per_sequence, (i + 1) * per_sequence, dtype=np.int32) for i in range(count)]
    for table in tables:
        runner.run([Span(tokens[:CONTEXT], 0, table, False)])
    found = library.load()
    assert found is not None, "build the kernels first"
    found.set_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    limit = read_speed(clock)
    weights = runner._blob.size - runner._model.weights.plain("embed").bytes
    result = {"isa": runner.isa, "threads": args.threads, "read_bytes_per_s": limit, "points": {}}
    print(f"{args.model.name}: {runner.isa}, {args.threads} threads; one thread reads {limit / 1e9:.1f} GB/s")
    for rows in (1, 8, 32):
        for context in (128, CONTEXT):
            if rows > count:
                continue
            spans = [Span(tokens[:1], context, table, True) for table in tables[:rows]]
            seconds = best(lambda spans=spans: runner.run(spans), clock)
            read = (weights + rows * context * runner.cache.block_bytes / runner.block_tokens) / seconds
            result["points"][f"decode {rows} x {context}"] = seconds
            print(
                f"decode ×{rows:<3d} context {context:4d}: {seconds * 1e3:8.2f} ms {rows / seconds:8.1f} tokens/s"
                f" {read / 1e9:6.1f} GB/s = {100 * read / limit:3.0f} % of the reading limit"
            )
    seconds = best(lambda: runner.run([Span(tokens[:PREFILL], 0, tables[0], True)]), clock, 3)
    result["points"][f"prefill {PREFILL}"] = seconds
    print(f"prefill {PREFILL}: {seconds * 1e3:.0f} ms {PREFILL / seconds:.0f} tokens/s")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
