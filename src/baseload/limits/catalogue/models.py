"""Which shape stands behind a model's name: the user's config.json, the catalogue, or a guess said to be one."""

import re
from collections.abc import Mapping
from typing import Any

from baseload.limits.catalogue.accelerators import read_model_facts
from baseload.limits.quantization import Quantization
from baseload.limits.shape_config import shape_of
from baseload.limits.shapes import Feedforward, Mixer, ModelShape

_SUFFIX = re.compile(
    r"([-_.:](instruct|chat|base|it|hf|pt|thinking|reasoning|fp8|nvfp4|fp4|mxfp[48]|bf16|fp16|int4|int8|awq|gptq|gguf|"
    r"mlx|dynamic|block|static|pertensor|autoround|quantized|kv|preview|w4a16|w8a8|w4a8|w8a16|[2-8]bit|"
    r"i?q\d_?(0|1|k|nl|xs)?(_?(s|m|l|xl))?|v\d+(\.\d+)?|\d{4}))+$"
)
_ASIDE = re.compile(r"-(vl|coder|math|omni|guard-gen|next-thinking|prover|embedding|vision)(?=-|$)")
"""Words of a name that change what a model was taught or can see, and not the shape of its text part."""
_SAME_SHAPE = {
    "deepseek-r1": "deepseek-v3",
    "deepseek-v3.1": "deepseek-v3",
    "llama-3-8b": "llama-3.1-8b",
    "llama-3-70b": "llama-3.1-70b",
    "llama-3.3-70b": "llama-3.1-70b",
    "deepseek-v3.2": "deepseek-v3.2-exp",
    "glm-4.6": "glm-4.5",
    "minimax-m2": "minimax-m2.5",
    "minimax-m2.1": "minimax-m2.5",
    "minimax-m1-40k": "minimax-m1-80k",
    "minimax-text-01": "minimax-m1-80k",
    "ai21-jamba-mini-1.5": "ai21-jamba-mini-1.6",
    "minimax-m2.7": "minimax-m2.5",
    "glm-4.7": "glm-4.5",
    "glm-5.1": "glm-5",
    "kimi-k2.6": "kimi-k2.5",
    "deepseek-v3.1-terminus": "deepseek-v3",
    "deepseek-v3-0324": "deepseek-v3",
    "deepseek-math": "deepseek-v3.2-exp",
    "llama-3.1-nemotron-70b": "llama-3.1-70b",
    "bloom-176b": "bloom",
    "deepseek-coder-v2": "deepseek-v2",
    "deepseek-v2.5": "deepseek-v2",
    "deepseek-v2-chat": "deepseek-v2",
    "deepseek-v2-lite-chat": "deepseek-v2-lite",
    "deepseek-coder-v2-lite": "deepseek-v2-lite",
    "deepseek-r1-distill-llama-8b": "llama-3.1-8b",
    "deepseek-r1-distill-llama-70b": "llama-3.1-70b",
    "deepseek-r1-distill-qwen-1.5b": "qwen2.5-1.5b",
    "deepseek-r1-distill-qwen-7b": "qwen2.5-7b",
    "deepseek-r1-distill-qwen-14b": "qwen2.5-14b",
    "deepseek-r1-distill-qwen-32b": "qwen2.5-32b",
    "deepseek-r1-0528-qwen3-8b": "qwen3-8b",
    "qwq-32b": "qwen2.5-32b",
    "qwen2-7b": "qwen2.5-7b",
    "qwen2-72b": "qwen2.5-72b",
    "qwen3-coder-next": "qwen3-next-80b-a3b",
    "qwen3.6-27b": "qwen3.5-27b",
    "qwen3.6-35b-a3b": "qwen3.5-35b-a3b",
    "mistral-small-3.1-24b": "mistral-small-24b",
    "mistral-small-3.2-24b": "mistral-small-24b",
    "devstral-small": "mistral-small-24b",
    "magistral-small": "mistral-small-24b",
    "pixtral-12b": "mistral-nemo",
    "phi-4-reasoning": "phi-4",
    "phi-4-reasoning-plus": "phi-4",
    "phi-3.5-mini": "phi-3-mini-4k",
    "phi-3-mini-128k": "phi-3-mini-4k",
    "phi-3-medium-128k": "phi-3-medium-4k",
    "codellama-7b": "llama-2-7b",
    "codellama-13b": "llama-2-13b",
    "codellama-70b": "llama-2-70b",
    "vicuna-7b": "llama-2-7b",
    "vicuna-13b": "llama-2-13b",
    "llama-7b": "llama-2-7b",
    "llama-13b": "llama-2-13b",
    "llama-4-scout": "llama-4-scout-17b-16e",
    "llama-4-maverick": "llama-4-maverick-17b-128e",
    "deepseek-coder-6.7b": "llama-2-7b",
    "yi-1.5-34b": "yi-34b",
    "yi-1.5-6b": "yi-6b",
    "internlm2-20b": "internlm2-chat-20b",
    "gpt-j": "gpt-j-6b",
    "gptj": "gpt-j-6b",
    "mixtral": "mixtral-8x7b",
    "longcat-flash": "longcat-flash-chat",
    "ring-1t": "ling-1t",
}
_SIZE = re.compile(r"(?<![a-z0-9.])e?(\d+(?:\.\d+)?)(?:x(\d+(?:\.\d+)?))?([bt])(?![a-z0-9])")
_LINE = re.compile(r"(\D+?)(\d+(?:\.\d+)?)((?:-[a-z]+)*)")
"""A name that is a line's, a release's number and words, without a size: "glm-5.2", "deepseek-v4-flash"."""
_ACTIVE = re.compile(r"(?<![a-z0-9.])a(\d+(?:\.\d+)?)b(?![a-z])")


