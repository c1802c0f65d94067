"""A planned answer run through the twin: the production router and batcher on a virtual clock, at the planned peak.

Some of the replicas, with their share of the peak, are simulated (fewer balance worse, so this errs on the safe
side). Aggregated: one run. Disaggregated: the prefill workers first; what leaves them, later by the transfer,
arrives at the decode workers, whose prompts cost nothing more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from baseload.domain.model import Admission, EngineSpec, ModelSpec, Scaling
from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_MS, NS_PER_S
from baseload.domain.work import Outcome
from baseload.limits.serving.replica import StepCost
from baseload.policy.plan.answer import Check
from baseload.policy.plan.candidates import Candidate, candidate_for
from baseload.policy.plan.serve import cached_tokens
from baseload.policy.plan.spec import Statistic, Traffic, peak_of
from baseload.twin.clients import Client
from baseload.twin.run import Simulation
from baseload.twin.spec import Physics, SimulateConfig
from baseload.twin.workload import Arrival

MOST_REPLICAS = 4
WARM_UP, TAIL = 0.35, 0.10  # shares of the requests, first and last, that only fill the replicas, or see them empty
START_NS = 5 * NS_PER_S  # by then all replicas are up
MOST_RAISES = 4
MOST_REQUESTS = 4_000
TURNOVERS = 6  # requests of a run, in batches of all replicas: enough to fill them and then to look
TOLERANCE = 1.02  # a level is held to be kept when it is missed by less: the run is a sample

Floats = NDArray[np.float64]
Lengths = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class DecodeOnly(StepCost):
    """The steps of a decode worker: a prompt's cache comes ready-made."""

    def mixed_ns(self, *, tokens: int, pairs: int, rows: int, context_tokens: int, prompts: int = 1) -> int:
        """As if those that come decoded already."""
        return self.decode_ns(rows + prompts, context_tokens + tokens)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What clients saw, in milliseconds; parallel (an answer of one token has a TPOT of 0)."""

    ttft: Floats
    tpot: Floats
    refused: int


def verify(candidate: Candidate, *, requests: int, seed: int = 1, lengths: Lengths = ()) -> tuple[Candidate, Check]:
    """The candidate, with replicas added until the twin keeps the levels too (at most a few times), and the check."""
    first = candidate.replicas
    check = run_check(candidate, requests=requests, seed=seed, lengths=lengths)
    for _ in range(MOST_RAISES):
        if check.holds:
            break
        more = candidate.replicas + max(1, candidate.replicas // 10)
        if more * candidate.unit.gpus > candidate.place.most:
            break
        share = share_of(candidate)
        candidate = candidate_for(candidate.unit, candidate.model, candidate.place, replicas=more, share=share)
        check = run_check(candidate, requests=requests, seed=seed, lengths=lengths)
    return candidate, _with_raised(check, candidate.replicas - first)


def run_check(candidate: Candidate, *, requests: int, seed: int = 1, lengths: Lengths = ()) -> Check:
    """One check at the planned peak."""
    model, unit = candidate.model, candidate.unit
    active = candidate.replicas - model.spare_replicas
    batch = max(1.0, unit.decode.rows * unit.decode_workers)
    simulated = max(1, min(active, MOST_REPLICAS, int(MOST_REQUESTS / TURNOVERS / batch)))
    rate = share_of(candidate) * peak_of(model.traffic) * simulated / active
    count = min(MOST_REQUESTS, max(requests, int(TURNOVERS * batch * simulated)))
    arrivals = _arrivals(model.traffic, rate, count, seed, lengths)
    if unit.prefill is None:
        seen = _aggregated(candidate, arrivals, simulated, seed)
    else:
        seen = _disaggregated(candidate, arrivals, simulated, seed)
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
        note="two runs: prefill pool, then decode pool" if unit.prefill is not None else "",
    )


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


def _aggregated(candidate: Candidate, arrivals: list[Arrival], replicas: int, seed: int) -> _Seen:
    point, cost = candidate.unit.decode, candidate.unit.option.cost
    step_tokens = candidate.unit.option.curve.step_tokens
    clients = _run(cost, arrivals, replicas, point.slots, step_tokens, seed)
    good, refused = _good(clients, len(arrivals))
    return _Seen(
        np.array([(c.first_byte_ns - c.arrived_ns) / NS_PER_MS for c in good]),
        np.array([_tpot_ms(c) for c in good]),
        refused,
    )


def _disaggregated(candidate: Candidate, arrivals: list[Arrival], units: int, seed: int) -> _Seen:
    unit = candidate.unit
    cost, transfer_ns = unit.option.cost, round(unit.option.transfer_ms * NS_PER_MS)
    prompts = [_arrival(a.at_ns, a.prompt_tokens, 1, a.prefix_tokens) for a in arrivals]
    longest = max(a.prompt_tokens for a in arrivals)
    clients = _run(cost, prompts, units * unit.prefill_workers, 1, longest, seed)
    first, lost = _good(clients, 0)
    order = sorted(clients, key=lambda c: c.request.request_id)
    outputs = {c.request.request_id: a.output_tokens for c, a in zip(order, arrivals, strict=False)}
    began = sorted(first, key=lambda c: c.ended_ns)
    start = began[0].ended_ns if began else 0
    entering = [
        _arrival(
            START_NS + c.ended_ns - start + transfer_ns,
            c.arrival.prompt_tokens,
            max(1, outputs[c.request.request_id] - 1),
        )
        for c in began
    ]
    decode = DecodeOnly(**{f.name: getattr(cost, f.name) for f in fields(cost)})
    done = _run(decode, entering, units * unit.decode_workers, unit.decode.slots, max(longest, 1 << 20), seed)
    after, refused = _good(done, len(entering))
    by_id = {c.request.request_id: c for c in began}
    numbered = dict(
        zip(sorted(c.request.request_id for c in done), (c.request.request_id for c in began), strict=False)
    )
    ttft = []
    for c in after:
        source = by_id[numbered[c.request.request_id]]
        waited = source.first_byte_ns - source.arrived_ns + transfer_ns + c.first_byte_ns - c.arrived_ns
        ttft.append(waited / NS_PER_MS)
    tpot = [_tpot_ms(c) for c in after]
    return _Seen(np.array(ttft), np.array(tpot), refused + lost)


def _run(
    cost: StepCost, arrivals: list[Arrival], replicas: int, slots: int, step_tokens: int, seed: int
) -> list[Client]:
    """All clients of a run of `replicas` replicas that are always on."""
    longest = max(a.prompt_tokens + a.output_tokens for a in arrivals)
    shares = any(a.prefix >= 0 for a in arrivals)
    spec = ModelSpec(
        name="m",
        source="simulated",
        scaling=Scaling(min_replicas=replicas, max_replicas=replicas),
        admission=Admission(max_queue=1_000_000, max_wait_ns=3_600 * NS_PER_S, max_concurrency_per_replica=slots),
        engine=EngineSpec(max_seqs=slots, max_step_tokens=step_tokens, max_waiting=4096, prefix_cache=shares),
        context_tokens=longest + 1,
    )
    config = SimulateConfig(
        seed=seed, models=(spec,), physics=Physics(start_ms=10, fork_ms=1), checked=False, decisions=0
    )
    simulation = Simulation(config, costs={"m": cost})
    simulation.arrivals = arrivals
    report = simulation.run()
    if report.failure is not None:
        raise AssertionError(report.failure.message)
    return simulation.world.ended_clients


def _good(clients: Sequence[Client], count: int) -> tuple[list[Client], int]:
    """Those answered, without warm-up and tail (of `count`; 0: all); and how many were not."""
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


def _with_raised(check: Check, raised: int) -> Check:
    return Check(**{**{name: getattr(check, name) for name in check.__struct_fields__}, "raised": raised})
