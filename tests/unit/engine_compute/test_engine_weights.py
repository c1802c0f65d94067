"""Model directories: what loads, and what each broken one says."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from baseload.domain.errors import BadWeights, ModelError, UnsupportedArchitecture
from baseload.engine.config import NO_WINDOW
from baseload.engine.registry import read_config
from baseload.engine.tensors import open_tensors, write_tensors
from baseload.engine.weights import load_params, save_params


@pytest.fixture
def model(goldens, tmp_path):
    shutil.copytree(goldens / "qwen3", tmp_path / "model")
    return tmp_path / "model"


def edit_config(model, **changes):
    path = model / "config.json"
    raw = json.loads(path.read_text())
    for name, value in changes.items():
        if value is None:
            raw.pop(name, None)
        else:
            raw[name] = value
    path.write_text(json.dumps(raw))


def rewrite(model, change):
    file = open_tensors(model / "model.safetensors")
    tensors = {name: np.array(file.read(name, entry["shape"])) for name, entry in file.header.items()}
    change(tensors)
    write_tensors(model / "model.safetensors", tensors, {})


def test_no_config_is_an_error_with_a_hint(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json does not exist.*Hugging Face model directory"):
        load_params(tmp_path)


def test_no_weights_is_an_error_that_names_the_files(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds neither model\.safetensors nor"):
        load_params(model)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_config_is_named(model, text):
    (model / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_params(model)


def test_an_unknown_architecture_is_named_and_the_known_ones_listed(model):
    edit_config(model, architectures=["FancyForCausalLM"])
    with pytest.raises(UnsupportedArchitecture, match=r"FancyForCausalLM.*LlamaForCausalLM.*Qwen3MoeForCausalLM"):
        load_params(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "x"}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "factor"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_a_wrong_field_is_named(model, changes, message):
    edit_config(model, **changes)
    with pytest.raises(ModelError, match=message):
        read_config(model)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_a_truncated_file_is_named(model, keep):
    path = model / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep] if keep >= 0 else data[:-1])
    with pytest.raises(BadWeights, match=r"model\.safetensors"):
        load_params(model)


def test_every_flipped_header_byte_is_caught_or_harmless(model):
    path = model / "model.safetensors"
    good = path.read_bytes()
    _, expected = load_params(model)
    length = int.from_bytes(good[:8], "little")
    caught = []
    for at in range(0, 8 + length, 97):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x15]) + good[at + 1 :])
        try:
            _, found = load_params(model)
        except BadWeights as error:
            caught.append(error.message)
        else:  # a flip in the metadata, say
            assert np.array_equal(found["lm_head"], expected["lm_head"])
    assert len(caught) > 5
    assert all(str(model) in message for message in caught)


def test_a_missing_tensor_is_named(model):
    rewrite(model, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(BadWeights, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        load_params(model)


def test_a_wrong_shape_is_named_with_file_and_tensor(model):
    def transpose(tensors):
        tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"].T.copy()

    rewrite(model, transpose)
    with pytest.raises(
        BadWeights, match=r"model\.safetensors: tensor model\.layers\.0\.mlp\.down_proj\.weight.*\[48"
    ):
        load_params(model)


def test_a_missing_shard_and_a_wrong_index_are_named(goldens, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(goldens / "llama3-sharded", model)
    shard = model / "model-00002-of-00003.safetensors"
    data = shard.read_bytes()
    shard.unlink()
    with pytest.raises(BadWeights, match=r"model-00002-of-00003\.safetensors does not exist"):
        load_params(model)
    shard.write_bytes(data)
    index = model / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    others = {"model-00001-of-00003.safetensors", shard.name} - {raw["weight_map"]["model.norm.weight"]}
    raw["weight_map"]["model.norm.weight"] = min(others)
    index.write_text(json.dumps(raw))
    with pytest.raises(BadWeights, match=r"tensor model\.norm\.weight is missing"):
        load_params(model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_files_of_every_type_load(model, dtype):
    target = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}[dtype]
    _, before = load_params(model)
    rewrite(model, lambda tensors: tensors.update({name: value.astype(target) for name, value in tensors.items()}))
    edit_config(model, dtype=None, torch_dtype=dtype)
    config, found = load_params(model, "float32")
    assert config.file_dtype == dtype
    assert np.array_equal(found["embed"], before["embed"].astype(target).astype(np.float32))
    _, auto = load_params(model)
    assert auto["embed"].dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)


def test_a_quantized_tensor_is_refused(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(BadWeights, match=r"type I32, which is not supported"):
        load_params(model)


def test_older_and_newer_spellings_of_rope_and_defaults(model):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    edit_config(model, rope_parameters={**scaling, "rope_theta": 5e5})
    newer = read_config(model).rope
    edit_config(model, rope_parameters=None, rope_theta=5e5, rope_scaling=scaling)
    assert read_config(model).rope == newer
    edit_config(model, architectures=["MistralForCausalLM"], sliding_window=None)
    assert read_config(model).windows == (4096,) * 3
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sliding_window": None}))
    assert read_config(model).windows == (NO_WINDOW,) * 3


def test_end_tokens_come_from_both_files(model):
    edit_config(model, eos_token_id=[2, 3])
    (model / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert read_config(model).eos_token_ids == (2, 3, 7)


@pytest.mark.parametrize(
    "family", ["llama2-tied", "llama-bias", "qwen2-window", "qwen3-moe", "mixtral", "qwen2-yarn", "llama-dynamic"]
)
def test_saving_and_loading_again_gives_the_same_model(goldens, tmp_path, family):
    config, params = load_params(goldens / family)
    save_params(tmp_path / "saved", config, params, "float32")
    again, found = load_params(tmp_path / "saved")
    assert again == config
    for group, value in params.items():
        for name, leaf in value.items() if isinstance(value, dict) else [("", value)]:
            assert np.array_equal(leaf, found[group][name] if name else found[group])
