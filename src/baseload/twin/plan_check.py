"""A planned answer run through the twin: the production router and batcher on a virtual clock, at the planned peak.

Some of the replicas, with their share of the peak, are simulated (fewer balance worse, so this errs on the safe
side), in one run: aggregated, or as groups of prefill and decode workers (`twin.pools`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baseload.domain.model import Admission, EngineSpec, ModelSpec, Scaling
from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_MS, NS_PER_S
from baseload.domain.work import Outcome
from baseload.limits.serving.replica import StepCost
from baseload.policy.plan.answer import Check
from baseload.policy.plan.candidates import Candidate, replicas_for
from baseload.policy.plan.serve import cached_tokens
from baseload.policy.plan.spec import Statistic, Traffic, peak_of
from baseload.twin.clients import Client
from baseload.twin.pools import UnitCost
from baseload.twin.run import Simulation
from baseload.twin.spec import Physics, SimulateConfig
from baseload.twin.workload import Arrival

MOST_REPLICAS = 4
WARM_UP, TAIL = 0.35, 0.10  # shares of the requests, first and last, that only fill the replicas, or see them empty
START_NS = 5 * NS_PER_S  # by then all replicas are up
MOST_REQUESTS = 4_000  # unless one replica needs more
LOOKS = 20  # at a replica during a mean answer, if that takes longer than so many seconds
TURNOVERS, MOST_TURNOVERS = 6.0, 20.0  # requests of a run, in batches of all replicas: to fill them and then to look
FILLING = 3.0  # of them, times how many percent a batch grows by as load grows by one
TOLERANCE = 1.02  # a level is held to be kept when it is missed by less: the run is a sample

Floats = NDArray[np.float64]
Lengths = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What clients saw, in milliseconds; parallel (an answer of one token has a TPOT of 0)."""

    ttft: Floats
    tpot: Floats
    refused: int


def run_check(candidate: Candidate, *, requests: int, seed: int = 1, lengths: Lengths = ()) -> Check:
    """One check at the planned peak."""
    model = candidate.model
    simulated = simulated_of(candidate)
    rate = rate_of(candidate) * simulated
    count = int(max(requests, _turnovers(candidate) * _batch(candidate) * simulated))
    arrivals = _arrivals(model.traffic, rate, count, seed, lengths)
    seen = _seen(candidate, arrivals, simulated, seed)
    levels = model.levels
    ttft, tpot = seen.ttft + candidate.place.site.network_ms, seen.tpot
    good = np.ones(len(ttft), dtype=bool)
    good &= (ttft <= levels.ttft_ms) if levels.ttft_ms else True
    good &= (tpot <= levels.tpot_ms) if levels.tpot_ms else True
    twin_ttft, twin_tpot = _statistic(ttft, levels.ttft_of), _statistic(tpot[tpot > 0], levels.tpot_of)
    holds = seen.refused == 0
    holds &= not levels.ttft_ms or twin_ttft <= TOLERANCE * levels.ttft_ms
    holds &= not levels.tpot_ms or twin_tpot <= TOLERANCE * levels.tpot_ms
    return Check(
        requests=len(ttft),
        replicas=simulated,
        formula_ttft_ms=candidate.ttft_ms,
        twin_ttft_ms=twin_ttft,
        formula_tpot_ms=candidate.tpot_ms,
        twin_tpot_ms=twin_tpot,
        gap_ttft=twin_ttft / candidate.ttft_ms - 1.0,
        gap_tpot=twin_tpot / candidate.tpot_ms - 1.0,
        attainment=float(good.sum()) / (len(ttft) + seen.refused),
        refused=seen.refused,
        holds=holds,
        levels=bool(levels.ttft_ms or levels.tpot_ms),
        raised=raised_of(candidate),
    )


def simulated_of(candidate: Candidate) -> int:
    """Replicas of a check."""
    active = candidate.replicas - candidate.model.spare_replicas
    return max(1, min(active, MOST_REPLICAS, int(MOST_REQUESTS / _turnovers(candidate) / _batch(candidate))))


def _turnovers(candidate: Candidate) -> float:
    """How often the batch is to be replaced: near its capacity a replica fills slowly, and a short run sees it half
    full and fast."""
    curve, rows = candidate.unit.option.curve, max(candidate.load.rows, 1.0)
    less, more = np.interp((0.9 * rows, rows), curve.rows, curve.rate)
    grows = -np.log(0.9) / max(1e-3, float(np.log(more / less)))
    return float(min(MOST_TURNOVERS, max(TURNOVERS, FILLING * grows)))


def _batch(candidate: Candidate) -> float:
    """Sequences that decode in a replica at the planned peak."""
    return max(1.0, candidate.load.rows * candidate.unit.decode_workers)


def rate_of(candidate: Candidate) -> float:
    """Requests per second of each replica at the peak, with the spares down."""
    active = candidate.replicas - candidate.model.spare_replicas
    return share_of(candidate) * peak_of(candidate.model.traffic) / active


def share_of(candidate: Candidate) -> float:
    """The candidate's part of its model's traffic."""
    traffic = candidate.model.traffic
    whole = traffic.requests_per_s * (traffic.prompt_tokens + traffic.output_tokens)
    return candidate.tokens_per_s / whole


