"""The ranges of a simulation's settings. What is not named here is any number of at least 0."""

from dataclasses import dataclass

ROUTINGS = ("ours", "round_robin", "least_loaded", "random")
SCALINGS = ("ours", "request_rate")
MOST_S = 2_678_400.0  # 31 days
MOST_NS = 1 << 60  # 36 years
MOST_TOKENS = 100_000_000
ENDLESS = 1e18


@dataclass(frozen=True, slots=True)
class Rule:
    """What a setting may be. `or_zero`: 0 too, which then means something of its own."""

    low: float = 0.0
    high: float = ENDLESS
    or_zero: bool = False
    words: tuple[str, ...] = ()  # of a text: which
    is_needed: bool = False  # of a text: not empty
    most_letters: int = 4096

    def holds(self, value: float) -> bool:
        """Whether it may be this number."""
        return self.low <= value <= self.high or (self.or_zero and value == 0)

    def told(self) -> str:
        """The range in words."""
        high = "" if self.high >= ENDLESS else f" to {_told(self.high)}"
        zero = "0, or " if self.or_zero else ""
        return f"({zero}{_told(self.low)}{high})" if high else f"({zero}at least {_told(self.low)})"


DEFAULT = Rule()
SHARE = Rule(0.0, 1.0)
NEEDED = Rule(is_needed=True, most_letters=200)
TIME_S = Rule(0.0, MOST_S)
MEAN_S = Rule(0.001, 1e8, or_zero=True)  # a mean time between faults; 0: never
TIME_MS = Rule(0, 86_400_000)
TIMES = Rule(1.0, 10_000.0)  # so many times as long, or as dear
RATE = Rule(1e-6, 1e6)
TOKENS = Rule(1, MOST_TOKENS)
COUNT = Rule(0, 50_000_000)
NS = Rule(0, MOST_NS)
MONEY = Rule(0.0, 1e9)
WATTS = Rule(0.0, 1e9)
PUE = Rule(1.0, 10.0)
A_DAY = Rule(0.0, 1e6)
RANKS = Rule(1, 4096)

KINDS = ("poisson", "gamma", "diurnal", "bursts", "sessions", "agents", "trace")
FORMATS = ("", "fp32", "bf16", "fp8", "int8", "nvfp4", "mxfp4", "int4")
FILLED = {("SimulateConfig", name): None for name in ("cell", "only_cell", "flags", "spec_path")}


def _told(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.9f}".rstrip("0")


def _of(struct: str, **rules: Rule) -> dict[tuple[str, str], Rule]:
    return {(struct, name): rule for name, rule in rules.items()}


_STREAM = {
    "rate_per_s": RATE, "prompt_tokens": TOKENS, "output_tokens": TOKENS, "spread": Rule(0.0, 5.0), "stream": SHARE,
    "shared_prefix": SHARE, "prefixes": Rule(0, 1_000_000), "burst": Rule(1, 100_000), "requests": COUNT,
    "trace_speed": Rule(1e-6, 1e6), "mix": Rule(0.0, 1e9),
}  # fmt: skip
_FAULTS = (
    "crash_every_s", "hang_every_s", "control_restart_every_s", "power_loss_every_s", "admin_every_s",
    "clock_stands_every_s", "node_every_s", "switch_every_s", "flap_every_s", "slow_every_s", "throttle_every_s",
    "spot_every_s", "disk_full_every_s", "price_every_s", "partition_every_s",
)  # fmt: skip
_SHARES = (
    "crash_after_answer", "start_fails", "start_loop", "slow_starts", "start_hangs", "stalls", "worker_errors",
    "disconnects", "lost_dispatches", "slow_dispatches", "lost_reports", "slow_reports",
)  # fmt: skip

