"""What a step costs at the sheet's peaks, term by term: bytes over bandwidth, FLOPs over peak, messages over links.

Nothing here is fitted: these are counts of the model's shape and figures of the catalogue, one row per point. What
fraction of a peak is reached, and what a step costs besides, is in `step`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from msgspec.structs import replace as with_fields
from numpy.typing import NDArray

from baseload.limits.catalogue.accelerators import Accelerator, Catalogue, read_fabric
from baseload.limits.catalogue.models import Models
from baseload.limits.collectives import fabric_of
from baseload.limits.context_parallel import gathered, merged
from baseload.limits.quantization import Quantization, of_formats
from baseload.limits.serving.hidden import likeliest
from baseload.limits.serving.links import inside, lateness
from baseload.limits.serving.points import Layout, Point
from baseload.limits.serving.stand_in import StandIns
from baseload.limits.shapes import ModelShape

Floats = NDArray[np.float64]
MEMORY_USED = {"sglang": 0.85, "vllm": 0.92, "trtllm": 0.95}  # of the memory: usual settings less activations, graphs
MEMORY_USED_ELSE = 0.90
LEAST_ROOM = 0.03  # of it for the cache however tight the weights: who deploys so tunes for it
MEMORY_MOST = 0.97  # what weights may fill before a deployment is held to be impossible
LATENT = 3.4  # decoding MLA works in the latent space: over so many times the elements a pair
BLOCKS = 0.4  # more kernels where 8-bit experts have a scale a block: activations are quantized apart, block by block
SLICED = 0.2  # power of the ranks that share each expert by which they read it slower: slices are narrow
APART = 0.08  # of the ranks that hold experts whole beside an attention they share: each runs some of all tokens
LAUNCHES = {"attention": 0.55, "mlp": 0.45, "mla": 1.1, "linear": 1.1, "experts": 0.9, "shared": 0.2}
"""Kernels of a part, where those of a dense layer (some ten) are 1. Latent attention projects twice and absorbs,
routed experts are chosen, gathered, multiplied twice and scattered, a shared expert runs beside them."""
STEP = (
    "dense_read",
    "dense_math",
    "expert_read",  # of the experts that tokens routed at random go to
    "expert_math",
    "kv_read",
    "kv_math",
    "link",
    "messages",
    "layers",
    "tokens",
    "rows",  # sequences a rank of attention has
    "experts",  # of a layer, those a token goes to, and seconds to read one in every layer, as it is cut
    "top_k",
    "expert_s",
    "ep",
)
COLUMNS = (
    *(f"decode_{term}" for term in STEP),
    *(f"prefill_{term}" for term in STEP),
    "outside",
    "prefill_outside",
    "batch",
    "waiting",
    "concurrency",
    "isl",
    "osl",
    "prefill_workers",
    "disagg",
    "workers_known",
    "pool_known",  # the prefill workers are stated, not taken apart from a total
    "fits",
)
_AT = {column: i for i, column in enumerate(COLUMNS)}


@dataclass(frozen=True, slots=True)
class Features:
    """A matrix of points × COLUMNS, times in seconds; read columns by name."""

    table: Floats

    def __getitem__(self, column: str) -> Floats:
        return self.table[:, _AT[column]]


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """The routed-expert layers: seconds to read one expert of each, and to multiply one token's."""

    experts: int
    top_k: int
    read_s: float
    math_s: float
    slower: float = 1.0  # as slices of an expert are read where several ranks share it

    def covered(self, tokens: float) -> float:
        """Experts that at least one of so many tokens goes to, for tokens routed at random."""
        return float(self.experts * (1.0 - (1.0 - self.top_k / self.experts) ** tokens))


@dataclass(frozen=True, slots=True)
class AttentionCounts:
    """A group of attention layers: seconds to read, and to work on, one cached position; and a pair of a prefill."""

    window: int
    read_s: float
    math_s: float
    pair_s: float


