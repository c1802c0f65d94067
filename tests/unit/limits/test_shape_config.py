"""Configurations as users bring them, by family: total parameters within one percent of the published count."""

from typing import Any

import pytest

from baseload.limits.catalogue.models import Models
from baseload.limits.shape_config import shape_of
from baseload.limits.shapes import Mixer, ModelShape
from baseload.limits.training.work import work_of

LLAMA_4 = {
    "model_type": "llama4_text",
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 48,
    "num_experts_per_tok": 1,
    "vocab_size": 202048,
    "attention_chunk_size": 8192,
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "vocab_size": 129280,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
}
GLM_4 = {
    "model_type": "glm4_moe",
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151552,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
}
GRANITE_LAYERS = ["attention" if i in (5, 15, 25, 35) else "mamba" for i in range(40)]
NEMOTRON_H = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
QWEN_NEXT = {
    "model_type": "qwen3_next",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "vocab_size": 151936,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "full_attention_interval": 4,
    "mlp_only_layers": [],
}


def _dense(family: str, hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int, **more: Any) -> Any:
    return {
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        **more,
    }


# Billions as published: model cards on Hugging Face (counts of their weight files, text model only), and the
# Gemma 3 report, table 1. Counts of weight files of Kimi Linear and Qwen3-Next without multi-token prediction.
PUBLISHED: list[tuple[str, float, dict[str, Any]]] = [
    ("Llama-4-Scout", 107.77, {"text_config": {**LLAMA_4, "num_local_experts": 16}}),
    (
        "Llama-4-Maverick",
        400.7,
        {"text_config": {**LLAMA_4, "num_local_experts": 128, "interleave_moe_layer_step": 2}},
    ),
    # Gemma's files leave out what equals its class's defaults.
    (
        "gemma-3-4b-it",
        3.884,
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "sliding_window": 1024,
            },
        },
    ),
    (
        "gemma-3-27b-it",
        27.016,
        {"text_config": _dense("gemma3_text", 5376, 21504, 62, 32, 16, 262_208, head_dim=128, sliding_window=1024)},
    ),
    ("gemma-2-27b", 27.2, _dense("gemma2", 4608, 36864, 46, 32, 16, 256_000, head_dim=128)),
    ("Qwen3-Next-80B-A3B", 79.7, QWEN_NEXT),
    (
        "Kimi-Linear-48B-A3B",
        49.1,
        {
            **DEEPSEEK,
            "model_type": "kimi_linear",
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 27,
            "num_attention_heads": 32,
            "vocab_size": 163840,
            "q_lora_rank": None,
            "moe_intermediate_size": 1024,
            "first_k_dense_replace": 1,
            "linear_attn_config": {
                "num_heads": 32,
                "head_dim": 128,
                "short_conv_kernel_size": 4,
                "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
            },
        },
    ),
    ("DeepSeek-V3", 671.0, DEEPSEEK),
    (
        "DeepSeek-V3.2",
        671.9,
        {**DEEPSEEK, "model_type": "deepseek_v32", "index_topk": 2048, "index_n_heads": 64, "index_head_dim": 128},
    ),
    (
        "Kimi-K2",
        1026.4,
        {
            **DEEPSEEK,
            "model_type": "kimi_k2",
            "num_attention_heads": 64,
            "vocab_size": 163840,
            "n_routed_experts": 384,
            "first_k_dense_replace": 1,
        },
    ),
    (
        "GLM-4.5",
        355.0,
        {
            **GLM_4,
            "hidden_size": 5120,
            "intermediate_size": 12288,
            "num_hidden_layers": 92,
            "n_routed_experts": 160,
            "moe_intermediate_size": 1536,
            "first_k_dense_replace": 3,
        },
    ),
    (
        "GLM-4.5-Air",
        106.0,
        {
            **GLM_4,
            "hidden_size": 4096,
            "intermediate_size": 10944,
            "num_hidden_layers": 46,
            "n_routed_experts": 128,
            "moe_intermediate_size": 1408,
            "first_k_dense_replace": 1,
        },
    ),
    (
        "MiniMax-M1",
        456.0,
        _dense(
            "minimax_m1",
            6144,
            9216,
            80,
            64,
            8,
            200064,
            head_dim=128,
            num_local_experts=32,
            num_experts_per_tok=2,
            attn_type_list=[0, 0, 0, 0, 0, 0, 0, 1] * 10,
        ),
    ),
    (
        "Nemotron-H-8B",
        8.1,
        _dense(
            "nemotron_h",
            4096,
            21504,
            52,
            32,
            8,
            131072,
            head_dim=128,
            hybrid_override_pattern=NEMOTRON_H,
            mamba_num_heads=128,
            mamba_head_dim=64,
            ssm_state_size=128,
            n_groups=8,
            conv_kernel=4,
        ),
    ),
    (
        "Mixtral-8x22B",
        140.6,
        _dense("mixtral", 6144, 16384, 56, 48, 8, 32768, num_local_experts=8, num_experts_per_tok=2),
    ),
    ("phi-4", 14.66, _dense("phi3", 5120, 17920, 40, 40, 10, 100352, sliding_window=None)),
    ("phi-2", 2.78, _dense("phi", 2560, 10240, 32, 32, 32, 51200)),
    (
        "Phi-3.5-MoE",
        41.9,
        _dense(
            "phimoe",
            4096,
            6400,
            32,
            32,
            8,
            32064,
            num_local_experts=16,
            num_experts_per_tok=2,
            sliding_window=131072,
            max_position_embeddings=131072,
        ),
    ),
    (
        "Phi-4-mini",
        3.84,
        _dense("phi3", 3072, 8192, 32, 24, 8, 200064, tie_word_embeddings=True, sliding_window=None),
    ),
    (
        "Llama-3.2-11B-Vision, its text model",
        9.78,
        {"text_config": _dense("mllama_text_model", 4096, 14336, 40, 32, 8, 128256)},
    ),
    (
        "EXAONE-4.0-32B",
        32.0,
        _dense(
            "exaone4",
            5120,
            27392,
            64,
            40,
            8,
            102400,
            head_dim=128,
            sliding_window=4096,
            sliding_window_pattern="LLLG",
        ),
    ),
    (
        "EXAONE-3.5-7.8B",
        7.82,
        {
            "model_type": "exaone",
            "num_layers": 32,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 102400,
        },
    ),
    (
        "Hunyuan-A13B",
        80.4,
        _dense(
            "hunyuan_v1_moe",
            4096,
            3072,
            32,
            32,
            8,
            128167,
            attention_head_dim=128,
            num_experts=64,
            moe_topk=[8] * 32,
            moe_intermediate_size=[3072] * 32,
            num_shared_expert=[1] * 32,
            tie_word_embeddings=True,
        ),
    ),
    (
        "Granite-4.0-H-Small",
        32.2,
        _dense(
            "granitemoehybrid",
            4096,
            768,
            40,
            32,
            8,
            100352,
            shared_intermediate_size=1536,
            num_local_experts=72,
            num_experts_per_tok=10,
            layer_types=GRANITE_LAYERS,
            mamba_n_heads=128,
            mamba_d_head=64,
            mamba_d_state=128,
            mamba_n_groups=1,
        ),
    ),
    (
        "Jamba-1.5-Mini",
        51.6,
        _dense("jamba", 4096, 14336, 32, 32, 8, 65536, num_experts=16, num_experts_per_tok=2, mamba_dt_rank=256),
    ),
    (
        "ERNIE-4.5-21B-A3B",
        21.8,
        {
            **_dense("ernie4_5_moe", 2560, 12288, 28, 20, 4, 103424, tie_word_embeddings=True),
            "moe_num_experts": 64,
            "moe_k": 6,
            "moe_num_shared_experts": 2,
            "moe_intermediate_size": 1536,
            "moe_layer_start_index": 1,
        },
    ),
    ("Command-A", 111.0, _dense("cohere2", 12288, 36864, 64, 96, 8, 256_000)),
    (
        "Qwen2.5-72B",
        72.7,
        _dense("qwen2", 8192, 29568, 80, 64, 8, 152064, sliding_window=131072, use_sliding_window=False),
    ),
    (
        "BLOOM",
        176.2,
        {"model_type": "bloom", "hidden_size": 14336, "n_layer": 70, "n_head": 112, "vocab_size": 250880},
    ),
]
CONFIGS = {name: config for name, _, config in PUBLISHED}


