"""A GGUF file as a model of ours: its configuration as a config.json, and its tensors by our pieces, in float32.

Read through the `gguf` package of llama.cpp's authors (an extra: `pip install 'baseload[gguf]'`). Every tensor type
that package can restore is read: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K … Q6_K and others.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baseload.domain.errors import BadWeights, ModelError, UnsupportedArchitecture
from baseload.engine.config import Fields, ModelConfig
from baseload.engine.gguf.names import halves, is_turned, name_of
from baseload.engine.registry import ARCHITECTURES
from baseload.engine.weights import Piece

MAGIC = b"GGUF"
GROUP = 32  # columns that share a step in files of 4 bits
FOUR_BITS = {"Q4_0": (32, 18), "Q4_1": (32, 20), "Q4_K": (256, 144)}  # weights and bytes of a block
Floats = NDArray[np.float32]
_HINT = "Download the file again."
_KINDS = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
}
_MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}


class GgufFile:
    """An open file: metadata by key, tensors by name. Raises ModelError or BadWeights, which name the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = library()
        _check_magic(path)
        try:
            reader = self._library.GGUFReader(path, "r")
            self._fields = dict(reader.fields)
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        except Exception as error:  # the package raises whatever the bytes lead it into
            raise BadWeights(f"{path} is truncated or damaged: {error}", hint=_HINT) from error
        self.kind = str(self.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value as Python knows it; lists as lists."""
        field = self._fields.get(key)
        if field is None:
            return default
        try:
            return field.contents()
        except Exception as error:
            raise BadWeights(f"{self.path}: the value of {key} is damaged: {error}", hint=_HINT) from error

    def own(self, key: str, default: Any = None) -> Any:
        """A metadata value of the file's architecture, such as `llama.block_count`."""
        return self.get(f"{self.kind}.{key}", default)

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._tensors

    def rows(self, name: str) -> int:
        """The first dimension of a matrix, as we write it; 0 where there is none."""
        tensor = self._tensors.get(name)
        return 0 if tensor is None else int(tensor.shape[-1])

    def read(self, name: str, shape: tuple[int, ...], expert: int | None = None) -> Floats:
        """A tensor in float32, or one expert's part of it; BadWeights where it is missing or misshapen."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise BadWeights(f"{self.path}: tensor {name} is missing.", hint=_HINT)
        found = tuple(int(size) for size in reversed(tensor.shape))
        stacked = found if expert is None else found[1:]
        if stacked != shape or (expert is not None and expert >= found[0]):
            raise BadWeights(
                f"{self.path}: tensor {name} has shape {list(found)}, but the metadata ask for {list(shape)}.",
                hint=_HINT,
            )
        data = tensor.data if expert is None else tensor.data[expert]
        try:
            restored = self._library.quants.dequantize(np.ascontiguousarray(data), tensor.tensor_type)
        except RuntimeError:  # the package knows the type by name only
            raise BadWeights(
                f"{self.path}: tensor {name} has type {tensor.tensor_type.name}, which cannot be read.",
                hint="Use a file in F16, BF16, Q8_0, Q6_K, Q5_K, Q4_K or Q4_0.",
            ) from None
        whole: Floats = np.asarray(restored, np.float32).reshape(shape)
        return whole

    def types(self) -> dict[str, str]:
        """The type of each tensor, such as Q4_K, by name."""
        return {name: str(tensor.tensor_type.name) for name, tensor in self._tensors.items()}

    def groups(self, name: str, shape: tuple[int, ...], expert: int | None = None) -> tuple[Floats, Floats]:
        """Step and offset of each group of 32 columns (see `open_groups`) of a tensor that `read` accepts."""
        tensor = self._tensors[name]
        kind = tensor.tensor_type.name
        count = -(-shape[-1] // GROUP)
        if kind not in FOUR_BITS or len(shape) != 2:
            none = np.full((shape[0], count), np.nan, np.float32)
            return none, none
        data = np.ascontiguousarray(tensor.data if expert is None else tensor.data[expert])
        blocks = data.view(np.uint8).reshape(shape[0] * shape[1] // FOUR_BITS[kind][0], -1)
        if blocks.shape[1] != FOUR_BITS[kind][1]:
            raise BadWeights(f"{self.path}: tensor {name} is not of the size of its type {kind}.", hint=_HINT)
        floats = np.ascontiguousarray(blocks[:, :4]).view(np.float16).astype(np.float32)
        step, offset = floats[:, :1], floats[:, 1:]
        if kind == "Q4_0":
            offset = -8 * step
        elif kind == "Q4_K":
            scale, minimum = self._library.quants.Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
            step, offset = step * scale, -offset * minimum
        down = step < 0  # counted from the other end
        return (
            np.abs(step).reshape(shape[0], count),
            np.where(down, offset + 15 * step, offset).reshape(shape[0], count),
        )


def is_gguf(path: Path) -> bool:
    """Whether a path means a GGUF file: by its name, or by how it begins."""
    if path.suffix == ".gguf" and not path.is_dir():
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def library() -> ModuleType:
    """The gguf package, or ModelError that says how to install it."""
    try:
        import gguf  # noqa: PLC0415  # an extra: most never need it
        import gguf.quants  # noqa: PLC0415
    except ImportError:
        raise ModelError(
            "Reading GGUF files needs the gguf package.", hint="Install it: pip install 'baseload[gguf]'."
        ) from None
    return gguf


def open_weights(path: Path) -> tuple[ModelConfig, Callable[[Piece], Floats]]:
    """The configuration of a file, and a function that gives any one tensor of it in float32.

    Raises ModelError, UnsupportedArchitecture or BadWeights.
    """
    file = GgufFile(path)
    config = config_of(file)

    def read(piece: Piece) -> Floats:
        name, expert = name_of(piece.name)
        return _in_order(file, config, name, file.read(name, piece.shape, expert))

    return config, read


def open_groups(path: Path) -> Callable[[Piece, int], Floats]:
    """A function that gives of one matrix's groups of 32 columns the step (0) or the offset (1), float32[N, K / 32].

    Every weight of a group is step · code + offset, code in 0..15 and step ≥ 0; NaN where the tensor's type is not
    one of 4 bits. Raises as `open_weights` does.
    """
    file = GgufFile(path)
    config = config_of(file)

    def read(piece: Piece, which: int) -> Floats:
        name, expert = name_of(piece.name)
        return _in_order(file, config, name, file.groups(name, piece.shape, expert)[which])

    return read


def _in_order(file: GgufFile, config: ModelConfig, name: str, tensor: Floats) -> Floats:
    """Rows as we have them."""
    if not is_turned(file.kind, name):
        return tensor
    return halves(tensor, config.heads if name.split(".")[2] == "attn_q" else config.kv_heads)


def config_of(file: GgufFile) -> ModelConfig:
    """The model's configuration."""
    raw = config_json(file)
    return ARCHITECTURES[raw["architectures"][0]](Fields(raw, file.path))


def config_json(file: GgufFile) -> dict[str, Any]:
    """The config.json that a Hugging Face folder of this model would have, weights in bfloat16."""
    if file.kind not in _KINDS:
        raise UnsupportedArchitecture(
            f"{file.path}: architecture {file.kind or 'unnamed'} is not supported; supported are"
            f" {', '.join(_KINDS)}.",
            hint="Serve this model with another engine behind an OpenAI-compatible URL.",
        )
    experts = file.own("expert_count", 0)
    name = "MixtralForCausalLM" if file.kind == "llama" and experts else _KINDS[file.kind]
    heads = _first(file.own("attention.head_count"))
    hidden = file.own("embedding_length")
    raw: dict[str, Any] = {
        "architectures": [name],
        "model_type": _MODEL_TYPES[name],
        "vocab_size": file.rows("token_embd.weight"),
        "hidden_size": hidden,
        "intermediate_size": _first(file.own("feed_forward_length")),
        "num_hidden_layers": file.own("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _first(file.own("attention.head_count_kv", heads)),
        "head_dim": file.own("attention.key_length") or (hidden // heads if hidden and heads else None),
        "hidden_act": "silu",
        "rms_norm_eps": file.own("attention.layer_norm_rms_epsilon", 1e-5),
        "max_position_embeddings": file.own("context_length", 2048),
        "rope_theta": file.own("rope.freq_base", 10_000.0),
        "tie_word_embeddings": not file.has("output.weight"),
        "attention_bias": file.has("blk.0.attn_q.bias"),
        "bos_token_id": file.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _ends(file),
        "torch_dtype": "bfloat16",
    }
    if file.own("attention.sliding_window"):
        raw |= {"sliding_window": file.own("attention.sliding_window"), "use_sliding_window": True}
    if experts:
        raw |= {"num_experts_per_tok": file.own("expert_used_count"), "norm_topk_prob": True}
        inner = file.own("expert_feed_forward_length")
        raw |= {"num_local_experts": experts} if name == "MixtralForCausalLM" else {
            "num_experts": experts, "moe_intermediate_size": inner, "decoder_sparse_step": 1, "mlp_only_layers": [],
        }  # fmt: skip
        raw["intermediate_size"] = raw["intermediate_size"] or inner
    return raw | _scaling(file, raw)


def _scaling(file: GgufFile, raw: dict[str, Any]) -> dict[str, Any]:
    """Rotary scaling: by name in the metadata, or Llama 3's, of which the file holds each frequency's factor."""
    if file.has("rope_freqs.weight") and isinstance(raw["head_dim"], int):
        factors = file.read("rope_freqs.weight", (raw["head_dim"] // 2,))
        scaling = {
            "rope_type": "llama3",
            "factor": float(np.max(factors)),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        return {"rope_scaling": scaling}
    kind = file.own("rope.scaling.type", "none")
    factor = file.own("rope.scaling.factor") or file.own("rope.scale_linear")
    if kind == "none" and not file.own("rope.scale_linear"):
        return {}
    scaling = {"rope_type": "linear" if kind == "none" else kind, "factor": factor}
    if original := file.own("rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = original
    return {"rope_scaling": scaling}


def _ends(file: GgufFile) -> list[int] | None:
    """Tokens that end an answer."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = [value for key in keys if isinstance(value := file.get(f"tokenizer.ggml.{key}"), int)]
    return list(dict.fromkeys(found)) or None


def _first(value: Any) -> Any:
    """A value given once for all layers, or as a list in which all layers agree."""
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        return value[0]
    return value


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            begins = file.read(4)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.", hint="Check the path.") from None
    if begins != MAGIC:
        raise BadWeights(f"{path} is not a GGUF file: it does not begin with GGUF.", hint=_HINT)
