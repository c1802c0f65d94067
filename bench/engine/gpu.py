"""The engine on a CUDA device: bfloat16 Llama 8B shape, beside transformers with torch.compile, in one command.

    .venv/bin/python bench/engine/gpu.py [--rounds 2] [--prefill 2048] [--context 1024] [--json OUT] [--cache DIR]

Makes an environment with JAX's CUDA build and one with torch under the cache folder, and measures in turn, each
engine in a process of its own: decoding one sequence after --context tokens, as a share of what reading the weights
and the cache at the measured bandwidth allows; and a prompt of --prefill tokens, as a share of the measured rate of
bfloat16 products. Goals: 70 % and 50 %. Where there is no CUDA device it says so, and measures nothing.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from environments import ensure
from gpu_shapes import SHAPES
from rich.console import Console
from rich.table import Table

from baseload.engine.weights import hf_config

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src"
TURN_S = 1200
ABSENT = "not measured"


def cuda_devices() -> int:
    """How many CUDA devices the driver finds; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def turn(command: list[object], *, is_ours: bool) -> dict[str, object]:
    """One engine's line; what went wrong where there is none."""
    surroundings = {**os.environ, "PYTHONPATH": f"{SOURCES}{os.pathsep}{HERE}" if is_ours else ""}
    try:
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            env=surroundings,
            timeout=TURN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {TURN_S} s"}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            found: dict[str, object] = json.loads(line)
            return found
    words = done.stderr.strip().splitlines()
    return {"failed": words[-1] if words else f"ended with {done.returncode}"}


def measure(asked: argparse.Namespace, console: Console) -> dict[str, list[dict[str, object]]]:
    """Every turn of both engines, interleaved."""
    found: dict[str, list[dict[str, object]]] = {"baseload": [], "transformers": []}
    pythons = {name: ensure(name, asked.cache, console) for name in ("jax-cuda", "torch-cuda")}
    sizes = [asked.prefill, asked.context, asked.steps, asked.repeats]
    config = json.dumps(hf_config(SHAPES["8b"], "bfloat16"))
    ours = [pythons["jax-cuda"], HERE / "gpu_engine.py", "8b", *sizes]
    # -P: without this folder among the places to import from; transformers looks for a package named `kernels`.
    theirs = [pythons["torch-cuda"], "-P", HERE / "peer_torch_gpu.py", config, *sizes]
    for number in range(asked.rounds):
        for name, command in (("baseload", ours), ("transformers", theirs)):
            with console.status(f"round {number + 1}: {name}"):
                ready = isinstance(command[0], Path)
                found[name].append(
                    turn(command, is_ours=name == "baseload") if ready else {"failed": str(command[0])}
                )
    return found


def middle(turns: list[dict[str, object]], key: str) -> float | None:
    """The median of a figure over the turns that have it."""
    values = [float(one[key]) for one in turns if key in one]
    return statistics.median(values) if values else None


def show(found: dict[str, list[dict[str, object]]], devices: int, console: Console) -> None:
    """The table; every figure that is not there reads "not measured"."""
    ours, theirs = found["baseload"], found["transformers"]
    table = Table(title="Llama 8B shape, bfloat16, random weights, one sequence", title_justify="left")
    for name in ("", "tokens/s", "of the limit", "goal", "transformers + torch.compile", "ratio"):
        table.add_column(name, justify="right" if name else "left")
    for label, key, share, goal in (
        ("decode ×1", "decode_tokens_per_s", "decode_of_ceiling", "≥ 70 % of the memory bandwidth"),
        ("prefill", "prefill_tokens_per_s", "prefill_of_rate", "≥ 50 % of the bf16 matmul rate"),
    ):
        mine, part, other = middle(ours, key), middle(ours, share), middle(theirs, key)
        table.add_row(
            label,
            ABSENT if mine is None else f"{mine:,.1f}",
            ABSENT if part is None else f"{part:.0%}",
            goal,
            ABSENT if other is None else f"{other:,.1f}",
            ABSENT if mine is None or other is None else f"{mine / other:.2f}",
        )
    console.print(table)
    if not devices:
        console.print("not measured: no CUDA device is here. The same command on a machine with one measures.")
    read, rate = middle(ours, "read_bytes_per_s"), middle(ours, "bf16_flops_per_s")
    if read is not None and rate is not None:
        device = next(one["device"] for one in ours if "device" in one)
        console.print(f"{device}: {read / 1e9:,.0f} GB/s read, {rate / 1e12:,.0f} TFLOP/s bfloat16, measured")
    for name, turns in found.items():
        for why in dict.fromkeys(str(one["failed"]) for one in turns if "failed" in one):
            console.print(f"{name}: {ABSENT}: {why}", highlight=False, soft_wrap=True)


def main() -> int:
    """Measure where there is a device, and print the table in any case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=2048)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache", type=Path, default=home / "baseload-bench")
    asked = parser.parse_args()
    console = Console() if sys.stdout.isatty() else Console(width=160)
    devices = cuda_devices()
    found = measure(asked, console) if devices else {"baseload": [], "transformers": []}
    show(found, devices, console)
    if asked.json:
        result = {
            "measured": bool(devices),
            "cuda_devices": devices,
            "date": time.strftime("%Y-%m-%d"),
            "turns": found,
        }
        asked.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
