"""Models, plants and failures as entries of the catalogue."""

import pytest

from baseload.limits.catalogue.sheets import failure_sheets, model_sheet, model_sheets, plant_sheets
from baseload.limits.goodput import LLAMA3
from baseload.limits.power import AIR
from baseload.limits.shape_config import parse_config

WINDOWED = b"""{"num_hidden_layers": 4, "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8,
"num_key_value_heads": 2, "vocab_size": 1000, "sliding_window": 128,
"layer_types": ["sliding_attention", "full_attention", "sliding_attention", "linear_attention"],
"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32}"""


def test_every_model_has_its_figures() -> None:
    sheets = model_sheets()
    llama = sheets["meta-llama/Meta-Llama-3.1-8B"]
    assert llama.params_b == pytest.approx(8.03)
    assert llama.weights_gb == pytest.approx(16.06)
    assert llama.kv_kb_per_token == pytest.approx(2 * 32 * 8 * 128 * 2 / 1e3, rel=1e-3)
    assert llama.kv_gb_at_32k == pytest.approx(32_768 * llama.kv_kb_per_token / 1e6, rel=1e-3)
    assert llama.gflops_per_token < llama.gflops_per_token_at_32k
    deepseek = sheets["deepseek-ai/DeepSeek-V3"]
    assert deepseek.experts == "8 of 256 in 58 layers"
    assert deepseek.mixing == "61 mla"
    assert deepseek.active_b < 0.06 * deepseek.params_b
    assert all(sheet.source and sheet.active_b <= sheet.params_b for sheet in sheets.values())


def test_windows_and_linear_layers_are_told_apart() -> None:
    sheet = model_sheet(parse_config(WINDOWED, name="mixed"), source="a test")
    assert sheet.mixing == "1 attention, 2 attention in 128, 1 linear"
    assert sheet.kv_kb_per_token == pytest.approx(1 * 2 * 2 * 64 * 2 / 1e3)
    assert sheet.experts == ""


def test_plants_and_failures_are_those_of_the_model() -> None:
    air = plant_sheets()["air"]
    assert air.pue_30c == pytest.approx(AIR.at(30.0), abs=1e-3)
    assert air.pue_0c <= air.pue_20c <= air.pue_40c
    assert plant_sheets()["liquid"].pue_30c < air.pue_30c < plant_sheets()["legacy"].pue_30c
    failures = failure_sheets()[LLAMA3.name]
    assert failures.hours_at_16384 == pytest.approx(54 * 24 / 419, rel=1e-3)
    assert "accelerator 35%" in failures.causes
