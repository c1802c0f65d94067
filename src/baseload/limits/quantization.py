"""Bytes per weight by part of the model, from a config.json or from the name of a format.

Scales are counted: NVFP4 keeps one byte per 16 weights, MXFP4 one per 32, int4 two per 32, block FP8 four bytes per
128 × 128 (nothing worth counting). Published recipes leave some parts in 16 bits, which matters for what is read
each step: MXFP4 (gpt-oss) and pack-quantized int4 (Kimi) hold experts only; NVFP4 of MLA models leaves attention.
"""

import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "nvfp4": 0.5625, "mxfp4": 0.53125, "int4": 0.5625}
"""Bytes per weight, scales included."""

_NAMES = {
    "": "bf16",
    "fp32": "fp32",
    "float32": "fp32",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "float16": "bf16",
    "fp16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "fp8_static": "fp8",
    "int8": "int8",
    "int8_wo": "int8",
    "sq": "int8",
    "fp4": "nvfp4",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
    "w4a16_mxfp4": "mxfp4",
    "w4afp8": "int4",
    "int4": "int4",
    "int4_wo": "int4",
    "awq": "int4",
    "gptq": "int4",
    "half": "bf16",
    "f16": "bf16",
    "e4m3": "fp8",
    "mxfp8": "fp8",
    "w8a8": "int8",
    "w8a16": "int8",
    "8bit": "int8",
    "w4a16": "int4",
    "w4a8": "int4",
    "nf4": "int4",
    "4bit": "int4",
    "bnb": "int4",
}
_GGUF = re.compile(r"i?q(\d)_\w+")
_WORDS = re.compile(r"[-_ /.]+")


class Quantization(Struct, frozen=True):
    """The format of each part; `compute` is the widest the matrix units run the experts or MLPs in."""

    attention: str = "bf16"
    dense: str = "bf16"
    experts: str = "bf16"

    @property
    def attention_bytes(self) -> float:
        """Bytes per attention weight."""
        return BYTES[self.attention]

    @property
    def dense_bytes(self) -> float:
        """Bytes per weight of dense MLPs and shared experts."""
        return BYTES[self.dense]

    @property
    def expert_bytes(self) -> float:
        """Bytes per weight of routed experts."""
        return BYTES[self.experts]

    @property
    def head_bytes(self) -> float:
        """Bytes per weight of embedding and head: never quantized in published recipes."""
        return 2.0


def format_of(name: str) -> str | None:
    """The format under any of its usual names, or None where the name is not known.

    Of GGUF's, the nearest in bytes: to five bits int4, above int8. A name of several words ("awq-int4",
    "fp8_e4m3", "int4_gptq") is the first of its words that is known.
    """
    said = name.strip().lower()
    known = _NAMES.get(said)
    gguf = _GGUF.fullmatch(said)
    if gguf:
        return "int4" if int(gguf[1]) <= 5 else "int8"
    words = (_NAMES.get(word) for word in _WORDS.split(said))
    return known or next((form for form in words if form), None)


def quantization_of(config: Mapping[str, Any]) -> Quantization:
    """The formats a config.json states; bf16 where it states none."""
    stated = config.get("quantization_config")
    text = config.get("text_config")
    if not isinstance(stated, Mapping) and isinstance(text, Mapping):
        stated = text.get("quantization_config")
    if not isinstance(stated, Mapping):
        return Quantization()
    method = str(stated.get("quant_method", "")).lower()
    algorithm = str(stated.get("quant_algo", "")).lower()
    if method == "baseload":
        named = {"w8a8": "int8", "w4a8": "int4"}.get(str(stated.get("scheme")), "bf16")
        return of_formats(named, named)
    if method == "mxfp4":
        return Quantization(experts="mxfp4")
    if "fp4" in algorithm or "fp4" in method:
        return of_formats("nvfp4", "nvfp4", mla=_is_mla(config))
    if method in ("fp8", "fbgemm_fp8") or "fp8" in algorithm:
        return of_formats("fp8", "mxfp4" if config.get("expert_dtype") == "fp4" else "fp8")
    if method in ("awq", "gptq") or stated.get("bits") == 4:
        return of_formats("int4", "int4")
    return _compressed(stated)


def _compressed(stated: Mapping[str, Any]) -> Quantization:
    groups = stated.get("config_groups")
    first: Any = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
    weights = first.get("weights", {}) if isinstance(first, Mapping) else {}
    bits = weights.get("num_bits", 16) if isinstance(weights, Mapping) else 16
    if bits == 4:
        ignored = " ".join(str(item) for item in stated.get("ignore") or ())
        return Quantization(experts="int4") if "self_attn" in ignored else of_formats("int4", "int4")
    return of_formats("fp8", "fp8") if bits == 8 else Quantization()


def of_formats(dense: str, experts: str, *, mla: bool = False) -> Quantization:
    """One format for all linear layers, with the exception MLA models make of their attention at four bits."""
    attention = "bf16" if mla and dense in ("nvfp4", "int4") else dense
    return Quantization(attention=attention, dense=dense, experts=experts)


def _is_mla(config: Mapping[str, Any]) -> bool:
    text = config.get("text_config")
    return "kv_lora_rank" in config or (isinstance(text, Mapping) and "kv_lora_rank" in text)