def _shape(name: str) -> ModelShape:
    return shape_of(CONFIGS[name], name=name)


def _kinds(shape: ModelShape) -> list[tuple[str, int, int]]:
    return [(mixer.kind, mixer.layers, mixer.window) for mixer in shape.mixers]


@pytest.mark.parametrize(("name", "billions", "config"), PUBLISHED, ids=[name for name, _, _ in PUBLISHED])
def test_parameters_are_within_a_percent_of_the_published_count(
    name: str, billions: float, config: dict[str, Any]
) -> None:
    shape = shape_of(config, name=name)
    assert shape.params / 1e9 == pytest.approx(billions, rel=0.01)
    assert shape.assumed == ()


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct", 400.7),
        ("meta-llama/Llama-3.2-1B", 1.24),
        ("meta-llama/Llama-3.2-3B", 3.21),
        ("meta-llama/Llama-3.2-11B-Vision", 9.78),
        ("google/gemma-3-4b-it", 3.884),
        ("google/gemma-3-12b-it", 11.771),
        ("google/gemma-3-27b-it", 27.016),
        ("Qwen/Qwen3-1.7B", 1.72),
        ("Qwen/Qwen3-4B", 4.02),
        ("Qwen/Qwen3-14B", 14.77),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct", 480.2),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 79.7),
        ("Qwen/Qwen2.5-7B-Instruct", 7.62),
        ("Qwen/Qwen2.5-32B-Instruct", 32.76),
        ("Qwen/Qwen2.5-72B-Instruct", 72.7),
        ("moonshotai/Kimi-Linear-48B-A3B-Instruct", 49.1),
        ("deepseek-ai/DeepSeek-V3.2-Exp", 671.9),
        ("zai-org/GLM-4.5", 355.0),
        ("zai-org/GLM-4.5-Air", 106.0),
        ("MiniMaxAI/MiniMax-M1-80k", 456.0),
        ("nvidia/Nemotron-H-8B-Base-8K", 8.1),
        ("mistralai/Mixtral-8x22B-v0.1", 140.6),
        ("mistralai/Mistral-7B-v0.3", 7.25),
        ("mistralai/Mistral-Small-24B-Base-2501", 23.57),
        ("microsoft/phi-4", 14.66),
        ("microsoft/Phi-3.5-MoE-instruct", 41.9),
        ("microsoft/Phi-4-mini-instruct", 3.84),
        ("LGAI-EXAONE/EXAONE-4.0-32B", 32.0),
        ("LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct", 7.82),
        ("tencent/Hunyuan-A13B-Instruct", 80.4),
        ("ibm-granite/granite-4.0-h-small", 32.2),
        ("baidu/ERNIE-4.5-21B-A3B-PT", 21.8),
        ("CohereLabs/c4ai-command-a-03-2025", 111.0),
        ("ai21labs/AI21-Jamba-Mini-1.6", 51.6),
        ("zai-org/GLM-4.6", 355.0),
        ("deepseek-ai/DeepSeek-V3.2", 671.9),
        ("MiniMaxAI/MiniMax-M2", 229.0),
        ("moonshotai/Kimi-K2-Thinking", 1026.4),
    ],
)
def test_a_model_is_known_by_name_within_a_percent(name: str, billions: float) -> None:
    shape, basis = Models().find(name)
    assert basis == "config"
    assert shape.params / 1e9 == pytest.approx(billions, rel=0.01)
    assert shape.assumed == ()


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("gemma-3-27b-it", [("attention", 10, 0), ("attention", 52, 1024)]),
        ("gemma-2-27b", [("attention", 23, 0), ("attention", 23, 4096)]),
        ("Llama-4-Scout", [("attention", 12, 0), ("attention", 36, 8192)]),
        ("EXAONE-4.0-32B", [("attention", 16, 0), ("attention", 48, 4096)]),
        ("Qwen3-Next-80B-A3B", [("attention", 12, 0), ("linear", 36, 0)]),
        ("Kimi-Linear-48B-A3B", [("mla", 7, 0), ("linear", 20, 0)]),
        ("MiniMax-M1", [("attention", 10, 0), ("linear", 70, 0)]),
        ("Granite-4.0-H-Small", [("attention", 4, 0), ("linear", 36, 0)]),
        ("Phi-3.5-MoE", [("attention", 32, 0)]),  # a window as long as the context is none
        ("Qwen2.5-72B", [("attention", 80, 0)]),
    ],
)
def test_layers_are_of_the_kind_their_family_gives_them(name: str, kinds: list[tuple[str, int, int]]) -> None:
    assert _kinds(_shape(name)) == kinds


