"""torch and transformers on the same questions as spine.py; runs in an interpreter that has them.

Arguments: config.json as text, dtype, prefill tokens, decode steps. Reads a task per line, answers tokens/s.
"""

import copy
import json
import sys
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM


def main():
    raw, dtype, prefill, steps = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    model = LlamaForCausalLM(LlamaConfig(**raw)).eval()
    count = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {count / 1e6:.1f} M parameters,"
        f" {torch.get_num_threads()} threads",
        flush=True,
    )
    tokens = torch.randint(0, raw["vocab_size"], (8, prefill))
    with torch.no_grad():
        caches = {batch: model(tokens[:batch], use_cache=True).past_key_values for batch in (1, 8)}
        for line in sys.stdin:
            task = line.strip()
            if task == "prefill":
                start = time.perf_counter()
                model(tokens[:1], use_cache=True, logits_to_keep=1)
                print(prefill / (time.perf_counter() - start), flush=True)
                continue
            batch = int(task.removeprefix("decode"))
            cache = copy.deepcopy(caches[batch])
            start = time.perf_counter()
            for step in range(steps):
                cache = model(tokens[:batch, step : step + 1], past_key_values=cache, use_cache=True).past_key_values
            print(batch * steps / (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
