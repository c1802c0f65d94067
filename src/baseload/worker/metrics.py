"""The worker's figures in Prometheus' text format, under vLLM's names."""

from dataclasses import dataclass, field

from baseload.core.batch import BatcherTotals
from baseload.wire.prometheus import Histogram, head, sample

_LATENCY_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
_PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_E2E_S = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0)


@dataclass(slots=True)
class Metrics:
    """What the routes count; gauges and token counters come from the engine when asked."""

    ttft: Histogram = field(default_factory=lambda: Histogram(_LATENCY_S))
    tpot: Histogram = field(default_factory=lambda: Histogram(_PER_TOKEN_S))
    e2e: Histogram = field(default_factory=lambda: Histogram(_E2E_S))
    finished: dict[str, int] = field(
        default_factory=lambda: {"stop": 0, "length": 0, "abort": 0, "error": 0, "refused": 0}
    )

    def render(
        self, *, model: str, running: int, waiting: int, kv_usage: float, totals: BatcherTotals, block_tokens: int
    ) -> bytes:
        """The whole page."""
        labels = (("model_name", model),)
        lines: list[str] = []

        def plain(name: str, kind: str, text: str, value: float) -> None:
            lines.extend([*head(name, kind, text), sample(name, value, labels)])

        plain("vllm:num_requests_running", "gauge", "Sequences in the running batch.", running)
        plain("vllm:num_requests_waiting", "gauge", "Sequences waiting to run.", waiting)
        plain("vllm:kv_cache_usage_perc", "gauge", "KV cache use; 1 is full.", kv_usage)
        plain("vllm:prompt_tokens_total", "counter", "Prompt tokens taken in.", totals.prompt_tokens)
        plain("vllm:generation_tokens_total", "counter", "Tokens generated.", totals.generated_tokens)
        plain("vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up.", totals.prompt_tokens)
        plain("vllm:prefix_cache_hits_total", "counter", "Prompt tokens found cached.", totals.cached_tokens)
        plain("vllm:num_preemptions_total", "counter", "Preemptions by recomputation.", totals.preemptions)
        guessed = "Tokens guessed ahead."
        plain("vllm:spec_decode_num_draft_tokens_total", "counter", guessed, totals.guessed_tokens)
        right = "Tokens guessed ahead that were right."
        plain("vllm:spec_decode_num_accepted_tokens_total", "counter", right, totals.right_tokens)
        plain("baseload:engine_steps_total", "counter", "Engine steps taken.", totals.steps)
        name = "vllm:request_success_total"
        lines += head(name, "counter", "Requests ended, by how.")
        lines += [sample(name, count, (*labels, ("finished_reason", how))) for how, count in self.finished.items()]
        for name, text, histogram in (
            ("vllm:time_to_first_token_seconds", "From arrival to the first token.", self.ttft),
            ("vllm:time_per_output_token_seconds", "Mean time per token after the first.", self.tpot),
            ("vllm:e2e_request_latency_seconds", "From arrival to the last token.", self.e2e),
        ):
            lines += [*head(name, "histogram", text), *histogram.lines(name, labels)]
        name = "vllm:cache_config_info"
        lines += [
            *head(name, "gauge", "The KV cache."),
            sample(name, 1, (*labels, ("block_size", f"{block_tokens}"))),
        ]
        return ("\n".join(lines) + "\n").encode()
