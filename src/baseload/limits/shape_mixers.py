"""The token-mixing layers of a configuration: which kind each layer is, and what a layer of that kind counts."""

from collections import Counter
from collections.abc import Mapping

from baseload.limits.shape_fields import Fields
from baseload.limits.shape_sparse import compressed, in_blocks
from baseload.limits.shapes import Mixer

_LISTED = {
    "full_attention": "full",
    "attention": "full",
    "global_attention": "full",
    "deepseek_sparse_attention": "full",
    "sliding_attention": "window",
    "local_attention": "window",
    "chunked_attention": "chunk",
    "linear_attention": "linear",
    "mamba": "mamba",
    "mamba2": "mamba",
    "conv": "conv",
}
_ORDER = ("full", "blocks", "window", "chunk", "cross", "linear", "mamba", "mamba1", "conv")


def mixers_of(fields: Fields, hidden: int, layers: int) -> tuple[Mixer, ...]:
    """Groups of equal token-mixing layers."""
    if fields.flags("compress_ratios"):
        return compressed(fields, hidden, layers)
    kinds = Counter(kinds_of(fields, layers))
    groups = []
    for kind in _ORDER:
        if kinds[kind]:
            groups += _group(fields, hidden, kinds[kind], kind)
    return tuple(groups)


def kinds_of(fields: Fields, layers: int) -> list[str]:
    """The kind of each layer."""
    listed, tried = fields.flags("layer_types"), fields.flags("attn_type_list")
    linear, crossed = fields.get("linear_attn_config"), fields.flags("cross_attention_layers")
    interval, period = (
        fields.count("full_attention_interval", default=0),
        fields.count("attn_layer_period", default=0),
    )
    sparse = fields.get("sparse_attention_config")
    if isinstance(sparse, Mapping) and isinstance(sparse.get("sparse_attention_freq"), list):  # MiniMax M3
        return ["blocks" if flag else "full" for flag in sparse["sparse_attention_freq"][:layers]]
    if listed:
        return [_named(fields, str(kind)) for kind in listed[:layers]]
    if tried:  # MiniMax: 1 is softmax attention
        return ["full" if flag == 1 else "linear" for flag in tried[:layers]]
    if isinstance(linear, Mapping) and isinstance(linear.get("full_attn_layers"), list):  # Kimi Linear, from 1
        full = linear["full_attn_layers"]
        return ["full" if i + 1 in full else "linear" for i in range(layers)]
    if crossed:
        return ["cross" if i in crossed else "full" for i in range(layers)]
    if interval:
        return ["full" if (i + 1) % interval == 0 else "linear" for i in range(layers)]
    if period:  # Jamba
        offset = fields.count("attn_layer_offset", default=0)
        return ["full" if i % period == offset else "mamba1" for i in range(layers)]
    if fields.family in ("mamba2", "falcon_mamba"):
        return ["mamba" if fields.family == "mamba2" else "mamba1"] * layers
    return _windowed(fields, layers)


def _windowed(fields: Fields, layers: int) -> list[str]:
    """Softmax attention throughout: full, in a window, or in chunks."""
    if fields.count("attention_chunk_size", default=0):  # Llama 4: layers without positions see everything
        rope = fields.flags("no_rope_layers")
        step = fields.count("no_rope_layer_interval", default=4) or 4
        seen = [bool(flag) for flag in rope[:layers]] if rope else [(i + 1) % step != 0 for i in range(layers)]
        return ["chunk" if flag else "full" for flag in seen]
    window, whole = fields.count("sliding_window", default=0), fields.count("max_position_embeddings", default=0)
    if not window or (whole and window >= whole) or fields.text.get("use_sliding_window") is False:
        return ["full"] * layers
    pattern, marks = fields.get("sliding_window_pattern"), fields.flags("hybrid_layer_pattern")
    if marks:  # MiMo: 1 is a window
        return ["window" if flag == 1 else "full" for flag in marks[:layers]]
    if isinstance(pattern, str) and pattern:  # EXAONE: a letter each, L and G
        return ["window" if pattern[i % len(pattern)] == "L" else "full" for i in range(layers)]
    if isinstance(pattern, int) and pattern > 1:
        return ["full" if (i + 1) % pattern == 0 else "window" for i in range(layers)]
    if fields.family.startswith(("qwen2", "qwen3")):  # windows only where asked for, and from a layer on
        if fields.text.get("use_sliding_window") is not True:
            return ["full"] * layers
        first = fields.count("max_window_layers", default=0)
        return ["window" if i >= first else "full" for i in range(layers)]
    return ["window"] * layers


