"""Logits equal Hugging Face transformers' in float32, to 1e-4 of the largest logit, for every family."""

from pathlib import Path

import jax
import numpy as np
import pytest

from baseload.engine.registry import ARCHITECTURES, forward_full, read_config
from baseload.engine.spans import Span
from baseload.engine.weights import load_params

TOLERANCE = 1e-4
FAMILIES = sorted(
    path.parent.name for path in (Path(__file__).parents[2] / "golden" / "logits").glob("*/config.json")
)


def load(directory):
    with np.load(directory / "logits.npz") as arrays:
        return [(arrays[f"tokens{index}"], arrays[f"logits{index}"]) for index in range(3)]


def error(found, expected, whole):
    return np.abs(np.asarray(found) - expected).max() / np.abs(whole).max()


def test_every_architecture_has_a_golden_model(goldens):
    covered = {read_config(goldens / family).architecture for family in FAMILIES}
    assert covered == set(ARCHITECTURES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_full_forward_pass_equals_transformers(goldens, family):
    config, params = load_params(goldens / family)
    tokens, expected = load(goldens / family)[0]
    found = jax.jit(lambda params, tokens: forward_full(config, params, tokens))(params, np.stack([tokens, tokens]))
    assert error(found[0], expected, expected) < TOLERANCE
    assert error(found[1], expected, expected) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_then_decode_in_a_batch_equals_transformers(goldens, runner_of, block_table, family):
    runner = runner_of(family)
    cases = load(goldens / family)
    blocks = block_table(runner, len(cases), 40)
    done = [len(tokens) // 3 for tokens, _ in cases]
    spans = [
        Span(tokens[:count], 0, table, True) for (tokens, _), count, table in zip(cases, done, blocks, strict=True)
    ]
    for index, row in enumerate(np.asarray(runner.run(spans))):
        assert error(row, cases[index][1][done[index] - 1], cases[index][1]) < TOLERANCE
    while live := [index for index, (tokens, _) in enumerate(cases) if done[index] < len(tokens)]:
        spans = [
            Span(cases[index][0][done[index] : done[index] + 1], done[index], blocks[index], True) for index in live
        ]
        for index, row in zip(live, np.asarray(runner.run(spans)), strict=True):
            assert error(row, cases[index][1][done[index]], cases[index][1]) < TOLERANCE
            done[index] += 1
