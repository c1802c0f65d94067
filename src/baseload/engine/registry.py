"""Which architectures we serve, and how a model directory's config.json becomes a ModelConfig."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from baseload.domain.errors import UnsupportedArchitecture
from baseload.engine.config import Fields, ModelConfig, read_json, token_ids
from baseload.engine.decoder import forward_full
from baseload.engine.llama import parse_llama, parse_mistral
from baseload.engine.moe import parse_mixtral, parse_qwen3_moe
from baseload.engine.qwen import parse_qwen2, parse_qwen3

__all__ = ["ARCHITECTURES", "forward_full", "read_config"]

ARCHITECTURES: dict[str, Callable[[Fields], ModelConfig]] = {
    "LlamaForCausalLM": parse_llama,
    "MistralForCausalLM": parse_mistral,
    "MixtralForCausalLM": parse_mixtral,
    "Qwen2ForCausalLM": parse_qwen2,
    "Qwen3ForCausalLM": parse_qwen3,
    "Qwen3MoeForCausalLM": parse_qwen3_moe,
}


def read_config(model_dir: Path) -> ModelConfig:
    """Parses config.json (and end-of-sequence tokens of generation_config.json) of a Hugging Face directory.

    Raises ModelError where the file is missing or wrong, UnsupportedArchitecture where it is not one of ours.
    """
    path = model_dir / "config.json"
    raw = read_json(path)
    named = raw.get("architectures")
    names = [str(name) for name in named] if isinstance(named, list) else []
    known = [name for name in names if name in ARCHITECTURES]
    if not known:
        raise UnsupportedArchitecture(
            f"{path}: architecture {', '.join(names) or 'unnamed'} is not supported;"
            f" supported are {', '.join(ARCHITECTURES)}.",
            hint="Serve this model with another engine behind an OpenAI-compatible URL.",
        )
    config = ARCHITECTURES[known[0]](Fields(raw, path))
    generation = model_dir / "generation_config.json"
    if generation.exists():
        more = token_ids(read_json(generation).get("eos_token_id"))
        config = replace(config, eos_token_ids=tuple(dict.fromkeys(config.eos_token_ids + more)))
    return config
