"""The shape of a model from its Hugging Face config.json.

`shape_of(config)` reads dense, grouped-query, multi-head latent (DeepSeek, Kimi, GLM), mixture-of-experts, sliding
window (Gemma, gpt-oss, EXAONE), chunked (Llama 4), sparse by an index (DeepSeek V3.2, GLM-5), linear and state-space
hybrid configurations (Qwen3-Next, Kimi Linear, MiniMax-01, Nemotron-H, Granite 4, Jamba). It counts the text model
only: towers that see or hear and layers for multi-token prediction are left out, as serving text reads neither. Norms
and biases are left out too (below 0.1 % of any model). Counts agree with the published ones to 1 %; tests hold that.
A family not known is read by its keys, and `ModelShape.assumed` says so.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from baseload.domain.errors import ModelError
from baseload.limits.quantization import quantization_of
from baseload.limits.shape_fields import HINT, Fields
from baseload.limits.shape_mixers import attention, mamba, mixers_of
from baseload.limits.shapes import Feedforward, Mixer, ModelShape


def parse_config(data: bytes, *, name: str) -> ModelShape:
    """The shape from the bytes of a config.json; ModelError names the file."""
    try:
        config = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{name}: not a JSON object: {error}.", hint=HINT) from None
    return shape_of(config, name=name)


def shape_of(config: Mapping[str, Any], *, name: str) -> ModelShape:
    """The shape from a parsed config.json; ModelError names what is missing."""
    fields = Fields(config, name)
    hidden, vocab = fields.count("hidden_size"), fields.count("vocab_size")
    pattern = fields.get("hybrid_override_pattern")
    if pattern is not None:
        mixers, feedforwards = _lettered(fields, hidden, str(pattern))
        layers = len(str(pattern))
    else:
        layers = fields.count("num_hidden_layers") * (2 if fields.family == "longcat_flash" else 1)
        mixers, feedforwards = mixers_of(fields, hidden, layers), _feedforwards(fields, hidden, layers)
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        vocab=vocab,
        embedding_params=vocab * hidden,
        head_params=vocab * hidden,
        mixers=mixers,
        feedforwards=feedforwards,
        quantization=quantization_of(config),
        tied=bool(fields.get("tie_word_embeddings") or False),
        draft_layers=fields.count("_drafts", default=0),
        assumed=tuple(fields.assumed),
    )


def _feedforwards(fields: Fields, hidden: int, layers: int) -> tuple[Feedforward, ...]:
    experts = fields.count("_experts", default=0)
    if fields.family in ("mamba2", "falcon_mamba"):
        return ()
    if experts <= 1:
        wide = fields.count("intermediate_size", default=0 if fields.gated else 4 * hidden) or 4 * hidden
        if fields.family == "granitemoehybrid":
            wide = fields.count("shared_intermediate_size", default=wide)
        return (Feedforward(layers=layers, dense_params=(3 if fields.gated else 2) * hidden * wide),)
    own = fields.count("moe_intermediate_size", default=0) or fields.count("intermediate_size")
    if fields.family == "longcat_flash":
        return _beside(fields, hidden, layers, experts, own)
    shared = fields.count("shared_intermediate_size", default=0) or fields.count("_shared", default=0) * own
    if fields.family == "llama4":
        shared = own
    if fields.text.get("enable_moe_block"):  # Gemma 4: a dense MLP beside the experts in every layer
        shared = fields.count("intermediate_size")
    moe = sum(_routed(fields, layers))
    routed = Feedforward(
        layers=moe,
        dense_params=3 * hidden * shared + hidden * experts,
        expert_params=3 * hidden * own,
        experts=experts,
        top_k=fields.count("_top_k"),
    )
    if moe == layers:
        return (routed,)
    keys = ("intermediate_size_mlp", "dense_intermediate_size")
    wide = max(fields.count(key, default=0) for key in keys) or fields.count("intermediate_size")
    return (Feedforward(layers=layers - moe, dense_params=3 * hidden * wide), routed)


def _beside(fields: Fields, hidden: int, layers: int, experts: int, own: int) -> tuple[Feedforward, ...]:
    """LongCat: two attentions with a dense MLP each, and experts beside; some chosen are empty and cost nothing."""
    empty = fields.count("zero_expert_num", default=0)
    chosen = fields.count("_top_k") * experts / (experts + empty)
    routed = Feedforward(
        layers=layers // 2,
        dense_params=hidden * (experts + empty),
        expert_params=3 * hidden * own,
        experts=experts,
        top_k=max(1, round(chosen)),
    )
    return (Feedforward(layers=layers, dense_params=3 * hidden * fields.count("intermediate_size")), routed)


def _routed(fields: Fields, layers: int) -> list[bool]:
    """Which layers have routed experts."""
    listed, marked, named = fields.flags("mlp_layer_types"), fields.flags("is_moe_layer"), fields.flags("moe_layers")
    if listed:
        return [kind == "sparse" for kind in listed[:layers]]
    if marked:
        return [bool(flag) for flag in marked[:layers]]
    if named:
        return [i in named for i in range(layers)]
    often = fields.get("moe_layer_freq")
    if isinstance(often, list):
        return [bool(flag) for flag in often[:layers]]
    period = fields.count("expert_layer_period", default=0)
    if period:
        offset = fields.count("expert_layer_offset", default=0)
        return [i % period == offset for i in range(layers)]
    step = max(1, *(fields.count(key, default=1) for key in ("interleave_moe_layer_step", "decoder_sparse_step")))
    dense = fields.flags("mlp_only_layers") or []
    keys = ("first_k_dense_replace", "moe_layer_start_index", "moe_layer_num_skipped")
    first = max(fields.count(key, default=0) for key in keys)
    return [i >= first and (i + 1) % step == 0 and i not in dense for i in range(layers)]


def _lettered(fields: Fields, hidden: int, pattern: str) -> tuple[tuple[Mixer, ...], tuple[Feedforward, ...]]:
    """Nemotron-H: a letter per layer, M (Mamba-2), * (attention), E (experts) or - (MLP); the MLPs are not gated."""
    kinds = Counter(pattern)
    mixers, feedforwards = [], []
    if kinds["*"]:
        mixers.append(attention(fields, hidden, kinds["*"]))
    if kinds["M"]:
        mixers.append(mamba(fields, hidden, kinds["M"]))
    if kinds["E"]:
        experts = fields.count("_experts")
        inside = fields.count("moe_latent_size", default=0) or hidden
        shared = 2 * hidden * fields.count("moe_shared_expert_intermediate_size", default=0)
        feedforwards.append(
            Feedforward(
                layers=kinds["E"],
                dense_params=shared + hidden * experts + (2 * hidden * inside if inside != hidden else 0),
                expert_params=2 * inside * fields.count("moe_intermediate_size"),
                experts=experts,
                top_k=fields.count("_top_k"),
            )
        )
    if kinds["-"]:
        feedforwards.append(
            Feedforward(layers=kinds["-"], dense_params=2 * hidden * fields.count("intermediate_size"))
        )
    return tuple(mixers), tuple(feedforwards)
