"""The shape of a model from its Hugging Face config.json: parameters, bytes, FLOPs per token, KV bytes per token.

`shape_of(config)` reads dense, grouped-query, multi-head latent (DeepSeek, Kimi, GLM), mixture-of-experts, sliding
window and linear-attention hybrid (Qwen3.5, Nemotron-H) configurations. It counts the text model only: a vision
tower and multi-token-prediction layers are left out, as serving text neither reads. Norms and biases are left out
too (below 0.1 % of any model). Counts agree with the published ones to 3 %; tests hold that.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from baseload.domain.errors import ModelError
from baseload.limits.quantization import Quantization, quantization_of

_HINT = "Give the model's own config.json, as published on Hugging Face."
_MIXER_OF = {
    "full_attention": "full",
    "attention": "full",
    "sliding_attention": "window",
    "chunked_attention": "window",
}


class Mixer(Struct, frozen=True):
    """A group of equal token-mixing layers. Counts are for one layer."""

    kind: str  # "attention" | "mla" | "linear"
    layers: int
    params: int
    pair_flops: int = 0  # FLOPs of one (query, key) pair over all heads, in prefill
    kv_elements: int = 0  # cache entries of one token
    window: int = 0  # keys at most looked at; 0: all
    state_elements: int = 0  # of one sequence, whatever its length (linear attention)
    kv_heads: int = 1  # across how many tensor-parallel ranks the cache can be cut


class Feedforward(Struct, frozen=True):
    """A group of equal feed-forward layers. Counts are for one layer."""

    layers: int
    dense_params: int  # read by every token: dense MLP, shared experts, router
    expert_params: int = 0  # of one routed expert
    experts: int = 0
    top_k: int = 0


class ModelShape(Struct, frozen=True):
    """What the limits model knows of a model."""

    name: str
    layers: int
    hidden: int
    vocab: int
    embedding_params: int
    head_params: int  # read once per decoded token; part of the embedding where tied
    mixers: tuple[Mixer, ...]
    feedforwards: tuple[Feedforward, ...]
    quantization: Quantization
    tied: bool = False
    draft_layers: int = 0  # for multi-token prediction: the model can speculate by itself

    @property
    def mixer_params(self) -> int:
        """Parameters of all attention and linear-attention layers."""
        return sum(m.layers * m.params for m in self.mixers)

    @property
    def dense_params(self) -> int:
        """Parameters of feed-forward layers that every token uses (shared experts and routers included)."""
        return sum(f.layers * f.dense_params for f in self.feedforwards)

    @property
    def expert_params(self) -> int:
        """Parameters of all routed experts."""
        return sum(f.layers * f.experts * f.expert_params for f in self.feedforwards)

    @property
    def params(self) -> int:
        """All parameters of the text model."""
        body = self.mixer_params + self.dense_params + self.expert_params
        return body + self.embedding_params + (0 if self.tied else self.head_params)

    @property
    def active_params(self) -> int:
        """Parameters one token uses, embedding and head included, as published counts have it."""
        routed = sum(f.layers * f.top_k * f.expert_params for f in self.feedforwards)
        body = self.mixer_params + self.dense_params + routed
        return body + self.embedding_params + (0 if self.tied else self.head_params)

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        return sum(f.layers for f in self.feedforwards if f.experts)

    def weight_bytes(self, quantization: Quantization | None = None) -> float:
        """Bytes of all weights, in the model's own format or another."""
        q = quantization or self.quantization
        ends = (self.embedding_params + (0 if self.tied else self.head_params)) * q.head_bytes
        body = self.mixer_params * q.attention_bytes + self.dense_params * q.dense_bytes
        return ends + body + self.expert_params * q.expert_bytes

    def kv_bytes_per_token(self, element_bytes: float = 2.0) -> float:
        """Cache bytes one more token of context costs, once windows are full (windowed layers add nothing)."""
        return sum(m.layers * m.kv_elements for m in self.mixers if not m.window) * element_bytes

    def kv_bytes(self, tokens: int, element_bytes: float = 2.0) -> float:
        """Cache bytes of one sequence of `tokens` tokens, windows and linear-attention states included."""
        cache = sum(m.layers * m.kv_elements * min(tokens, m.window or tokens) for m in self.mixers)
        return cache * element_bytes + 4.0 * sum(m.layers * m.state_elements for m in self.mixers)

    def flops_per_token(self, context: int = 0) -> float:
        """FLOPs to process one token that looks back at `context` tokens, head included."""
        routed = sum(f.layers * f.top_k * f.expert_params for f in self.feedforwards)
        weights = self.mixer_params + self.dense_params + routed + self.head_params
        pairs = sum(m.layers * m.pair_flops * min(context, m.window or context) for m in self.mixers)
        return 2.0 * weights + pairs


