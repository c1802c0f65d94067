"""Reading counts out of a config.json: their many names, and what a family leaves out because its code has a default.

Files of Hugging Face leave out what equals the default of the model's own class. The defaults here are those of the
configuration classes of `transformers`; each is used only where the file is silent.
"""

from collections.abc import Mapping
from typing import Any

from baseload.domain.errors import ModelError

HINT = "Give the model's own config.json, as published on Hugging Face."
NESTED = ("text_config", "llm_config", "language_config", "text_model_config")
"""Where models that also see or hear keep the text model's settings."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {"tie_word_embeddings": True, "head_dim": 256},
    "gemma2": {"tie_word_embeddings": True, "head_dim": 256, "sliding_window": 4096, "sliding_window_pattern": 2},
    "gemma3": {
        "tie_word_embeddings": True, "head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4,
        "vocab_size": 262_208, "sliding_window": 4096, "sliding_window_pattern": 6,
    },
    "gemma4": {"tie_word_embeddings": True},
    "cohere": {"tie_word_embeddings": True},
    "cohere2": {"tie_word_embeddings": True, "sliding_window": 4096, "sliding_window_pattern": 4},
    "gpt_oss": {"sliding_window": 128, "sliding_window_pattern": 2},
    "llama4": {"attention_chunk_size": 8192, "no_rope_layer_interval": 4},
    "mllama": {"cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38]},
    "qwen3_next": {"attn_output_gate": True, "full_attention_interval": 4},
    "granitemoehybrid": {"tie_word_embeddings": True},
    "jamba": {
        "attn_layer_period": 8, "attn_layer_offset": 4, "expert_layer_period": 2, "expert_layer_offset": 1,
        "mamba_d_state": 16, "mamba_expand": 2,
    },
    "gpt2": {"tie_word_embeddings": True},
    "gpt_bigcode": {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "bloom": {"tie_word_embeddings": True},
    "opt": {"tie_word_embeddings": True},
    "mpt": {"tie_word_embeddings": True},
    "starcoder2": {"tie_word_embeddings": True},
    "falcon": {"tie_word_embeddings": True, "num_key_value_heads": 1},
}  # fmt: skip
PLAIN = ("gpt2", "gptj", "gpt_neo", "gpt_neox", "gpt_bigcode", "phi", "opt", "bloom", "falcon", "starcoder2", "mpt",
         "nemotron")  # fmt: skip
"""Families whose feed-forward has two matrices, without a gate."""
KNOWN = frozenset(DEFAULTS) | frozenset(PLAIN) | frozenset({
    "llama", "mistral", "mistral3", "ministral", "ministral3", "mixtral", "pixtral", "qwen2", "qwen2_moe", "qwen2_vl",
    "qwen2_5_vl", "qwen3", "qwen3_moe", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "deepseek_v2",
    "deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25", "kimi_linear", "kimi_vl", "glm", "glm4", "glm4_moe",
    "glm4v_moe", "glm_moe_dsa", "minimax", "minimax_m1", "minimax_m2", "minimax_text_01", "nemotron_h", "phi3",
    "phimoe", "phi4mm", "exaone", "exaone4", "exaone_moe", "hunyuan", "hunyuan_v1_moe", "hunyuan_v1_dense", "granite",
    "granitemoe", "olmo", "olmo2", "olmo3", "smollm3", "seed_oss", "ernie4_5", "ernie4_5_moe", "dots1", "bamba",
    "internlm2", "internlm3", "yi", "stablelm", "baichuan", "apertus", "minicpm3", "falcon_mamba", "mamba2",
    "lfm2", "bailing_moe", "bailing_moe_v2", "mimo", "mimo_v2_flash", "arcee", "solar", "command_r",
    "olmoe", "glm4_moe_lite", "deepseek_v4", "minimax_m3", "minimax_m3_vl", "longcat_flash", "mimo_v2", "mimo_v2_pro",
})  # fmt: skip
"""Families whose counting was written with them in view; another is read by its keys, and the shape says so."""

_NAMES = {  # those that begin with a line under them are ours alone
    "num_hidden_layers": ("num_layers", "n_layer", "n_layers"),
    "hidden_size": ("n_embd", "d_model", "n_embed"),
    "num_attention_heads": ("n_head", "n_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "head_dim": ("attention_head_dim", "kv_channels"),
    "intermediate_size": ("ffn_hidden_size", "n_inner", "ffn_dim"),
    "_experts": ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"),
    "_top_k": ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "experts_per_token", "moe_topk",
              "moe_k", "moe_top_k"),
    "_shared": ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"),
    "moe_intermediate_size": ("expert_ffn_hidden_size",),
    "shared_intermediate_size": ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"),
    "_drafts": ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules"),
}  # fmt: skip


def family(text: Mapping[str, Any]) -> str:
    """The model's family: its `model_type` without what says that it is the text part."""
    name = str(text.get("model_type") or "").lower()
    for suffix in ("_text_model", "_text", "_language_model"):
        name = name.removesuffix(suffix)
    return name


class Fields:
    """Counts of a configuration under any of their names, and what had to be assumed."""

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        nested = next((config[key] for key in NESTED if isinstance(config.get(key), Mapping)), None)
        self.text: dict[str, Any] = {**config, **nested} if nested is not None else dict(config)
        self.name, self.family = name, family(self.text)
        self.defaults = DEFAULTS.get(self.family, {})
        self.assumed: list[str] = []
        if self.family and self.family not in KNOWN:
            self.assumed.append(f"family {self.family!r} is not known: read by its keys as a decoder with gated MLPs")

    def get(self, key: str) -> Any:
        """A value as written, or its family's default; None where neither is."""
        value = self.text.get(key)
        return self.defaults.get(key) if value is None else value

    def count(self, key: str, *, default: int | None = None) -> int:
        """A count under any of its names. ModelError where it is missing or no count."""
        for name in (key, *_NAMES.get(key, ())):
            value = self.get(name)
            if value is None:
                continue
            if isinstance(value, list):  # some hybrids list a count per layer: the largest bounds it
                value = max((v for v in value if isinstance(v, int)), default=0)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ModelError(f"{self.name}: `{name}` must be a count, not {value!r}.", hint=HINT)
            return value
        if default is None:
            written = next(name for name in (key, *_NAMES.get(key, ())) if not name.startswith("_"))
            raise ModelError(f"{self.name}: `{written}` is missing.", hint=HINT)
        return default

    def flags(self, key: str) -> list[Any] | None:
        """A list with an entry per layer, or None."""
        value = self.get(key)
        return value if isinstance(value, list) and value else None

    @property
    def gated(self) -> bool:
        """Whether the feed-forward has a third matrix, its gate."""
        return self.family not in PLAIN and self.text.get("mlp_hidden_act") != "relu2"
