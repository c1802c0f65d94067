"""What to simulate, as frozen values read from TOML; unknown settings are refused."""

from msgspec import Struct

from baseload.domain.model import Admission, EngineSpec, ModelSpec, Scaling
from baseload.domain.tenant import KeyLimits
from baseload.domain.units import NS_PER_S
from baseload.limits.step_time import StepTimeSpec
from baseload.twin.cluster.spec import Cluster


class Source(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Some of the traffic: who asks for what, and when. Lengths are log-normal around a median; `spread` is its
    sigma, 0: all equal. Rates are means, over `duration_s` or until `requests` are made (0: no bound)."""

    kind: str = "poisson"  # poisson | gamma | diurnal | bursts | sessions | agents | trace
    model: str = ""  # "": drawn from `mix`
    mix: dict[str, float] = {}  # model → weight; empty: all alike
    start_s: float = 0.0
    duration_s: float = 0.0  # 0: until `requests` are made
    requests: int = 0
    rate_per_s: float = 1.0  # of sessions and agents: how many of them begin
    prompt_tokens: int = 256
    output_tokens: int = 64
    spread: float = 0.5
    stream: float = 0.8  # share of requests that stream
    shared_prefix: float = 0.0  # share of requests that begin with one of `prefixes` common prefixes
    prefixes: int = 4
    burstiness: float = 4.0  # gamma: squared coefficient of variation of the gaps (1: Poisson)
    peak_hour: float = 14.0  # diurnal: hour of the day with most traffic
    trough: float = 0.3  # diurnal: least rate as a share of the most
    weekend: float = 1.0  # diurnal: rate on days 6 and 7 of a week as a share of the others'
    burst: int = 1  # at each instant come 1 to so many requests; bursts: that many times the rate
    burst_every_s: float = 300.0  # bursts: mean time between
    burst_s: float = 20.0  # bursts: how long one lasts
    turns: int = 5  # sessions: mean number of turns; agents: mean number of calls
    think_s: float = 20.0  # sessions: mean time between an answer and the next question; agents: a tool's time
    system_tokens: int = 512  # sessions and agents: common beginning of all
    trace: str = ""  # trace: a CSV of arrivals and lengths, or JSON lines as Mooncake's
    trace_speed: float = 1.0  # 2: the trace's arrivals come twice as fast
    columns: dict[str, str] = {}  # trace: our names (arrival_s, input_tokens, output_tokens, model) → the file's


class Workload(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who asks for what, and when: one stream described here, or the mix of several `sources`."""

    requests: int = 200  # of a trace: at most so many; 0: all of it
    rate_per_s: float = 1.0  # Poisson arrivals; not used with a trace
    burst: int = 1  # at each Poisson instant come 1 to so many requests
    prompt_tokens: int = 256
    output_tokens: int = 64
    spread: float = 0.5
    trace: str = ""  # a CSV of arrivals and lengths (or Mooncake's JSON lines), instead of Poisson arrivals
    trace_speed: float = 1.0  # 2: the trace's arrivals come twice as fast
    columns: dict[str, str] = {}  # of the trace: our names → the file's
    mix: dict[str, float] = {}  # model → weight; empty: all alike
    deadline_s: float = 0.0  # clients want the first byte within so long; 0: they do not say
    keys: int = 1  # API keys that ask in turn, at random
    key_limits: KeyLimits = KeyLimits()
    shared_prefix: float = 0.0  # share of requests that begin with one of `prefixes` common prefixes
    prefixes: int = 4
    stream: float = 0.8  # share of requests that stream
    sources: tuple[Source, ...] = ()  # instead of the stream above, all of these together


class Hardware(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one replica of a model runs on: its steps then take what the limits model of serving says."""

    model: str = ""  # a model of the catalogue, or the path of a config.json
    accelerator: str = ""  # of the catalogue
    engine: str = "vllm"  # whose measured efficiencies hold
    version: str = ""
    tp: int = 1
    dp: int = 1
    ep: int = 1
    pp: int = 1
    cp: int = 1  # whole groups that share each context: long prompts are cut over them
    weights: str = ""  # a format, as fp8; "": the model's own
    expert_weights: str = ""
    memory_share: float = 0.0  # of the accelerator's memory; 0: the engine's usual setting
    typical_tokens: int = 2048  # length of a sequence, for the KV room
    usd_per_accelerator_hour: float = 0.0  # 0: the model's `price` stands
    prefill_workers: int = 0  # above 0: a replica is so many workers that compute prompts, and …
    decode_workers: int = 1  # … so many that write answers, each of `tp` × `dp` × `pp` × `cp`
    prefill_tp: int = 0  # tp of the prefill workers; 0: as `tp`
    kv_gb_per_s: float = 0.0  # at which a prompt's KV cache goes over; 0: the accelerators' network adapters'


class Slo(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What counts as served well. 0: not asked for."""

    ttft_ms: float = 2000.0  # request sent → first byte, of streamed answers; of whole ones: 0 or `e2e_ms`
    tpot_ms: float = 100.0  # mean time between tokens after the first
    e2e_ms: float = 0.0


class Energy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a site's electricity costs and emits. Lists go round: of 24 values each is an hour of the day."""

    pue: float = 1.2  # facility power over power of the machines
    usd_per_kwh: tuple[float, ...] = ()  # empty: electricity is part of the replicas' price
    carbon_g_per_kwh: tuple[float, ...] = ()  # empty: not told


class Policies(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whose decisions: ours, or simple ones to compare with."""

    routing: str = "ours"  # ours | round_robin | least_loaded | random
    scaling: str = "ours"  # ours | request_rate (fixed replicas: min_replicas = max_replicas)
    requests_per_replica_s: float = 1.0  # request_rate: what one replica is held to take
    rate_window_s: float = 60.0  # request_rate: over which the rate is measured


class Physics(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long things take outside the machines. Every duration is drawn uniformly from ±50 % around its figure."""

    network_us: int = 200  # one way, between gateway and worker or control and worker
    fork_ms: int = 20  # StartWorker → the process exists
    start_ms: int = 2_000  # the process exists → /health answers
    stop_ms: int = 50  # SIGTERM and nothing running → the process is gone
    kv_tokens: int = 16_384  # KV positions of one replica
    sample_ms: int = 1_000  # between polls of a worker's figures
    meter_ms: int = 0  # between readings of an energy meter; 0: there is none, energy is modelled
    replicas_per_node: int = 1  # that die together
    nodes_per_switch: int = 8  # that are cut off together
    detect_ms: int = 20  # a worker is dead → the launcher says so
    unresponsive_ms: int = 120_000  # a ready worker that answers no poll for so long is killed by the launcher
    dispatch_timeout_ms: int = 5_000  # a lost dispatch → the gateway gives up on it
    step_time_file: str = ""  # TOML or JSON in the format of `baseload.limits.step_time`
    step_time: StepTimeSpec | None = None  # the same, inline; neither: the default table


class Faults(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What goes wrong, and how often. Shares are per occasion; `…_every_s` is a mean time between, 0: never."""

    crash_every_s: float = 0.0  # of each worker, at any moment of its life
    crash_after_answer: float = 0.0  # share of answers right after which the worker crashes
    start_fails: float = 0.0  # share of starts that end with an error
    start_loop: float = 0.0  # share of models whose starts all fail until the faults end
    slow_starts: float = 0.0  # share of starts that take `slow_factor` times as long
    slow_factor: float = 20.0
    start_hangs: float = 0.0  # share of starts that never get ready
    hang_every_s: float = 0.0  # of each worker: it stops answering, and is killed after `unresponsive_ms`
    stalls: float = 0.0  # share of engine steps that take `slow_factor` times as long
    worker_errors: float = 0.0  # share of requests that a worker answers with an error of its own
    disconnects: float = 0.0  # share of clients that hang up at some moment
    lost_dispatches: float = 0.0  # share of dispatches that never reach the worker
    slow_dispatches: float = 0.0  # share of dispatches that take a thousand times the network's time
    control_restart_every_s: float = 0.0  # kill -9 of control; snapshot and replay
    power_loss_every_s: float = 0.0  # control and all workers end at one instant, for minutes
    admin_every_s: float = 0.0  # a model is removed, put back or changed; a key is revoked
    clock_stands_every_s: float = 0.0  # the wall clock stands still for a while
    published: float = 0.0  # 1: accelerators and links fail as often as published (see `published.py`); 2: twice
    node_every_s: float = 0.0  # a node dies with all its workers
    switch_every_s: float = 0.0  # a switch: the workers below cannot be reached for a while
    switch_s: float = 10.0
    flap_every_s: float = 0.0  # one worker's link goes down for about a second
    partition_every_s: float = 0.0  # half of the workers cannot be reached, nor be heard, for a while
    partition_s: float = 10.0
    slow_every_s: float = 0.0  # a worker is silently slower for a while
    slow_for_s: float = 60.0
    slow_by: float = 2.0  # that many times
    throttle_every_s: float = 0.0  # power or cooling is short: all workers are slower for a while
    throttle_for_s: float = 60.0
    throttle_by: float = 1.5
    spot_every_s: float = 0.0  # a worker's machine is reclaimed after a notice of `spot_notice_s`
    spot_notice_s: float = 30.0
    disk_full_every_s: float = 0.0  # for about ten seconds no worker can start
    price_every_s: float = 0.0  # prices rise `price_by` times for a while
    price_by: float = 3.0
    lost_reports: float = 0.0  # share of workers' figures that get lost on the way
    slow_reports: float = 0.0  # share of workers' reports that take a thousand times as long, at most two seconds


class SimulateConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One simulation, or with `seeds` > 0 a hunt: so many runs from `seed` on, each with faults drawn from its seed.

    Without models, a plain run serves one model of our own ("guide"), and a hunt draws models and workload too.
    """

    seed: int = 1
    seeds: int = 0
    models: tuple[ModelSpec, ...] = ()
    workload: Workload = Workload()
    physics: Physics = Physics()
    faults: Faults = Faults()
    hardware: dict[str, Hardware] = {}  # by model; others take `physics.step_time`
    slo: Slo = Slo()
    energy: Energy = Energy()
    policies: Policies = Policies()
    cluster: Cluster | None = None  # a fleet under the gang scheduler, instead of single requests
    exact: bool = False  # engines step one by one: slower, with the same result
    cells: int = 1  # parts that share nothing, each with a control machine and an even part of the replicas
    processes: int = 0  # that simulate cells beside each other; 0: as many as there are cores
    cell: int = 0  # filled for each cell: which it is
    only_cell: int = -1  # run this cell alone, with the traffic that the whole would give it; -1: all
    lean: bool = False  # keep sums and samples only, for millions of requests; not with kills of control
    checked: bool = True  # look after each event whether all that must always hold does; False: faster
    decisions: int = 200  # at most so many decisions stand in the report, the first ones
    name: str = ""  # of the run, for its report
    flags: str = ""  # filled by the command line: what it changed, for the command that reproduces a failure
    spec_path: str = ""  # filled by `load`; named in the command that reproduces a failure


DEFAULT_MODEL = ModelSpec(
    name="guide",
    source="simulated",
    scaling=Scaling(min_replicas=0, max_replicas=2, idle_ns=60 * NS_PER_S),
    admission=Admission(),
    engine=EngineSpec(),
    context_tokens=8192,
)
