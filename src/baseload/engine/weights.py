"""Weights between a Hugging Face directory and our parameter tree.

The tree, as host arrays; all layers of a kind are stacked, every matrix lies [out, in]:

    embed[V, H]  final_norm[H]  lm_head[V, H] (unless tied)
    attn: norm[L, H]  qkv[L, (heads + 2 kv_heads) · D, H]  out[L, H, heads · D]
          qkv_bias[L, ·]  out_bias[L, H]  q_norm[L, D]  k_norm[L, D]   (where the family has them)
    mlp:  norm[M, H]  gate_up[M, 2 I, H]  down[M, H, I]  gate_up_bias, down_bias    (the dense layers)
    moe:  norm[S, H]  router[S, E, H]  gate_up[S, E, 2 F, H]  down[S, E, H, F]      (the sparse layers)
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from baseload.domain.errors import BadWeights, ModelError
from baseload.engine.config import NO_WINDOW, ModelConfig, read_json
from baseload.engine.registry import read_config
from baseload.engine.rope_settings import rope_fields
from baseload.engine.tensors import TensorFile, open_tensors, write_tensors
from baseload.files import write_whole

Tree = dict[str, Any]

_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_LINE = 64  # bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the file and its place in the tree: `group.leaf[index]`, rows from `row` on."""

    name: str
    shape: tuple[int, ...]
    group: str  # "" for the leaves at the root
    leaf: str
    index: tuple[int, ...] = ()
    row: int = 0


def load_params(model_dir: Path | str, dtype: str = "auto") -> tuple[ModelConfig, Tree]:
    """The configuration and the parameter tree (NumPy) of a Hugging Face directory, in `dtype`.

    "auto" is the type named in config.json, with float16 widened to float32. Files are mapped and each tensor is
    copied once, into its place. Raises ModelError, UnsupportedArchitecture or BadWeights, which name the file.
    """
    model_dir = Path(model_dir)
    config = read_config(model_dir)
    target = _DTYPES[resolve_dtype(config, dtype)]
    tree = empty_tree(config, target)
    for piece, tensor in _read(model_dir, config):
        _place(tree, piece)[...] = tensor
    return config, tree


def check_weights(model_dir: Path, config: ModelConfig) -> None:
    """Raises BadWeights where `load_params` would, after reading the headers of the files only."""
    for _ in _read(model_dir, config):
        pass


def open_reader(model_dir: Path) -> tuple[ModelConfig, Callable[[Piece], np.ndarray]]:
    """The configuration of a directory, and a function that gives any one tensor of it, mapped and not copied.

    The function raises BadWeights where the tensor is missing or misshapen.
    """
    config = read_config(model_dir)
    files = _open_files(model_dir)

    def read(piece: Piece) -> np.ndarray:
        file = files.get(piece.name)
        if file is None:
            raise BadWeights(
                f"{model_dir}: tensor {piece.name} is missing from the weights.",
                hint="Check that config.json belongs to these weights, or download the model again.",
            )
        return file.read(piece.name, piece.shape)

    return config, read


def _read(model_dir: Path, config: ModelConfig) -> Iterator[tuple[Piece, np.ndarray]]:
    """Each piece of the tree with its tensor, mapped and not copied."""
    _, read = open_reader(model_dir)
    for piece in pieces(config):
        yield piece, read(piece)


def resolve_dtype(config: ModelConfig, dtype: str) -> str:
    """The type to compute in: as asked, or for "auto" bfloat16 where the file says so and float32 otherwise."""
    if dtype == "auto":
        return "bfloat16" if config.file_dtype == "bfloat16" else "float32"
    if dtype not in ("float32", "bfloat16"):
        raise ModelError(f"dtype {dtype!r} is not supported.", hint="Use auto, float32 or bfloat16.")
    return dtype


def save_params(
    model_dir: Path | str, config: ModelConfig, params: Mapping[str, Any], dtype: str = "bfloat16"
) -> None:
    """Writes config.json and model.safetensors, in Hugging Face's names, from a tree of NumPy or JAX arrays."""
    model_dir = Path(model_dir)
    model_dir.mkdir(parents=True, exist_ok=True)
    host = {
        key: {name: np.asarray(leaf) for name, leaf in value.items()} if isinstance(value, Mapping) else value
        for key, value in params.items()
    }
    tensors = {
        piece.name: _place(host, piece).astype(_DTYPES[dtype]).reshape(piece.shape) for piece in pieces(config)
    }
    write_tensors(model_dir / _SINGLE, tensors, {"format": "pt"})
    text = json.dumps(hf_config(config, dtype), indent=2) + "\n"
    write_whole(model_dir / "config.json", [text.encode()], is_durable=True)


