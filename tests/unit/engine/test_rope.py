"""Rotary embeddings as transformers computes them (golden/rope), and what of config.json is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baseload.domain.errors import ModelError
from baseload.engine.config import NO_WINDOW, Fields, ModelConfig, RopeConfig
from baseload.engine.gguf.read import _scaling as gguf_scaling
from baseload.engine.rope import RopeTable, inverse_frequencies
from baseload.engine.rope_settings import KINDS, parse_rope, positions, rope_fields

CASES = json.loads((Path(__file__).parents[2] / "golden" / "rope" / "rope.json").read_text())["cases"]
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}


def fields(rope: Any, context: int = 131072) -> Fields:
    return Fields({"rope_parameters": rope, "max_position_embeddings": context}, Path("config.json"))


def model(rope: RopeConfig, head_dim: int) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM", vocab_size=8, hidden=8, intermediate=8, layers=1, heads=1, kv_heads=1,
        head_dim=head_dim, norm_eps=1e-5, max_context=1 << 17, rope=rope, windows=(NO_WINDOW,), is_moe=(False,),
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_frequencies_and_attention_factor_are_those_of_transformers(name: str) -> None:
    case = CASES[name]
    rope = parse_rope(fields(case["rope"], case["context"]))
    found = inverse_frequencies(model(rope, case["head_dim"]))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, case["frequencies"], rtol=3e-6)
    assert rope.attention_factor == pytest.approx(case["factor"], rel=1e-12)


def test_the_goldens_hold_every_kind() -> None:
    assert {case["rope"]["rope_type"] for case in CASES.values()} | {"default"} == set(KINDS)


def test_cos_and_sin_are_multiplied_by_the_attention_factor() -> None:
    case = CASES["qwen2.5"]
    config = model(parse_rope(fields(case["rope"])), case["head_dim"])
    at = np.array([0, 1, 40_000, 131_071], np.int32)
    cos, sin = RopeTable(config).at(at)
    angles = at.astype(np.float32)[:, None] * np.asarray(case["frequencies"], np.float32)
    np.testing.assert_allclose(cos[:3], np.cos(angles[:3]) * case["factor"], atol=2e-3)
    np.testing.assert_allclose(np.hypot(cos, sin), case["factor"], rtol=1e-5)
    assert case["factor"] > 1.1


@pytest.mark.parametrize("name", CASES)
def test_settings_are_written_so_that_they_are_read_back_the_same(name: str) -> None:
    case = CASES[name]
    rope = parse_rope(fields(case["rope"], case["context"]))
    raw = {**rope_fields(rope), "rope_theta": rope.theta, "max_position_embeddings": case["context"]}
    assert parse_rope(Fields(raw, Path("config.json"))) == rope


def test_older_spelling() -> None:
    raw = {"rope_theta": 1e6, "max_position_embeddings": 32768, "rope_scaling": {
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}  # fmt: skip
    assert parse_rope(Fields(raw, Path("config.json"))) == parse_rope(fields(YARN))


@pytest.mark.parametrize(
    ("rope", "stated", "context"),
    [
        (YARN, 32768, 131072),  # added by hand, as the model's card says
        (YARN, 131072, 131072),
        (YARN, 65536, 65536),
        ({"rope_type": "yarn", "factor": 4.0}, 4096, 16384),
        ({"rope_type": "dynamic", "factor": 4.0}, 4096, 4096),
        ({"rope_type": "linear", "factor": 4.0}, 4096, 4096),
        (None, 4096, 4096),
    ],
)
def test_yarn_stretches_a_context_that_is_stated_as_the_original_one(rope: Any, stated: int, context: int) -> None:
    assert positions(fields(rope, stated))["max_context"] == context


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_type": "longrope", "factor": 4.0}, "'longrope' is not supported; supported are default, linear"),
        ({"rope_type": "mrope"}, "'mrope' is not supported"),
        ({"type": "su"}, "'su' is not supported"),
        ({**YARN, "factor": 0.5}, "factor is 0.5, but must be at least 1"),
        ({**YARN, "factor": "four"}, "factor is 'four'"),
        ({**YARN, "beta_fast": -1}, "beta_fast is -1"),
        ({**YARN, "attention_factor": 0}, "attention_factor is 0"),
        ({**YARN, "mscale": "x", "mscale_all_dim": 1.0}, "mscale is 'x'"),
        ({**YARN, "original_max_position_embeddings": 0}, "original_max_position_embeddings is 0"),
        ({"rope_type": "dynamic"}, "factor is None"),
        ("yarn", "rope_scaling"),
    ],
)
def test_what_is_wrong_or_not_computed_is_named(rope: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        parse_rope(fields(rope))


class Metadata:
    """Of a GGUF file: what stands under its architecture's name."""

    def __init__(self, **own: Any) -> None:
        self._own = {name.replace("__", "."): value for name, value in own.items()}

    def own(self, name: str, default: Any = None) -> Any:
        return self._own.get(name, default)

    def has(self, name: str) -> bool:
        return False


def test_yarn_of_a_gguf_file_keeps_its_original_context() -> None:
    file: Any = Metadata(
        rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=32768
    )
    raw = gguf_scaling(file, {"head_dim": 128}) | {"rope_theta": 1e6, "max_position_embeddings": 32768}
    assert parse_rope(Fields(raw, Path("a.gguf"))) == parse_rope(fields(YARN))
    assert gguf_scaling(Metadata(), {"head_dim": 128}) == {}  # type: ignore[arg-type]
