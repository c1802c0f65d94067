"""Models by name: counts as published, and names as tables write them."""

import pytest

from baseload.limits.catalogue.models import Models

MODELS = Models()
# Billions as the makers' model cards and papers have them (text model, without layers for multi-token prediction).
PUBLISHED = (
    ("meta-llama/Llama-2-13b-hf", 13.0),
    ("codellama/CodeLlama-34b-hf", 33.7),
    ("Qwen/Qwen2.5-0.5B-Instruct", 0.494),
    ("Qwen/Qwen2.5-1.5B-Instruct", 1.54),
    ("Qwen/Qwen2.5-3B-Instruct", 3.09),
    ("Qwen/Qwen2.5-14B-Instruct", 14.77),
    ("Qwen/Qwen-72B", 72.3),
    ("Qwen/Qwen1.5-110B-Chat", 111),
    ("Qwen/Qwen1.5-MoE-A2.7B", 14.3),
    ("Qwen/Qwen2-57B-A14B-Instruct", 57.4),
    ("internlm/internlm-20b", 20.0),
    ("internlm/internlm2-chat-20b", 19.86),
    ("internlm/internlm2_5-7b-chat", 7.74),
    ("mistralai/Mistral-Nemo-Instruct-2407", 12.2),
    ("mistralai/Mistral-Large-Instruct-2407", 122.6),
    ("mistralai/Ministral-8B-Instruct-2410", 8.02),
    ("mistralai/Ministral-3-3B-Instruct-2512", 3.4),
    ("mistralai/Ministral-3-8B-Instruct-2512", 8.4),
    ("mistralai/Ministral-3-14B-Instruct-2512", 13.5),
    ("google/gemma-2-2b-it", 2.61),
    ("google/gemma-2-9b-it", 9.24),
    ("google/gemma-2-27b-it", 27.2),
    ("google/gemma-7b-it", 8.54),
    ("google/gemma-3-1b-it", 1.0),
    ("google/gemma-4-31B-it", 30.7),
    ("microsoft/Phi-3-mini-4k-instruct", 3.82),
    ("microsoft/Phi-3-medium-4k-instruct", 13.96),
    ("01-ai/Yi-34B", 34.4),
    ("01-ai/Yi-6B", 6.06),
    ("01-ai/Yi-1.5-9B", 8.83),
    ("tiiuae/falcon-180B", 179.5),
    ("tiiuae/falcon-40b", 41.3),
    ("tiiuae/falcon-7b", 6.92),
    ("facebook/opt-6.7b", 6.66),
    ("facebook/opt-13b", 12.85),
    ("facebook/opt-30b", 29.97),
    ("facebook/opt-66b", 65.7),
    ("facebook/opt-1.3b", 1.3),
    ("bigscience/bloom", 176),
    ("EleutherAI/gpt-neox-20b", 20.5),
    ("mosaicml/mpt-7b", 6.65),
    ("mosaicml/mpt-30b", 29.95),
    ("THUDM/chatglm3-6b", 6.24),
    ("THUDM/glm-4-9b-chat", 9.4),
    ("THUDM/GLM-4-32B-0414", 32.6),
    ("CohereForAI/c4ai-command-r-v01", 35.0),
    ("CohereForAI/c4ai-command-r-plus", 103.8),
    ("databricks/dbrx-instruct", 131.6),
    ("xai-org/grok-1", 314),
    ("deepseek-ai/DeepSeek-V2-Lite", 15.7),
    ("deepseek-ai/deepseek-llm-67b-chat", 67.4),
    ("deepseek-ai/deepseek-coder-33b-instruct", 33.3),
    ("allenai/OLMoE-1B-7B-0924", 6.92),
    ("allenai/OLMo-2-1124-7B", 7.3),
    ("allenai/OLMo-2-1124-13B", 13.7),
    ("allenai/OLMo-2-0325-32B", 32.2),
    ("ibm-granite/granite-3.1-8b-instruct", 8.17),
    ("ByteDance-Seed/Seed-OSS-36B-Instruct", 36.2),
    ("HuggingFaceTB/SmolLM3-3B", 3.08),
    ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1.1),
    ("baidu/ERNIE-4.5-300B-A47B-PT", 300),
    ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", 120.6),
    ("Qwen/Qwen3.5-4B", 4.2),
    ("Qwen/Qwen3.5-9B", 9.0),
    ("Qwen/Qwen3.5-27B", 26.9),
    ("Qwen/Qwen3.5-35B-A3B", 34.7),
    ("Qwen/Qwen3.5-122B-A10B", 122),
    ("stepfun-ai/Step-3.5-Flash", 196),
    ("deepseek-ai/DeepSeek-V2", 235.7),
    ("deepseek-ai/DeepSeek-V4-Flash", 284),
    ("MiniMaxAI/MiniMax-M3", 427),
    ("XiaomiMiMo/MiMo-V2-Flash", 309),
    ("meituan-longcat/LongCat-Flash-Chat", 560),
    ("inclusionAI/Ling-1T", 1000),
)
ACTIVE = (
    ("deepseek-ai/DeepSeek-V4-Flash", 13),
    ("deepseek-ai/DeepSeek-V4-Pro", 49),
    ("XiaomiMiMo/MiMo-V2-Flash", 15),
    ("meituan-longcat/LongCat-Flash-Chat", 27),
    ("inclusionAI/Ling-1T", 50),
)


