"""Our engine on the device that JAX finds: decode ×1, prefill, and the device's limits, in one process.

    python gpu_engine.py SHAPE PREFILL CONTEXT STEPS REPEATS [--interpret]

Prints one line of JSON. Random bfloat16 weights; the runner of `baseload serve`, whole-model programs, the Pallas
kernel. --interpret runs that kernel without a GPU: for tests, its figures mean nothing.
"""

import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from gpu_shapes import SHAPES

from baseload.domain.model import EngineSpec
from baseload.engine.buckets import Buckets
from baseload.engine.config import ModelConfig
from baseload.engine.runner import Runner
from baseload.engine.spans import Span
from baseload.engine.steps import Mode
from baseload.engine.weights import tree_shapes

BLOCK_TOKENS = 16


def repeated_params(config: ModelConfig) -> dict[str, object]:
    """Weights that repeat a few million random numbers: written in seconds, and as heavy to read as any."""
    numbers = (np.random.default_rng(0).standard_normal(1 << 22) * 0.02).astype(ml_dtypes.bfloat16)

    def fill(shape: object) -> object:
        if isinstance(shape, dict):
            return {name: fill(value) for name, value in shape.items()}
        return np.resize(numbers, shape)

    return fill(tree_shapes(config))


def timed(function, repeats: int) -> float:
    """The median of `repeats` runs, after one."""
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def limits(size: int, megabytes: int, repeats: int) -> dict[str, float]:
    """Bytes per second moved by a sum or a copy, and bfloat16 operations per second of a square product."""
    array = jnp.ones((megabytes << 20) // 4, jnp.float32)
    total = jax.jit(jnp.sum)
    square = jnp.ones((size, size), jnp.bfloat16)
    product = jax.jit(lambda a, b: jax.lax.dot(a, b, preferred_element_type=jnp.float32).astype(jnp.bfloat16))
    copy = jax.jit(lambda a: a + 1)
    read_s = timed(lambda: total(array).block_until_ready(), repeats)
    copy_s = timed(lambda: copy(array).block_until_ready(), repeats)
    flops_s = timed(lambda: product(square, square).block_until_ready(), repeats)
    return {"read_bytes_per_s": array.nbytes * max(1 / read_s, 2 / copy_s), "bf16_flops_per_s": 2 * size**3 / flops_s}


def measure(
    shape: str, *, prefill: int, context: int, steps: int, repeats: int, interpret: bool
) -> dict[str, object]:
    """Tokens per second of both, and what they are of the limits."""
    config = SHAPES[shape]
    big = shape != "tiny"
    found = limits(8192 if big else 128, 4096 if big else 4, repeats)
    mode = Mode("bfloat16", whole=True, attention="interpret") if interpret else None
    tokens = max(prefill, context + steps + 2)
    spec = EngineSpec(
        dtype="bfloat16",
        max_seqs=1,
        max_step_tokens=prefill,
        max_context=tokens,
        block_tokens=BLOCK_TOKENS,
        kv_cache_bytes=4 * config.layers * config.kv_heads * config.head_dim * (tokens + BLOCK_TOKENS),
    )
    runner = Runner(config, repeated_params(config), spec=spec, dtype="bfloat16", mode=mode)
    # Only what is measured: on a GPU each program of 32 layers takes a while to compile.
    runner.buckets = Buckets(decode=runner.buckets.decode, prefill=(prefill,))
    runner.warm(background=False)
    blocks = np.arange(-(-tokens // BLOCK_TOKENS), dtype=np.int32)
    prompt = np.random.default_rng(1).integers(0, config.vocab_size, tokens).astype(np.int32)
    prefill_s = timed(lambda: runner.run([Span(prompt[:prefill], 0, blocks, True)]), repeats)
    for first in range(0, context, prefill):
        runner.run([Span(prompt[first : min(context, first + prefill)], first, blocks, False)])
    times, token = [], prompt[:1]
    for step in range(steps):
        began = time.perf_counter()
        token = runner.run([Span(token, context + step, blocks, True)]).argmax(-1).astype(np.int32)
        times.append(time.perf_counter() - began)
    decode_s = statistics.median(times[1:])
    read = 2 * (config.parameters - config.vocab_size * config.hidden)  # of the embedding one row is read
    read += 4 * config.layers * config.kv_heads * config.head_dim * context
    flops = 2 * (config.parameters - 2 * config.vocab_size * config.hidden) * prefill
    flops += 2 * config.layers * config.heads * config.head_dim * prefill**2 + 2 * config.vocab_size * config.hidden
    return {
        **found,
        "engine": f"Baseload, JAX {jax.__version__}",
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "decode_tokens_per_s": 1 / decode_s,
        "decode_of_ceiling": read / decode_s / found["read_bytes_per_s"],
        "prefill_tokens_per_s": prefill / prefill_s,
        "prefill_of_rate": flops / prefill_s / found["bf16_flops_per_s"],
        "read_bytes_per_token": read,
        "flops_of_prefill": flops,
    }


def main() -> None:
    """Measure and say."""
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    prefill, context, steps, repeats = map(int, words[1:])
    interpret = "--interpret" in sys.argv
    found = measure(words[0], prefill=prefill, context=context, steps=steps, repeats=repeats, interpret=interpret)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