class Models:
    """Shapes by name. `configs` are a user's own, by name or repository; they go before the catalogue's."""

    def __init__(self, configs: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._facts: dict[str, Mapping[str, Any]] = {}
        for name, facts in read_model_facts().items():
            self._facts[family_of(name)] = _as_config(facts)
        own = configs or {}
        for name in sorted(own, key=lambda n: -len(_short(n))):  # of a family's, the plainest name's is the family's
            self._facts[family_of(name)] = own[name]
        self._own = {_short(name): config for name, config in own.items()}
        self._seen: dict[str, tuple[ModelShape, str]] = {}

    def find(self, name: str) -> tuple[ModelShape, str]:
        """The shape, and a word on where it comes from: "config" or "guessed from the name"."""
        short, family = _short(name), family_of(name)
        known = short if short in self._own else family
        if known not in self._seen:
            facts = self._own.get(short, self._facts.get(family))
            if facts is not None:
                self._seen[known] = (shape_of(facts, name=name), "config")
            else:
                near = self._near(family)
                guess = _guess(name) if near is None else shape_of(self._facts[near], name=name)
                self._seen[known] = (guess, "guessed from the name")
        return self._seen[known]

    def _near(self, family: str) -> str | None:
        """The family known that the name means but for a word aside, or has among its words: the longest."""
        plain = family_of(_ASIDE.sub("", family))
        if plain in self._facts:
            return plain
        alike = next((known for known in (*self._facts, *_SAME_SHAPE) if _squashed(known) == _squashed(family)), "")
        if alike:
            return _SAME_SHAPE.get(alike, alike)
        held = [known for known in self._facts if len(known) > 5 and f"-{known}-" in f"-{family}-"]
        return max(held, key=len) if held else self._release(plain)

    def _release(self, family: str) -> str | None:
        """The nearest release known of the same line, where no size is in either name: GLM-5 for GLM-5.2."""
        asked = _LINE.fullmatch(family)
        lines = ((known, _LINE.fullmatch(known)) for known in self._facts)
        alike = [(known, m) for known, m in lines if asked and m and (m[1], m[3]) == (asked[1], asked[3])]
        return min(alike, key=lambda pair: abs(float(pair[1][2]) - float(asked[2])))[0] if asked and alike else None


def _short(name: str) -> str:
    """The name without publisher."""
    return name.rsplit("/", 1)[-1].lower()


def family_of(name: str) -> str:
    """The name without publisher, release and weight format: models that share a shape share a family."""
    short = _short(name).removeprefix("meta-")
    short = short if short.startswith("deepseek-v") else _SUFFIX.sub("", short)
    short = re.sub(r"-(nvfp4|fp4|fp8|bf16|base|0324|0528)+$", "", short)
    return _SAME_SHAPE.get(short, short)


def _squashed(family: str) -> str:
    """A family's letters and digits alone: "llama3.1:8b" is written in many ways."""
    return "".join(c for c in family if c.isalnum())


def _as_config(facts: Mapping[str, Any]) -> dict[str, Any]:
    config = dict(facts)
    counts = config.pop("layer_counts", None)
    if counts:
        config["layer_types"] = [kind for kind, count in counts.items() for _ in range(count)]
    weights = config.pop("weights", None)
    if weights == "int4-experts":
        group = {"weights": {"num_bits": 4}}
        config["quantization_config"] = {"config_groups": {"experts": group}, "ignore": ["self_attn"]}
    elif weights:
        config["quantization_config"] = {"quant_method": weights}
    return config


def _guess(name: str) -> ModelShape:
    """A Llama-like shape of the size in the name (70 B where it says none), with experts where it says "A…B"."""
    short = name.rsplit("/", 1)[-1].lower()
    size, active = _SIZE.search(short), _ACTIVE.search(short)
    total = float(size[1]) * float(size[2] or 1.0) * (1000.0 if size[3] == "t" else 1.0) if size else 70.0
    used = min(float(active[1]), total) if active else total
    layers = max(16, round(32 * (used / 8.0) ** 0.35))
    hidden = max(256, round((used * 1e9 / layers / 12) ** 0.5 / 128) * 128)
    kv = 2 * 8 * 128
    mixer = Mixer(
        kind="attention",
        layers=layers,
        params=2 * hidden * hidden + hidden * kv,
        pair_flops=4 * hidden,
        kv_elements=kv,
        kv_heads=8,
    )
    ends = 2 * 128_000 * hidden
    per_layer = max(0, round((used * 1e9 - ends) / layers) - mixer.params)
    if used < total:
        expert = max(1, per_layer // 8)
        experts = max(8, round((total * 1e9 - ends) / layers - mixer.params) // expert)
        forward = Feedforward(layers=layers, dense_params=0, expert_params=expert, experts=experts, top_k=8)
    else:
        forward = Feedforward(layers=layers, dense_params=per_layer)
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        vocab=128_000,
        embedding_params=ends // 2,
        head_params=ends // 2,
        mixers=(mixer,),
        feedforwards=(forward,),
        quantization=Quantization(),
    )
