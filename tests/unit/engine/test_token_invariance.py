"""What a request gets from the real runner does not depend on company, buckets, chunks, cache or preemption."""

import queue
from pathlib import Path

import msgspec
import numpy as np
import pytest

from baseload.domain.model import EngineSpec
from baseload.domain.sampling import Sampling
from baseload.engine.config import ModelConfig
from baseload.engine.jobs import Delta, Ended, Failed, Job, Output
from baseload.engine.kv_cache import block_bytes
from baseload.engine.loop import EngineLoop
from baseload.engine.native import library
from baseload.engine.native.attention import PagedCache
from baseload.engine.registry import read_config
from baseload.engine.runner import Runner, open_runner

WAIT_S = 120.0


Made = dict[str, list[tuple[int, float]]]


def generate(runner: Runner, jobs: list[Job], spec: EngineSpec, *, at_once: bool) -> tuple[Made, int]:
    """(token, logprob) by request, and how often one was preempted."""
    outputs: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()
    fatal: list[BaseException] = []
    loop = EngineLoop(runner, lambda token: b"x", spec=spec, emit=outputs.put, on_fatal=fatal.append)
    made: Made = {job.request_id: [] for job in jobs}

    def wait_for(count: int) -> None:
        while count:
            for output in outputs.get(timeout=WAIT_S):
                match output:
                    case Delta():
                        made[output.request_id].append((output.token, output.logprob))
                    case Ended():
                        count -= 1
                    case Failed():
                        raise output.refusal

    for job in jobs:
        loop.submit(job)
        if not at_once:
            if job is jobs[0]:
                loop.start()
            wait_for(1)
    if at_once:
        loop.start()
        wait_for(len(jobs))
    preemptions = loop.totals.preemptions
    loop.close()
    assert not fatal
    return made, preemptions


def some_jobs() -> list[Job]:
    random = np.random.default_rng(5)
    shared = random.integers(2, 300, 40).tolist()
    sampling = Sampling(max_tokens=12, ignore_eos=True, logprobs=True, temperature=0.9, top_p=0.95)
    greedy = Sampling(max_tokens=12, ignore_eos=True, logprobs=True, temperature=0.0)
    return [
        Job(
            f"j{i}",
            [[*shared[: 8 * (i % 5)], *random.integers(2, 300, 1 + 9 * (i % 3)).tolist()]],
            sampling if i % 2 else greedy,
            seed=i,
        )
        for i in range(9)
    ]


def native_block_bytes(config: ModelConfig) -> int:
    cache = PagedCache(config.layers, config.heads, config.kv_heads, config.head_dim, 1, 8)
    return cache.block_bytes


@pytest.mark.parametrize(
    ("dtype", "deterministic", "kernels"),
    [("float32", False, "xla"), ("bfloat16", True, "xla"), ("bfloat16", False, "auto")],
)
def test_tokens_are_the_same_in_any_company(
    tiny_model: Path, tmp_path: Path, dtype: str, deterministic: bool, kernels: str
) -> None:
    config = read_config(tiny_model)
    per_block = block_bytes(config, 8, dtype)
    if kernels != "xla":
        if library.isa_for(kernels) == "xla":
            pytest.skip("the kernels were not built")
        per_block = native_block_bytes(config)
    base = EngineSpec(
        dtype=dtype,
        deterministic=deterministic,
        kernels=kernels,
        max_seqs=4,
        max_step_tokens=32,
        block_tokens=8,
        max_context=96,
        kv_cache_bytes=14 * per_block,
        prefix_cache=False,
    )
    runner = open_runner(tiny_model, spec=base, cache_dir=tmp_path)
    runner.warm(background=False)
    assert runner.num_blocks == 14
    expected, preemptions = generate(runner, some_jobs(), base, at_once=False)
    assert preemptions == 0
    together = msgspec.structs.replace(base, prefix_cache=True)
    made, preemptions = generate(runner, some_jobs(), together, at_once=True)
    assert made == expected
    assert preemptions > 0
    chunked = msgspec.structs.replace(together, max_step_tokens=7)
    assert generate(runner, some_jobs(), chunked, at_once=True)[0] == expected
    runner.close()
