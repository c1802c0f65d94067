"""How fast the twin is: events per second and times real time, with and without the checkers.

    python bench/twin/run.py [--requests 3000] [--trace CSV]

One replica at a calm and a busy rate, a fleet of sixteen at its limit, and a hunt. Figures of one machine at one
moment, in CPU seconds of the one thread it uses, so that neighbours disturb less. Compare ratios.
"""

import argparse
import time

from baseload.domain.model import Admission, EngineSpec, ModelSpec, Scaling
from baseload.domain.units import NS_PER_MS, NS_PER_S
from baseload.limits.step_time import StepTimeSpec
from baseload.twin.run import Simulation, simulate
from baseload.twin.spec import Physics, SimulateConfig, Workload

FAST = StepTimeSpec(
    basis="stated: about a small model on one modern accelerator",
    fixed_ms=8.0,
    prefill=((512, 40.0),),
    decode=((32, 6.0),),
    context=((100_000, 10.0),),
)


def config(*, replicas: int, workload: Workload, checked: bool) -> SimulateConfig:
    """One model on up to so many replicas of a fast engine."""
    model = ModelSpec(
        name="m",
        source="simulated",
        scaling=Scaling(max_replicas=replicas, scale_up_cooldown_ns=NS_PER_S, target_queue_delay_ns=200 * NS_PER_MS),
        admission=Admission(max_queue=4096),
        engine=EngineSpec(max_seqs=32, max_step_tokens=2048),
        context_tokens=16_384,
    )
    physics = Physics(kv_tokens=200_000, step_time=FAST)
    return SimulateConfig(models=(model,), workload=workload, physics=physics, checked=checked, decisions=0)


def measure(name: str, replicas: int, workload: Workload) -> None:
    """Run it with and without checks and print a row."""
    for checked in (True, False):
        run = Simulation(config(replicas=replicas, workload=workload, checked=checked))
        began = time.process_time()
        report = run.run()
        took_s = time.process_time() - began
        assert report.failure is None, report.failure
        steps = sum(worker.steps for worker in run.world.workers.values())
        print(
            f"{name:<28} {'checked' if checked else 'unchecked':<10} {report.requests:>7,} requests "
            f"{report.events:>8,} events {steps:>9,} steps {took_s:>7.2f} s "
            f"{(report.events + steps) / took_s:>9,.0f} events and steps/s "
            f"{report.virtual_s / took_s:>7,.0f}× real time"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--trace", default="", help="also replay this CSV")
    options = parser.parse_args()
    sizes = {"requests": options.requests, "prompt_tokens": 512, "output_tokens": 128}
    measure("one replica, 1 request/s", 1, Workload(rate_per_s=1.0, **sizes))
    measure("one replica, 8 requests/s", 1, Workload(rate_per_s=8.0, **sizes))
    measure("16 replicas, 100 requests/s", 16, Workload(rate_per_s=100.0, **sizes))
    if options.trace:
        measure("trace, up to 16 replicas", 16, Workload(requests=options.requests, trace=options.trace))
    began = time.process_time()
    hunt = simulate(SimulateConfig(seed=1, seeds=100)).hunt
    took_s = time.process_time() - began
    assert hunt is not None
    assert not hunt.failures, hunt.failures
    print(
        f"hunt: {hunt.seeds} seeds, {hunt.requests:,} requests, {hunt.events:,} events in {took_s:.1f} s: "
        f"{hunt.events / took_s:,.0f} events/s, {hunt.seeds / took_s:.1f} seeds/s, "
        f"{hunt.virtual_s / took_s:,.0f}× real time"
    )


if __name__ == "__main__":
    main()
