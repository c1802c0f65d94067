"""Logits after each of a span's last tokens, however many, are those that single steps give."""

from pathlib import Path

import numpy as np
import pytest

from baseload.domain.model import EngineSpec
from baseload.engine.runner import open_runner
from baseload.engine.spans import Span


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.15)])
def test_more_guesses_than_sequences_and_than_rows_ready(goldens: Path, dtype: str, tolerance: float) -> None:
    spec = EngineSpec(
        dtype=dtype, kernels="xla", max_seqs=1, max_step_tokens=64, max_context=96, kv_cache_bytes=1 << 20
    )
    runner = open_runner(goldens / "llama2-tied", spec=spec, cache_dir=None)
    tokens, blocks = np.arange(3, 43, dtype=np.int32), np.arange(6, dtype=np.int32)
    together = runner.run([Span(tokens, 0, blocks, True, logits=40)])
    assert together.shape == (40, runner.vocab_size)
    few = runner.run([Span(tokens[:5], 0, blocks, True, logits=5)])
    np.testing.assert_allclose(few, together[:5], atol=tolerance)
    alone = runner.run([Span(tokens[5:6], 5, blocks, True)])
    np.testing.assert_allclose(alone[0], together[5], atol=tolerance)
    runner.run([Span(tokens[6:39], 6, blocks, False)])
    alone = runner.run([Span(tokens[39:], 39, blocks, True)])
    np.testing.assert_allclose(alone[0], together[39], atol=tolerance)