def tree_shapes(config: ModelConfig) -> dict[str, Any]:
    """The shape of every leaf of the tree, as the module's docstring draws it."""
    c, H, D, L = config, config.hidden, config.head_dim, config.layers
    tree: dict[str, Any] = {"embed": (c.vocab_size, H), "final_norm": (H,)}
    if not c.tied:
        tree["lm_head"] = (c.vocab_size, H)
    attn: dict[str, tuple[int, ...]] = {
        "norm": (L, H),
        "qkv": (L, c.qkv_rows, H),
        "out": (L, H, c.heads * D),
    }
    if c.qkv_bias:
        attn["qkv_bias"] = (L, c.qkv_rows)
    if c.out_bias:
        attn["out_bias"] = (L, H)
    if c.qk_norm:
        attn |= {"q_norm": (L, D), "k_norm": (L, D)}
    tree["attn"] = attn
    sparse = sum(c.is_moe)
    dense, inner = L - sparse, c.intermediate
    if dense:
        tree["mlp"] = {"norm": (dense, H), "gate_up": (dense, 2 * inner, H), "down": (dense, H, inner)}
        if c.mlp_bias:
            tree["mlp"] |= {"gate_up_bias": (dense, 2 * inner), "down_bias": (dense, H)}
    if sparse and c.moe is not None:
        E, F = c.moe.experts, c.moe.intermediate
        tree["moe"] = {
            "norm": (sparse, H),
            "router": (sparse, E, H),
            "gate_up": (sparse, E, 2 * F, H),
            "down": (sparse, E, H, F),
        }
    return tree


def empty_tree(config: ModelConfig, dtype: np.dtype[Any]) -> Tree:
    """Uninitialised host arrays in the tree's shape."""
    return {
        key: {name: _aligned(shape, dtype) for name, shape in value.items()}
        if isinstance(value, dict)
        else _aligned(value, dtype)
        for key, value in tree_shapes(config).items()
    }


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An uninitialised array that begins at a cache line: XLA's CPU client uses such memory without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + size].view(dtype).reshape(shape)


def random_params(config: ModelConfig, seed: int, dtype: str = "float32", scale: float = 0.02) -> Tree:
    """A tree of normal weights (norms 1, biases 0), for training from scratch, tests and benchmarks."""
    rng = np.random.Generator(np.random.PCG64(seed))
    target = _DTYPES[dtype]

    def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("norm"):
            return np.ones(shape, target)
        if name.endswith("bias"):
            return np.zeros(shape, target)
        out = _aligned(shape, target)
        flat = out.reshape(-1)
        for start in range(0, flat.size, 1 << 22):  # in pieces: no float32 copy of the whole
            part = flat[start : start + (1 << 22)]
            part[...] = rng.standard_normal(part.size, dtype=np.float32) * np.float32(scale)
        return out

    return {
        key: {name: fill(name, shape) for name, shape in value.items()}
        if isinstance(value, dict)
        else fill(key, value)
        for key, value in tree_shapes(config).items()
    }


def pieces(config: ModelConfig) -> Iterator[Piece]:
    """Every tensor a file of this model must hold, and where it goes."""
    first, *last = top_pieces(config)
    yield first
    for layer in range(config.layers):
        yield from layer_pieces(config, layer)
    yield from last


def top_pieces(config: ModelConfig) -> Iterator[Piece]:
    """The tensors outside the layers: embedding, final norm and, unless it is tied, the head."""
    c, H = config, config.hidden
    yield Piece("model.embed_tokens.weight", (c.vocab_size, H), "", "embed")
    yield Piece("model.norm.weight", (H,), "", "final_norm")
    if not c.tied:
        yield Piece("lm_head.weight", (c.vocab_size, H), "", "lm_head")


def layer_pieces(config: ModelConfig, layer: int) -> Iterator[Piece]:
    """The tensors of one layer."""
    c, H, base = config, config.hidden, f"model.layers.{layer}"
    yield from _attention_pieces(c, base, (layer,))
    sparse = c.is_moe[layer]
    at = (sum(kind == sparse for kind in c.is_moe[:layer]),)
    yield Piece(f"{base}.post_attention_layernorm.weight", (H,), "moe" if sparse else "mlp", "norm", at)
    yield from _expert_pieces(c, base, at) if sparse else _dense_pieces(c, base, at)


