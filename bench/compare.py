"""Cost per request within service level on recorded traces: our scaling and routing against simpler ones.

    python bench/compare.py --data DIR [--trace conv|mooncake|code] [--code FILE] [--copies 2] [--seeds 5]

`DIR` holds `azure_llm_2023/AzureLLMInferenceTrace_conv.csv` and `mooncake/conversation_trace.jsonl`; `--code` names
`AzureLLMInferenceTrace_code.csv` of the same publication. Times come from the limits model.

A trace is cut into two halves. Every policy has one knob: a count of replicas, a rate per replica, or (ours) a share
of what the limits model says a replica carries in tokens. On the first half, under the first seed, each takes the
cheapest value that attains the target there; the second half is held out, and is what is reported: cost and
attainment over seeds. Because knobs come in steps, ours is also shown with the cheapest value that attains, on the
first half, at least what the rival attains there. Last, with hindsight on both sides: each with the cheapest value
that attains the target on the half that is shown. A seed moves the copies of a trace against each other (by up to a
minute), and draws routing, starts and the network anew; all policies see the same arrivals under a seed. Virtual: the
same on any machine.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from baseload.domain.model import Admission, EngineSpec, ModelSpec, Scaling
from baseload.domain.units import NS_PER_S
from baseload.limits.catalogue.accelerators import read_catalogue
from baseload.limits.serving.points import Layout
from baseload.limits.serving.predict import Predictor
from baseload.policy.plan.capacity import token_capacity
from baseload.policy.plan.options import judge_layout
from baseload.policy.plan.spec import Levels, ServedModel, Traffic
from baseload.twin.compare import Outcome, interval, measure
from baseload.twin.spec import Hardware, Physics, Policies, SimulateConfig, Slo, Source, Workload
from baseload.twin.traces import read_trace

LEAD_S = 120.0  # before the trace begins: replicas that are always on are up
WARMUP_S = 240.0  # left out: the lead, and two minutes in which all find their size
TARGET = 0.998  # share of requests within the levels that a knob must reach on the first half
TURN = 60.0  # seconds by which a seed moves a copy at most
Make = Callable[[float], SimulateConfig]


@dataclass(frozen=True)
class World:
    """A trace with what it runs on."""

    name: str
    model: str
    accelerator: str
    tp: int
    price: float  # $ per accelerator and hour (catalogue)
    ttft_ms: float
    tpot_ms: float
    batch: int
    prompt_tokens: int  # means of the trace, for the KV room and the limits model
    output_tokens: int
    prompt_cv: float
    output_cv: float
    traces: tuple[Path, Path]  # its halves
    copies: int
    start_s: float
    target: float


def config(world: World, half: int, seed: int, *, scaling: Scaling, policies: Policies) -> SimulateConfig:
    """One setting on one half under one seed."""
    turns = np.random.default_rng(seed).uniform(0.0, TURN, world.copies)
    sources = tuple(
        Source(kind="trace", trace=str(world.traces[half]), stream=1.0, start_s=LEAD_S + float(turn))
        for turn in turns
    )
    model = ModelSpec(
        name="chat",
        source="simulated",
        scaling=scaling,
        admission=Admission(max_queue=100_000, max_concurrency_per_replica=world.batch),
        engine=EngineSpec(max_seqs=world.batch, max_step_tokens=2048),
        context_tokens=262_144,
    )
    hardware = Hardware(
        model=world.model, accelerator=world.accelerator, tp=world.tp, usd_per_accelerator_hour=world.price,
        typical_tokens=world.prompt_tokens + world.output_tokens,
    )  # fmt: skip
    return SimulateConfig(
        seed=seed,
        models=(model,),
        hardware={"chat": hardware},
        workload=Workload(sources=sources),
        physics=Physics(start_ms=round(1000 * world.start_s)),
        slo=Slo(ttft_ms=world.ttft_ms, tpot_ms=world.tpot_ms),
        policies=policies,
        checked=False,
        decisions=0,
    )


@cache
def capacity(world: World) -> tuple[float, float]:
    """Prompt and output tokens a second that the limits model says one replica carries at the trace's mix."""
    predictor = Predictor(catalogue=read_catalogue())
    shape = predictor.models.find(world.model)[0]
    traffic = Traffic(
        requests_per_s=1.0, prompt_tokens=world.prompt_tokens, output_tokens=world.output_tokens,
        prompt_cv=world.prompt_cv, output_cv=world.output_cv,
    )  # fmt: skip
    levels = Levels(ttft_ms=world.ttft_ms, tpot_ms=world.tpot_ms, ttft_of="p99", tpot_of="p99")
    served = ServedModel(name="chat", model=world.model, traffic=traffic, levels=levels, modes=("aggregated",))
    (option,) = judge_layout(served, shape, world.accelerator, "", Layout(gpus=world.tp), predictor, 2048)
    return token_capacity(option, traffic, levels)


