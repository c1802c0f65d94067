"""Qwen 2 and 2.5 (biased queries, keys and values) and Qwen 3 (normed queries and keys)."""

from baseload.engine.config import NO_WINDOW, Fields, ModelConfig, parse_common
from baseload.engine.rope_settings import positions


def parse_qwen2(fields: Fields) -> ModelConfig:
    """Qwen2ForCausalLM, also the architecture of Qwen 2.5."""
    common = parse_common(fields, "Qwen2ForCausalLM")
    common["windows"] = layer_windows(fields, common["layers"])
    return ModelConfig(**common, **positions(fields), qkv_bias=True)


def parse_qwen3(fields: Fields) -> ModelConfig:
    """Qwen3ForCausalLM."""
    common = parse_common(fields, "Qwen3ForCausalLM", head_dim=128)
    common["windows"] = layer_windows(fields, common["layers"])
    bias = fields.flag("attention_bias")
    return ModelConfig(**common, **positions(fields), qk_norm=True, qkv_bias=bias, out_bias=bias)


def layer_windows(fields: Fields, layers: int) -> tuple[int, ...]:
    """One window per layer: by `layer_types` where given, else layers from `max_window_layers` on slide."""
    window = fields.raw.get("sliding_window") or NO_WINDOW
    if not fields.flag("use_sliding_window"):
        return (NO_WINDOW,) * layers
    kinds = fields.raw.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(window if kind == "sliding_attention" else NO_WINDOW for kind in kinds)
    first = fields.raw.get("max_window_layers", 28)
    return tuple(window if index >= first else NO_WINDOW for index in range(layers))
