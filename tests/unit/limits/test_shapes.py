"""Shapes from config.json facts, held against the counts the publishers state."""

import pytest

from baseload.domain.errors import ModelError
from baseload.limits.catalogue.models import Models, family_of
from baseload.limits.quantization import of_formats, quantization_of
from baseload.limits.shape_config import parse_config, shape_of

LLAMA_8B = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [
        ("Qwen/Qwen3-0.6B", 0.6, 0.6),
        ("Qwen/Qwen3-8B", 8.2, 8.2),
        ("Qwen/Qwen3-32B", 32.8, 32.8),
        ("meta-llama/Meta-Llama-3.1-8B", 8.03, 8.03),
        ("meta-llama/Llama-3.1-70B-Instruct", 70.6, 70.6),
        ("meta-llama/Meta-Llama-3.1-405B", 405.9, 405.9),
        ("mistralai/Mixtral-8x7B-v0.1", 46.7, 12.9),
        ("Qwen/Qwen3-30B-A3B", 30.5, 3.3),
        ("Qwen/Qwen3-235B-A22B", 235.0, 22.0),
        ("deepseek-ai/DeepSeek-R1", 671.0, 37.0),
        ("moonshotai/Kimi-K2.5", 1026.0, 32.5),
        ("openai/gpt-oss-120b", 116.8, 5.7),
        ("openai/gpt-oss-20b", 20.9, 4.2),
        ("Qwen/Qwen3.5-397B-A17B", 397.0, 17.0),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 31.6, 3.6),
        ("zai-org/GLM-5", 744.0, 41.0),
        ("MiniMaxAI/MiniMax-M2.5", 229.0, 11.0),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 109.0, 17.2),
        ("google/gemma-4-26B-A4B", 25.2, 3.8),
    ],
)
def test_parameters_agree_with_the_published_counts(name: str, billions: float, active: float) -> None:
    """gpt-oss's 5.1 B active leaves the embedding out; ours holds it, as other publishers' counts do."""
    shape, basis = Models().find(name)
    assert basis == "config"
    assert shape.params / 1e9 == pytest.approx(billions, rel=0.015)
    assert shape.active_params / 1e9 == pytest.approx(active, rel=0.03)


def test_kv_bytes_of_the_attention_kinds() -> None:
    """Grouped-query: 2 × layers × heads × width; latent: rank + rope; windows and linear layers add nothing."""
    models = Models()
    assert models.find("Meta-Llama-3.1-8B")[0].kv_bytes_per_token() == 2 * 32 * 8 * 128 * 2
    assert models.find("DeepSeek-V3")[0].kv_bytes_per_token() == 61 * (512 + 64) * 2
    assert models.find("gpt-oss-120b")[0].kv_bytes_per_token() == 18 * 2 * 8 * 64 * 2
    assert models.find("Qwen3.5-397B-A17B")[0].kv_bytes_per_token() == 15 * 2 * 2 * 256 * 2


def test_a_window_bounds_the_cache() -> None:
    shape = shape_of({**LLAMA_8B, "sliding_window": 100}, name="x")
    assert shape.kv_bytes(1000) == shape.kv_bytes(100) == 100 * 2 * 32 * 8 * 128 * 2
    assert shape.kv_bytes(50) == shape.kv_bytes(100) / 2


def test_flops_are_two_a_parameter_and_grow_with_context() -> None:
    shape = shape_of(LLAMA_8B, name="x")
    body = shape.params - shape.embedding_params
    assert shape.flops_per_token() == 2 * body
    assert shape.flops_per_token(1000) - shape.flops_per_token() == 4 * 32 * 128 * 1000 * 32


def test_tied_embeddings_count_once() -> None:
    apart, tied = shape_of(LLAMA_8B, name="x"), shape_of({**LLAMA_8B, "tie_word_embeddings": True}, name="x")
    assert apart.params - tied.params == 128256 * 4096
    assert apart.flops_per_token() == tied.flops_per_token()


def test_formats_change_the_bytes_and_leave_what_recipes_leave() -> None:
    shape = Models().find("DeepSeek-V3")[0]
    assert shape.weight_bytes(of_formats("bf16", "bf16")) == 2 * shape.params
    assert shape.weight_bytes() == pytest.approx(shape.params, rel=0.01)
    four = shape.weight_bytes(of_formats("nvfp4", "nvfp4", mla=True))
    assert 0.5625 * shape.params < four < 0.7 * shape.params
    assert quantization_of({"quantization_config": {"quant_method": "mxfp4"}}).attention == "bf16"
    assert quantization_of({"quantization_config": {"quant_method": "fp8"}}).attention == "fp8"
    assert quantization_of({"torch_dtype": "bfloat16"}).experts == "bf16"


def test_a_missing_or_senseless_count_is_named() -> None:
    with pytest.raises(ModelError, match="`vocab_size` is missing"):
        shape_of({key: value for key, value in LLAMA_8B.items() if key != "vocab_size"}, name="x")
    with pytest.raises(ModelError, match="`hidden_size` must be a count"):
        shape_of({**LLAMA_8B, "hidden_size": "wide"}, name="x")
    with pytest.raises(ModelError, match="not a JSON object"):
        parse_config(b"[1]", name="config.json")


def test_an_unknown_model_is_guessed_from_its_name_and_says_so() -> None:
    shape, basis = Models().find("someone/Great-120B-A12B-Instruct")
    assert basis == "guessed from the name"
    assert shape.params == pytest.approx(120e9, rel=0.05)
    assert shape.active_params == pytest.approx(12e9, rel=0.05)


def test_a_users_config_goes_before_the_catalogue() -> None:
    models = Models({"someone/Great-8B": LLAMA_8B, "Qwen/Qwen3-8B": LLAMA_8B})
    assert models.find("someone/Great-8B-Instruct")[0].params == pytest.approx(8.03e9, rel=0.01)
    assert models.find("Qwen3-8B")[0].vocab == 128256


def test_releases_and_formats_of_a_model_are_one_family() -> None:
    assert family_of("nvidia/DeepSeek-R1-NVFP4") == family_of("deepseek-ai/DeepSeek-V3")
    assert family_of("nvidia/Llama-3.1-8B-Instruct-FP8") == family_of("meta-llama/Meta-Llama-3.1-8B")
    assert family_of("Qwen/Qwen3-32B") != family_of("Qwen/Qwen3-8B")
