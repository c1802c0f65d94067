"""Fixtures that several test folders need."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

# Property tests draw the same examples on every machine and take the time they take: a change does not fail for
# what is not its own. `pytest --hypothesis-profile=default` draws anew.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('unknown role') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
UNHURRIED = """
import os, sys, threading
from baseload.engine.runner import Runner
from baseload.worker.__main__ import main

def run(self, spans, work=Runner.run):
    threading.Event().wait(0.1)
    return work(self, spans)

Runner.run = run
os._exit(main(sys.argv[1:]))
"""
TEXT = "the quick brown fox jumps over the lazy dog; the dog does not mind. Größe, naïve, 東京, 🙂. " * 4


def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE with the 256 bytes, a few merges and two special tokens (ids 0 and 1)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken("<|begin|>", special=True), AddedToken("<|end|>", special=True)],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def write_tiny_model(directory: Path) -> Path:
    """A random Llama of two layers with its tokenizer, as a Hugging Face directory."""
    tokenizer = tiny_tokenizer()
    vocab, hidden, inner, heads, kv_heads, size = tokenizer.get_vocab_size(), 32, 64, 4, 2, 8
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    random = np.random.default_rng(7)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": matrix(vocab, hidden) * 4,
        "model.norm.weight": np.ones(hidden, np.float32),
        "lm_head.weight": matrix(vocab, hidden) * 4,
    }
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": np.ones(hidden, np.float32),
            prefix + "post_attention_layernorm.weight": np.ones(hidden, np.float32),
            prefix + "self_attn.q_proj.weight": matrix(heads * size, hidden),
            prefix + "self_attn.k_proj.weight": matrix(kv_heads * size, hidden),
            prefix + "self_attn.v_proj.weight": matrix(kv_heads * size, hidden),
            prefix + "self_attn.o_proj.weight": matrix(hidden, heads * size),
            prefix + "mlp.gate_proj.weight": matrix(inner, hidden),
            prefix + "mlp.up_proj.weight": matrix(inner, hidden),
            prefix + "mlp.down_proj.weight": matrix(hidden, inner),
        }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors")
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps(config))
    extra = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(extra))
    return directory


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with tokenizer and chat template, as a Hugging Face directory."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def unhurried_worker() -> tuple[str, str]:
    """Arguments for Python, before a worker's own: its engine takes 0.1 s a step (in float32), so that what is asked
    of it is not over before a busy machine has come to the next line of a test."""
    return ("-c", UNHURRIED)
