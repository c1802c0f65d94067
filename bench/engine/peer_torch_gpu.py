"""transformers with torch.compile on CUDA, the same shape: a static cache, `reduce-overhead` for decoding.

    python peer_torch_gpu.py CONFIG_JSON PREFILL CONTEXT STEPS REPEATS

Prints one line of JSON with tokens per second.
"""

import json
import statistics
import sys
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache


def timed(function, repeats):
    """The median of `repeats` runs after two, in which it is compiled."""
    times = []
    for number in range(repeats + 2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        function()
        torch.cuda.synchronize()
        if number >= 2:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def main():
    """Measure and say."""
    config, (prefill, context, steps, repeats) = LlamaConfig(**json.loads(sys.argv[1])), map(int, sys.argv[2:])
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("high")
    torch.set_default_device("cuda")
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config).eval()
    most = max(prefill, context + steps + 8)
    tokens = torch.randint(0, config.vocab_size, (1, most))
    cache = StaticCache(config=config, max_cache_len=most)

    def run(given, first):
        at = torch.arange(first, first + given.shape[1])
        return model(given, past_key_values=cache, cache_position=at, logits_to_keep=1).logits

    whole = torch.compile(run, dynamic=False)
    prefill_s = timed(lambda: whole(tokens[:, :prefill], 0), repeats)
    run(tokens[:, :context], 0)
    forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)

    def step(number):
        at = torch.tensor([context + number])
        logits = forward(tokens[:, :1], past_key_values=cache, cache_position=at, logits_to_keep=1).logits
        return int(logits[0, -1].argmax())

    times = []
    for number in range(steps):
        began = time.perf_counter()
        step(number)
        times.append(time.perf_counter() - began)
    decode_s = statistics.median(times[steps // 2 :])
    about = f"transformers {transformers.__version__}, torch {torch.__version__}, torch.compile"
    print(
        json.dumps(
            {"engine": about, "decode_tokens_per_s": 1 / decode_s, "prefill_tokens_per_s": prefill / prefill_s}
        )
    )


main()
