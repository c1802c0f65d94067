"""Recorded runs of engines: requests as JSON lines, and the settings they ran with.

Requests: one object a line with an arrival (`arrival_time`, seconds), prompt and output token counts, and, where it
was measured, `queued_ts`, `first_token_ts` and `last_token_ts` (seconds of any one clock) or `ttft_ms`, `tpot_ms`.
Settings: vLLM's names (in `engine_kwargs` or at the top), SGLang's for the same things are known too.
"""

from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from baseload.domain.errors import DataError

_ARRIVALS = ("arrival_time", "arrived_at", "arrival", "arrival_s", "timestamp", "start_time", "send_time")
_PROMPTS = ("input_toks", "prompt_tokens", "input_tokens", "num_prompt_tokens", "prompt_len", "input_length", "isl")
_OUTPUTS = (
    "output_toks",
    "output_tokens",
    "completion_tokens",
    "num_output_tokens",
    "output_len",
    "output_length",
    "osl",
)
_HINT = "One JSON object a line: arrival_time (seconds), input_toks, output_toks."
_ENGINE_HINT = "Give the engine's settings as JSON, with vLLM's names (docs/limits.md, section Replay)."
_NS = 1_000_000_000
BLOCK_TOKENS = 16
LARGEST_GRAPH = 512  # vLLM's, in tokens; or twice its most sequences
_MOST = 1 << 30


