"""What a model is: the values every part of the engine reads, parsed once from a config.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baseload.domain.errors import ModelError

NO_WINDOW = 1 << 30  # a sliding window nothing falls out of


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding. `kind` is one of `rope_settings.KINDS`; the rest is for those that scale."""

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    beta_fast: float = 32.0  # YaRN: pairs that turn more often than this over the original context are kept
    beta_slow: float = 1.0  # and those that turn less often are slowed by `factor`
    truncate: bool = True  # the bounds between them are whole pairs
    attention_factor: float = 1.0  # cos and sin are multiplied by it


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """Mixture of experts. `layout` names the scheme of tensor names: "mixtral" or "qwen"."""

    experts: int
    experts_per_token: int
    intermediate: int
    normalize: bool  # divide the chosen experts' probabilities by their sum
    layout: str


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A pre-norm decoder with rotary embedding, grouped-query attention and SwiGLU: all our families.

    Hashable, so that it can be a static argument of a compiled program. `windows` and `is_moe` have one
    element per layer; a window of NO_WINDOW is full attention.
    """

    architecture: str
    vocab_size: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    max_context: int
    rope: RopeConfig
    windows: tuple[int, ...]
    is_moe: tuple[bool, ...]
    moe: MoeConfig | None = None
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    file_dtype: str = "float32"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def parameters(self) -> int:
        """How many weights, embeddings included (norms and biases left out)."""
        attention = self.hidden * (self.qkv_rows + self.heads * self.head_dim)
        dense = 3 * self.hidden * self.intermediate
        sparse = 0 if self.moe is None else self.moe.experts * self.hidden * (3 * self.moe.intermediate + 1)
        embeddings = self.vocab_size * self.hidden * (1 if self.tied else 2)
        moe_layers = sum(self.is_moe)
        return embeddings + self.layers * attention + (self.layers - moe_layers) * dense + moe_layers * sparse


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model directory, or ModelError that names the file."""
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(
            f"{path} does not exist.",
            hint="Give a Hugging Face model directory: config.json, *.safetensors and tokenizer.json.",
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", hint="Download the model again.") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} does not hold a JSON object.", hint="Download the model again.")
    return raw


class Fields:
    """Typed access to a parsed config.json; every complaint names the file and the field."""

    def __init__(self, raw: Mapping[str, Any], path: Path) -> None:
        self.raw = raw
        self.path = path

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer; `default` stands in where the field is absent or null."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.wrong(name, "a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number; `default` stands in where the field is absent or null."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.wrong(name, "a positive number")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean; absent or null is `default`."""
        value = self.raw.get(name)
        return default if value is None else bool(value)

    def wrong(self, name: str, expected: str) -> ModelError:
        """The error for a field that is missing or not what was expected."""
        return ModelError(
            f"{self.path}: {name} is {self.raw.get(name)!r}, but must be {expected}.",
            hint="Check that this is the config.json that came with the weights.",
        )

    def _get(self, name: str, default: float | None) -> Any:
        value = self.raw.get(name)
        return default if value is None else value


def parse_common(fields: Fields, architecture: str, *, head_dim: int = 0, kv_heads: int = 0) -> dict[str, Any]:
    """The arguments of ModelConfig that all families share. The last two are the family's defaults, 0: derived."""
    activation = fields.raw.get("hidden_act") or "silu"
    if activation not in ("silu", "swish"):
        raise ModelError(
            f"{fields.path}: hidden_act {activation!r} is not supported; supported is silu.",
            hint="Serve this model with another engine.",
        )
    heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    layers = fields.integer("num_hidden_layers")
    groups = fields.integer("num_key_value_heads", kv_heads or heads)
    if heads % groups:
        raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    bos = fields.raw.get("bos_token_id")
    return {
        "architecture": architecture,
        "vocab_size": fields.integer("vocab_size"),
        "hidden": hidden,
        "intermediate": fields.integer("intermediate_size"),
        "layers": layers,
        "heads": heads,
        "kv_heads": groups,
        "head_dim": fields.integer("head_dim", head_dim or hidden // heads),
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "windows": (NO_WINDOW,) * layers,
        "is_moe": (False,) * layers,
        "tied": fields.flag("tie_word_embeddings"),
        "file_dtype": str(fields.raw.get("dtype") or fields.raw.get("torch_dtype") or "float32"),
        "bos_token_id": bos if isinstance(bos, int) else None,
        "eos_token_ids": token_ids(fields.raw.get("eos_token_id")),
    }


def token_ids(value: object) -> tuple[int, ...]:
    """Token ids given as one integer, a list of them, or nothing."""
    if isinstance(value, int):
        return (value,)
    return tuple(item for item in value if isinstance(item, int)) if isinstance(value, list) else ()
