"""Counters and histograms of the gateway, and their Prometheus text. vLLM's names where vLLM has one."""

from baseload.domain.errors import Reason
from baseload.domain.fleet import ReplicaState
from baseload.domain.status import ControlStatus
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Outcome, TokenCounts
from baseload.wire.prometheus import Histogram, head, sample

E2E_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
TTFT_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_OK = Outcome.OK
MODELS_KEPT = 1024  # distinct model labels; requests of further ones count under "other"


class ModelMetrics:
    """One model's figures."""

    __slots__ = ("answered", "cached_tokens", "completion_tokens", "e2e", "failed", "prompt_tokens", "tpot", "ttft")

    def __init__(self) -> None:
        self.answered = 0  # completely and well
        self.failed: dict[tuple[Outcome, Reason | None], int] = {}  # ended in any other way
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.e2e = Histogram(E2E_S)
        self.ttft = Histogram(TTFT_S)
        self.tpot = Histogram(TPOT_S)


class Metrics:
    """All figures since the start of this process."""

    def __init__(self) -> None:
        self.models: dict[str, ModelMetrics] = {}
        self.turned_away: dict[Reason, int] = {}  # before they reached the router
        self.retries = 0

    def ended(
        self,
        model: str,
        outcome: Outcome,
        reason: Reason | None,
        tokens: TokenCounts,
        *,
        total_s: float,
        first_s: float,
    ) -> None:
        """A routed request ended. `first_s`: until its first byte; 0 where there was none."""
        of = self.models.get(model) or self._add(model)
        of.prompt_tokens += tokens.prompt
        of.cached_tokens += tokens.cached_in
        of.completion_tokens += tokens.completion
        if outcome is _OK:
            of.answered += 1
            of.e2e.observe(total_s)
            of.ttft.observe(first_s)
            if tokens.completion > 1:
                of.tpot.observe((total_s - first_s) / (tokens.completion - 1))
        else:
            end = (outcome, reason)
            of.failed[end] = of.failed.get(end, 0) + 1

    def refused(self, reason: Reason) -> None:
        """A request was refused before it reached the router."""
        self.turned_away[reason] = self.turned_away.get(reason, 0) + 1

    def _add(self, model: str) -> ModelMetrics:
        if len(self.models) >= MODELS_KEPT:
            model = "other"
        return self.models.setdefault(model, ModelMetrics())


def exposition(metrics: Metrics, status: ControlStatus, *, in_flight: int) -> bytes:
    """The Prometheus text of `GET /metrics`."""
    lines: list[str] = []
    _gateway(lines, metrics, in_flight)
    _traffic(lines, metrics)
    _fleet(lines, status)
    return ("\n".join(lines) + "\n").encode()


def _gateway(lines: list[str], metrics: Metrics, in_flight: int) -> None:
    lines += head("baseload_gateway_requests_in_flight", "gauge", "Client requests open at the gateway.")
    lines.append(sample("baseload_gateway_requests_in_flight", in_flight, ()))
    lines += head("baseload_gateway_retries_total", "counter", "Attempts that failed before their first byte.")
    lines.append(sample("baseload_gateway_retries_total", metrics.retries, ()))
    lines += head("baseload_gateway_turned_away_total", "counter", "Requests refused before they reached the router.")
    for reason, count in metrics.turned_away.items():
        lines.append(sample("baseload_gateway_turned_away_total", count, (("reason", reason.value),)))


def _traffic(lines: list[str], metrics: Metrics) -> None:
    models = [((("model_name", name),), of) for name, of in metrics.models.items()]
    lines += head("baseload_requests_total", "counter", "Routed requests by how they ended.")
    for labels, of in models:
        ends = {(_OK, None): of.answered, **of.failed} if of.answered else of.failed
        for (outcome, reason), count in ends.items():
            how = (("outcome", outcome.value), ("reason", reason.value if reason else ""))
            lines.append(sample("baseload_requests_total", count, (*labels, *how)))
    lines += head("vllm:request_success_total", "counter", "Requests that were answered completely.")
    for labels, of in models:
        lines.append(sample("vllm:request_success_total", of.answered, labels))
    lines += head("vllm:prompt_tokens_total", "counter", "Prompt tokens.")
    lines.extend([sample("vllm:prompt_tokens_total", of.prompt_tokens, labels) for labels, of in models])
    lines += head("vllm:generation_tokens_total", "counter", "Completion tokens.")
    lines.extend([sample("vllm:generation_tokens_total", of.completion_tokens, labels) for labels, of in models])
    lines += head("baseload_cached_prompt_tokens_total", "counter", "Prompt tokens found in a prefix cache.")
    lines.extend([sample("baseload_cached_prompt_tokens_total", of.cached_tokens, labels) for labels, of in models])
    lines += head("vllm:e2e_request_latency_seconds", "histogram", "From the request to the end of its answer.")
    for labels, of in models:
        lines.extend(of.e2e.lines("vllm:e2e_request_latency_seconds", labels))
    lines += head("vllm:time_to_first_token_seconds", "histogram", "From the request to its first byte.")
    for labels, of in models:
        lines.extend(of.ttft.lines("vllm:time_to_first_token_seconds", labels))
    lines += head("vllm:time_per_output_token_seconds", "histogram", "Time per token after the first.")
    for labels, of in models:
        lines.extend(of.tpot.lines("vllm:time_per_output_token_seconds", labels))


def _fleet(lines: list[str], status: ControlStatus) -> None:
    models = [((("model_name", model.name),), model) for model in status.models]
    lines += head("vllm:num_requests_running", "gauge", "Requests at a replica.")
    lines.extend([sample("vllm:num_requests_running", of.in_flight, labels) for labels, of in models])
    lines += head("vllm:num_requests_waiting", "gauge", "Requests held in the router's queue.")
    lines.extend([sample("vllm:num_requests_waiting", of.queued, labels) for labels, of in models])
    lines += head("vllm:kv_cache_usage_perc", "gauge", "Mean share of KV cache in use over ready replicas (1: full).")
    for labels, of in models:
        used = [
            replica.sample.kv_usage
            for replica in status.replicas
            if replica.model == of.name and replica.state is ReplicaState.READY
        ]
        lines.append(sample("vllm:kv_cache_usage_perc", sum(used) / len(used) if used else 0.0, labels))
    lines += head("baseload_replicas", "gauge", "Replicas by state.")
    for labels, of in models:
        for state, count in (("ready", of.ready), ("starting", of.starting), ("draining", of.draining)):
            lines.append(sample("baseload_replicas", count, (*labels, ("state", state))))
    lines += head("baseload_replica_seconds_total", "counter", "Replica time by what it was: useful, idle or cold.")
    for replica in status.replicas:
        name = (("model_name", replica.model), ("replica", replica.replica_id))
        for kind, value_ns in (("useful", replica.useful_ns), ("idle", replica.idle_ns), ("cold", replica.cold_ns)):
            lines.append(sample("baseload_replica_seconds_total", value_ns / NS_PER_S, (*name, ("kind", kind))))
    lines += head("baseload_replica_power_watts", "gauge", "Power now, measured or modelled.")
    for replica in status.replicas:
        by = (("model_name", replica.model), ("replica", replica.replica_id), ("basis", replica.energy_basis))
        lines.append(sample("baseload_replica_power_watts", replica.power_w, by))
