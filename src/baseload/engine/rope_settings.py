"""Rotary settings of a config.json: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`."""

import math
from dataclasses import replace
from typing import Any

from baseload.domain.errors import ModelError
from baseload.engine.config import Fields, RopeConfig

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


def parse_rope(fields: Fields, default_theta: float = 10_000.0) -> RopeConfig:
    """Rotary settings; ModelError where they are wrong, or of a kind that is not computed here."""
    scaling = fields.raw.get("rope_parameters") or fields.raw.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise fields.wrong("rope_scaling", "an object")
    merged = {"rope_theta": fields.raw.get("rope_theta"), **scaling}
    inner = Fields(merged, fields.path)
    kind = str(merged.get("rope_type") or merged.get("type") or "default")
    rope = RopeConfig(theta=inner.number("rope_theta", default_theta), kind=kind)
    match kind:
        case "default":
            return rope
        case "linear" | "dynamic":
            return replace(rope, factor=inner.number("factor"))
        case "llama3":
            return replace(
                rope,
                factor=inner.number("factor"),
                low_freq_factor=inner.number("low_freq_factor"),
                high_freq_factor=inner.number("high_freq_factor"),
                original_context=inner.integer("original_max_position_embeddings"),
            )
        case "yarn":
            return _yarn(rope, inner, fields.integer("max_position_embeddings", 2048))
    raise ModelError(
        f"{fields.path}: rope scaling {kind!r} is not supported; supported are {', '.join(KINDS)}.",
        hint="Remove the scaling from config.json to use the model's original context length.",
    )


def positions(fields: Fields, default_theta: float = 10_000.0) -> dict[str, Any]:
    """The arguments of ModelConfig that say how places in the text are told apart, and how many there are."""
    rope = parse_rope(fields, default_theta)
    return {"rope": rope, "max_context": context_of(rope, fields.integer("max_position_embeddings", 2048))}


def context_of(rope: RopeConfig, stated: int) -> int:
    """The longest context: as config.json states it, or, where that is the original one, as YaRN stretches it.

    Models are often given YaRN by hand, with `max_position_embeddings` left as it was.
    """
    if rope.kind != "yarn" or stated > rope.original_context:
        return stated
    return max(stated, int(rope.original_context * rope.factor))


def rope_fields(rope: RopeConfig) -> dict[str, Any]:
    """`rope_scaling` for a config.json that `parse_rope` reads back to the same settings; {} where nothing scales."""
    if rope.kind == "default":
        return {}
    scaling: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind in ("llama3", "yarn"):
        scaling["original_max_position_embeddings"] = rope.original_context
    if rope.kind == "llama3":
        scaling |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind == "yarn":
        scaling |= {
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "truncate": rope.truncate,
            "attention_factor": rope.attention_factor,
        }
    return {"rope_scaling": scaling}


def _yarn(rope: RopeConfig, inner: Fields, stated: int) -> RopeConfig:
    """YaRN (Peng et al. 2023), with the options that Hugging Face's config.json has for it."""
    original = inner.integer("original_max_position_embeddings", stated)
    is_implied = inner.raw.get("original_max_position_embeddings") is not None
    factor = inner.number("factor", stated / original if is_implied else None)
    if factor < 1.0:
        raise inner.wrong("factor", "at least 1")
    mscale, all_dims = (inner.number(name) if inner.raw.get(name) else 0.0 for name in ("mscale", "mscale_all_dim"))
    if mscale and all_dims:
        inferred = _temperature(factor, mscale) / _temperature(factor, all_dims)
    else:
        inferred = _temperature(factor, 1.0)
    return replace(
        rope,
        factor=factor,
        original_context=original,
        beta_fast=inner.number("beta_fast", 32.0),
        beta_slow=inner.number("beta_slow", 1.0),
        truncate=inner.flag("truncate", True),
        attention_factor=inner.number("attention_factor", inferred),
    )


def _temperature(factor: float, mscale: float) -> float:
    """What cos and sin are multiplied by, so that attention over a longer context stays as sharp (equation 22)."""
    return 0.1 * mscale * math.log(factor) + 1.0
