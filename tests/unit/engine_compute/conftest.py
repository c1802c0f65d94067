"""One runner per family and mode for all tests of this folder: compiling is what takes time here."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from baseload.domain.model import EngineSpec
from baseload.engine.runner import Runner, open_runner

GOLDENS = Path(__file__).parents[2] / "golden" / "logits"


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The directory of golden models."""
    return GOLDENS


@pytest.fixture(scope="session")
def runner_of() -> Callable[[str, str], Runner]:
    """runner_of(family, dtype): a runner in the mode whose bits must not depend on the batch; compiles as needed."""
    made: dict[tuple[str, str], Runner] = {}

    def get(family: str, dtype: str = "float32") -> Runner:
        if (family, dtype) not in made:
            spec = EngineSpec(
                dtype=dtype,
                deterministic=True,
                kernels="xla",
                kv_cache_bytes=1 << 20,
                max_seqs=64 if dtype == "float32" else 32,  # two decode buckets
                max_step_tokens=64,
                max_context=256,
            )
            made[family, dtype] = open_runner(GOLDENS / family, spec=spec, cache_dir=None)
        return made[family, dtype]

    return get


@pytest.fixture
def block_table() -> Callable[..., list[np.ndarray]]:
    """block_table(runner, sequences, tokens, seed): disjoint, shuffled blocks for each sequence."""

    def make(runner: Runner, sequences: int, tokens: int, seed: int = 0) -> list[np.ndarray]:
        each = -(-tokens // runner.block_tokens)
        shuffled = np.random.default_rng(seed).permutation(runner.num_blocks).astype(np.int32)
        assert sequences * each <= shuffled.size
        return [shuffled[index * each : (index + 1) * each] for index in range(sequences)]

    return make
