"""Llama 2 and 3.x, and Mistral (Llama with an optional sliding window)."""

from baseload.engine.config import NO_WINDOW, Fields, ModelConfig, parse_common
from baseload.engine.rope_settings import positions

MISTRAL_WINDOW = 4096  # what transformers takes where config.json does not speak of a window


def parse_llama(fields: Fields) -> ModelConfig:
    """LlamaForCausalLM."""
    bias = fields.flag("attention_bias")
    return ModelConfig(
        **parse_common(fields, "LlamaForCausalLM"),
        **positions(fields),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=fields.flag("mlp_bias"),
    )


def parse_mistral(fields: Fields) -> ModelConfig:
    """MistralForCausalLM; a null window is full attention."""
    common = parse_common(fields, "MistralForCausalLM", kv_heads=8)
    window = fields.raw.get("sliding_window", MISTRAL_WINDOW) or NO_WINDOW
    common["windows"] = (window,) * common["layers"]
    return ModelConfig(**common, **positions(fields))
