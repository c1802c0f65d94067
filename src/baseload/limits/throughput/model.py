"""Throughput of a system that always has work: what a sample costs, and how that is calibrated.

A replica of `t` accelerators holds as many sequences as its cache has room for. A sample then takes

    prefill   input tokens' FLOPs
    decode    per output token: the longer of its FLOPs and its share of reading the weights, its own cache, its share
              of launching a step, and its collectives

`costs_of` counts these at the sheet's peaks, in seconds of one accelerator per sample, for the split that is fastest.
"""

from math import log2

import numpy as np
from msgspec import Struct

from baseload.domain.errors import DataError
from baseload.limits.catalogue.accelerators import Accelerator
from baseload.limits.quantization import of_formats
from baseload.limits.ridge import Floats, Form
from baseload.limits.shapes import ModelShape

MOST_SEQUENCES = 1024  # per accelerator: what engines schedule at once
MEMORY_SHARE = 0.9
LATENT_TIMES = 3.4  # decoding on the latent cache (MLA) multiplies 576 + 512 wide heads where prefill has 192 + 128
PRIORS = {
    "prefill": 0.5,
    "decode": 0.4,
    "read": 0.75,
    "cache": 0.6,
    "attention": 0.35,
    "link": 0.5,
    "launch_s": 30e-6,
    "pace": 0.85,
}
"""Fractions of the sheet's peaks, seconds a layer and step, and the share of an ideal schedule that is reached."""

WIDTHS = {
    "all": {
        "prefill": 0.2,
        "decode": 0.3,
        "read": 0.15,
        "cache": 0.3,
        "attention": 0.3,
        "link": 0.3,
        "launch_s": 0.3,
        "pace": 0.1,
    },
    "model": {"pace": 0.2, "prefill": 0.15, "decode": 0.2, "launch_s": 0.3},
    "accelerator": {"pace": 0.15, "prefill": 0.12, "decode": 0.15, "cache": 0.1},
    "vendor": {"pace": 0.15, "decode": 0.15},
    "pair": {"pace": 0.1},
    "form": {"pace": 0.1, "decode": 0.2, "prefill": 0.1},
    "written": {"pace": 0.12},
    "engine": {"pace": 0.15},
    "build": {"pace": 0.1},
    "scenario": {"pace": 0.3},
    "scenario_model": {"pace": 0.15},
    "scenario_accelerator": {"pace": 0.06},
    "scenario_pair": {"pace": 0.08},
    "capped": {"pace": 0.3},
    "nodes": {"pace": 0.05},
    "site": {"pace": 0.03},
    "division": {"pace": 0.08},
    "unlisted": {"pace": 2.0, "prefill": 0.7, "decode": 0.7},
}


class Costs(Struct, frozen=True, kw_only=True):
    """Seconds of one accelerator per sample at the sheet's peaks, and what they were counted for."""

    prefill_s: float
    math_s: float
    read_s: float
    cache_s: float
    attention_s: float  # (query, key) pairs, in 16 bits whatever the weights are in
    link_s: float
    launches: float  # layer launches per sample, times accelerators
    tensor: int
    sequences: float


COLUMNS = ("prefill_s", "math_s", "read_s", "cache_s", "attention_s", "link_s", "launches")


def time(costs: Floats, theta: Floats) -> Floats:
    """Seconds of one accelerator per sample."""
    p = {name: np.exp(theta[:, i]) for i, name in enumerate(PRIORS)}
    c = {name: costs[:, i] for i, name in enumerate(COLUMNS)}
    step = _max(c["math_s"] / p["decode"], c["read_s"] / p["read"])
    step = step + _max(c["cache_s"] / p["cache"], c["attention_s"] / p["attention"])
    whole = c["prefill_s"] / p["prefill"] + step + c["link_s"] / p["link"]
    return np.asarray((whole + c["launches"] * p["launch_s"]) / p["pace"], dtype=np.float64)


FORM = Form(priors=PRIORS, widths=WIDTHS, time=time, noise=0.04)


def _max(a: Floats, b: Floats) -> Floats:
    """A smooth maximum of two times."""
    high = np.maximum(np.maximum(a, b), 1e-30)
    return np.asarray(high * np.cbrt(1.0 + (np.minimum(a, b) / high) ** 3), dtype=np.float64)


