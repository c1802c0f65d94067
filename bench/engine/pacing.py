"""Mixed arrivals on our engine: fixed step sizes against a declared pace, on the same arrivals.

    python bench/engine/pacing.py [--shape 386m] [--model DIR] [--options '{"kernels": "auto"}'] [--json OUT]

Requests arrive at random (seeded), long prompts among short answers. First each fixed `max_step_tokens`, then the
same requests with a TPOT target that lies between what the fixed ones reached; the order is repeated `--rounds` times
because machines drift. Printed: requests per second, TPOT p50 and p99 over requests (mean time per token after the
first), TTFT p50 and p99, and the paced run over the best fixed one whose p99 is within the target.
"""

import argparse
import json
import queue
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from msgspec import convert
from rich.console import Console
from rich.table import Table
from shapes import write_hf

from baseload.domain.model import EngineSpec
from baseload.domain.sampling import Sampling
from baseload.domain.units import NS_PER_MS
from baseload.engine.jobs import Ended, Failed, Job
from baseload.engine.loop import EngineLoop
from baseload.engine.runner import Runner, open_runner


def main() -> None:
    ask = parse()
    with tempfile.TemporaryDirectory() as scratch:
        model = ask.model or write_hf(ask.shape, Path(scratch))
        common = {"max_seqs": ask.seqs, "max_context": 4096, "max_waiting": 1000, "prefix_cache": False}
        spec = convert({**common, **json.loads(ask.options), "max_step_tokens": max(ask.steps)}, EngineSpec)
        runner = open_runner(model, spec=spec, cache_dir=Path(scratch) / "cache")
        runner.warm(background=False)
        rows: dict[str, list[dict[str, float]]] = {}
        targets: list[int] = []
        for _ in range(ask.rounds):
            for tokens in ask.steps:
                rows.setdefault(f"fixed {tokens}", []).append(serve(runner, spec, ask, max_step_tokens=tokens))
            if not targets:
                slow = sorted(rows[f"fixed {tokens}"][0]["tpot_p99_ms"] for tokens in ask.steps)
                targets = [int(1.15 * slow[len(slow) // 3]), int(1.1 * slow[-1])]
            for target in targets:
                paced = serve(runner, spec, ask, max_step_tokens=max(ask.steps), tpot_target_ns=target * NS_PER_MS)
                rows.setdefault(f"paced {target} ms", []).append(paced)
        runner.close()
    figures = {name: {key: median(run[key] for run in runs) for key in runs[0]} for name, runs in rows.items()}
    show(figures, targets)
    if ask.json:
        ask.json.write_text(json.dumps({"options": ask.options, "runs": rows, "medians": figures}, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="386m")
    parser.add_argument("--model", type=Path, help="a directory instead of random weights of a shape")
    parser.add_argument("--options", default="{}", help="more of EngineSpec, as JSON")
    parser.add_argument("--steps", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--rate", type=float, default=20.0, help="requests per second; more than it can do fills it")
    parser.add_argument("--seqs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def serve(runner: Runner, spec: EngineSpec, ask: argparse.Namespace, **changes: int) -> dict[str, float]:
    """One pass over the requests."""
    outputs: queue.SimpleQueue = queue.SimpleQueue()
    fatal: list[BaseException] = []
    loop = EngineLoop(
        runner,
        lambda token: b"x",
        spec=convert({**{name: getattr(spec, name) for name in spec.__struct_fields__}, **changes}, EngineSpec),
        emit=outputs.put,
        on_fatal=fatal.append,
    )
    random = np.random.default_rng(7)
    at = np.cumsum(random.exponential(1 / ask.rate, ask.requests))
    prompts, lengths = random.integers(40, 700, ask.requests), random.integers(20, 80, ask.requests)
    loop.start()
    began = time.perf_counter()
    for i in range(ask.requests):
        time.sleep(max(0.0, began + at[i] - time.perf_counter()))
        prompt = random.integers(2, runner.vocab_size, int(prompts[i])).tolist()
        sampling = Sampling(max_tokens=int(lengths[i]), ignore_eos=True, temperature=0.0)
        loop.submit(Job(f"{i}", [prompt], sampling, seed=0))
    ends = []
    while len(ends) < ask.requests:
        for output in outputs.get(timeout=600):
            if isinstance(output, Failed):
                raise output.refusal
            if isinstance(output, Ended):
                ends.append(output)
    whole = time.perf_counter() - began
    loop.close()
    if fatal:
        raise fatal[0]
    tpot = [end.phases.decode_ns / (end.tokens.completion - 1) / NS_PER_MS for end in ends]
    ttft = [(end.phases.queue_ns + end.phases.prefill_ns) / NS_PER_MS for end in ends]
    return {
        "requests_per_s": ask.requests / whole,
        "tpot_p50_ms": float(np.percentile(tpot, 50)),
        "tpot_p99_ms": float(np.percentile(tpot, 99)),
        "ttft_p50_ms": float(np.percentile(ttft, 50)),
        "ttft_p99_ms": float(np.percentile(ttft, 99)),
    }


def show(figures: dict[str, dict[str, float]], targets: list[int]) -> None:
    """The table, and what the pace costs."""
    table = Table("setting", "requests/s", "TPOT p50", "TPOT p99", "TTFT p50", "TTFT p99 (ms)")
    for name, row in figures.items():
        table.add_row(name, *[f"{value:.4g}" for value in row.values()])
    console = Console()
    console.print(table)
    for target in targets:
        paced = figures[f"paced {target} ms"]
        within = [row for name, row in figures.items() if name.startswith("fixed") and row["tpot_p99_ms"] <= target]
        best = max((row["requests_per_s"] for row in within), default=0.0)
        share = f"{paced['requests_per_s'] / best:.3f} of the best fixed" if best else "no fixed setting holds it"
        console.print(f"target {target} ms: p99 {paced['tpot_p99_ms']:.1f} ms, {share}")


if __name__ == "__main__":
    main()
