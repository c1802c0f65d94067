"""One training step: compute, parallelism's traffic, the gradient sync, the optimizer, and whether it fits.

`cost_of` counts what a step costs at the sheet's rates, in separable parts; `seconds` puts them together with the
fractions of those rates that are reached (`Rates`), which calibration sets:

    micro     = math/e + attention/e + layers · launch          of one microbatch on one pipeline stage
    traffic   = tensor, context and expert traffic of a microbatch / e_link + messages · latency
    pipeline  = (m + (p − 1)/v) · (micro + traffic)              m microbatches, p stages, v chunks a stage
    sync      = reduce-scatter and all-gather, of which `exposed` is not hidden behind the backward pass
    wait      = tail · √(2 ln n)                             the slowest of n accelerators, each late by chance
    step      = pipeline + exposed sync + optimizer + host + wait

Data parallel groups are assumed outermost, tensor parallel innermost; the optimizer's state is sharded over data
parallel ranks (ZeRO-1) unless said otherwise.
"""

from math import ceil, log, sqrt

from msgspec import Struct

from baseload.domain.errors import DataError
from baseload.limits.catalogue.accelerators import Accelerator
from baseload.limits.collectives import Fabric, all_gather, all_to_all
from baseload.limits.training.work import GRADIENT_BYTES, Recompute, Work

OPTIMIZER_BYTES = 12.0  # per parameter, Adam: float32 master, mean and variance
LOCAL_BYTES = 20.0
"""Per parameter a rank computes gradients of, read and written each step beside the sharded state: zeroing and
summing float32 gradients, casting gathered weights to the formats multiplied in. Assumed; calibration scales it."""
MEMORY_SHARE = 0.92  # of the memory that a step may fill
RESERVED_BYTES = 4e9  # context, communication buffers, fragmentation
KEPT = {Recompute.NONE: 34.0, Recompute.SELECTIVE: 24.0, Recompute.FULL: 2.0}
"""Bytes kept per token, layer and hidden unit (Korthikanti et al., "Reducing Activation Recomputation in Large
Transformer Models", bf16, without the attention matrix)."""


class Parallel(Struct, frozen=True, kw_only=True):
    """How a job is cut: data · tensor · pipeline · context accelerators; experts are spread inside data · context."""

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    chunks: int = 1  # virtual stages per pipeline stage (interleaving)
    micro: int = 1  # samples in a microbatch
    recompute: Recompute = Recompute.SELECTIVE
    shard_optimizer: bool = True

    @property
    def accelerators(self) -> int:
        """All of them."""
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def split(self) -> int:
        """Accelerators that share one sample."""
        return self.tensor * self.pipeline * self.context


class Rates(Struct, frozen=True, kw_only=True):
    """What is reached of the sheet. Fractions, seconds, and how much of the gradient sync is seen.

    Sources: the best of matrix products reach 0.80 of the bf16 peak on an H100 and 0.78 on a B200
    (stas00/ml-engineering, maximum achievable matmul FLOPS), a model's, oddly shaped and at a capped clock, taken at
    about four fifths of that; collectives 360 of 450 GB/s on eight H100 (NVIDIA/nccl-tests#326). The rest is assumed.
    """

    math: float = 0.62
    attention: float = 0.45
    link: float = 0.8
    memory: float = 0.6
    latency_s: float = 12e-6  # of one collective inside the fast domain
    far: float = 2.0  # times that outside
    launch_s: float = 1e-3  # a layer, forward and backward, of one microbatch
    exposed: float = 0.3  # of the gradient sync
    host_s: float = 1e-3  # a step: data, clipping, logging
    tail_s: float = 1e-3  # by which an accelerator is late at the end of a step, one standard deviation
    basis: str = "assumed: usual fractions of the sheet; calibrate with measured steps"


class Cost(Struct, frozen=True, kw_only=True):
    """Counts of one step at the sheet's rates, in seconds unless said otherwise, of the busiest accelerator."""

    math_s: float  # of one microbatch on one stage
    attention_s: float
    traffic_s: float  # wire time of one microbatch
    messages: float  # collectives of one microbatch inside the fast domain
    far_messages: float
    launches: float  # layers of one stage
    microbatches: float
    bubble: float  # further microbatch times that the pipeline's fill and drain cost
    sync_s: float  # wire time of the gradient sync
    sync_messages: float
    sync_far_messages: float
    optimizer_s: float  # at full memory bandwidth
    spread: float = 0.0  # standard deviations by which the slowest of so many accelerators is late: √(2 ln n)


