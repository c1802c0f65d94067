"""The shapes that are measured, and the same random weights for every engine, written once.

A folder of weights holds `hf/` (Hugging Face, bfloat16), `f16.gguf` and its quantized forms (written by
`write_gguf.py` in llama.cpp's environment), and what Baseload packs from `hf/`.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from baseload.engine.config import NO_WINDOW, ModelConfig, MoeConfig, RopeConfig
from baseload.engine.weights import random_params, save_params

CHAT = "{% for message in messages %}{{ message.content }}{% endfor %}"


def _llama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int, **more) -> ModelConfig:
    """A Llama with heads of 64."""
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=vocab,
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=64,
        norm_eps=1e-5,
        max_context=4096,
        windows=(NO_WINDOW,) * layers,
        is_moe=(False,) * layers,
        eos_token_ids=(0,),
        **{"rope": RopeConfig(), **more},
    )


SHAPES = {
    "386m": _llama(1024, 3328, 24, 16, 8, 32000),
    "1.2b": _llama(2048, 8192, 16, 32, 8, 128256, tied=True, rope=RopeConfig(theta=500_000.0)),
    "moe": ModelConfig(
        architecture="Qwen3MoeForCausalLM",
        vocab_size=32000,
        hidden=1024,
        intermediate=3072,
        layers=12,
        heads=16,
        kv_heads=4,
        head_dim=64,
        norm_eps=1e-6,
        max_context=4096,
        rope=RopeConfig(theta=1_000_000.0),
        windows=(NO_WINDOW,) * 12,
        is_moe=(True,) * 12,
        moe=MoeConfig(experts=32, experts_per_token=4, intermediate=384, normalize=True, layout="qwen"),
        qk_norm=True,
        eos_token_ids=(0,),
    ),
    "tiny": _llama(128, 256, 2, 2, 1, 512),
}
"""386m: the Llama of earlier measurements; 1.2b: Llama 3.2 1B; moe: a small Qwen3-MoE, 32 experts of which 4 work."""


def active_parameters(config: ModelConfig) -> int:
    """Weights that one token goes through, head included, embedding not."""
    attention = config.hidden * (config.qkv_rows + config.heads * config.head_dim)
    if config.moe is None:
        feed = 3 * config.hidden * config.intermediate
    else:
        feed = config.hidden * (config.moe.experts + 3 * config.moe.experts_per_token * config.moe.intermediate)
    return config.layers * (attention + feed) + config.vocab_size * config.hidden


def kv_bytes_per_token(config: ModelConfig) -> int:
    """Of a cache of 16-bit numbers."""
    return config.layers * 2 * config.kv_heads * config.head_dim * 2


def write_hf(shape: str, folder: Path) -> Path:
    """The Hugging Face directory of a shape, with random weights; written only where it is not there yet."""
    target = folder / "hf"
    if not (target / "written").exists():
        config = SHAPES[shape]
        target.mkdir(parents=True, exist_ok=True)
        save_params(target, config, random_params(config, 0, "bfloat16"))
        _write_tokenizer(target, config.vocab_size)
        (target / "written").touch()
    return target


def _write_tokenizer(folder: Path, vocab: int) -> None:
    """A byte-level tokenizer of the right size: one token a byte, a few merges, and names for the rest."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
    words = ["<|end|>", *alphabet, *("".join(pair) for pair in merges)]
    words += [f"<|unused{index}|>" for index in range(vocab - len(words))]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "bos_token": "<|end|>",
        "chat_template": CHAT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