@dataclass(frozen=True, slots=True)
class Counts:
    """A worker's step at the sheet's peaks: seconds per token unless named otherwise."""

    layers: float
    messages: float  # collectives of a step, in those of two accelerators: each doubling costs half of one more
    outside: bool  # of the fast domain
    dp: int
    ep: int
    dense_read_s: float  # once a step
    dense_math_s: float
    head_math_s: float  # per row whose next token is wanted
    experts: ExpertCounts | None
    attention: tuple[AttentionCounts, ...]
    state_read_s: float  # of linear attention, per decoding row
    state_math_s: float
    link_s: float
    weight_bytes: float  # per accelerator
    kv_element_bytes: float
    kv_cut: float  # over how many accelerators the cache is spread
    cp: int = 1  # ranks that share a context
    gather_s: float = 0.0  # on the links, of a prompt's token that each of them has
    merge_s: float = 0.0  # and of a decoding row


@dataclass(frozen=True, slots=True)
class Memory:
    """Does it fit: bytes per accelerator, and how many sequences of the point's length find room."""

    weight_bytes: float
    room_bytes: float
    sequences: float
    fits: bool  # the weights do, by a hair or better


def features_of(points: Sequence[Point], catalogue: Catalogue | StandIns, models: Models) -> Features:
    """Features of each point; DataError where the accelerator is unknown or lacks a needed figure."""
    rows = np.zeros((len(points), len(COLUMNS)))
    for i, point in enumerate(points):
        rows[i] = _row(point, catalogue.find(point.system), models.find(point.model)[0])
    return Features(rows)


def memory_of(point: Point, chip: Accelerator, shape: ModelShape) -> Memory:
    """Memory of one decoding worker of the point."""
    return _memory(point, point.decode, chip, shape, weights_of(point, shape))


def weights_of(point: Point, shape: ModelShape) -> Quantization:
    """Formats in use: a four-bit experts-only recipe of the model itself (MXFP4, int4) is kept, else the table's."""
    own = shape.quantization
    if (
        own.experts in ("mxfp4", "int4")
        and point.expert_format in ("nvfp4", "int4", "mxfp4")
        and not (own.experts == "int4" and point.expert_format == "nvfp4")
    ):
        return own
    mla = any(m.kind == "mla" for m in shape.mixers)
    return of_formats(point.dense_format or own.dense, point.expert_format or own.experts, mla=mla)