def _arrivals(traffic: Traffic, rate: float, count: int, seed: int, lengths: Lengths) -> list[Arrival]:
    """Poisson arrivals; lengths drawn from those given, or log-normal with the traffic's means and deviations."""
    random = np.random.default_rng(Rng(seed, "twin.plan_check").u64())
    at_s = np.cumsum(random.exponential(1.0 / rate, count))
    if lengths:
        picked = [lengths[i] for i in random.integers(0, len(lengths), count)]
    else:
        prompts = _log_normal(traffic.prompt_tokens, traffic.prompt_cv, random, count)
        outputs = _log_normal(traffic.output_tokens, traffic.output_cv, random, count)
        picked = [(int(p), int(o)) for p, o in zip(prompts, outputs, strict=True)]
    shared = cached_tokens(traffic)
    return [_arrival(START_NS + int(at * NS_PER_S), p, o, shared) for at, (p, o) in zip(at_s, picked, strict=True)]


def _arrival(at_ns: int, prompt: int, output: int, shared: int = 0) -> Arrival:
    """A request; its first `shared` tokens are the same as everyone's."""
    return Arrival(
        at_ns=at_ns,
        model="m",
        key=0,
        prompt_tokens=prompt,
        output_tokens=output,
        max_tokens=output,
        prefix=0 if shared else -1,
        prefix_tokens=min(shared, prompt - 1),
        stream=True,
    )


def _log_normal(mean: int, cv: float, random: np.random.Generator, count: int) -> NDArray[np.int64]:
    sigma = float(np.sqrt(np.log1p(cv * cv)))
    drawn = np.exp(sigma * random.standard_normal(count) - sigma * sigma / 2.0)
    whole: NDArray[np.int64] = np.maximum(1, np.rint(mean * drawn)).astype(np.int64)
    return whole


def _seen(candidate: Candidate, arrivals: list[Arrival], replicas: int, seed: int) -> _Seen:
    """What the clients of a run see; `replicas` (groups, where disaggregated) are always on."""
    unit = candidate.unit
    slots = at_once = unit.decode.slots
    longest = max(a.prompt_tokens + a.output_tokens for a in arrivals)
    if unit.prefill is not None:
        at_once = slots * (unit.prefill_workers + unit.decode_workers)
    shares = any(a.prefix >= 0 for a in arrivals)
    spec = ModelSpec(
        name="m",
        source="simulated",
        scaling=Scaling(min_replicas=replicas, max_replicas=replicas),
        admission=Admission(max_queue=1_000_000, max_wait_ns=3_600 * NS_PER_S, max_concurrency_per_replica=at_once),
        engine=EngineSpec(
            max_seqs=slots, max_step_tokens=candidate.step_tokens, max_waiting=4096, prefix_cache=shares
        ),
        context_tokens=longest + 1,
    )
    answer_ms = candidate.tpot_ms * candidate.model.traffic.output_tokens
    sample_ms = max(1_000, round(answer_ms / LOOKS))  # of answers that take hours, not each second is looked at
    physics = Physics(start_ms=10, fork_ms=1, sample_ms=sample_ms, unresponsive_ms=max(120_000, 10 * sample_ms))
    config = SimulateConfig(seed=seed, models=(spec,), physics=physics, checked=False, decisions=0)
    simulation = Simulation(config, costs={"m": _cost_of(candidate)}, arrivals=arrivals)
    report = simulation.run()
    if report.failure is not None:
        raise AssertionError(report.failure.message)
    good, refused = _good(simulation.world.ended_clients, len(arrivals))
    return _Seen(
        np.array([(c.first_byte_ns - c.arrived_ns) / NS_PER_MS for c in good]),
        np.array([_tpot_ms(c) for c in good]),
        refused,
    )


def _cost_of(candidate: Candidate) -> StepCost | UnitCost:
    unit, option = candidate.unit, candidate.unit.option
    if unit.prefill is None:
        return option.cost
    token_ns = option.transfer_ms * NS_PER_MS / candidate.model.traffic.prompt_tokens
    return UnitCost(
        option.cost, option.cost, unit.prefill_workers, unit.decode_workers, lambda tokens: round(tokens * token_ns)
    )


def raised_of(candidate: Candidate) -> int:
    """Replicas beyond those that the formula's greatest load asks for."""
    unit, model = candidate.unit, candidate.model
    if unit.share >= 1.0:
        return 0
    peak = share_of(candidate) * peak_of(model.traffic)
    return max(0, candidate.replicas - replicas_for(peak, unit.rate / unit.share, model.spare_replicas))


def _good(clients: Sequence[Client], count: int) -> tuple[list[Client], int]:
    """Those answered, without warm-up and tail of the `count`; and how many were not."""
    order = sorted(clients, key=lambda c: c.request.request_id)
    late = order[int(WARM_UP * count) : len(order) - int(TAIL * count)]
    good = [c for c in late if c.outcome is Outcome.OK]
    return good, len(late) - len(good)


def _tpot_ms(client: Client) -> float:
    return (client.ended_ns - client.first_byte_ns) / max(1, client.finished_tokens.completion - 1) / NS_PER_MS


def _statistic(values: Floats, of: Statistic) -> float:
    if not len(values):
        return float("inf")
    if of == "mean":
        return float(values.mean())
    return float(np.quantile(values, {"p90": 0.90, "p95": 0.95, "p99": 0.99}[of]))
