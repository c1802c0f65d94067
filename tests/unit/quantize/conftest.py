"""Small models with weights of heavy tails, in folders as they come from elsewhere, and a text for them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from baseload.engine.config import NO_WINDOW, ModelConfig, MoeConfig, RopeConfig
from baseload.engine.weights import random_params, save_params
from baseload.train.tokens import chat_template, train_tokenizer, write_tokenizer

TEXT = " ".join(
    f"The {noun} of {place} {verb} {count} {things} before the {noun} was {verb} again."
    for noun, verb in (("keeper", "counted"), ("baker", "sold"), ("captain", "hid"), ("judge", "lost"))
    for place in ("the north", "Rome", "this town")
    for count, things in ((3, "apples"), (17, "letters"), (240, "stones"), (8, "songs"))
)
FAMILIES = ("llama", "qwen2", "qwen3", "qwen3moe")


def config_of(family: str, vocab_size: int) -> ModelConfig:
    """A model of two layers."""
    moe = MoeConfig(4, 2, 64, True, "qwen") if family == "qwen3moe" else None
    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "qwen3moe": "Qwen3Moe"}
    return ModelConfig(
        architecture=f"{names[family]}ForCausalLM",
        vocab_size=vocab_size,
        hidden=64,
        intermediate=128,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        norm_eps=1e-5,
        max_context=128,
        rope=RopeConfig(),
        windows=(NO_WINDOW,) * 2,
        is_moe=(moe is not None,) * 2,
        moe=moe,
        tied=family == "llama",
        qkv_bias=family == "qwen2",
        qk_norm=family in ("qwen3", "qwen3moe"),
        bos_token_id=1,
        eos_token_ids=(2,),
    )


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text to calibrate on."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """model_of(family): a folder with float32 weights and a tokenizer; do not write into it."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            tokenizer = train_tokenizer([TEXT] * 4, vocab_size=400)
            config = config_of(family, tokenizer.get_vocab_size())
            params = random_params(config, 5, scale=0.12)
            rng = np.random.default_rng(6)
            for group in ("attn", "mlp", "moe"):
                for name, leaf in params.get(group, {}).items():
                    noise = rng.standard_t(4, leaf.shape).astype(np.float32)
                    leaf += noise * np.float32(0.05 if name.endswith(("norm", "bias")) else 0.04)
            save_params(folder, config, params, "float32")
            write_tokenizer(folder, tokenizer, template=chat_template(lowercase_user=False), max_context=128)
            made[family] = folder
        return made[family]

    return get