def parse_config(data: bytes, *, name: str) -> ModelShape:
    """The shape from the bytes of a config.json; ModelError names the file."""
    try:
        config = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{name}: not a JSON object: {error}.", hint=_HINT) from None
    return shape_of(config, name=name)


def shape_of(config: Mapping[str, Any], *, name: str) -> ModelShape:
    """The shape from a parsed config.json; ModelError names what is missing."""
    text = {**config, **config["text_config"]} if isinstance(config.get("text_config"), Mapping) else dict(config)
    fields = _Fields(text, name)
    hidden, vocab = fields.count("hidden_size"), fields.count("vocab_size")
    if "hybrid_override_pattern" in text:
        mixers, feedforwards = _nemotron(fields, hidden)
        layers = len(str(text["hybrid_override_pattern"]))
    else:
        layers = fields.count("num_hidden_layers")
        mixers, feedforwards = _mixers(fields, hidden, layers), _feedforwards(fields, hidden, layers)
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
        tied=bool(text.get("tie_word_embeddings", False)),
        draft_layers=fields.count("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules", default=0),
    )


class _Fields:
    """Reads counts out of a configuration, under any of their names."""

    def __init__(self, text: Mapping[str, Any], name: str) -> None:
        self.text, self.name = text, name

    def count(self, *names: str, default: int | None = None) -> int:
        for key in names:
            value = self.text.get(key)
            if value is None:
                continue
            if isinstance(value, list):  # some hybrids list a count per layer: the largest bounds it
                value = max((v for v in value if isinstance(v, int)), default=0)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ModelError(f"{self.name}: `{key}` must be a count, not {value!r}.", hint=_HINT)
            return value
        if default is None:
            raise ModelError(f"{self.name}: `{names[0]}` is missing.", hint=_HINT)
        return default


def _mixers(fields: _Fields, hidden: int, layers: int) -> tuple[Mixer, ...]:
    text = fields.text
    if fields.count("kv_lora_rank", default=0):
        return (_mla(fields, hidden, layers),)
    window = fields.count("sliding_window", "attention_chunk_size", default=0)
    listed = text.get("layer_types")
    interval = fields.count("full_attention_interval", default=0)
    if isinstance(listed, list) and listed:
        kinds = Counter(_MIXER_OF.get(str(kind), "linear") for kind in listed[:layers])
    elif interval:
        kinds = Counter("full" if (i + 1) % interval == 0 else "linear" for i in range(layers))
    elif window and text.get("use_sliding_window") is not False and "attention_chunk_size" not in text:
        kinds = Counter({"window": layers})
    else:
        kinds = Counter({"full": layers})
    groups = []
    if kinds["full"]:
        wide = fields.count("global_head_dim", default=0)
        own_kv = fields.count("num_global_key_value_heads", default=0)
        groups.append(_attention(fields, hidden, kinds["full"], 0, wide, own_kv))
    if kinds["window"]:
        groups.append(_attention(fields, hidden, kinds["window"], window, 0, 0))
    if kinds["linear"]:
        groups.append(_linear(fields, hidden, kinds["linear"]))
    return tuple(groups)