@pytest.mark.parametrize(("name", "billions"), PUBLISHED, ids=[name for name, _ in PUBLISHED])
def test_a_shape_has_the_published_count(name: str, billions: float) -> None:
    shape, where = MODELS.find(name)
    assert where == "config"
    assert shape.params / 1e9 == pytest.approx(billions, rel=0.012)


@pytest.mark.parametrize(("name", "billions"), ACTIVE, ids=[name for name, _ in ACTIVE])
def test_a_token_uses_the_published_count(name: str, billions: float) -> None:
    assert MODELS.find(name)[0].active_params / 1e9 == pytest.approx(billions, rel=0.07)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("nvidia/DeepSeek-R1-0528-NVFP4-v2", "deepseek-ai/DeepSeek-V3"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "meta-llama/Meta-Llama-3.1-8B"),
        ("meta-llama-3.1-8b-instruct-q4_k_m", "meta-llama/Meta-Llama-3.1-8B"),
        ("llama3.1:8b", "meta-llama/Meta-Llama-3.1-8B"),
        ("NousResearch/Hermes-3-Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B"),
        ("amd/Llama-3.1-405B-Instruct-FP8-KV", "meta-llama/Meta-Llama-3.1-405B"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "meta-llama/Meta-Llama-3.1-70B"),
        ("Qwen/Qwen3-VL-235B-A22B-Instruct", "Qwen/Qwen3-235B-A22B"),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct-AWQ", "Qwen/Qwen3-30B-A3B"),
        ("Qwen/Qwen3-Coder-Next-FP8", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
        ("zai-org/GLM-4.5-Air-AWQ-4bit", "zai-org/GLM-4.5-Air"),
        ("moonshotai/Kimi-K2.6", "moonshotai/Kimi-K2.5"),
    ],
)
def test_a_name_is_known_however_it_is_written(written: str, meant: str) -> None:
    assert MODELS.find(written)[0].params == MODELS.find(meant)[0].params


@pytest.mark.parametrize(("name", "billions"), [("google/gemma-4-E4B-it", 4), ("someone/Unheard-13B", 13)])
def test_an_unknown_model_has_the_size_its_name_says(name: str, billions: float) -> None:
    shape, where = MODELS.find(name)
    assert where == "guessed from the name"
    assert shape.params / 1e9 == pytest.approx(billions, rel=0.1)


@pytest.mark.parametrize(
    ("name", "near"),
    [("zai-org/GLM-5.9", "zai-org/GLM-5"), ("moonshotai/Kimi-K9", "moonshotai/Kimi-K2.5")],
)
def test_a_release_not_known_is_read_as_the_nearest_of_its_line(name: str, near: str) -> None:
    shape, where = MODELS.find(name)
    assert where == "guessed from the name"
    assert shape.params == MODELS.find(near)[0].params


def test_of_a_users_configs_the_one_of_the_very_name_is_read_and_else_the_plainest_of_its_family() -> None:
    common = {"hidden_size": 64, "vocab_size": 100, "num_attention_heads": 4, "intermediate_size": 128}
    layers = {"o/Own-7B": 1, "o/Own-7B-FP8": 2, "n/Own-7B-NVFP4": 3}
    models = Models({name: {**common, "num_hidden_layers": count} for name, count in layers.items()})
    for name, count in layers.items():
        assert models.find(name)[0].layers == count
    assert models.find("other/Own-7B-AWQ")[0].layers == 1


def test_keys_put_together_or_chosen_cost_what_is_kept_of_them() -> None:
    flash, blocks = (MODELS.find(name)[0] for name in ("deepseek-ai/DeepSeek-V4-Flash", "MiniMaxAI/MiniMax-M3"))
    assert flash.kv_bytes_per_token(1.0) == 21 * (512 + 128) // 4 + 20 * 512 // 128
    long, longer = (blocks.flops_per_token(tokens) for tokens in (100_000, 200_000))
    assert longer - long < 100_000 * 4 * 64 * 128 * 6  # three layers in sixty see everything; the others' index does
    assert blocks.kv_bytes_per_token() == 2 * (60 * 2 * 4 * 128 + 57 * 128)