def test_chunks_bound_the_cache_and_halve_what_is_looked_at() -> None:
    """Llama 4: three layers of four see their chunk of 8,192 alone, on average half of it; the fourth sees all."""
    shape = _shape("Llama-4-Scout")
    layer = 2 * 8 * 128  # keys and values of one token
    assert shape.kv_bytes_per_token() == 12 * layer * 2
    assert shape.kv_bytes(100_000) == (12 * 100_000 + 36 * 8192) * layer * 2
    pair = 4 * 40 * 128
    assert shape.flops_per_token(100_000) - shape.flops_per_token() == pair * (12 * 100_000 + 36 * 4096)
    assert shape.flops_per_token(8000) - shape.flops_per_token() == pair * 48 * 8000
    whole = work_of(shape, tokens=16_384).attention_flops
    assert whole == pair * (12 * 16_384**2 / 2 + 36 * 2 * 8192**2 / 2)


def test_layers_without_positions_are_those_listed() -> None:
    config = {"text_config": {**LLAMA_4, "num_local_experts": 16, "no_rope_layers": [1, 0] * 24}}
    assert _kinds(shape_of(config, name="x")) == [("attention", 24, 0), ("attention", 24, 8192)]
    empty = {"text_config": {**LLAMA_4, "num_local_experts": 16, "no_rope_layers": []}}
    assert _kinds(shape_of(empty, name="x")) == _kinds(_shape("Llama-4-Scout"))


