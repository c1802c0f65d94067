"""Swarm-random configurations: each seed draws which kinds of fault are on, how often, and what is served to whom.

A random half of the fault kinds off finds more than all of them on: faults that hide behind others come forward
(Groce et al., "Swarm testing", ISSTA 2012).
"""

import msgspec

from baseload.domain.model import Admission, EngineSpec, ModelSpec, Price, Scaling
from baseload.domain.rng import Rng
from baseload.domain.tenant import KeyLimits
from baseload.domain.units import seconds
from baseload.limits.step_time import StepTimeSpec
from baseload.twin.spec import Faults, Physics, SimulateConfig, Workload


def drawn_config(base: SimulateConfig, *, seed: int) -> SimulateConfig:
    """The configuration of one seed of a hunt. Models and workload of `base` stand where it has models."""
    rng = Rng(seed, "twin.swarm")
    faults = _faults(rng)
    if base.models:
        return msgspec.structs.replace(base, seed=seed, seeds=0, faults=faults)
    models = tuple(_model(rng, f"model-{number}") for number in range(1 + rng.below(3)))
    return msgspec.structs.replace(
        base,
        seed=seed,
        seeds=0,
        models=models,
        workload=_workload(rng, base.workload),
        physics=_physics(rng),
        faults=faults,
    )


def _faults(rng: Rng) -> Faults:
    def share(most: float) -> float:
        return most * rng.unit() if rng.below(2) else 0.0

    def every_s(least: float, most: float) -> float:
        return least + (most - least) * rng.unit() if rng.below(2) else 0.0

    more = Rng(rng.state, "twin.swarm.machines")  # a stream of its own: the draws after it stay as they were

    def also_s(least: float, most: float) -> float:
        return least + (most - least) * more.unit() if more.below(4) == 0 else 0.0

    return Faults(
        node_every_s=also_s(5.0, 60.0),
        switch_every_s=also_s(2.0, 30.0),
        switch_s=0.1 + 5 * more.unit(),
        flap_every_s=also_s(1.0, 20.0),
        partition_every_s=also_s(2.0, 30.0),
        partition_s=0.1 + 5 * more.unit(),
        slow_every_s=also_s(2.0, 30.0),
        slow_for_s=20 * more.unit(),
        slow_by=1.0 + 9 * more.unit(),
        throttle_every_s=also_s(5.0, 60.0),
        throttle_for_s=20 * more.unit(),
        spot_every_s=also_s(2.0, 30.0),
        spot_notice_s=3 * more.unit(),
        disk_full_every_s=also_s(5.0, 60.0),
        price_every_s=also_s(2.0, 30.0),
        lost_reports=more.unit() if more.below(4) == 0 else 0.0,
        slow_reports=0.3 * more.unit() if more.below(4) == 0 else 0.0,
        crash_every_s=every_s(0.5, 30.0),
        start_fails=share(0.5),
        start_loop=share(0.5) if rng.below(3) == 0 else 0.0,
        slow_starts=share(0.5),
        slow_factor=2.0 + 60.0 * rng.unit(),
        start_hangs=share(0.3),
        hang_every_s=every_s(5.0, 60.0) if rng.below(2) else 0.0,
        stalls=share(0.05),
        worker_errors=share(0.2),
        disconnects=share(0.5),
        lost_dispatches=share(0.3),
        slow_dispatches=share(0.3),
        control_restart_every_s=every_s(1.0, 20.0),
        admin_every_s=every_s(0.5, 10.0),
        clock_stands_every_s=every_s(0.5, 5.0),
        power_loss_every_s=every_s(5.0, 60.0) if rng.below(2) else 0.0,
        crash_after_answer=share(1.0) ** 2 if rng.below(3) == 0 else 0.0,
    )


def _model(rng: Rng, name: str) -> ModelSpec:
    high = 1 + rng.below(4)
    low = min(high, rng.below(4)) if rng.below(3) == 0 else 0
    is_remote = rng.below(12) == 0
    return ModelSpec(
        name=name,
        source=f"http://{name}.elsewhere" if is_remote else "simulated",
        scaling=Scaling(
            min_replicas=low,
            max_replicas=high,
            idle_ns=seconds(0.2 + 20 * rng.unit()),
            target_queue_delay_ns=seconds(0.05 + rng.unit()),
            scale_up_cooldown_ns=seconds(0.1 + 5 * rng.unit()),
            start_timeout_ns=seconds(1 + 20 * rng.unit()),
            drain_timeout_ns=seconds(0.5 + 60 * rng.unit()),
        ),
        admission=Admission(
            max_queue=1 + rng.below(64),
            max_wait_ns=seconds(0.5 + 40 * rng.unit()),
            max_concurrency_per_replica=1 + rng.below(16),
            max_attempts=1 + rng.below(4),
        ),
        engine=EngineSpec(
            max_seqs=1 + rng.below(16),
            max_step_tokens=16 << rng.below(6),
            max_waiting=rng.below(16),
            block_tokens=4 << rng.below(3),
            prefix_cache=rng.below(2) == 0,
        ),
        price=Price(usd_per_hour=0.01 + 4 * rng.unit(), busy_w=1 + 700 * rng.unit(), idle_w=100 * rng.unit()),
        context_tokens=256 << rng.below(4),
    )


def _workload(rng: Rng, base: Workload) -> Workload:
    limits = KeyLimits(
        requests_per_minute=30 + rng.below(600) if rng.below(4) == 0 else 0,
        tokens_per_minute=20_000 + rng.below(200_000) if rng.below(4) == 0 else 0,
        max_in_flight=3 + rng.below(20) if rng.below(6) == 0 else 0,
    )
    return msgspec.structs.replace(
        base,
        requests=min(base.requests, 20 + rng.below(180)),
        rate_per_s=0.5 + 60 * rng.unit() ** 3,
        burst=1 + rng.below(12) if rng.below(3) == 0 else 1,
        deadline_s=0.1 + 4 * rng.unit() if rng.below(3) == 0 else 0.0,
        prompt_tokens=1 + rng.below(150),
        output_tokens=1 + rng.below(40),
        spread=0.8 * rng.unit(),
        keys=1 + rng.below(3),
        key_limits=limits,
        shared_prefix=rng.unit() if rng.below(2) else 0.0,
        stream=rng.unit(),
    )


def _physics(rng: Rng) -> Physics:
    return Physics(
        network_us=1 + rng.below(2_000),
        fork_ms=1 + rng.below(50),
        start_ms=1 + rng.below(1_500),
        stop_ms=1 + rng.below(200),
        replicas_per_node=1 + rng.below(3),
        nodes_per_switch=1 + rng.below(3),
        sample_ms=100 + rng.below(1_000),
        meter_ms=50 + rng.below(2_000) if rng.below(4) == 0 else 0,
        detect_ms=1 + rng.below(200),
        unresponsive_ms=1_000 + rng.below(20_000) * (1 + 5 * rng.below(2)),
        dispatch_timeout_ms=100 + rng.below(3_000),
        kv_tokens=512 << rng.below(5),
        step_time=_step_time(1 << rng.below(6)),
    )


def _step_time(slower: int) -> StepTimeSpec:
    return StepTimeSpec(
        basis="stated: a small engine, fast or slow by the seed",
        fixed_ms=2.0 * slower,
        prefill=((512, 20.0 * slower),),
        decode=((1, 0.2 * slower), (32, 4.0 * slower)),
        context=((10_000, 2.0 * slower),),
    )