class StepTime(Struct, frozen=True, kw_only=True):
    """Seconds of a step by what takes them."""

    math_s: float
    attention_s: float
    traffic_s: float
    launch_s: float
    bubble_s: float
    sync_s: float
    optimizer_s: float
    host_s: float
    wait_s: float = 0.0  # for the slowest accelerator

    @property
    def total_s(self) -> float:
        """The whole step."""
        busy = self.math_s + self.attention_s + self.traffic_s + self.launch_s
        return busy + self.bubble_s + self.sync_s + self.optimizer_s + self.host_s + self.wait_s


class Memory(Struct, frozen=True, kw_only=True):
    """Bytes on the fullest accelerator."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    room: float

    @property
    def used(self) -> float:
        """All of them, with what is reserved."""
        return self.weights + self.gradients + self.optimizer + self.activations + RESERVED_BYTES

    @property
    def fits(self) -> bool:
        """Whether that is less than the room."""
        return self.used <= self.room


def cost_of(
    work: Work, parallel: Parallel, accelerator: Accelerator, fabric: Fabric, *, batch: float, form: str = "bf16"
) -> Cost:
    """What a step of `batch` samples costs at the sheet's rates. MissingFigure names a blank one."""
    per_rank = batch / parallel.data
    if per_rank <= 0:
        raise DataError("A step needs samples.", hint="Give a global batch size above 0.")
    micro = min(float(parallel.micro), per_rank)
    count = max(1.0, per_rank / micro)
    peak = tflops_of(accelerator, form) * 1e12
    cut = parallel.tensor * parallel.context
    again = {Recompute.NONE: 0.0, Recompute.SELECTIVE: 0.0, Recompute.FULL: 1.0}[parallel.recompute]
    passes = (3.0 if work.weight_gradients else 2.0) + again
    body = (work.matmul_flops - work.head_flops) / parallel.pipeline + work.head_flops  # the fullest stage: the last
    attention = work.attention_flops / parallel.pipeline * (3.5 + again)  # the backward pass computes scores again
    stage_layers = ceil(work.layers / parallel.pipeline) if work.layers else 1
    traffic, near, far = _traffic(work, parallel, fabric, micro)
    sync_s, sync_near, sync_far = _sync(work, parallel, fabric)
    local = work.trainable / parallel.tensor / parallel.pipeline
    state = local / (parallel.data * parallel.context if parallel.shard_optimizer else 1)
    return Cost(
        math_s=passes * body * micro / cut / peak,
        attention_s=attention * micro / cut / (accelerator.need("bf16_tflops") * 1e12) if attention else 0.0,
        traffic_s=traffic,
        messages=near,
        far_messages=far,
        launches=float(stage_layers),
        microbatches=count,
        bubble=(parallel.pipeline - 1) / parallel.chunks,
        sync_s=sync_s,
        sync_messages=sync_near,
        sync_far_messages=sync_far,
        optimizer_s=(2.5 * OPTIMIZER_BYTES * state + LOCAL_BYTES * local)
        / (accelerator.need("memory_gb_per_s") * 1e9),
        spread=sqrt(2.0 * log(parallel.accelerators)),
    )


def seconds(cost: Cost, rates: Rates) -> StepTime:
    """The step, at the rates reached."""
    math = cost.math_s / rates.math
    attention = cost.attention_s / rates.attention
    near = rates.latency_s
    traffic = cost.traffic_s / rates.link + (cost.messages + cost.far_messages * rates.far) * near
    launch = cost.launches * rates.launch_s
    each = math + attention + traffic + launch
    sync = cost.sync_s / rates.link + (cost.sync_messages + cost.sync_far_messages * rates.far) * near
    return StepTime(
        math_s=math * cost.microbatches,
        attention_s=attention * cost.microbatches,
        traffic_s=traffic * cost.microbatches,
        launch_s=launch * cost.microbatches,
        bubble_s=each * cost.bubble,
        sync_s=rates.exposed * sync,
        optimizer_s=cost.optimizer_s / rates.memory,
        host_s=rates.host_s,
        wait_s=rates.tail_s * cost.spread,
    )