def test_an_index_bounds_the_attention_and_costs_its_own_pairs() -> None:
    """DeepSeek V3.2 attends to 2,048 keys of any context; its indexer (64 heads of 128) still looks at all."""
    dense, sparse = _shape("DeepSeek-V3"), _shape("DeepSeek-V3.2")
    grown = sparse.flops_per_token(128_000) - sparse.flops_per_token()
    assert grown == 61 * (2 * 128 * (192 + 128) * 2048 + 2 * 64 * 128 * 128_000)
    assert grown < (dense.flops_per_token(128_000) - dense.flops_per_token()) / 4
    assert sparse.kv_bytes_per_token() == dense.kv_bytes_per_token() + 61 * 128 * 2
    assert sparse.flops_per_token(1000) > dense.flops_per_token(1000)  # short contexts pay for the index
    shared = {**CONFIGS["DeepSeek-V3.2"], "indexer_types": ["full", "shared"] * 30 + ["full"]}
    assert shape_of(shared, name="x").kv_bytes_per_token() == dense.kv_bytes_per_token() + 31 * 128 * 2


def test_a_state_costs_a_sequence_and_not_a_token() -> None:
    shape = _shape("Kimi-Linear-48B-A3B")
    assert shape.kv_bytes_per_token() == 7 * (512 + 64) * 2
    assert shape.kv_bytes(1) - shape.kv_bytes_per_token() == 20 * 32 * 128 * 128 * 4


def test_layers_that_look_at_pictures_cache_nothing_of_a_text() -> None:
    shape = _shape("Llama-3.2-11B-Vision, its text model")
    assert shape.kv_bytes_per_token() == 32 * 2 * 8 * 128 * 2
    assert shape.flops_per_token(1000) - shape.flops_per_token() == 32 * 4 * 4096 * 1000


def test_layers_that_share_a_cache_hold_it_once() -> None:
    plain = _dense("hunyuan", 6400, 18304, 64, 80, 8, 129024, attention_head_dim=80)
    shared = {**plain, "use_cla": True, "cla_share_factor": 2}
    assert shape_of(shared, name="x").kv_bytes(10) == shape_of(plain, name="x").kv_bytes(10) / 2


@pytest.mark.parametrize("tokens", [100, 5000, 20_000])
def test_a_sample_s_pairs_are_the_sum_of_its_queries(tokens: int) -> None:
    for mixer in (
        Mixer(kind="attention", layers=1, params=0, pair_flops=1),
        Mixer(kind="attention", layers=1, params=0, pair_flops=1, window=1024),
        Mixer(kind="mla", layers=1, params=0, pair_flops=1, top_keys=2048, index_flops=2),
        Mixer(kind="attention", layers=1, params=0, pair_flops=1, window=1000, chunked=True),
    ):
        summed = sum(mixer.query_flops(i) for i in range(tokens))
        assert mixer.sample_flops(tokens) == pytest.approx(summed, rel=0.02)


def test_an_unknown_family_is_read_by_its_keys_and_says_so() -> None:
    odd = shape_of(_dense("newcomer", 4096, 14336, 32, 32, 8, 128256), name="x")
    assert odd.params == pytest.approx(8.03e9, rel=0.01)
    assert odd.assumed == ("family 'newcomer' is not known: read by its keys as a decoder with gated MLPs",)
    kinds = _dense("llama", 4096, 14336, 2, 32, 8, 1000, layer_types=["full_attention", "spiral_attention"])
    shape = shape_of(kinds, name="x")
    assert shape.assumed == ("layers of type 'spiral_attention' are not known: counted as full attention",)
    assert _kinds(shape) == [("attention", 2, 0)]
    blank = _dense("newcomer", 4096, 14336, 2, 32, 8, 1000, layer_types=["linear_attention", "full_attention"])
    assert any("widths not given" in words for words in shape_of(blank, name="x").assumed)
