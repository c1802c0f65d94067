"""A folder of models' config.json, as `--configs` reads it."""

import json
from pathlib import Path

import pytest

from baseload.cli.predict_tables import read_configs
from baseload.domain.errors import DataError


def test_what_a_quantized_models_second_file_says_of_its_weights_counts(tmp_path: Path) -> None:
    stated = {"quantization": {"quant_algo": "NVFP4"}}
    (tmp_path / "o--M-NVFP4_config.json").write_text(json.dumps({"hidden_size": 1}))
    (tmp_path / "o--M-NVFP4_hf_quant_config.json").write_text(json.dumps(stated))
    (tmp_path / "o--M_config.json").write_text(json.dumps({"hidden_size": 2}))
    read = read_configs(tmp_path)
    assert set(read) == {"o/M-NVFP4", "o/M"}
    assert read["o/M-NVFP4"]["quantization_config"] == {"quant_algo": "NVFP4"}
    assert "quantization_config" not in read["o/M"]


def test_a_config_that_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "o--M_config.json").write_text("[]")
    with pytest.raises(DataError, match="o--M_config"):
        read_configs(tmp_path)
    (tmp_path / "o--M_config.json").write_text("{}")
    (tmp_path / "o--M_hf_quant_config.json").write_text("[]")
    with pytest.raises(DataError, match="o--M_hf_quant_config"):
        read_configs(tmp_path)
