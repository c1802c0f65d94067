"""How fast the twin is, and what ran: times real time, events a second, memory.

    python bench/twin/run.py [--azure CSV] [--mooncake JSONL] [--only inference]

Rows: one 8-accelerator replica on the Azure trace (or on as many drawn requests where the trace is absent), stepped
exactly and fast-forwarded, interleaved; 16 replicas; a hunt over seeds; 100,000 accelerators for a day under the gang
scheduler; 100,000 accelerators request by request, all 50 cells in as many processes as there are cores. That last
row is by the clock on the wall; the others are CPU seconds of one thread, so that neighbours disturb less.

Peer: BLIS (github.com/inference-sim/inference-sim), where a built binary is given: `--blis BINARY --blis-source DIR`
(its sources hold the model's config and the hardware table), one replica under traffic of the same rate and mean
lengths. docs/simulate.md tells how it is built, and why Vidur and AIConfigurator are not run.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from baseload.domain.model import Admission, EngineSpec, ModelSpec, Scaling
from baseload.domain.units import NS_PER_MS, NS_PER_S
from baseload.limits.step_time import StepTimeSpec
from baseload.twin.cells import simulate_cells
from baseload.twin.cluster.run import ClusterSimulation
from baseload.twin.reading import load
from baseload.twin.run import Simulation, simulate
from baseload.twin.spec import Hardware, Physics, SimulateConfig, Source, Workload

CONFIGS = Path(__file__).parents[2] / "configs" / "simulate"
FAST = StepTimeSpec(
    basis="stated: about a small model on one modern accelerator",
    fixed_ms=8.0,
    prefill=((512, 40.0),),
    decode=((32, 6.0),),
    context=((100_000, 10.0),),
)


def config(*, replicas: int, workload: Workload, seqs: int = 32, **more: object) -> SimulateConfig:
    """One model on up to so many replicas."""
    model = ModelSpec(
        name="m",
        source="simulated",
        scaling=Scaling(
            min_replicas=1,
            max_replicas=replicas,
            scale_up_cooldown_ns=NS_PER_S,
            target_queue_delay_ns=200 * NS_PER_MS,
        ),
        admission=Admission(max_queue=4096, max_concurrency_per_replica=seqs),
        engine=EngineSpec(max_seqs=seqs, max_step_tokens=2048, max_waiting=4096),
        context_tokens=32_768,
    )
    fields = {
        "physics": Physics(kv_tokens=200_000, step_time=FAST), "checked": False, "lean": True, "decisions": 0,
    } | more  # fmt: skip
    return SimulateConfig(models=(model,), workload=workload, **fields)  # type: ignore[arg-type]


def measure(name: str, chosen: SimulateConfig) -> tuple[float, str]:
    """Run it and print a row. Returns (times real time, digest)."""
    run = Simulation(chosen)
    began = time.process_time()
    report = run.run()
    took_s = time.process_time() - began
    assert report.failure is None, report.failure
    steps = sum(worker.steps for worker in run.world.workers.values())
    how = "checked" if chosen.checked else "exact" if chosen.exact else "fast"
    print(
        f"{name:<34} {how:<7} {report.requests:>7,} requests {report.events:>8,} events {steps:>9,} engine steps "
        f"{took_s:>7.2f} s {(report.events + steps) / took_s:>10,.0f} /s {report.virtual_s / took_s:>7,.0f}× real",
        flush=True,
    )
    return report.virtual_s / took_s, report.digest


def replica(azure: str) -> None:
    """One replica of 8 accelerators, Llama-3.1-70B on H100, all of the trace, exact and fast by turns."""
    hardware = {"m": Hardware(model="llama-3.1-70b", accelerator="h100-sxm", tp=8)}
    source = Source(rate_per_s=5.52, requests=19_366, prompt_tokens=1020, output_tokens=129, spread=0.9)
    workload = Workload(requests=0, trace=azure) if azure else Workload(sources=(source,))
    name = "8 accelerators, Azure trace" if azure else "8 accelerators, like the Azure trace"
    chosen = config(replicas=1, workload=workload, seqs=256, hardware=hardware)
    fast, exact = [], []
    for _ in range(3):
        fast.append(measure(name, chosen))
        exact.append(measure(name, msgspec.structs.replace(chosen, exact=True)))
    assert len({digest for _, digest in [*fast, *exact]}) == 1, "fast and exact must take the same actions"
    speeds = sorted(speed for speed, _ in fast)
    ratio = speeds[1] / sorted(speed for speed, _ in exact)[1]
    print(f"{'':<34} median {speeds[1]:,.0f}×, fast over exact {ratio:.1f}; same digest")
    measure(name, msgspec.structs.replace(chosen, checked=True, lean=False))


def blis(binary: str, source: str, requests: int = 500) -> None:
    """BLIS, one replica of 8 H100 with Llama-3.1-70B, and ours on the same rate and mean lengths, by CPU seconds."""
    folder = Path(source)
    command = [
        binary, "run", "--model", "meta-llama/Llama-3.1-70B-Instruct", "--hardware", "H100", "--tp", "8",
        "--latency-model", "roofline", "--model-config-folder", str(folder / "model_configs/llama-3.1-70b-instruct"),
        "--hardware-config", str(folder / "hardware_config.json"), "--num-requests", str(requests), "--rate", "5.52",
        "--prompt-tokens", "1528", "--prompt-tokens-stdev", "1676", "--prompt-tokens-min", "10",
        "--prompt-tokens-max", "16000", "--output-tokens", "194", "--output-tokens-stdev", "220",
        "--output-tokens-min", "5", "--output-tokens-max", "2000",
    ]  # fmt: skip
    source_of = Source(rate_per_s=5.52, requests=requests, prompt_tokens=1020, output_tokens=129, spread=0.9)
    hardware = {"m": Hardware(model="llama-3.1-70b", accelerator="h100-sxm", tp=8)}
    for _ in range(3):
        measure(
            f"{requests} requests, ours",
            config(replicas=1, workload=Workload(sources=(source_of,)), seqs=256, hardware=hardware),
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(
            f"{requests} requests, BLIS{'':<58}{took_s:>7.2f} s {requests / 5.52 / took_s:>7,.0f}× real", flush=True
        )


def hunt(seeds: int) -> None:
    """Seeds with all faults, all checks."""
    began = time.process_time()
    found = simulate(SimulateConfig(seed=1, seeds=seeds)).hunt
    took_s = time.process_time() - began
    assert found is not None
    assert not found.failures, found.failures
    print(
        f"hunt: {found.seeds} seeds, {found.requests:,} requests, {found.events:,} events in {took_s:.1f} s: "
        f"{found.events / took_s:,.0f} events/s, {found.seeds / took_s:.1f} seeds/s"
    )


def day() -> None:
    """100,000 accelerators, 24 hours of fleet decisions."""
    chosen = load(CONFIGS / "fleet-100k.toml")
    assert chosen.cluster is not None
    began = time.process_time()
    simulation = ClusterSimulation(chosen.cluster, seed=1)
    report = simulation.run(liveness=False)
    took_s = time.process_time() - began
    assert report.failure is None, report.failure
    print(
        f"{report.accelerators:,} accelerators, {report.hours:g} h of fleet decisions: {report.jobs:,} jobs, "
        f"{sum(report.faults_by_kind.values())} faults, {report.steps:,} events, {report.decisions_total:,} choices, "
        f"each step checked, in {took_s:.1f} s: {report.hours * 3600 / took_s:,.0f}× real time, "
        f"{report.steps / took_s:,.0f} events/s, {memory_mb():,.0f} MB"
    )


def inference() -> None:
    """100,000 accelerators request by request: all cells, on all cores, by the clock on the wall."""
    chosen = load(CONFIGS / "inference-100k.toml")
    began, before = time.monotonic(), _cpu_s()
    shown = [0]

    def show(done: int, cells: int) -> None:
        if done * 10 // cells > shown[0]:
            shown[0] = done * 10 // cells
            print(f"  {done} of {cells} cells after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    report = simulate_cells(chosen, progress=show)
    took_s = time.monotonic() - began
    assert report.failure is None, report.failure
    traffic_s = chosen.workload.sources[0].duration_s
    most_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(
        f"100,000 accelerators, request by request, all {chosen.cells} cells: {report.requests:,} requests, "
        f"{report.events:,} events, {report.completion_tokens:,} tokens in {took_s:.1f} s by the wall "
        f"({_cpu_s() - before:.0f} CPU s): {traffic_s / took_s:.1f}× over the {traffic_s:,.0f} s of traffic, "
        f"{report.virtual_s / took_s:.1f}× over all {report.virtual_s:,.0f} s; attained "
        f"{100 * report.attainment:.2f} %; at most {most_mb:,.0f} MB a process, {memory_mb():,.0f} MB here"
    )


def _cpu_s() -> float:
    """CPU seconds of this process and those it started and that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def memory_mb() -> float:
    """The most this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--azure", default="", help="the Azure LLM trace, a CSV")
    parser.add_argument("--mooncake", default="", help="a Mooncake trace, JSON lines")
    parser.add_argument("--only", default="", choices=["replica", "fleet", "hunt", "day", "inference", "blis"])
    parser.add_argument("--blis", default="", help="a built BLIS")
    parser.add_argument("--blis-source", default="", help="and its sources")
    options = parser.parse_args()
    if options.only == "blis":
        blis(_absolute(options.blis), _absolute(options.blis_source))
        return
    if options.only:
        only = {
            "hunt": lambda: hunt(100),
            "day": day,
            "inference": inference,
            "fleet": lambda: fleet(options.mooncake),
        }
        only.get(options.only, lambda: replica(_absolute(options.azure)))()
        return
    replica(_absolute(options.azure))
    fleet(options.mooncake)
    if options.blis:
        blis(_absolute(options.blis), _absolute(options.blis_source))
    hunt(100)
    day()
    inference()


def _absolute(path: str) -> str:
    return str(Path(path).absolute()) if path else ""


def fleet(mooncake: str) -> None:
    """Some replicas behind the router: drawn requests, and the Mooncake trace where it is given."""
    sizes = {"requests": 3000, "prompt_tokens": 512, "output_tokens": 128}
    measure("16 replicas, 100 requests/s", config(replicas=16, workload=Workload(rate_per_s=100.0, **sizes)))
    if mooncake:
        trace = Workload(requests=0, trace=_absolute(mooncake))
        hardware = {"m": Hardware(model="llama-3.1-70b", accelerator="h100-sxm", tp=8)}
        measure(
            "up to 16 × 8 accelerators, Mooncake", config(replicas=16, workload=trace, seqs=64, hardware=hardware)
        )


if __name__ == "__main__":
    main()