def _attention_pieces(c: ModelConfig, base: str, at: tuple[int, ...]) -> Iterator[Piece]:
    H, D = c.hidden, c.head_dim
    yield Piece(f"{base}.input_layernorm.weight", (H,), "attn", "norm", at)
    row = 0
    for letter, heads in (("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads)):
        name = f"{base}.self_attn.{letter}_proj"
        yield Piece(f"{name}.weight", (heads * D, H), "attn", "qkv", at, row)
        if c.qkv_bias:
            yield Piece(f"{name}.bias", (heads * D,), "attn", "qkv_bias", at, row)
        row += heads * D
    yield Piece(f"{base}.self_attn.o_proj.weight", (H, c.heads * D), "attn", "out", at)
    if c.out_bias:
        yield Piece(f"{base}.self_attn.o_proj.bias", (H,), "attn", "out_bias", at)
    if c.qk_norm:
        yield Piece(f"{base}.self_attn.q_norm.weight", (D,), "attn", "q_norm", at)
        yield Piece(f"{base}.self_attn.k_norm.weight", (D,), "attn", "k_norm", at)


def _dense_pieces(c: ModelConfig, base: str, at: tuple[int, ...]) -> Iterator[Piece]:
    H, inner = c.hidden, c.intermediate
    for name, row in (("gate", 0), ("up", inner)):
        yield Piece(f"{base}.mlp.{name}_proj.weight", (inner, H), "mlp", "gate_up", at, row)
        if c.mlp_bias:
            yield Piece(f"{base}.mlp.{name}_proj.bias", (inner,), "mlp", "gate_up_bias", at, row)
    yield Piece(f"{base}.mlp.down_proj.weight", (H, inner), "mlp", "down", at)
    if c.mlp_bias:
        yield Piece(f"{base}.mlp.down_proj.bias", (H,), "mlp", "down_bias", at)


def _expert_pieces(c: ModelConfig, base: str, at: tuple[int, ...]) -> Iterator[Piece]:
    assert c.moe is not None
    H, F = c.hidden, c.moe.intermediate
    mixtral = c.moe.layout == "mixtral"
    block = f"{base}.block_sparse_moe" if mixtral else f"{base}.mlp"
    gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
    yield Piece(f"{block}.gate.weight", (c.moe.experts, H), "moe", "router", at)
    for expert in range(c.moe.experts):
        name, place = f"{block}.experts.{expert}", (*at, expert)
        yield Piece(f"{name}.{gate}.weight", (F, H), "moe", "gate_up", place)
        yield Piece(f"{name}.{up}.weight", (F, H), "moe", "gate_up", place, F)
        yield Piece(f"{name}.{down}.weight", (H, F), "moe", "down", place)


def _place(tree: Mapping[str, Any], piece: Piece) -> np.ndarray:
    """The view of the tree that this piece fills."""
    leaf = tree[piece.group][piece.leaf] if piece.group else tree[piece.leaf]
    target: np.ndarray = np.asarray(leaf)[piece.index]
    return target[piece.row : piece.row + piece.shape[0]]


def _open_files(model_dir: Path) -> dict[str, TensorFile]:
    """Each tensor's name and the mapped file that holds it."""
    index = model_dir / _INDEX
    if not index.exists():
        single = model_dir / _SINGLE
        if not single.exists():
            raise ModelError(
                f"{model_dir} holds neither {_SINGLE} nor {_INDEX}.",
                hint="Convert the weights to safetensors; pickled .bin files are not read.",
            )
        file = open_tensors(single)
        return dict.fromkeys(file.header, file)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise BadWeights(f"{index}: weight_map is missing.", hint="Download the model again.")
    shards = {name: open_tensors(model_dir / name) for name in sorted(set(map(str, weight_map.values())))}
    files: dict[str, TensorFile] = {}
    for tensor, name in weight_map.items():
        shard = shards[str(name)]
        if tensor not in shard.header:
            raise BadWeights(
                f"{shard.path}: tensor {tensor} is missing, though {_INDEX} places it there.",
                hint="Download the model again.",
            )
        files[tensor] = shard
    return files


def hf_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The config.json of this model, as transformers reads it."""
    c = config
    raw: dict[str, Any] = {
        "architectures": [c.architecture],
        "model_type": _MODEL_TYPES[c.architecture],
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden,
        "intermediate_size": c.intermediate,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "max_position_embeddings": c.max_context,
        "rope_theta": c.rope.theta,
        "tie_word_embeddings": c.tied,
        "attention_bias": c.qkv_bias,
        "mlp_bias": c.mlp_bias,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": c.eos_token_ids[0] if len(c.eos_token_ids) == 1 else list(c.eos_token_ids) or None,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    raw |= rope_fields(c.rope) | _window_fields(c)
    if c.moe is not None:
        raw |= {"num_experts_per_tok": c.moe.experts_per_token, "norm_topk_prob": c.moe.normalize}
        if c.moe.layout == "mixtral":
            raw["num_local_experts"] = c.moe.experts
        else:
            raw["num_experts"], raw["moe_intermediate_size"] = c.moe.experts, c.moe.intermediate
            raw["mlp_only_layers"] = [index for index, sparse in enumerate(c.is_moe) if not sparse]
            raw["decoder_sparse_step"] = 1
    return raw


def _window_fields(c: ModelConfig) -> dict[str, Any]:
    finite = [window for window in c.windows if window != NO_WINDOW]
    if c.architecture in ("MistralForCausalLM", "MixtralForCausalLM"):
        return {"sliding_window": finite[0] if finite else None}
    if not finite:
        return {}
    kinds = ["full_attention" if window == NO_WINDOW else "sliding_attention" for window in c.windows]
    return {"use_sliding_window": True, "sliding_window": finite[0], "layer_types": kinds}


_MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}
