"""Which shape stands behind a model's name: the user's config.json, the catalogue, or a guess said to be one."""

import re
from collections.abc import Mapping
from typing import Any

from baseload.limits.catalogue.accelerators import read_model_facts
from baseload.limits.quantization import Quantization
from baseload.limits.shape_config import shape_of
from baseload.limits.shapes import Feedforward, Mixer, ModelShape

_SUFFIX = re.compile(
    r"(-(instruct|chat|base|it|hf|thinking|fp8|nvfp4|fp4|mxfp4|bf16|int4|int8|awq|gptq|dynamic|block|static|"
    r"pertensor|w4a16|w8a8|v\d+(\.\d+)?|\d{4}))+$"
)
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
}
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)(?:x(\d+(?:\.\d+)?))?b(?![a-z])")
_ACTIVE = re.compile(r"(?<![a-z0-9.])a(\d+(?:\.\d+)?)b(?![a-z])")


class Models:
    """Shapes by name. `configs` are a user's own, by name or repository; they go before the catalogue's."""

    def __init__(self, configs: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._facts: dict[str, Mapping[str, Any]] = {}
        for name, facts in read_model_facts().items():
            self._facts[family_of(name)] = _as_config(facts)
        for name, config in (configs or {}).items():
            self._facts[family_of(name)] = config
        self._seen: dict[str, tuple[ModelShape, str]] = {}

    def find(self, name: str) -> tuple[ModelShape, str]:
        """The shape, and a word on where it comes from: "config" or "guessed from the name"."""
        family = family_of(name)
        if family not in self._seen:
            facts = self._facts.get(family)
            if facts is not None:
                self._seen[family] = (shape_of(facts, name=name), "config")
            else:
                self._seen[family] = (_guess(name), "guessed from the name")
        return self._seen[family]


def family_of(name: str) -> str:
    """The name without publisher, release and weight format: models that share a shape share a family."""
    short = name.rsplit("/", 1)[-1].lower().removeprefix("meta-")
    short = short if short.startswith("deepseek-v") else _SUFFIX.sub("", short)
    short = re.sub(r"-(nvfp4|fp4|fp8|bf16|base|0324|0528)+$", "", short)
    return _SAME_SHAPE.get(short, short)


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
    total = float(size[1]) * (float(size[2]) if size[2] else 1.0) if size else 70.0
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
