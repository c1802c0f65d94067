"""Makes the golden models and logits beside this file, with Hugging Face transformers in float32.

Run it in an environment of its own (torch and transformers are no dependency of Baseload or its tests):

    python -m venv /tmp/hf && /tmp/hf/bin/pip install torch==2.13.0 transformers safetensors
    /tmp/hf/bin/python tests/golden/logits/make_goldens.py

Each directory then holds a tiny random model as transformers saves it and `logits.npz`: token ids and logits of
three sequences of different lengths, each computed alone by transformers. Names as arguments make only these.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

HERE = Path(__file__).parent
BASE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.25,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
MOE = {**BASE, "num_hidden_layers": 2, "intermediate_size": 32}
QWEN_MOE = {**MOE, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
MODELS = {
    "llama2-tied": (LlamaForCausalLM, LlamaConfig(**{**BASE, "num_key_value_heads": 4}, tie_word_embeddings=True)),
    "llama3-sharded": (LlamaForCausalLM, LlamaConfig(**BASE, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=False)),
    "llama-bias": (LlamaForCausalLM, LlamaConfig(**BASE, attention_bias=True, mlp_bias=True)),
    "mistral-window": (MistralForCausalLM, MistralConfig(**BASE, sliding_window=8)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**BASE, tie_word_embeddings=True)),
    "qwen2-window": (
        Qwen2ForCausalLM,
        Qwen2Config(**BASE, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**BASE, head_dim=16, tie_word_embeddings=False)),
    "mixtral": (MixtralForCausalLM, MixtralConfig(**MOE, num_local_experts=4, num_experts_per_tok=2)),
    "qwen3-moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**{**QWEN_MOE, "num_hidden_layers": 3}, norm_topk_prob=True, mlp_only_layers=[1]),
    ),
    "qwen3-moe-raw": (Qwen3MoeForCausalLM, Qwen3MoeConfig(**QWEN_MOE, norm_topk_prob=False)),
    "qwen2-yarn": (Qwen2ForCausalLM, Qwen2Config(**BASE, rope_parameters=YARN_ROPE)),
    "llama-dynamic": (LlamaForCausalLM, LlamaConfig(**BASE, rope_parameters=DYNAMIC_ROPE)),
}
LENGTHS = (37, 21, 5)


def make(name, kind, config, seed):
    """One model directory with its logits."""
    torch.manual_seed(seed)
    config._attn_implementation = "eager"
    model = kind(config).to(torch.float32).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith("bias"):
                weight.normal_(std=0.2)
            elif "norm" in key:
                weight.normal_(mean=1.0, std=0.2)
    out = HERE / name
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(out, max_shard_size="60KB" if "sharded" in name else "5GB")
    arrays = {}
    for index, length in enumerate(LENGTHS):
        tokens = torch.randint(0, config.vocab_size, (1, length))
        with torch.no_grad():
            logits = model(tokens).logits[0]
        arrays[f"tokens{index}"] = tokens[0].numpy().astype(np.int32)
        arrays[f"logits{index}"] = logits.numpy().astype(np.float32)
    np.savez_compressed(out / "logits.npz", **arrays)
    print(name, sum(p.numel() for p in model.parameters()), float(logits.abs().max()))


if __name__ == "__main__":
    for number, (name, (kind, config)) in enumerate(MODELS.items()):
        if not sys.argv[1:] or name in sys.argv[1:]:
            make(name, kind, config, number)