def policies_of(world: World, most: int, *, half: int, seed: int) -> dict[str, Make]:
    """Each policy, as a setting for a value of its knob."""
    prompts, answers = capacity(world)
    least = {"min_replicas": 2, "max_replicas": most, "idle_ns": 10 * NS_PER_S, "scale_down_ns": 10 * NS_PER_S}

    def make(scaling: Scaling, policies: Policies) -> SimulateConfig:
        return config(world, half, seed, scaling=scaling, policies=policies)

    def in_tokens(share: float, routing: str) -> SimulateConfig:
        scaling = Scaling(**least, prompt_tokens_per_s=share * prompts, output_tokens_per_s=share * answers)
        return make(scaling, Policies(routing=routing))

    def by_rate(rate: float) -> SimulateConfig:
        policies = Policies(routing="round_robin", scaling="request_rate", requests_per_replica_s=rate)
        return make(Scaling(**least), policies)

    def fixed(count: float, routing: str) -> SimulateConfig:
        scaling = Scaling(min_replicas=round(count), max_replicas=round(count))
        return make(scaling, Policies(routing=routing))

    return {
        "ours": lambda share: in_tokens(share, "ours"),
        "ours, by requests": lambda rate: make(Scaling(**least, requests_per_s=rate), Policies()),
        "fixed at peak + round robin": lambda count: fixed(count, "round_robin"),
        "fixed at peak + our routing": lambda count: fixed(count, "ours"),
        "request rate + round robin": by_rate,
        "our scaling + least loaded": lambda share: in_tokens(share, "least_loaded"),
    }


@cache
def measured(world: World, name: str, knob: float, most: int, half: int, seed: int) -> Outcome:
    """One policy with one value of its knob, on one half under one seed."""
    return measure(policies_of(world, most, half=half, seed=seed)[name](knob), warmup_s=WARMUP_S)[0]


def choose(
    world: World, name: str, knobs: Sequence[float], most: int, *, half: int, at_least: float
) -> tuple[float, Outcome]:
    """The cheapest value that attains, else the last. Values are in order of cost, cheapest first; the more it costs,
    the more is taken to be attained, so the place is found by halving."""
    tried: dict[int, Outcome] = {}
    low, high = 0, len(knobs) - 1
    while low < high or high not in tried:
        middle = (low + high) // 2
        began = time.perf_counter()
        outcome = measured(world, name, knobs[middle], most, half, 1)
        tried[middle] = outcome
        print(
            f"  {name:<28} {knobs[middle]:<6g} attainment {outcome.attainment:.4f}  "
            f"replica-h {outcome.replica_hours:6.3f}  TTFT p99 {outcome.ttft_p99_ms:6.0f}  "
            f"TPOT p99 {outcome.tpot_p99_ms:5.1f} ms  starts {outcome.starts:3d}  "
            f"{time.perf_counter() - began:3.0f} s",
            flush=True,
        )
        if low == high:
            break
        if outcome.attainment >= at_least:
            high = middle
        else:
            low = middle + 1
    return knobs[high], tried[high]


def held_out(world: World, name: str, knob: float, most: int, seeds: int) -> list[Outcome]:
    """The second half under each seed."""
    return [measured(world, name, knob, most, 1, seed) for seed in range(1, seeds + 1)]


def told(name: str, knob: float, theirs: list[Outcome], ours: list[Outcome]) -> None:
    """A row of the result: ours against a rival, paired by seed."""
    shares = [o.usd_per_1000_well_served / t.usd_per_1000_well_served - 1 for o, t in zip(ours, theirs, strict=True)]
    mean, low, high = interval(shares)
    within = "[one seed]" if np.isnan(low) else f"[{low:+.1%} … {high:+.1%}]"
    attained = [np.mean([o.attainment for o in side]) for side in (ours, theirs)]
    ttft = [np.mean([o.ttft_p99_ms for o in side]) for side in (ours, theirs)]
    print(
        f"⇒ ours against {name} ({knob:g}): {mean:+.1%} {within} dollars per request within levels; "
        f"attainment {attained[0]:.4f} / {attained[1]:.4f}; TTFT p99 {ttft[0]:.0f} / {ttft[1]:.0f} ms; "
        f"$/1,000 {np.mean([o.usd_per_1000_well_served for o in ours]):.3f}",
        flush=True,
    )