def costs_of(
    shape: ModelShape,
    sheet: Accelerator,
    *,
    form: str,
    isl: float,
    osl: float,
    accelerators: int,
    sequences: float = 0.0,
) -> Costs:
    """What a sample costs on the fastest split of a system. `sequences` fixes how many run together.

    DataError where the weights fit no split; MissingFigure names a blank figure.
    """
    best: tuple[float, Costs] | None = None
    domain = sheet.scale_up_domain or 1
    for tensor in (1, 2, 4, 8, 16, 32, 64):
        if tensor > max(1, accelerators):
            break
        costs = _split(shape, sheet, form, isl, osl, tensor, domain, sequences)
        if costs is None:
            continue
        row = np.array([[getattr(costs, name) for name in COLUMNS]])
        seconds = float(time(row, np.log([list(PRIORS.values())]))[0])
        if best is None or seconds < best[0]:
            best = (seconds, costs)
    if best is None:
        needed = shape.weight_bytes(of_formats(form, form, mla=_mla(shape))) / 1e9
        raise DataError(
            f"The weights of {shape.name} ({needed:.0f} GB as {form}) do not fit {accelerators} × {sheet.name}.",
            hint="Use more accelerators or fewer bits per weight.",
        )
    return best[1]


def _split(
    shape: ModelShape,
    sheet: Accelerator,
    form: str,
    isl: float,
    osl: float,
    tensor: int,
    domain: int,
    fixed: float,
) -> Costs | None:
    q = of_formats(form, form, mla=_mla(shape))
    weights = shape.weight_bytes(q)
    room = sheet.need("memory_gb") * 1e9 * MEMORY_SHARE * tensor - weights - 2e9 * tensor
    kv_bytes = 2.0 if form in ("bf16", "fp32") else 1.0
    per_sequence = shape.kv_bytes(int(isl + osl / 2), kv_bytes) * 1.1
    together = min(room / max(1.0, per_sequence), MOST_SEQUENCES * tensor)
    if together < 1.0:
        return None
    batch = fixed or together
    peak, bandwidth = _tflops(sheet, form) * 1e12, sheet.need("memory_gb_per_s") * 1e9
    dense = weights - shape.expert_params * q.expert_bytes
    experts = sum(
        f.layers * f.experts * f.expert_params * _touched(f.experts, f.top_k, batch) for f in shape.feedforwards
    )
    read = (dense + experts * q.expert_bytes) / bandwidth
    link_s, messages = 0.0, 0.0
    if tensor > 1:
        within = min(tensor, domain)
        rate = (sheet.scale_up_gb_per_s or 32.0) * 1e9
        per_token = 2.0 * shape.layers * shape.hidden * 2.0 * 2.0 * (within - 1) / within if within > 1 else 0.0
        link_s = (isl + osl) * per_token / rate
        messages = 2.0 * shape.layers * (1.0 + log2(tensor)) / 6.0
    wide = sheet.need("bf16_tflops") * 1e12

    def pairs(context: float, latent: float) -> float:
        seen = [m.layers * m.query_flops(context) for m in shape.mixers]
        return sum(s * (latent if m.kind == "mla" else 1.0) for s, m in zip(seen, shape.mixers, strict=True))

    return Costs(
        prefill_s=isl * shape.flops_per_token() / peak + isl * pairs(isl / 2, 1.0) / wide,
        math_s=osl * shape.flops_per_token() / peak,
        read_s=osl * read / batch,
        cache_s=osl * shape.kv_bytes(int(isl + osl / 2), kv_bytes) / bandwidth,
        attention_s=osl * pairs(isl + osl / 2, LATENT_TIMES) / wide,
        link_s=link_s,
        launches=osl * (shape.layers + messages) * tensor / batch,
        tensor=tensor,
        sequences=batch,
    )


def _tflops(sheet: Accelerator, form: str) -> float:
    """Dense peak: microscaled four bits as such where the chip can, else in 16 bits; fp32 off the fast path."""
    if form == "mxfp4":
        return sheet.fp4_tflops or sheet.need("bf16_tflops")
    return sheet.need("bf16_tflops") / 4.0 if form == "fp32" else sheet.tflops(form)


def _mla(shape: ModelShape) -> bool:
    return any(mixer.kind == "mla" for mixer in shape.mixers)


def _touched(experts: int, top_k: int, tokens: float) -> float:
    """Share of a layer's experts that a step of so many tokens reads."""
    if not experts:
        return 0.0
    return float(1.0 - (1.0 - top_k / experts) ** max(1.0, tokens))


POWER_FORM = Form(
    priors={"share": 1.25},
    widths={
        "all": {"share": 0.15},
        "accelerator": {"share": 0.1},
        "model": {"share": 0.12},
        "capped": {"share": 0.25},
        "capped_model": {"share": 0.1},
        "scenario": {"share": 0.05},
        "vendor": {"share": 0.05},
    },
    time=lambda costs, theta: np.asarray(costs[:, 0] * np.exp(theta[:, 0]), dtype=np.float64),
    noise=0.04,
)
"""Watts at the wall as a multiple of the accelerators' sheet power: hosts, fans and conversion come on top."""