def _named(fields: Fields, kind: str) -> str:
    known = _LISTED.get(kind)
    if known is None:
        words = f"layers of type {kind!r} are not known: counted as full attention"
        if words not in fields.assumed:
            fields.assumed.append(words)
    return known or "full"


def _group(fields: Fields, hidden: int, layers: int, kind: str) -> list[Mixer]:
    match kind:
        case "full" if fields.count("kv_lora_rank", default=0):
            return latent(fields, hidden, layers)
        case "full":
            wide, own = (
                fields.count("global_head_dim", default=0),
                fields.count("num_global_key_value_heads", default=0),
            )
            return [attention(fields, hidden, layers, wide=wide, own_kv=own)]
        case "blocks":
            return [in_blocks(fields, hidden, attention(fields, hidden, layers))]
        case "window":
            own = fields.count("swa_num_key_value_heads", default=0)
            return [attention(fields, hidden, layers, window=fields.count("sliding_window"), own_kv=own)]
        case "chunk":
            return [attention(fields, hidden, layers, window=fields.count("attention_chunk_size"), chunked=True)]
        case "cross":  # to what a picture left behind; text alone caches nothing here
            one = attention(fields, hidden, layers)
            return [Mixer(kind="attention", layers=layers, params=one.params, kv_heads=one.kv_heads)]
        case "linear":
            return [_linear(fields, hidden, layers)]
        case "conv":
            taps = fields.count("conv_L_cache", default=3)
            return [
                Mixer(
                    kind="linear", layers=layers, params=4 * hidden**2 + taps * hidden, state_elements=taps * hidden
                )
            ]
        case _:
            return [mamba(fields, hidden, layers) if kind == "mamba" else _mamba1(fields, hidden, layers)]