RULES: dict[tuple[str, str], Rule] = {
    **_of(
        "SimulateConfig", seed=Rule(0, (1 << 63) - 1), seeds=Rule(0, 10_000_000), cells=Rule(1, 10_000),
        processes=Rule(0, 1024), decisions=Rule(0, 1_000_000),
    ),
    **_of("Workload", **_STREAM, deadline_s=TIME_S, keys=Rule(1, 100_000)),
    **_of("KeyLimits", requests_per_minute=COUNT, tokens_per_minute=Rule(0, 1e12), max_in_flight=COUNT),
    **_of(
        "Source", **_STREAM, kind=Rule(words=KINDS), start_s=TIME_S, duration_s=TIME_S, burstiness=Rule(0.001, 1e4),
        peak_hour=Rule(0.0, 24.0), trough=SHARE, weekend=SHARE, burst_every_s=Rule(0.1, MOST_S), burst_s=TIME_S,
        turns=Rule(1, 10_000), think_s=TIME_S, system_tokens=Rule(0, MOST_TOKENS),
    ),
    **_of(
        "Hardware", tp=RANKS, dp=RANKS, ep=RANKS, pp=RANKS, cp=RANKS, memory_share=SHARE, typical_tokens=TOKENS,
        weights=Rule(words=FORMATS), expert_weights=Rule(words=FORMATS), usd_per_accelerator_hour=MONEY,
        prefill_workers=Rule(0, 1024), decode_workers=Rule(1, 1024), prefill_tp=Rule(0, 4096),
        kv_gb_per_s=Rule(0.001, 1e6, or_zero=True),
    ),
    **_of("Slo", ttft_ms=Rule(0.0, 1e9), tpot_ms=Rule(0.0, 1e9), e2e_ms=Rule(0.0, 1e12)),
    **_of("Energy", pue=PUE, usd_per_kwh=Rule(-100.0, 1000.0), carbon_g_per_kwh=Rule(0.0, 5000.0)),
    **_of(
        "Policies", routing=Rule(words=ROUTINGS), scaling=Rule(words=SCALINGS), requests_per_replica_s=RATE,
        rate_window_s=Rule(0.001, MOST_S),
    ),
    **_of(
        "Physics", network_us=Rule(0, 60_000_000), fork_ms=TIME_MS, start_ms=TIME_MS, stop_ms=TIME_MS,
        kv_tokens=Rule(1, 1e12), sample_ms=Rule(10, 86_400_000), meter_ms=Rule(10, 86_400_000, or_zero=True),
        replicas_per_node=Rule(1, 100_000), nodes_per_switch=Rule(1, 100_000), detect_ms=TIME_MS,
        unresponsive_ms=TIME_MS, dispatch_timeout_ms=TIME_MS,
    ),
    **_of("StepTimeSpec", fixed_ms=Rule(0.0, 1e7), prefill=Rule(0.0, 1e12), decode=Rule(0.0, 1e12),
          context=Rule(0.0, 1e12), pairs=Rule(0.0, 1e15)),
    **_of(
        "Faults", **dict.fromkeys(_FAULTS, MEAN_S), **dict.fromkeys(_SHARES, SHARE), slow_factor=TIMES, slow_by=TIMES,
        throttle_by=TIMES, price_by=Rule(0.0, 10_000.0), published=Rule(0.0, 10_000.0), switch_s=TIME_S,
        slow_for_s=TIME_S, throttle_for_s=TIME_S, spot_notice_s=TIME_S, partition_s=TIME_S,
    ),
    **_of("ModelSpec", name=NEEDED, source=NEEDED, context_tokens=Rule(0, MOST_TOKENS)),
    **_of(
        "Scaling", min_replicas=Rule(0, 100_000), max_replicas=Rule(0, 100_000), target_kv_usage=SHARE, idle_ns=NS,
        target_queue_delay_ns=NS, scale_up_cooldown_ns=NS, start_timeout_ns=NS, drain_timeout_ns=NS, scale_down_ns=NS,
    ),
    **_of(
        "Admission", max_queue=Rule(0, 10_000_000), max_wait_ns=NS, max_concurrency_per_replica=Rule(1, 100_000),
        max_attempts=Rule(1, 1000),
    ),
    **_of(
        "EngineSpec", max_seqs=Rule(1, 100_000), max_step_tokens=TOKENS, block_tokens=Rule(1, 65_536),
        max_context=Rule(0, MOST_TOKENS), max_waiting=Rule(0, 10_000_000),
    ),
    **_of("Price", usd_per_hour=MONEY, busy_w=WATTS, idle_w=WATTS),
    **_of(
        "Cluster", hours=Rule(0.01, 8784.0), per_node=Rule(1, 1024), nodes_per_switch=Rule(1, 100_000),
        switches_per_pod=Rule(1, 100_000), busy_w=WATTS, idle_w=WATTS, tick_s=Rule(1.0, 86_400.0),
    ),
    **_of(
        "Site", name=NEEDED, nodes=Rule(1, 1_000_000), pue=PUE, usd_per_accelerator_hour=MONEY,
        usd_per_kwh=Rule(-100.0, 1000.0), carbon_g_per_kwh=Rule(0.0, 5000.0), spot_share=SHARE,
    ),
    **_of(
        "JobStream", name=NEEDED, per_hour=Rule(1e-6, 1e6), sizes=Rule(0.0, 1e7), hours=Rule(1e-4, 1e5),
        spread=Rule(0.0, 5.0), priority=Rule(-1_000_000, 1_000_000), checkpoint_min=Rule(0.0, 1e6),
        checkpoint_s=Rule(0.0, 1e6), start_s=Rule(0.0, 1e6), most_usd_per_kwh=MONEY,
    ),
    **_of(
        "Service", name=NEEDED, accelerators=Rule(1, 1_000_000), rate_per_s=Rule(0.0, 1e9), request_s=Rule(1e-3, 1e6),
        concurrency=Rule(1, 1_000_000), trough=SHARE, peak_hour=Rule(0.0, 24.0), noise=SHARE,
        start_s=Rule(0.0, 1e6), priority=Rule(-1_000_000, 1_000_000),
    ),
    **_of("Quota", guaranteed=Rule(0, 100_000_000), most=Rule(0, 100_000_000)),
    **_of(
        "ClusterFaults", published=Rule(0.0, 10_000.0), repair_h=Rule(0.001, 8784.0), detect_s=Rule(0.0, 1e6),
        switch_min=Rule(0.0, 1e6), slow_by=TIMES, slow_found_min=Rule(0.0, 1e6), cap_share=SHARE,
        cap_min=Rule(0.0, 1e6), price_by=Rule(0.001, 10_000.0), spike_min=Rule(0.0, 1e6), spot_h=Rule(0.0, 8784.0),
        disk_min=Rule(0.0, 1e6), partition_min=Rule(0.0, 1e6), corrupt_checkpoints=SHARE, lost_messages=SHARE,
        slow_messages=SHARE,
        **dict.fromkeys(
            ("nodes_per_day", "switches_per_day", "slow_per_day", "power_per_day", "cooling_per_day",
             "price_spikes_per_day", "spot_per_day", "disk_full_per_day", "partitions_per_day"), A_DAY,
        ),
    ),
}  # fmt: skip