def run(world: World, knobs: dict[str, Sequence[float]], *, most: int, seeds: int) -> None:
    """Choose on the first half, show on the second."""
    prompts, answers = capacity(world)
    print(
        f"\n{world.name} × {world.copies}, {world.model} on {world.tp} × {world.accelerator}, starts of "
        f"{world.start_s:g} s; TTFT ≤ {world.ttft_ms:g} ms and TPOT ≤ {world.tpot_ms:g} ms. The limits model: one "
        f"replica carries {prompts:,.0f} prompt or {answers:,.0f} output tokens/s. "
        f"First half, target {world.target}:",
        flush=True,
    )
    chosen = {
        name: choose(world, name, values, most, half=0, at_least=world.target) for name, values in knobs.items()
    }
    rivals = [name for name in knobs if name != "ours"]
    print("First half, ours at the attainment that each rival has there:", flush=True)
    matched = {
        name: choose(world, "ours", knobs["ours"], most, half=0, at_least=chosen[name][1].attainment)[0]
        for name in rivals
    }
    print(f"Second half, held out, {seeds} seeds:", flush=True)

    def outcomes(name: str, knob: float) -> list[Outcome]:
        return held_out(world, name, knob, most, seeds)

    for name in rivals:
        told(name, chosen[name][0], outcomes(name, chosen[name][0]), outcomes("ours", chosen["ours"][0]))
    print("The same, ours with the knob that attains at least what the rival does on the first half:", flush=True)
    for name in rivals:
        ours = outcomes("ours", matched[name])
        told(f"{name}, ours at {matched[name]:g}", chosen[name][0], outcomes(name, chosen[name][0]), ours)
    print("With hindsight on both sides, each the cheapest that attains the target on the half shown:", flush=True)
    hindsight = {
        name: choose(world, name, values, most, half=1, at_least=world.target)[0]
        for name, values in knobs.items()
        if name != "ours, by requests"
    }
    for name in [name for name in hindsight if name != "ours"]:
        ours = outcomes("ours", hindsight["ours"])
        told(f"{name}, with hindsight", hindsight[name], outcomes(name, hindsight[name]), ours)


def halves(trace: Path, folder: Path) -> tuple[tuple[Path, Path], dict[str, float]]:
    """The trace cut at the middle of its time, as files in `folder`; and means of its lengths on the first half."""
    rows = read_trace(trace)
    middle = (rows[0].at_ns + rows[-1].at_ns) // 2
    first = [row for row in rows if row.at_ns < middle]
    paths = (folder / f"first{trace.suffix}", folder / f"second{trace.suffix}")
    if trace.suffix == ".jsonl":
        lines = trace.read_bytes().splitlines(keepends=True)
        paths[0].write_bytes(b"".join(lines[: len(first)]))
        paths[1].write_bytes(b"".join(lines[len(first) :]))
    else:
        for path, part in zip(paths, (first, rows[len(first) :]), strict=True):
            with path.open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["arrival_s", "input_tokens", "output_tokens"])
                table.writerows([(r.at_ns - part[0].at_ns) / 1e9, r.input_tokens, r.output_tokens] for r in part)
    prompts, answers = (np.array([getattr(r, f) for r in first], float) for f in ("input_tokens", "output_tokens"))
    return paths, {
        "prompt_tokens": round(prompts.mean()), "output_tokens": round(answers.mean()),
        "prompt_cv": float(prompts.std() / prompts.mean()), "output_cv": float(answers.std() / answers.mean()),
    }  # fmt: skip


def main() -> None:
    """Print it all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trace", choices=("conv", "mooncake", "code"), default="conv")
    parser.add_argument("--code", type=Path, help="AzureLLMInferenceTrace_code.csv")
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--start-s", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    trace = {
        "conv": options.data / "azure_llm_2023" / "AzureLLMInferenceTrace_conv.csv",
        "mooncake": options.data / "mooncake" / "conversation_trace.jsonl",
        "code": options.code or Path("AzureLLMInferenceTrace_code.csv"),
    }[options.trace]
    if not trace.is_file():
        print(f"Skipped: there is no {trace}.")
        return
    n = options.copies
    with tempfile.TemporaryDirectory() as folder:
        paths, means = halves(trace, Path(folder))
        common = {"traces": paths, "copies": n, "start_s": options.start_s, **means}
        if options.trace == "conv":
            world = World(
                name="Azure conversations", model="meta-llama/Meta-Llama-3.1-70B", accelerator="a100_sxm", tp=4,
                price=1.39, ttft_ms=2000, tpot_ms=100, batch=64, target=TARGET, **common,
            )  # fmt: skip
            counts = range(2 * n, 9 * n + 1)
        else:
            world = World(
                name="Mooncake conversations" if options.trace == "mooncake" else "Azure code",
                model="meta-llama/Meta-Llama-3.1-8B", accelerator="h100_sxm", tp=1, price=1.30,
                ttft_ms=5000 if options.trace == "mooncake" else 2000, tpot_ms=100, batch=64, target=0.97, **common,
            )  # fmt: skip
            counts = range(n, 8 * n + 1)
        shares = [1.0 - 0.05 * i for i in range(13)]
        rate = sum(capacity(world)) and 1.0 / (
            world.prompt_tokens / capacity(world)[0] + world.output_tokens / (capacity(world)[1] or 1e18)
        )
        rates = [round(rate * share, 3) for share in shares]
        run(
            world,
            {
                "ours": shares,
                "ours, by requests": rates,
                "fixed at peak + round robin": list(counts),
                "fixed at peak + our routing": list(counts),
                "request rate + round robin": rates,
                "our scaling + least loaded": shares,
            },
            most=2 * counts.stop,
            seeds=options.seeds,
        )


if __name__ == "__main__":
    main()
