"""What GGUF files call tensors, and how they order rows. It needs NumPy alone: a peer's environment uses it, too."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
_EXPERT = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)")
_EXPERTS = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps",
    "w3": "ffn_up_exps",
    "w2": "ffn_down_exps",
}


def name_of(name: str) -> tuple[str, int | None]:
    """The file's name of the tensor that Hugging Face calls `name`, and which expert's part of it."""
    stem, _, kind = name.rpartition(".")
    if stem in ROOT:
        return f"{ROOT[stem]}.{kind}", None
    _, _, layer, rest = stem.split(".", 3)
    expert = _EXPERT.fullmatch(rest)
    if expert is not None:
        return f"blk.{layer}.{_EXPERTS[expert[2]]}.{kind}", int(expert[1])
    return f"blk.{layer}.{LAYER[rest]}.{kind}", None


def is_turned(kind: str, name: str) -> bool:
    """Whether rows of this tensor of the file are ordered for llama.cpp's rotary embedding, by `pairs`."""
    return kind == "llama" and name.split(".")[2:3] in (["attn_q"], ["attn_k"])


def halves(tensor: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of each head as rotary embedding by halves wants them; llama.cpp has the pairs side by side."""
    each = tensor.shape[0] // heads
    return tensor.reshape(heads, each // 2, 2, -1).swapaxes(1, 2).reshape(tensor.shape)


def pairs(tensor: NDArray[np.floating[Any]], heads: int) -> NDArray[np.floating[Any]]:
    """The inverse of `halves`: the order in which the file has the rows."""
    each = tensor.shape[0] // heads
    return tensor.reshape(heads, 2, each // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
