"""The engines by the names tables give them: "vLLM 0.11", "TensorRT-LLM" and "trt_llm" are one word each here."""

import re

_WORD = re.compile(r"[^a-z0-9]+")
_BEGINS = (
    ("tensorrtllm", "trtllm"),
    ("trtllm", "trtllm"),
    ("tensorrt", "trtllm"),
    ("vllm", "vllm"),
    ("sglangjax", "sglang-jax"),
    ("sgljax", "sglang-jax"),
    ("sglang", "sglang"),
    ("sgl", "sglang"),
    ("llamacpp", "llama.cpp"),
    ("llamaserver", "llama.cpp"),
    ("llamabench", "llama.cpp"),
    ("ollama", "llama.cpp"),
)


def engine_of(name: str) -> str:
    """Our word for an engine; a name not known is its own, in lower case."""
    squashed = _WORD.sub("", name.lower())
    return next((word for begins, word in _BEGINS if squashed.startswith(begins)), name.strip().lower())