def _memory(point: Point, layout: Layout, chip: Accelerator, shape: ModelShape, q: Quantization) -> Memory:
    group = layout.gpus / layout.cp  # weights are whole in each rank of a context
    weights = shape.weight_bytes(q) / group
    weights += shape.mixer_params * q.attention_bytes * (layout.dp - 1) / group  # attention replicas
    memory = chip.need("memory_gb") * 1e9
    room = max(memory * MEMORY_USED.get(point.engine, MEMORY_USED_ELSE) - weights, memory * LEAST_ROOM)
    per_sequence = shape.kv_bytes(point.isl + point.osl // 2, _kv_bytes(q, chip)) * layout.dp / _kv_cut(shape, layout)
    return Memory(weights, room, max(0.0, room) * layout.dp / max(1.0, per_sequence), weights <= memory * MEMORY_MOST)


def _kv_bytes(q: Quantization, chip: Accelerator) -> float:
    """A cached element: engines keep the cache in 8 bits beside 8-bit or 4-bit weights, and beside 4-bit experts of a
    16-bit model where the silicon multiplies 4 bits."""
    narrow = q.dense != "bf16" or (q.experts in ("mxfp4", "nvfp4") and chip.fp4_tflops is not None)
    return 1.0 if narrow else 2.0


def _kv_cut(shape: ModelShape, layout: Layout) -> float:
    """Over how many ranks the cache of a sequence is cut, times replicas."""
    heads = max((m.kv_heads for m in shape.mixers if m.kv_elements), default=1)
    return layout.dp * min(layout.gpus / layout.cp / layout.dp, heads) * layout.cp


def _row(point: Point, chip: Accelerator, shape: ModelShape) -> list[float]:
    q = weights_of(point, shape)
    fits = _memory(point, point.decode, chip, shape, q).fits
    point = likeliest(point, chip, shape, q)
    decode, prefill = point.decode, point.prefill or point.decode
    of_decode = counts_of(shape, q, chip, decode)
    of_prefill = of_decode if prefill == decode else counts_of(shape, q, chip, prefill)
    memory = _memory(point, decode, chip, shape, q)
    wanted = point.concurrency / workers_of(point)
    batch = max(1.0, min(wanted, memory.sequences)) if memory.fits else max(1.0, wanted)
    context = point.isl + point.osl / 2
    return [
        *_terms(of_decode, tokens=batch, sequences=batch, context=context, pairs=0.0),
        *_terms(of_prefill, tokens=point.isl, sequences=0.0, context=0.0, pairs=point.isl**2 / 2),
        float(of_decode.outside),
        float(of_prefill.outside),
        batch,
        max(0.0, wanted / batch - 1.0),
        point.concurrency,
        point.isl,
        point.osl,
        prefill.workers,
        float(point.prefill is not None),
        float(decode.workers_known and prefill.workers_known),
        float(decode.workers_known and prefill.workers_known and not prefill.usual),
        float(fits),
    ]


def workers_of(point: Point) -> float:
    """Decoding workers: as stated, or as guessed."""
    return float(point.decode.workers)


def _terms(c: Counts, *, tokens: float, sequences: float, context: float, pairs: float) -> list[float]:
    """STEP terms of a step over `tokens` tokens: `sequences` that decode at `context`, or `pairs` of a prefill."""
    e = c.experts
    expert_read = e.read_s * e.covered(tokens) if e else 0.0
    expert_math = e.math_s * tokens if e else 0.0
    kv_read = kv_math = 0.0
    if sequences:
        kv_read, kv_math = sequences * c.state_read_s, sequences * c.state_math_s
        for a in c.attention:
            kv_read += sequences * a.read_s * min(context, a.window or context)
            kv_math += sequences * a.math_s * min(context, a.window or context)
    else:
        tokens, pairs = tokens / c.cp, pairs / c.cp
        kv_math = tokens * c.state_math_s
        for a in c.attention:
            kv_math += a.pair_s * (min(pairs, tokens * a.window) if a.window else pairs)
    return [
        c.dense_read_s,
        tokens * c.dense_math_s + (sequences or 1.0) * c.head_math_s,
        expert_read,
        expert_math,
        kv_read,
        kv_math,
        tokens * (c.link_s + (c.merge_s if sequences else c.gather_s)),
        c.messages,
        c.layers,
        tokens,
        tokens / c.dp,
        e.experts if e else 1.0,
        e.top_k if e else 1.0,
        e.read_s * e.slower if e else 0.0,
        c.ep,
    ]


def counts_of(shape: ModelShape, q: Quantization, chip: Accelerator, layout: Layout) -> Counts:
    """What a worker's step costs per token, row, position and expert; DataError where the sheet lacks a figure."""
    if layout.cp > 1:
        group = with_fields(layout, gpus=max(1, layout.gpus // layout.cp), cp=1)
        return _shared(counts_of(shape, q, chip, group), shape, chip, layout)
    gpus, cut = layout.gpus, layout.gpus / layout.dp
    read, dense_peak = chip.need("memory_gb_per_s") * 1e9, chip.tflops(q.dense) * 1e12
    attention_peak, expert_peak = chip.tflops(q.attention) * 1e12, chip.tflops(_compute(q.experts, chip)) * 1e12
    bf16_peak = chip.tflops("bf16") * 1e12
    dense_read = (shape.mixer_params * q.attention_bytes + shape.dense_params * q.dense_bytes) / cut
    dense_read += shape.head_params * 2.0 / gpus
    dense_math = shape.mixer_params / attention_peak + shape.dense_params / dense_peak
    elements, kv_cut = _kv_bytes(q, chip), _kv_cut(shape, layout)
    routed = [f for f in shape.feedforwards if f.experts]
    expert_params = sum(f.layers * f.expert_params for f in routed)
    experts = None
    if routed:
        experts = ExpertCounts(
            experts=routed[0].experts,
            top_k=routed[0].top_k,
            read_s=expert_params * q.expert_bytes / gpus / read,
            math_s=2.0 * expert_params * routed[0].top_k / gpus / expert_peak,
            slower=(gpus / layout.ep) ** SLICED * (layout.ep if layout.dp == 1 else 1) ** APART,
        )
    attention = tuple(
        AttentionCounts(
            window=m.window,
            read_s=m.layers * m.kv_elements * elements / kv_cut / read,
            math_s=m.layers * m.pair_flops * (LATENT if m.kind == "mla" else 1.0) / gpus / bf16_peak,
            pair_s=m.layers * m.pair_flops / gpus / bf16_peak,
        )
        for m in shape.mixers
        if m.kv_elements
    )
    states = sum(m.layers * m.state_elements for m in shape.mixers)
    weights = shape.weight_bytes(q) / gpus + shape.mixer_params * q.attention_bytes * (layout.dp - 1) / gpus
    return Counts(
        layers=launches(shape, q),
        messages=2.0 * shape.layers * lateness(chip, gpus) if gpus > 1 else 0.0,
        outside=gpus > (chip.scale_up_domain or 1),
        dp=layout.dp,
        ep=layout.ep,
        dense_read_s=dense_read / read,
        dense_math_s=2.0 * dense_math / gpus,
        head_math_s=2.0 * shape.head_params / gpus / bf16_peak,
        experts=experts,
        attention=attention,
        state_read_s=8.0 * states / kv_cut / read,
        state_math_s=6.0 * states / gpus / bf16_peak,
        link_s=_link_s(shape, chip, layout),
        weight_bytes=weights,
        kv_element_bytes=elements,
        kv_cut=kv_cut,
    )


def _shared(one: Counts, shape: ModelShape, chip: Accelerator, layout: Layout) -> Counts:
    """Counts of one rank where several share a context, from those of a rank alone."""
    cp, fabric = layout.cp, fabric_of(chip, read_fabric())
    tensor = max(1, layout.gpus // cp // layout.pp)
    tokens = 1024.0 * cp  # a gather's wire time grows as the prompt, so any length gives it by the token
    gather = gathered(shape, fabric, cp=cp, tokens=tokens, tensor=tensor, kv_bytes=one.kv_element_bytes)
    merge = merged(shape, fabric, cp=cp, rows=1.0, tensor=tensor)
    return replace(
        one,
        attention=tuple(replace(a, read_s=a.read_s / cp, math_s=a.math_s / cp) for a in one.attention),
        messages=one.messages + merge.messages * lateness(chip, cp),
        outside=layout.gpus > (chip.scale_up_domain or 1),
        kv_cut=one.kv_cut * cp,
        cp=cp,
        gather_s=gather.wire_s / 1024.0,
        merge_s=merge.wire_s,
    )


def launches(shape: ModelShape, q: Quantization) -> float:
    """Kernels a step launches, in those of a layer of grouped-query attention and a dense MLP."""
    mixers = sum(m.layers * LAUNCHES.get(m.kind, LAUNCHES["linear"]) for m in shape.mixers)
    for f in shape.feedforwards:
        shared = f.experts and f.dense_params > 2 * shape.hidden * f.experts  # more than a router
        mixers += f.layers * (
            LAUNCHES["experts"] + LAUNCHES["shared"] * bool(shared) if f.experts else LAUNCHES["mlp"]
        )
    return mixers * (1.0 + BLOCKS if shape.moe_layers and q.experts == "fp8" else 1.0)


def _compute(form: str, chip: Accelerator) -> str:
    """The format matrix units multiply experts in: 4-bit ones are unpacked where there is no 4-bit unit for them."""
    if form == "mxfp4" and chip.fp4_tflops is not None:
        return "fp8"  # beside 8-bit activations
    return "bf16" if form in ("int4", "mxfp4") else form


def _link_s(shape: ModelShape, chip: Accelerator, layout: Layout) -> float:
    """Seconds a token's activations are on the links. Across nodes each of them sends what its members summed first,
    or, where attention is replicated, a token once to each other node that has an expert of its."""
    group, rate = inside(chip, layout.gpus)
    nodes = layout.gpus / group
    sent = 4.0 * shape.hidden * shape.layers  # in 16 bits, twice a layer
    copies = crossing = 1.0
    if layout.dp > 1:
        top_k = max((f.top_k for f in shape.feedforwards), default=1) or 1
        sent /= layout.gpus
        copies = max(1.0, min(top_k, layout.gpus))
        crossing = (nodes - 1.0) * (1.0 - (1.0 - 1.0 / nodes) ** top_k) * group
    seconds = sent * copies * (group - 1) / group / rate if group > 1 else 0.0
    if nodes > 1:
        seconds += sent * crossing / group / (chip.need("scale_out_gbit_per_s") / 8.0 * 1e9)
    return seconds
