"""Who runs: our schemes and each peer's forms, with what it needs and what its weights weigh."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the table. `model` is a file or folder of the shape's weights; `bits` per weight as read."""

    name: str
    module: str
    environment: str  # "" for our own
    model: str
    bits: float
    is_int8: bool  # computes in int8: its limit is that rate, else bfloat16's
    isa: str = ""  # a forced instruction set, compared among its like only
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether it is Baseload."""
        return self.module == "ours"

    @property
    def family(self) -> int:
        """16, 8 or 4: the bits it is compared with."""
        return min((16, 8, 4), key=lambda bits: abs(bits - self.bits))


def _ours(scheme: str, bits: float, isa: str = "") -> Contender:
    model = "hf" if scheme == "bf16" else scheme
    options = {"kernels": isa} if isa else {}
    name = f"baseload {scheme}" + (f" {isa}" if isa else "")
    return Contender(name, "ours", "", model, bits, scheme != "bf16", "" if isa == "xla" else isa, options)


def _llama(kind: str, bits: float, isa: str = "") -> Contender:
    environment = f"llama-{isa or 'native'}"
    return Contender(
        f"llama.cpp {kind}" + (f" {isa}" if isa else ""), "peer_llama", environment, f"{kind}.gguf", bits, True, isa
    )


def _openvino(kind: str, bits: float) -> Contender:
    return Contender(f"OpenVINO {kind}", "peer_openvino", "openvino", f"{kind}.gguf", bits, bits < 16)


OURS = (_ours("w8a8", 8.1), _ours("w4a8", 4.9), _ours("bf16", 16))
XLA = _ours("bf16", 16, "xla")
PEERS = {
    "llama": (_llama("q8_0", 8.5), _llama("q4_0", 4.7)),
    "openvino": (_openvino("f16", 16), _openvino("q8_0", 8.5), _openvino("q4_0", 4.7)),
    "torch": (Contender("torch bf16", "peer_torch", "torch", "hf", 16, False),),
    # The head stays in 16 bits, as vLLM's own quantizer leaves it: 8.7 and 5.3 bits on average on the smallest shape.
    "vllm": (
        Contender("vLLM bf16", "peer_vllm", "vllm", "hf", 16, False),
        Contender("vLLM w8a8", "peer_vllm", "vllm", "ct-w8a8", 8.7, True),
        Contender("vLLM w4", "peer_vllm", "vllm", "ct-w4", 5.3, False),
    ),
}
FORCED = {
    "avx2": (
        _ours("w8a8", 8.1, "avx2"),
        _ours("w4a8", 4.9, "avx2"),
        _llama("q8_0", 8.5, "avx2"),
        _llama("q4_0", 4.7, "avx2"),
    ),
    # llama.cpp's native build is what AVX512-VNNI has for a peer on a processor without AMX.
    "avx512": (_ours("w8a8", 8.1, "avx512"), _ours("w4a8", 4.9, "avx512")),
}
