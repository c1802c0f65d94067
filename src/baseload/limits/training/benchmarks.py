"""The work of the benchmarks that published training results name, and of any model whose shape is known.

Language models come from their shape. The others are counted here, with the source of each figure; a figure that no
source gave is None, and a row that needs it is answered only where measured points calibrate it.
"""

import re

from msgspec import Struct

from baseload.limits.catalogue.models import Models
from baseload.limits.training.work import Work, work_of

UNKNOWN_FLOPS = 1e11  # stands for a count nobody published; only calibrated answers rest on it


class Benchmark(Struct, frozen=True, kw_only=True):
    """A benchmark's work, the format its matrices are multiplied in, and what is not known of it."""

    name: str
    work: Work
    form: str  # "bf16" | "fp8" | "fp4"
    kind: str  # "llm" | "lora" | "diffusion" | "vision" | "graph" | "ranking"
    missing: str = ""  # a figure without a source


def benchmark_of(name: str, *, seq_len: int, models: Models) -> Benchmark:
    """The benchmark under its name. One that nobody counted has `missing` set: only measured points can price it."""
    key = re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")
    if key in _FIXED:
        return _FIXED[key]
    lora = "lora" in key
    known = _LANGUAGE.get(key)
    model = known[0] if known else _model_name(key)
    tokens = seq_len or (known[1] if known else 4096)
    shape, basis = models.find(model)
    if basis != "config":
        return _uncounted(key)
    work = work_of(shape, tokens=tokens, lora_rank=16 if lora else 0)
    return Benchmark(name=key, work=work, form="fp8", kind="lora" if lora else "llm")


_LANGUAGE = {
    "llama31_8b": ("meta-llama/Meta-Llama-3.1-8B", 8192),
    "llama31_70b": ("meta-llama/Meta-Llama-3.1-70B", 8192),
    "llama31_405b": ("meta-llama/Meta-Llama-3.1-405B", 8192),
    "llama2_70b_lora": ("meta-llama/Llama-2-70B", 8192),
    "gpt3": ("openai/gpt3-175b", 2048),
    "gpt_oss_20b": ("openai/gpt-oss-20b", 8192),
    "gpt_oss_120b": ("openai/gpt-oss-120b", 8192),
    "mixtral_8x7b": ("mistralai/Mixtral-8x7B-v0.1", 4096),
    "deepseekv3_671b": ("deepseek-ai/DeepSeek-V3", 4096),
    "deepseek_v3": ("deepseek-ai/DeepSeek-V3", 4096),
}


def _model_name(key: str) -> str:
    """A model's usual spelling from a benchmark's: llama31_8b → llama-3.1-8b."""
    name = re.sub(r"_(lora|sft|pretrain\w*|finetun\w*)$", "", key).replace("_", "-")
    return re.sub(r"^llama(\d)(\d)?-", lambda m: f"llama-{m[1]}{'.' + m[2] if m[2] else ''}-", name)


def _uncounted(name: str) -> Benchmark:
    """A benchmark whose samples nobody counted."""
    return _other(name, "other", flops=UNKNOWN_FLOPS, params=1e8, figures="", missing=f"FLOPs of a sample of {name}")


def _other(
    name: str,
    kind: str,
    *,
    flops: float,
    params: float,
    figures: str,
    exchange_bytes: float = 0.0,
    dense_params: float | None = None,
    missing: str = "",
) -> Benchmark:
    work = Work(
        name=name,
        matmul_flops=flops,
        params=params,
        trainable=dense_params if dense_params is not None else params,
        exchange_bytes=exchange_bytes,
        figures=figures,
    )
    return Benchmark(name=name, work=work, form="bf16", kind=kind, missing=missing)


_FLUX_HIDDEN, _FLUX_TOKENS = 3072, 512  # 256 of the image (256 × 256, 8-fold latent, 2 × 2 patches), 256 of the text
_FLUX = Work(
    name="flux1",
    matmul_flops=2.0 * 57 * 12 * _FLUX_HIDDEN**2 * _FLUX_TOKENS,
    attention_flops=57 * 4.0 * _FLUX_HIDDEN * _FLUX_TOKENS**2,
    sample_tokens=_FLUX_TOKENS,
    params=11.9e9,
    trainable=11.9e9,
    layers=57,
    hidden=_FLUX_HIDDEN,
    figures="black-forest-labs/flux: 19 double and 38 single blocks, hidden 3072; MLPerf: 256 × 256 images",
)
_FIXED = {
    "flux1": Benchmark(name="flux1", work=_FLUX, form="bf16", kind="diffusion"),
    "retinanet": _other(
        "retinanet",
        "vision",
        flops=2.0 * 151.5e9,
        params=37e6,
        figures="torchvision's retinanet_resnet50_fpn: 151.5 G multiply-adds at 800 × 800, as an order of size",
    ),
    "dlrm_dcnv2": _other(
        "dlrm_dcnv2",
        "ranking",
        flops=2.0 * (3 * 2 * 3456 * 512 + 3456 * 1024 + 1024 * 1024 + 1024 * 512 + 512 * 256 + 13 * 512 + 512 * 256),
        params=26e9,
        dense_params=20e6,
        exchange_bytes=2.0 * 26 * 128 * 2,
        figures="MLPerf DLRM-DCNv2: 26 tables of width 128, 3 cross layers of rank 512, 1024-1024-512-256-1 on top",
    ),
}
