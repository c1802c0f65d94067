"""Token-mixing layers that look at keys an index has chosen by block, or at keys compressed together.

Both keep their windows' newest keys beside; those few are left out, below a tenth of what is read at 8,000 tokens.
"""

from collections import Counter
from collections.abc import Mapping

from baseload.limits.shape_fields import Fields
from baseload.limits.shapes import Mixer

_INDEXED = 4
"""DeepSeek V4: layers that put so many keys together choose among them; those that put more together read all."""


def compressed(fields: Fields, hidden: int, layers: int) -> tuple[Mixer, ...]:
    """DeepSeek V4: one head of keys that serve as values, four or 128 put together, or a window of them."""
    ratios = [int(ratio) for ratio in (fields.flags("compress_ratios") or [])[:layers]]
    return tuple(_compressed(fields, hidden, count, ratio) for ratio, count in sorted(Counter(ratios).items()))


def _compressed(fields: Fields, hidden: int, layers: int, ratio: int) -> Mixer:
    heads, dim = fields.count("num_attention_heads"), fields.count("head_dim")
    q_rank, o_rank, groups = (fields.count(key) for key in ("q_lora_rank", "o_lora_rank", "o_groups"))
    params = q_rank * (hidden + heads * dim) + hidden * dim + o_rank * (heads * dim + groups * hidden)
    if ratio <= 1:
        window = fields.count("sliding_window", default=128)
        return Mixer(
            kind="attention",
            layers=layers,
            params=params,
            pair_flops=4 * heads * dim,
            kv_elements=dim,
            window=window,
        )
    if ratio > _INDEXED:
        return Mixer(
            kind="attention",
            layers=layers,
            params=params + 2 * hidden * dim,
            pair_flops=4 * heads * dim // ratio,
            kv_elements=max(1, dim // ratio),
        )
    index_heads, index_dim = fields.count("index_n_heads"), fields.count("index_head_dim")
    index = index_heads * (q_rank * index_dim + hidden) + 4 * hidden * index_dim
    return Mixer(
        kind="attention",
        layers=layers,
        params=params + 4 * hidden * dim + index,
        pair_flops=4 * heads * dim // ratio,
        index_flops=2 * index_heads * index_dim // ratio,
        kv_elements=(dim + index_dim) // ratio,
        top_keys=fields.count("index_topk") * ratio,
    )


def in_blocks(fields: Fields, hidden: int, plain: Mixer) -> Mixer:
    """MiniMax M3: grouped heads over the blocks of keys that an index has chosen."""
    stated = fields.get("sparse_attention_config")
    sparse = Fields(stated if isinstance(stated, Mapping) else {}, fields.name)
    heads, dim = sparse.count("sparse_num_index_heads"), sparse.count("sparse_index_dim")
    return Mixer(
        kind="attention",
        layers=plain.layers,
        params=plain.params + hidden * dim * (heads + 1),
        pair_flops=plain.pair_flops,
        index_flops=2 * heads * dim,
        kv_elements=plain.kv_elements + dim,
        top_keys=sparse.count("sparse_topk_blocks") * sparse.count("sparse_block_size"),
        kv_heads=plain.kv_heads,
    )
