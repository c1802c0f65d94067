"""Context parallel: a prompt cut along its length over `cp` ranks, each a whole tensor-parallel group.

A rank computes tokens / cp of every product and, cut so that early and late positions are mixed, 1 / cp of the causal
pairs (Llama 3, arXiv 2407.21783, section 3.3.2: chunks i and 2 cp − 1 − i to rank i). What it pays for that:

    all-gather   every rank gets the others' keys and values, layer by layer, before it attends: nothing is hidden
    ring         blocks go round while the block before is attended to (Ring Attention, arXiv 2310.01889): only what a
                 block's wire time exceeds its attention's is seen
    decode       each rank holds 1 / cp of the cache and attends to it; partial outputs are summed over the ranks

A window needs only as many keys as it is long, a linear state goes from rank to rank. Weights are kept whole by each
rank, so memory for them is not cut. Seconds are at the sheet's rates; what links reach of them is calibration's.
"""

from msgspec import Struct

from baseload.limits.catalogue.accelerators import Accelerator
from baseload.limits.collectives import Fabric, all_gather, all_reduce
from baseload.limits.shapes import Mixer, ModelShape

LATENT_OUTPUT = 3.4  # decoding on a latent cache, a head's partial output is so many times as wide as its values


class Exchange(Struct, frozen=True):
    """What a pass over a prompt, or a step, adds: seconds on the wires, and collectives by where they go."""

    wire_s: float
    messages: float
    far_messages: float


class Prefill(Struct, frozen=True, kw_only=True):
    """Seconds of a prompt at the sheet's rates, on the ranks side by side."""

    matmul_s: float
    attention_s: float
    exchange_s: float  # of it, what is seen
    messages_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.matmul_s + self.attention_s + self.exchange_s + self.messages_s


def gathered(
    shape: ModelShape, fabric: Fabric, *, cp: int, tokens: float, tensor: int = 1, kv_bytes: float = 2.0
) -> Exchange:
    """Every rank gets the keys and values it looks at, for one prompt of so many tokens."""
    if cp <= 1:
        return Exchange(0.0, 0.0, 0.0)
    group, wires = fabric.place(cp, stride=tensor), fabric.wires()
    far = group.counts[-1] > 1
    wire = sum(mixer.layers * all_gather(wires, group, _looked_at(mixer, tokens, cp, tensor, kv_bytes))
               for mixer in shape.mixers)  # fmt: skip
    layers = float(sum(mixer.layers for mixer in shape.mixers if mixer.kv_elements or mixer.state_elements))
    return Exchange(wire, layers, layers if far else 0.0)


def merged(shape: ModelShape, fabric: Fabric, *, cp: int, rows: float, tensor: int = 1) -> Exchange:
    """A decoding step of so many rows over a cache in `cp` parts: partial outputs summed, in 16 bits."""
    if cp <= 1:
        return Exchange(0.0, 0.0, 0.0)
    group, wires = fabric.place(cp, stride=tensor), fabric.wires()
    far, wire, layers = group.counts[-1] > 1, 0.0, 0.0
    for mixer in shape.mixers:
        if mixer.kv_elements:
            width = mixer.pair_flops / 4.0 * (LATENT_OUTPUT if mixer.kind == "mla" else 1.0) / tensor
            wire += mixer.layers * all_reduce(wires, group, rows * width * 2.0)
            layers += mixer.layers
    return Exchange(wire, layers, layers if far else 0.0)


def prefill(
    shape: ModelShape,
    accelerator: Accelerator,
    fabric: Fabric,
    *,
    tokens: int,
    cp: int = 1,
    tensor: int = 1,
    form: str = "bf16",
    kv_bytes: float = 2.0,
    ring: bool = False,
) -> Prefill:
    """A prompt's time on cp × tensor accelerators; tensor traffic is left out. MissingFigure names a blank."""
    ranks = cp * tensor
    weights = shape.flops_per_token() - 2.0 * shape.head_params
    pairs = sum(mixer.layers * mixer.sample_flops(tokens) for mixer in shape.mixers)
    attention_s = pairs / ranks / (accelerator.need("bf16_tflops") * 1e12)
    moved = gathered(shape, fabric, cp=cp, tokens=tokens, tensor=tensor, kv_bytes=kv_bytes)
    far_s = fabric.levels[-1].latency_s
    return Prefill(
        matmul_s=weights * tokens / ranks / (accelerator.tflops(form) * 1e12),
        attention_s=attention_s,
        exchange_s=max(0.0, moved.wire_s - attention_s * (cp - 1) / cp) if ring else moved.wire_s,
        messages_s=moved.messages * fabric.levels[0].latency_s + moved.far_messages * far_s,
    )


def _looked_at(mixer: Mixer, tokens: float, cp: int, tensor: int, kv_bytes: float) -> float:
    """Bytes a rank ends with of one layer: the keys and values it attends to, its own among them, or a state."""
    if mixer.state_elements:
        return 4.0 * mixer.state_elements / tensor
    own = tokens / cp
    seen = min(tokens, own + mixer.window) if mixer.window else tokens
    return seen * mixer.kv_elements * kv_bytes / min(tensor, mixer.kv_heads)