def attention(
    fields: Fields,
    hidden: int,
    layers: int,
    *,
    window: int = 0,
    chunked: bool = False,
    wide: int = 0,
    own_kv: int = 0,
) -> Mixer:
    """Softmax attention over the keys and values of grouped heads."""
    heads = fields.count("num_attention_heads")
    kv_heads = own_kv or fields.count("num_key_value_heads", default=heads) or heads
    if (
        fields.family == "falcon"
        and not fields.get("new_decoder_architecture")
        and fields.get("multi_query") is not False
    ):
        kv_heads = 1
    head_dim = wide or fields.count("head_dim", default=hidden // heads)
    value = fields.count("v_head_dim", default=head_dim) if fields.family.startswith("mimo_v2") else head_dim
    gate = 2 if fields.get("attn_output_gate") else 1
    shared = 1 if wide and fields.text.get("attention_k_eq_v") else 2  # keys that serve as values too
    across = fields.count("cla_share_factor", default=1) if fields.get("use_cla") else 1  # layers that share a cache
    return Mixer(
        kind="attention",
        layers=layers,
        params=hidden * heads * (head_dim * gate + value)
        + hidden * kv_heads * (head_dim + (shared - 1) * value) // max(1, across),
        pair_flops=2 * heads * (head_dim + value),
        kv_elements=kv_heads * (head_dim + value) // max(1, across),
        window=window,
        chunked=chunked,
        kv_heads=kv_heads,
    )


def latent(fields: Fields, hidden: int, layers: int) -> list[Mixer]:
    """Multi-head latent attention; with an indexer (DeepSeek V3.2, GLM-5), over the keys it chooses."""
    heads = fields.count("num_attention_heads")
    q_rank, kv_rank = fields.count("q_lora_rank", default=0), fields.count("kv_lora_rank")
    nope, rope = fields.count("qk_nope_head_dim"), fields.count("qk_rope_head_dim")
    value = fields.count("v_head_dim")
    query = heads * (nope + rope)
    params = (hidden * q_rank + q_rank * query if q_rank else hidden * query) + hidden * (kv_rank + rope)
    params += kv_rank * heads * (nope + value) + heads * value * hidden
    index_dim, index_heads = fields.count("index_head_dim", default=0), fields.count("index_n_heads", default=0)
    listed = fields.flags("indexer_types") or []
    shared = min(layers, sum(kind == "shared" for kind in listed[: fields.count("num_hidden_layers")]))
    plain = Mixer(
        kind="mla",
        layers=shared,
        params=params,
        pair_flops=2 * heads * (nope + rope + value),
        kv_elements=kv_rank + rope,
        top_keys=fields.count("index_topk", default=0),
        kv_heads=1,
    )
    own = Mixer(
        kind="mla",
        layers=layers - shared,
        params=params + index_heads * index_dim * (q_rank or hidden) + hidden * (index_dim + index_heads),
        pair_flops=plain.pair_flops,
        index_flops=2 * index_heads * index_dim,
        kv_elements=plain.kv_elements + index_dim,
        top_keys=plain.top_keys,
        kv_heads=1,
    )
    return [mixer for mixer in (own, plain) if mixer.layers]


def _linear(fields: Fields, hidden: int, layers: int) -> Mixer:
    """Linear attention: a state a sequence, whatever its length."""
    config = fields.get("linear_attn_config")
    if isinstance(config, Mapping):
        return _kimi_delta(Fields(config, fields.name), hidden, layers)
    if fields.get("linear_num_key_heads") is None:  # lightning attention: q, k, v, a gate as wide, and out
        if not fields.family.startswith("minimax"):
            fields.assumed.append(
                "linear attention of widths not given: counted as q, k, v, gate and out, all as wide"
            )
        heads = fields.count("num_attention_heads")
        inner = heads * fields.count("head_dim", default=hidden // heads)
        return Mixer(
            kind="linear",
            layers=layers,
            params=5 * hidden * inner,
            state_elements=inner * inner // heads,
            kv_heads=heads,
        )
    k_heads, v_heads = fields.count("linear_num_key_heads"), fields.count("linear_num_value_heads")
    k_dim, v_dim = fields.count("linear_key_head_dim"), fields.count("linear_value_head_dim")
    keys, values = k_heads * k_dim, v_heads * v_dim
    conv = fields.count("linear_conv_kernel_dim", default=4) * (2 * keys + values)
    params = hidden * (2 * keys + 2 * values + 2 * v_heads) + values * hidden + conv
    return Mixer(
        kind="linear", layers=layers, params=params, state_elements=v_heads * v_dim * k_dim, kv_heads=v_heads
    )


def _kimi_delta(config: Fields, hidden: int, layers: int) -> Mixer:
    """Kimi Delta Attention: q, k, v, out, a short convolution, two gates of low rank and a scalar a head."""
    heads, dim = config.count("num_heads"), config.count("head_dim")
    inner = heads * dim
    gates = 2 * (hidden * dim + dim * inner) + hidden * heads
    conv = 3 * inner * config.count("short_conv_kernel_size", default=4)
    return Mixer(
        kind="linear",
        layers=layers,
        params=4 * hidden * inner + gates + conv,
        state_elements=inner * dim,
        kv_heads=heads,
    )


def mamba(fields: Fields, hidden: int, layers: int) -> Mixer:
    """Mamba-2, under the names of Nemotron-H, of Granite and Bamba, or its own."""

    def count(*names: str, default: int | None = None) -> int:
        found = next((name for name in names if fields.get(name) is not None), names[0])
        return fields.count(found, default=default)

    heads = count("mamba_num_heads", "mamba_n_heads", "num_heads")
    inner = heads * count("mamba_head_dim", "mamba_d_head", "head_dim")
    state, groups = (
        count("ssm_state_size", "mamba_d_state", "state_size"),
        count("n_groups", "mamba_n_groups", default=1),
    )
    conv = count("conv_kernel", "mamba_d_conv", default=4) * (inner + 2 * groups * state)
    params = hidden * (2 * inner + 2 * groups * state + heads) + inner * hidden + conv
    return Mixer(kind="linear", layers=layers, params=params, state_elements=inner * state, kv_heads=heads)


def _mamba1(fields: Fields, hidden: int, layers: int) -> Mixer:
    inner = fields.count("mamba_expand", default=2) * hidden
    state = fields.count("mamba_d_state", default=16)
    rank = fields.count("mamba_dt_rank", default=-(-hidden // 16))
    params = 3 * hidden * inner + inner * (rank + 2 * state) + rank * inner + inner * (state + 5)
    return Mixer(kind="linear", layers=layers, params=params, state_elements=inner * state)