class Recorded(Struct, frozen=True):
    """One request, and what was measured of it (0: nothing)."""

    request_id: str
    arrival_ns: int
    prompt_tokens: int
    output_tokens: int
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    e2e_ms: float = 0.0
    prefix_hashes: tuple[int, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether its times are known."""
        return self.e2e_ms > 0


class EngineSettings(Struct, frozen=True):
    """How an engine batches, and over what."""

    engine: str = "vllm"
    version: str = ""
    model: str = ""
    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    max_seqs: int = 256
    max_step_tokens: int = 8192
    max_context: int = 1 << 30
    memory_share: float = 0.9
    block_tokens: int = BLOCK_TOKENS
    prefix_cache: bool = True
    weights: str = ""  # a format; "" is the model's own
    ahead: bool = False  # the next step is planned while one runs: who comes meanwhile waits for one more
    captured: int = 512  # tokens of the largest step that replays a recorded graph; 0: none does
    kv_bytes: float = 0.0  # of a cached element; 0: what is usual beside such weights
    arrival_overhead_ns: int = 0  # from a request's arrival to the engine's queue


def parse_requests(data: bytes, *, name: str) -> list[Recorded]:
    """Requests of a file, arrivals counted from the first; DataError names the line."""
    found: list[tuple[float, Recorded]] = []
    for line, text in enumerate(data.removeprefix(BOM_UTF8).splitlines(), start=1):
        if not text.strip():
            continue
        try:
            row = msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise DataError(f"{name} line {line}: not a JSON object: {error}.", hint=_HINT) from None
        found.append(_request(row, f"{name} line {line}", line))
    if not found:
        raise DataError(f"{name}: no requests in it.", hint=_HINT)
    start = min(arrival for arrival, _ in found)
    scale = 1e-3 if max(arrival for arrival, _ in found) - start > 1e5 else 1.0  # milliseconds, then
    return [msgspec.structs.replace(r, arrival_ns=round((a - start) * scale * _NS)) for a, r in found]


def _request(row: Mapping[str, Any], where: str, line: int) -> tuple[float, Recorded]:
    prompt, output = _count(row, _PROMPTS, where), _count(row, _OUTPUTS, where)
    arrival = _number(row, _ARRIVALS)
    if arrival is None and _number(row, ("arrival_time_ns",)) is not None:
        arrival = (_number(row, ("arrival_time_ns",)) or 0.0) / _NS
    if arrival is None:
        raise DataError(f"{where}: `{_ARRIVALS[0]}` is missing.", hint=_HINT)
    queued, first = _number(row, ("queued_ts", "enqueued_ts")), _number(row, ("first_token_ts", "first_token_time"))
    last = _number(row, ("last_token_ts", "finished_ts", "last_token_time"))
    ttft, tpot, e2e = _number(row, ("ttft_ms",)), _number(row, ("tpot_ms",)), _number(row, ("e2e_ms", "latency_ms"))
    if first is not None and last is not None:
        since = queued if queued is not None else arrival
        ttft, e2e = (first - since) * 1e3, (last - since) * 1e3
        tpot = (last - first) * 1e3 / (output - 1) if output > 1 else 0.0
    hashes = row.get("hash_ids")
    return arrival, Recorded(
        request_id=str(row.get("request_id", row.get("id", line - 1))),
        arrival_ns=0,
        prompt_tokens=prompt,
        output_tokens=output,
        ttft_ms=max(0.0, ttft or 0.0),
        tpot_ms=max(0.0, tpot or 0.0),
        e2e_ms=max(0.0, e2e or (ttft or 0.0) + (tpot or 0.0) * (output - 1)),
        prefix_hashes=tuple(hashes) if isinstance(hashes, list) and row.get("block_tokens") == BLOCK_TOKENS else (),
    )


def _count(row: Mapping[str, Any], names: tuple[str, ...], where: str) -> int:
    value = _number(row, names)
    if value is None or not 1 <= value <= 1e12 or value != int(value):
        raise DataError(f"{where}: `{names[0]}` must be a whole number from 1 to 1e12.", hint=_HINT)
    return int(value)


def _number(row: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    for name in names:
        value = row.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    return None


def parse_engine(data: bytes, *, name: str, memory_gb: float) -> EngineSettings:
    """Settings from JSON; what is not stated is vLLM's default for an accelerator of so much memory."""
    try:
        meta = msgspec.json.decode(data.removeprefix(BOM_UTF8), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise DataError(f"{name}: not a JSON object: {error}.", hint=_ENGINE_HINT) from None
    inner: dict[str, Any] = next(
        (meta[k] for k in ("engine_kwargs", "engine_args", "engine", "args") if isinstance(meta.get(k), dict)), {}
    )
    found = {key.replace("-", "_"): value for key, value in {**meta, **inner}.items() if value is not None}
    is_sglang = "sglang_version" in found or "chunked_prefill_size" in found or "mem_fraction_static" in found
    large = memory_gb >= 70.0  # vLLM's defaults for a server go by memory

    read = _Settings(found, name)
    count, share = read.count, read.share
    tp = count("tensor_parallel_size", "tp_size", "tp", default=1)
    dp = count("data_parallel_size", "dp_size", "dp", default=1)
    chunked = found.get("enable_chunked_prefill", True) is not False
    budget = count("max_num_batched_tokens", "chunked_prefill_size", default=8192 if large or is_sglang else 2048)
    context = count("max_model_len", "context_length", default=1 << 30)
    experts = found.get("enable_expert_parallel") is True
    seqs = count("max_num_seqs", "max_running_requests", default=1024 if large else 256)
    captured = count("max_cudagraph_capture_size", "cuda_graph_max_bs", default=min(2 * seqs, LARGEST_GRAPH))
    cache = str(found.get("kv_cache_dtype", "")).lower()
    return EngineSettings(
        engine="sglang" if is_sglang else str(found.get("backend", "vllm")).lower(),
        version=str(found.get("vllm_version", found.get("sglang_version", found.get("version", "")))),
        model=str(found.get("model", found.get("model_path", ""))),
        tp=tp,
        pp=count("pipeline_parallel_size", "pp_size", default=1),
        dp=dp,
        ep=count("ep_size", default=tp * dp if experts else 1),
        max_seqs=seqs,
        max_step_tokens=budget if chunked else max(budget, context if context < 1 << 30 else budget),
        max_context=context,
        memory_share=share("gpu_memory_utilization", "mem_fraction_static", default=0.9),
        block_tokens=count("block_size", "page_size", default=BLOCK_TOKENS),
        prefix_cache=found.get("enable_prefix_caching", True) is not False,
        weights=_weights(found),
        ahead=_plans_ahead(found, is_sglang=is_sglang),
        captured=0 if any(found.get(key) is True for key in ("enforce_eager", "disable_cuda_graph")) else captured,
        kv_bytes=1.0 if "fp8" in cache or "int8" in cache else 2.0 if cache else 0.0,
    )


@dataclass(frozen=True, slots=True)
class _Settings:
    """Numbers among settings, under the first of some names that has one; DataError where no engine takes it."""

    found: Mapping[str, Any]
    name: str

    def count(self, *names: str, default: int) -> int:
        for key in names:
            value = self._number(key)
            if value is None:
                continue
            if not -1 <= value <= _MOST:
                raise DataError(
                    f"{self.name}: `{key}` is {value:g}; it must be from 1 to {_MOST}.", hint=_ENGINE_HINT
                )
            if value >= 1:  # 0 and -1 leave it to the engine
                return int(value)
        return default

    def share(self, *names: str, default: float) -> float:
        for key in names:
            value = self._number(key)
            if value is not None:
                if not 0 < value <= 1:
                    raise DataError(
                        f"{self.name}: `{key}` is {value:g}; it must be above 0 and at most 1.", hint=_ENGINE_HINT
                    )
                return float(value)
        return default

    def _number(self, key: str) -> float | None:
        """The number under a name, also where it is written as text; None: nothing, or left to the engine."""
        value = self.found.get(key)
        if isinstance(value, str) and value.strip().lower() not in ("", "auto", "none"):
            try:
                return float(value)
            except ValueError:
                raise DataError(f"{self.name}: `{key}` is {value!r}, not a number.", hint=_ENGINE_HINT) from None
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _plans_ahead(found: Mapping[str, Any], *, is_sglang: bool) -> bool:
    """vLLM plans ahead unless told otherwise since 0.14, SGLang since 0.4 (its overlap schedule)."""
    stated = found.get("async_scheduling")
    if isinstance(stated, bool):
        return stated
    if is_sglang:
        return found.get("disable_overlap_schedule") is not True
    numbers = [int(part) for part in str(found.get("vllm_version", "")).split(".")[:2] if part.isdigit()]
    return len(numbers) < 2 or (numbers[0], numbers[1]) >= (0, 14)


def _weights(found: Mapping[str, Any]) -> str:
    for key in ("quantization", "dtype"):
        value = str(found.get(key, "")).lower()
        if value and value not in ("auto", "none", "bfloat16", "float16", "half", "bf16", "fp16"):
            return value
    return ""
