"""What a row that hides things may have been: how many workers decode, how attention is spread, if it speculates.

Tables of disaggregated deployments often leave out worker counts, and with them what tells how attention is spread;
few say if a deployment speculates (`speculation`). Each such row is computed for every guess, and the answer is the
one of least expected relative error under their weights. Calibration points near a row say which of its guesses to
believe.

What is taken for usual follows how such deployments are made: weights take at most some six tenths of the memory; a
group wider than its weights need and wider than a node replicates attention (a tensor-parallel group would copy a
latent cache instead), and stands alone; narrow tensor-parallel groups serve few users each, four side by side;
crowded ones replicate attention too, one to three of them.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from baseload.limits.catalogue.accelerators import Accelerator
from baseload.limits.catalogue.models import Models
from baseload.limits.quantization import Quantization
from baseload.limits.serving.points import CROWDED, SPAN, Layout, Point
from baseload.limits.shapes import ModelShape

Floats = NDArray[np.float64]
FILLED = 0.6  # of the memory, by weights, where a width is chosen
Often = tuple[tuple[float, float], ...]
NARROW: Often = ((4.0, 0.5), (3.0, 0.2), (5.0, 0.2), (1.0, 0.1))  # groups side by side, and how often
CROWD: Often = ((1.0, 0.5), (2.0, 0.3), (3.0, 0.2))
WIDE: Often = ((1.0, 0.7), (2.0, 0.2), (3.0, 0.1))
WIDE_GROUPS = (64, 48, 32, 16, 8)  # accelerators of a decoder that replicates attention
AT_PROMPTS = 0.15  # of the peak that prefill workers reach
BALANCED = 1.1  # of what they can do that is asked of them at most
SLOWER_ROWS = 1.6  # times as much as a prompt's token takes a decoding row, at the share of the peak it reaches
LAYER_S = 60e-6  # to launch a layer, its collectives with it; twice that in a wide group
MOST = 256.0  # users an accelerator that a group of unknown width is made for
SPECULATES = 0.65  # of rows that hide worker counts, where a model has layers for it
USUAL = 2.0  # points that what is usual counts as
UNCERTAIN = 0.25  # of a logarithm: how well a guess is computed
NEAR = np.array([2.5, 3.0, 4.0, 1.0])  # doublings of concurrency, lengths and width that rows are alike over
PACE = 1.75  # tokens a step yields then, net of what guessing costs


class Guess(Struct, frozen=True):
    """One thing a row may have been."""

    point: Point
    weight: float
    speculates: bool = False


def hides(point: Point) -> bool:
    """Whether the row is disaggregated and its worker counts are not told."""
    return point.prefill is not None and not point.decode.workers_known and not point.guessed


def guesses(point: Point, chip: Accelerator, shape: ModelShape, q: Quantization) -> tuple[Guess, ...]:
    """What the row may have been, the likeliest layout first; the row alone where it hides nothing."""
    point = _apart(point, chip, shape, q) if point.decode.total else point
    point = _possible(point, chip, shape, q)
    if hides(point):
        layouts = _layouts(point, chip, shape, q)
        said = [
            Guess(msgspec.structs.replace(point, decode=layout, guessed=True), weight) for layout, weight in layouts
        ]
    else:
        said = [Guess(point, 1.0)]
    if point.speculates:
        return tuple(msgspec.structs.replace(g, speculates=True) for g in said)
    if not may_speculate(point, shape):
        return tuple(said)
    plain = [msgspec.structs.replace(g, weight=g.weight * (1.0 - SPECULATES)) for g in said]
    return (*plain, *(Guess(g.point, g.weight * SPECULATES, speculates=True) for g in said))


def may_speculate(point: Point, shape: ModelShape) -> bool:
    """Whether the row is one of a table that mixes rows that speculate with rows that do not, for such a model."""
    return point.speculates is None and shape.draft_layers > 0 and hides(point)


def likeliest(point: Point, chip: Accelerator, shape: ModelShape, q: Quantization) -> Point:
    """The row with its likeliest layout."""
    return guesses(point, chip, shape, q)[0].point


def least_width(chip: Accelerator, shape: ModelShape, q: Quantization) -> int:
    """Accelerators, a power of two, that hold the weights with room to serve."""
    room = chip.need("memory_gb") * 1e9 * FILLED
    width = 1
    while shape.weight_bytes(q) > width * room and width < 1024:
        width *= 2
    return width


def _layouts(point: Point, chip: Accelerator, shape: ModelShape, q: Quantization) -> Sequence[tuple[Layout, float]]:
    stated, least, width = point.decode, least_width(chip, shape, q), point.decode.gpus
    latent = any(m.kind == "mla" for m in shape.mixers)
    if width > SPAN and width > least and latent:
        usual, replicated = WIDE, True
    elif latent and point.concurrency > 4 * width * CROWDED:
        usual, replicated = CROWD, True
    else:
        fewer = max(1.0, width / SPAN)  # a group over nodes counts for as many as it fills
        usual, replicated = tuple((max(1.0, n // fewer), often) for n, often in NARROW), stated.dp > 1
    spread = width if replicated else 1
    ep = width if replicated else min(width, max(stated.ep, 1))
    return [
        (
            msgspec.structs.replace(stated, dp=spread, ep=ep, workers=int(min(workers, max(1.0, point.concurrency)))),
            weight,
        )
        for workers, weight in usual
    ]


def measured_s(points: Sequence[Point], models: Models) -> tuple[Floats, Floats]:
    """Measured TPOT and TTFT to fit parameters to, in seconds; a TPOT that may be one of two modes counts as none,
    and one of a deployment that is known to speculate as it would be without."""
    may = [may_speculate(p, models.find(p.model)[0]) for p in points]
    plain = [p.tpot_ms * (PACE if p.speculates else 1.0) for p in points]
    tpot = np.array([0.0 if two else tpot for tpot, two in zip(plain, may, strict=True)])
    return tpot / 1e3, np.array([p.ttft_ms for p in points]) / 1e3


def _apart(point: Point, chip: Accelerator, shape: ModelShape, q: Quantization) -> Point:
    """A total of accelerators taken apart: as many decode as leave enough for the prompts, in workers of half a node.

    Decoders are groups of a node each or, where users crowd, one wide group that replicates attention.
    """
    total = point.decode.total
    peak = chip.tflops("bf16" if q.experts in ("int4", "mxfp4") else q.experts) * 1e12
    prompt_tokens_per_s = AT_PROMPTS * peak / (2.0 * shape.active_params)  # of an accelerator
    for decode in range(total - total % SPAN, 0, -SPAN):
        wide = point.concurrency > CROWDED * decode
        if total - decode < SPAN // 2 or (wide and decode not in WIDE_GROUPS):
            continue
        group = decode if wide else SPAN
        step = _rough_s(point, chip, shape, q, group=group, rows=point.concurrency * group / decode, wide=wide)
        step += SLOWER_ROWS * point.concurrency / decode / prompt_tokens_per_s
        wanted = point.concurrency * point.isl / (point.osl * step)
        if wanted <= BALANCED * prompt_tokens_per_s * (total - decode):
            stated = msgspec.structs.replace(point.decode, gpus=group, dp=group if wide else 1, ep=group)
            return msgspec.structs.replace(
                point,
                decode=msgspec.structs.replace(stated, workers=1 if wide else decode // SPAN),
                prefill=Layout(gpus=SPAN // 2, workers=(total - decode) // (SPAN // 2), usual=True),
            )
    return point


def _rough_s(
    point: Point, chip: Accelerator, shape: ModelShape, q: Quantization, *, group: int, rows: float, wide: bool
) -> float:
    """A decode step's reads and launches, roughly: enough to tell how fast answers use up prompts."""
    chosen = max((f.top_k / f.experts for f in shape.feedforwards if f.experts), default=1.0)
    met = 1.0 - (1.0 - min(chosen, 0.999)) ** rows
    read = met * shape.weight_bytes(q) + rows * shape.kv_bytes(point.isl + point.osl // 2, 1.0)
    seconds = read / group / (0.6 * chip.need("memory_gb_per_s") * 1e9)
    return float(seconds + shape.layers * LAYER_S * (2.0 if wide else 1.0))


def _possible(point: Point, chip: Accelerator, shape: ModelShape, q: Quantization) -> Point:
    """The row on as many accelerators as its weights need, where they exceed the memory of those stated."""
    needed = shape.weight_bytes(q) / (chip.need("memory_gb") * 1e9)

    def wide(layout: Layout) -> Layout:
        if layout.gpus >= needed:
            return layout
        width, domain = least_width(chip, shape, q), chip.scale_up_domain or 1
        while hides(point) and layout is point.decode and width * MOST < point.concurrency and 2 * width <= domain:
            width *= 2
        return msgspec.structs.replace(layout, gpus=width)

    prefill = wide(point.prefill) if point.prefill else None
    if prefill == point.prefill and wide(point.decode) == point.decode:
        return point
    return msgspec.structs.replace(point, decode=wide(point.decode), prefill=prefill)


def least_error(times: Floats, weights: Floats, spread: float) -> float:
    """The answer of least expected relative error, where each guess is a log-normal of this standard deviation."""
    nodes = np.linspace(-2.4, 2.4, 25)
    mass = np.exp(-0.5 * nodes**2)
    values = np.exp(np.log(times)[:, None] + spread * nodes)
    answers = np.geomspace(values.min(), values.max(), 81)
    errors = np.abs(answers[:, None, None] / values - 1.0)
    return float(answers[np.argmin(np.einsum("agn,g,n->a", errors, weights, mass))])


class Beliefs:
    """What calibration points showed of their own guesses."""

    def __init__(self, seen: Sequence[tuple[Point, tuple[Guess, ...], Floats]] = ()) -> None:
        self._seen = [(p, {_key(g): float(r) for g, r in zip(gs, rs, strict=True)}) for p, gs, rs in seen]

    def weights(self, point: Point, said: tuple[Guess, ...]) -> Floats:
        """Weights of a row's guesses: the usual ones, and what near rows of the same build were found to be."""
        total = np.array([g.weight for g in said]) * USUAL
        for other, found in self._seen:
            near = _near(point, other)
            if near > 1e-3:
                total += near * np.array([found.get(_key(g), 0.0) for g in said])
        result: Floats = total / total.sum()
        return result


def responsibilities(errors: Floats, weights: Floats) -> Floats:
    """How far each guess explains a measured point: `errors` are logarithms of measured over computed."""
    log = np.log(weights) - 0.5 * (errors / UNCERTAIN) ** 2
    found = np.exp(log - log.max())
    shares: Floats = found / found.sum()
    return shares


def _key(g: Guess) -> tuple[bool, bool, int]:
    return g.speculates, g.point.decode.dp > 1, g.point.decode.workers


def _near(a: Point, b: Point) -> float:
    if (a.system, a.engine, a.family, a.version, a.format) != (b.system, b.engine, b.family, b.version, b.format):
        return 0.0
    apart = np.log2([a.concurrency / b.concurrency, a.isl / b.isl, a.osl / b.osl, a.decode.gpus / b.decode.gpus])
    return float(np.exp(-0.5 * ((apart / NEAR) ** 2).sum()))
