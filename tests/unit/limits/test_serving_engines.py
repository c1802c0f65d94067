"""Engines as tables name them."""

import pytest

from baseload.limits.serving.engines import engine_of
from baseload.limits.serving.points import parse_point


@pytest.mark.parametrize(
    ("written", "word"),
    [
        ("vLLM", "vllm"),
        ("vllm-v1", "vllm"),
        ("VLLM 0.11.0", "vllm"),
        ("SGLang", "sglang"),
        ("TensorRT-LLM", "trtllm"),
        ("trt_llm", "trtllm"),
        ("trtllm", "trtllm"),
        ("llama.cpp", "llama.cpp"),
        ("Ollama", "llama.cpp"),
        ("An Engine", "an engine"),
        ("", ""),
    ],
)
def test_an_engine_has_one_word(written: str, word: str) -> None:
    assert engine_of(written) == word


def test_a_point_has_it_too() -> None:
    row = {"model_path": "meta-llama/Llama-3.1-8B", "system": "h100_sxm", "backend": "TensorRT-LLM"}
    assert parse_point(row, line=2, name="t.csv").engine == "trtllm"