def _attention(fields: _Fields, hidden: int, layers: int, window: int, wide: int, own_kv: int) -> Mixer:
    heads = fields.count("num_attention_heads")
    kv_heads = own_kv or fields.count("num_key_value_heads", default=heads) or heads
    head_dim = wide or fields.count("head_dim", default=hidden // heads)
    gate = 2 if fields.text.get("attn_output_gate") else 1
    shared = 1 if wide and fields.text.get("attention_k_eq_v") else 2  # keys that serve as values too
    params = hidden * heads * head_dim * (gate + 1) + shared * hidden * kv_heads * head_dim
    return Mixer(
        kind="attention",
        layers=layers,
        params=params,
        pair_flops=4 * heads * head_dim,
        kv_elements=2 * kv_heads * head_dim,
        window=window,
        kv_heads=kv_heads,
    )


def _mla(fields: _Fields, hidden: int, layers: int) -> Mixer:
    heads = fields.count("num_attention_heads")
    q_rank, kv_rank = fields.count("q_lora_rank", default=0), fields.count("kv_lora_rank")
    nope, rope = fields.count("qk_nope_head_dim"), fields.count("qk_rope_head_dim")
    value = fields.count("v_head_dim")
    query = heads * (nope + rope)
    params = (hidden * q_rank + q_rank * query if q_rank else hidden * query) + hidden * (kv_rank + rope)
    params += kv_rank * heads * (nope + value) + heads * value * hidden
    index_dim, index_heads = fields.count("index_head_dim", default=0), fields.count("index_n_heads", default=0)
    params += index_heads * index_dim * (q_rank or hidden) + hidden * (index_dim + index_heads)
    return Mixer(
        kind="mla",
        layers=layers,
        params=params,
        pair_flops=2 * heads * (nope + rope + value),
        kv_elements=kv_rank + rope + index_dim,
        kv_heads=1,
    )


def _linear(fields: _Fields, hidden: int, layers: int) -> Mixer:
    """Gated delta-rule attention: projections of q, k, v, gate z and two scalars a head, a short convolution."""
    k_heads, v_heads = fields.count("linear_num_key_heads"), fields.count("linear_num_value_heads")
    k_dim, v_dim = fields.count("linear_key_head_dim"), fields.count("linear_value_head_dim")
    keys, values = k_heads * k_dim, v_heads * v_dim
    conv = fields.count("linear_conv_kernel_dim", default=4) * (2 * keys + values)
    params = hidden * (2 * keys + 2 * values + 2 * v_heads) + values * hidden + conv
    return Mixer(
        kind="linear", layers=layers, params=params, state_elements=v_heads * v_dim * k_dim, kv_heads=v_heads
    )


def _feedforwards(fields: _Fields, hidden: int, layers: int) -> tuple[Feedforward, ...]:
    text = fields.text
    experts = fields.count("n_routed_experts", "num_experts", "num_local_experts", default=0)
    if not experts:
        return (Feedforward(layers=layers, dense_params=3 * hidden * fields.count("intermediate_size")),)
    top_k = fields.count("num_experts_per_tok", "top_k_experts", "experts_per_token")
    own = fields.count("moe_intermediate_size", "intermediate_size")
    shared_inter = fields.count("shared_expert_intermediate_size", "shared_intermediate_size", default=0)
    shared = shared_inter or fields.count("n_shared_experts", default=0) * own
    if str(text.get("model_type", "")).startswith("llama4"):
        shared = own
    if text.get("enable_moe_block"):  # Gemma 4: a dense MLP beside the experts in every layer
        shared = fields.count("intermediate_size")
    step = fields.count("interleave_moe_layer_step", "decoder_sparse_step", default=1) or 1
    first_dense = fields.count("first_k_dense_replace", default=0)
    plain = text.get("mlp_only_layers")
    dense = first_dense + (len(plain) if isinstance(plain, list) else 0)
    moe = (layers - dense) // step
    routed = Feedforward(
        layers=moe,
        dense_params=3 * hidden * shared + hidden * experts,
        expert_params=3 * hidden * own,
        experts=experts,
        top_k=top_k,
    )
    if moe == layers:
        return (routed,)
    wide = fields.count("intermediate_size_mlp", "intermediate_size")
    return (Feedforward(layers=layers - moe, dense_params=3 * hidden * wide), routed)


def _nemotron(fields: _Fields, hidden: int) -> tuple[tuple[Mixer, ...], tuple[Feedforward, ...]]:
    """Nemotron-H: a letter per layer, M (Mamba-2), * (attention), E (experts) or - (MLP); the MLPs are not gated."""
    kinds = Counter(str(fields.text["hybrid_override_pattern"]))
    mixers, feedforwards = [], []
    if kinds["*"]:
        mixers.append(_attention(fields, hidden, kinds["*"], 0, 0, 0))
    if kinds["M"]:
        heads, dim = fields.count("mamba_num_heads"), fields.count("mamba_head_dim")
        state, groups = fields.count("ssm_state_size"), fields.count("n_groups")
        inner = heads * dim
        conv = fields.count("conv_kernel", default=4) * (inner + 2 * groups * state)
        params = hidden * (2 * inner + 2 * groups * state + heads) + inner * hidden + conv
        mixers.append(
            Mixer(kind="linear", layers=kinds["M"], params=params, state_elements=inner * state, kv_heads=heads)
        )
    if kinds["E"]:
        experts = fields.count("n_routed_experts")
        shared = 2 * hidden * fields.count("moe_shared_expert_intermediate_size", default=0)
        feedforwards.append(
            Feedforward(
                layers=kinds["E"],
                dense_params=shared + hidden * experts,
                expert_params=2 * hidden * fields.count("moe_intermediate_size"),
                experts=experts,
                top_k=fields.count("num_experts_per_tok"),
            )
        )
    if kinds["-"]:
        feedforwards.append(
            Feedforward(layers=kinds["-"], dense_params=2 * hidden * fields.count("intermediate_size"))
        )
    return tuple(mixers), tuple(feedforwards)
