"""What is trained: parameters, FLOPs and bytes of one sample, from a model's shape.

Forward FLOPs of a token are twice the parameters it meets; backward twice those again, once for the inputs'
gradients and once for the weights'. Where weights are frozen (LoRA) the second is left out. Attention over (query,
key) pairs is causal: half of them. The head counts, the embedding look-up does not.
"""

from enum import StrEnum

from msgspec import Struct

from baseload.domain.errors import DataError
from baseload.limits.shapes import ModelShape

GRADIENT_BYTES = 2.0  # bf16
WEIGHT_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5625}  # fp4: a scale per 16


class Recompute(StrEnum):
    """Which activations are computed again in the backward pass instead of being kept."""

    NONE = "none"
    SELECTIVE = "selective"  # attention's inner products only
    FULL = "full"  # everything but each layer's input


class Work(Struct, frozen=True, kw_only=True):
    """Training work of one sample. `layers` 0: not made of layers that can be cut (data parallel only)."""

    name: str
    matmul_flops: float  # of a forward pass
    attention_flops: float = 0.0
    sample_tokens: int = 1
    params: float
    trainable: float  # parameters that get gradients
    layers: int = 0
    hidden: int = 0
    kv_share: float = 1.0  # of hidden, keys and values together over 2: what context parallel passes on
    experts: int = 0
    expert_params: float = 0.0  # of all routed experts
    top_k: int = 0
    moe_layers: int = 0
    exchange_bytes: float = 0.0  # per sample, all-to-all (embedding tables), forward and backward
    weight_gradients: bool = True  # False: frozen weights, adapters only
    head_flops: float = 0.0  # part of matmul_flops that no layer holds
    figures: str = ""  # where they come from

    @property
    def training_flops(self) -> float:
        """Of one sample: forward and backward, without recomputation."""
        times = 3.0 if self.weight_gradients else 2.0
        return times * self.matmul_flops + 3.0 * self.attention_flops


def work_of(shape: ModelShape, *, tokens: int, lora_rank: int = 0) -> Work:
    """The work of a sample of `tokens` tokens; with a LoRA rank the base model is frozen."""
    if tokens < 1:
        raise DataError("A sample has at least one token.", hint="Give seq_len.")
    routed = sum(f.layers * f.top_k * f.expert_params for f in shape.feedforwards)
    met = shape.mixer_params + shape.dense_params + routed + shape.head_params
    pairs = sum(m.layers * m.sample_flops(tokens) for m in shape.mixers)
    mixer = max(shape.mixers, key=lambda m: m.layers)
    adapters = float(2 * lora_rank * shape.hidden * 4 * shape.layers)
    moe = [f for f in shape.feedforwards if f.experts]
    return Work(
        name=shape.name,
        matmul_flops=2.0 * met * tokens,
        attention_flops=float(pairs),
        sample_tokens=tokens,
        params=float(shape.params),
        trainable=adapters if lora_rank else float(shape.params),
        layers=shape.layers,
        hidden=shape.hidden,
        kv_share=min(1.0, mixer.kv_elements / (2.0 * shape.hidden)),
        experts=max((f.experts for f in moe), default=0),
        expert_params=float(shape.expert_params),
        top_k=max((f.top_k for f in moe), default=0),
        moe_layers=shape.moe_layers,
        weight_gradients=not lora_rank,
        head_flops=2.0 * shape.head_params * tokens,
        figures="shape of the model",
    )
