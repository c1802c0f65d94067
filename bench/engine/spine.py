"""Speed of the engine's compute side on a 386 M-parameter Llama shape with random weights made on the spot.

    .venv/bin/python bench/engine/spine.py [--peer torch --peer-python /tmp/hf/bin/python] [--json FILE]

Prints prefill of 512 tokens and decoding of 1 and 8 sequences after it, in tokens/s; the same in deterministic
mode and its cost; and what share of the memory's read bandwidth, measured in the same run, decoding one sequence
reaches. With a peer, each round measures one after the other, so that both see the same machine: compare the
ratios, not runs of different hours. Best of all rounds is printed; medians are in the JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from baseload.domain.model import EngineSpec
from baseload.engine.config import NO_WINDOW, ModelConfig, RopeConfig
from baseload.engine.runner import Runner, Span
from baseload.engine.weights import hf_config, random_params

PREFILL = 512
TASKS = ("prefill", "decode1", "decode8")
STEPS = 8  # decode steps per measurement
SHAPE = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=32000,
    hidden=1024,
    intermediate=3328,
    layers=24,
    heads=16,
    kv_heads=8,
    head_dim=64,
    norm_eps=1e-5,
    max_context=1024,
    rope=RopeConfig(),
    windows=(NO_WINDOW,) * 24,
    is_moe=(False,) * 24,
)


class Ours:
    """Our runner in one mode; `measure` answers tokens/s."""

    def __init__(self, params, *, dtype, deterministic):
        spec = EngineSpec(dtype=dtype, deterministic=deterministic, max_seqs=8, max_step_tokens=PREFILL)
        self.runner = Runner(SHAPE, params, spec=spec, dtype=dtype)
        self.runner.warm(background=False)
        rng = np.random.default_rng(0)
        self.tokens = rng.integers(0, SHAPE.vocab_size, PREFILL).astype(np.int32)
        each = (PREFILL + 2 * STEPS) // self.runner.block_tokens + 1
        self.blocks = [np.arange(index * each, (index + 1) * each, dtype=np.int32) for index in range(8)]
        for blocks in self.blocks:
            self.runner.run([Span(self.tokens, 0, blocks, False)])

    def measure(self, task):
        start = time.perf_counter()
        if task == "prefill":
            self.runner.run([Span(self.tokens, 0, self.blocks[0], True)])
            return PREFILL / (time.perf_counter() - start)
        batch = int(task.removeprefix("decode"))
        for step in range(STEPS):
            one = self.tokens[step : step + 1]
            self.runner.run([Span(one, PREFILL + step, blocks, True) for blocks in self.blocks[:batch]])
        return batch * STEPS / (time.perf_counter() - start)


class Peer:
    """Another engine in another interpreter; the same questions by pipe."""

    def __init__(self, name, python, dtype):
        script = Path(__file__).with_name(f"peer_{name}.py")
        shape = json.dumps(hf_config(SHAPE, dtype))
        self.process = subprocess.Popen(
            [python, str(script), shape, dtype, str(PREFILL), str(STEPS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        print(f"peer: {self.process.stdout.readline().strip()}")

    def measure(self, task):
        self.process.stdin.write(task + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def read_bandwidth():
    """Bytes/s that all cores read from memory together: dot products over arrays far larger than the caches."""
    parts = [np.ones(64 << 20, np.float32) for _ in os.sched_getaffinity(0)]
    best = 0.0
    for _ in range(5):
        threads = [threading.Thread(target=np.dot, args=(part, part)) for part in parts]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - start))
    return best


def processor():
    """The processor and those of its features that decide the speed of matrix products."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    wanted = [
        flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if flag in flags
    ]
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {' '.join(wanted)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", choices=("torch",))
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(f"{processor()}\n{SHAPE.parameters / 1e6:.1f} M parameters, {args.dtype}")
    params = random_params(SHAPE, 0, args.dtype)
    engines = {"baseload": Ours(params, dtype=args.dtype, deterministic=False)}
    if args.dtype == "bfloat16":
        engines["baseload deterministic"] = Ours(params, dtype=args.dtype, deterministic=True)
    if args.peer:
        engines[args.peer] = Peer(args.peer, args.peer_python, args.dtype)
    found = {name: {task: [] for task in TASKS} for name in engines}
    bandwidth = 0.0
    for turn in range(args.rounds + 1):
        bandwidth = max(bandwidth, read_bandwidth())
        for task in TASKS:
            for name, engine in engines.items():
                speed = engine.measure(task)
                if turn:  # the first turn warms caches and clocks
                    found[name][task].append(speed)
    if args.peer:
        engines[args.peer].close()
    report(found, bandwidth, args)


def report(found, bandwidth, args):
    """The table, the ratios and the JSON file."""
    best = {name: {task: max(speeds) for task, speeds in tasks.items()} for name, tasks in found.items()}
    print(f"\n{'tokens/s, best of ' + str(args.rounds):28s}" + "".join(f"{task:>10s}" for task in TASKS))
    for name, tasks in best.items():
        print(f"{name:28s}" + "".join(f"{tasks[task]:10.1f}" for task in TASKS))
    for name in found:
        if name != "baseload":
            ratios = {
                task: statistics.median(
                    a / b for a, b in zip(found["baseload"][task], found[name][task], strict=True)
                )
                for task in TASKS
            }
            print(f"{'baseload / ' + name:28s}" + "".join(f"{ratios[task]:10.2f}" for task in TASKS))
    item = 2 if args.dtype == "bfloat16" else 4
    read = (SHAPE.parameters - SHAPE.vocab_size * SHAPE.hidden) * item  # of the embedding, one row is read
    used = best["baseload"]["decode1"] * read
    share = 100 * used / bandwidth
    print(f"decode1 reads {used / 1e9:.1f} GB/s of weights, {share:.0f} % of the {bandwidth / 1e9:.1f} GB/s measured")
    if args.json:
        result = {"processor": processor(), "dtype": args.dtype, "bandwidth": bandwidth, "tokens_per_s": found}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