def memory_of(
    work: Work, parallel: Parallel, accelerator: Accelerator, *, batch: float, weight_bytes: float = 2.0
) -> Memory:
    """Bytes on the fullest accelerator: weights, gradients, optimizer shard, activations in flight."""
    dense = (work.params - work.expert_params) / parallel.tensor / parallel.pipeline
    held = dense + work.expert_params / parallel.tensor / parallel.pipeline / parallel.expert
    trained = held * work.trainable / work.params
    shards = parallel.data * parallel.context if parallel.shard_optimizer else 1
    micro = min(float(parallel.micro), batch / parallel.data)
    in_flight = min(float(parallel.pipeline), max(1.0, batch / parallel.data / micro))
    tokens = work.sample_tokens * micro / parallel.context
    layers = ceil(work.layers / parallel.pipeline) if work.layers else 0
    kept = KEPT[parallel.recompute] * work.hidden * tokens * layers / parallel.tensor * in_flight
    if parallel.recompute is Recompute.FULL:  # one layer's inner activations live while it is computed again
        kept += KEPT[Recompute.NONE] * work.hidden * tokens / parallel.tensor
    return Memory(
        weights=held * weight_bytes,
        gradients=trained * GRADIENT_BYTES * 2.0,
        optimizer=trained * OPTIMIZER_BYTES / shards,
        activations=kept,
        room=accelerator.need("memory_gb") * 1e9 * MEMORY_SHARE,
    )


def tflops_of(accelerator: Accelerator, form: str) -> float:
    """Dense peak of a training format; a chip without it computes at its next wider rate."""
    return accelerator.tflops({"fp4": "nvfp4"}.get(form, form))


def _traffic(work: Work, parallel: Parallel, fabric: Fabric, micro: float) -> tuple[float, float, float]:
    """(wire seconds, near messages, far messages) of one microbatch through one stage, forward and backward."""
    layers = ceil(work.layers / parallel.pipeline) if work.layers else 1
    tokens = work.sample_tokens * micro / parallel.context
    wires = fabric.wires()
    wire, near, far = 0.0, 0.0, 0.0
    if parallel.tensor > 1:  # sequence parallel: two gathers and two scatters a layer, each way
        group = fabric.place(parallel.tensor)
        wire += layers * 8.0 * all_gather(wires, group, tokens * work.hidden * 2.0)
        near, far = near + layers * 8.0, far + (layers * 8.0 if group.counts[-1] > 1 else 0.0)
    if parallel.context > 1:  # keys and values go round the ring, and their gradients back
        group = fabric.place(parallel.context, stride=parallel.tensor)
        kv = work.sample_tokens * micro * 2.0 * work.hidden * work.kv_share * 2.0 / parallel.tensor
        wire += layers * 3.0 * all_gather(wires, group, kv)
        near, far = near + layers * 3.0, far + (layers * 3.0 if group.counts[-1] > 1 else 0.0)
    if parallel.pipeline > 1:
        stride = parallel.tensor * parallel.context
        counts = fabric.place(parallel.pipeline, stride=stride).counts
        outer = counts[-1] > 1
        level = fabric.levels[max((i for i, n in enumerate(counts) if n > 1), default=0)]
        wire += 2.0 * parallel.chunks * tokens * work.hidden * 2.0 / parallel.tensor / level.bytes_per_s
        near, far = near + 2.0 * parallel.chunks, far + (2.0 * parallel.chunks if outer else 0.0)
    if parallel.expert > 1 and work.moe_layers:
        group = fabric.place(parallel.expert, stride=parallel.tensor)
        moe = ceil(work.moe_layers / parallel.pipeline)
        sent = tokens * work.top_k * work.hidden * 2.0 / parallel.tensor
        wire += moe * 4.0 * all_to_all(wires, group, sent)
        near, far = near + moe * 4.0, far + (moe * 4.0 if group.counts[-1] > 1 else 0.0)
    if work.exchange_bytes and parallel.data > 1:
        group = fabric.place(parallel.data)
        wire += all_to_all(wires, group, work.exchange_bytes * micro)
        near, far = near + 2.0, far + (2.0 if group.counts[-1] > 1 else 0.0)
    return wire, near, far


def _sync(work: Work, parallel: Parallel, fabric: Fabric) -> tuple[float, float, float]:
    """(wire seconds, near messages, far messages) of summing gradients and spreading the new weights."""
    ranks = parallel.data * parallel.context
    if ranks == 1:
        return 0.0, 0.0, 0.0
    group = fabric.place(ranks, stride=parallel.tensor * parallel.pipeline)
    share = work.trainable / parallel.tensor / parallel.pipeline
    wire = 2.0 * all_gather(fabric.wires(), group, share * GRADIENT_BYTES)
    buckets = 2.0 * max(1.0, min(8.0, share * GRADIENT_BYTES / 250e6))
    steps = [max(0, (n - 1).bit_length()) for n in group.counts]
    return wire, buckets * sum(steps[:-1]), buckets * steps[-1]
