"""A request's logits, bit by bit, do not depend on its batch-mates, its bucket or how its prompt is cut."""

import numpy as np
import pytest

from baseload.engine.spans import Span

LENGTH = 64
CHUNKS = (*range(1, 10), 15, 16, 17, 23, 31, 32, 33, 48, 63, 64)  # around each bucket, and between
CASES = [
    ("llama3-sharded", "float32"),
    ("qwen3", "float32"),
    ("mistral-window", "float32"),
    ("qwen3-moe", "float32"),
    ("llama3-sharded", "bfloat16"),
    ("qwen3", "bfloat16"),
    ("mixtral", "bfloat16"),
]


def alone(runner, tokens, blocks):
    """Logits after every token, computed one by one and with nobody else."""
    return [
        np.asarray(runner.run([Span(tokens[at : at + 1], at, blocks, True)]))[0].copy() for at in range(tokens.size)
    ]


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_bits_do_not_depend_on_chunks_or_batch(runner_of, block_table, family, dtype):
    runner = runner_of(family, dtype)
    runner.warm(background=False)
    rng = np.random.default_rng(7)
    tokens = [rng.integers(0, runner.vocab_size, LENGTH).astype(np.int32) for _ in range(8)]
    blocks = block_table(runner, 8, LENGTH)
    expected = alone(runner, tokens[0], blocks[0])
    for chunk in CHUNKS:
        batch = 1 + chunk % 8
        at = [0] * batch
        while at[0] < LENGTH:
            spans, owners = [], []
            for index in rng.permutation(batch):
                count = chunk if index == 0 else int(rng.choice([1, 1, 4, 23]))
                end = min(LENGTH, at[index] + count)
                if end > at[index]:
                    spans.append(Span(tokens[index][at[index] : end], at[index], blocks[index], True))
                    owners.append(index)
                    at[index] = end
            row = np.asarray(runner.run(spans))[owners.index(0)]
            assert np.array_equal(row, expected[at[0] - 1]), f"chunk {chunk}, batch {batch}, position {at[0]}"


@pytest.mark.parametrize(("family", "dtype"), [("llama3-sharded", "float32"), ("mixtral", "bfloat16")])
def test_bits_do_not_depend_on_the_bucket(runner_of, block_table, monkeypatch, family, dtype):
    runner = runner_of(family, dtype)
    runner.warm(background=False)
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, runner.vocab_size, 21).astype(np.int32)
    (blocks,) = block_table(runner, 1, 32)
    usable = runner._usable
    for kind in ("prefill", "decode"):
        rows = []
        for bucket in usable(kind):
            monkeypatch.setattr(
                runner, "_usable", lambda asked, one=bucket, kind=kind: (one,) if asked == kind else usable(asked)
            )
            runner.run([Span(tokens[:20], 0, blocks, False)])
            rows.append(np.asarray(runner.run([Span(tokens[20:], 20, blocks, True)])))
        assert len(rows) > 1
        assert all(np.array_equal(row, rows[0]) for row in rows)


def test_cached_prefixes_give_the_same_bits_as_computing_them(runner_of, block_table):
    runner = runner_of("llama3-sharded")
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, runner.vocab_size, 50).astype(np.int32)
    first, second = block_table(runner, 2, 64)
    whole = np.asarray(runner.run([Span(tokens, 0, first, True)]))[0]
    shared = np.concatenate([first[:2], second[2:]])
    tail = np.asarray(runner.run([Span(tokens[32:], 32, shared, True)]))[0]
    assert np.array_equal(whole, tail)


def test_a_decode_writes_only_its_own_slot(runner_of, block_table):
    runner = runner_of("llama3-sharded")
    rng = np.random.default_rng(6)
    tokens = rng.integers(0, runner.vocab_size, 40).astype(np.int32)
    first, second = block_table(runner, 2, 48)
    runner.run([Span(tokens[:33], 0, first, False), Span(tokens[:33], 0, second, False)])
    before = np.asarray(runner.run([Span(tokens[33:34], 33, first, True)])).copy()
    runner.run([Span(tokens[33:34] + 1, 33, second, True)])
    after = np.asarray(runner.run([Span(tokens[33:34], 33, first, True)]))
    assert np.array_equal(before, after)


def test_rows_come_in_span_order_and_only_where_wanted(runner_of, block_table):
    runner = runner_of("llama3-sharded")
    a, b, c = block_table(runner, 3, 16)
    one, two = np.array([5], np.int32), np.array([5, 9], np.int32)
    alone_one = np.asarray(runner.run([Span(one, 0, a, True)]))
    alone_two = np.asarray(runner.run([Span(two, 0, b, True)]))
    mixed = np.asarray(runner.run([Span(two, 0, b, True), Span(two, 0, c, False), Span(one, 0, a, True)]))
    assert np.array_equal(mixed, np.concatenate([alone_two, alone_one]))
    assert runner.run([Span(two, 0, b, False)]).shape == (0, runner.vocab_size)


def test_spans_that_do_not_fit_are_refused(runner_of):
    runner = runner_of("llama3-sharded")
    for span in (
        Span(np.arange(3, dtype=np.int32), 14, np.zeros(1, np.int32), True),
        Span(np.zeros(1, np.int32), runner.max_context, np.zeros(99, np.int32), True),
        Span(np.zeros(0, np.int32), 0, np.zeros(1, np.int32), True),
    ):
        with pytest.raises(ValueError, match="a span of"):
            runner.run([span])


def test_after_a_failed_step_the_runner_goes_on_with_an_empty_cache(runner_of, block_table, monkeypatch):
    runner = runner_of("llama3-sharded")
    tokens = np.arange(20, dtype=np.int32)
    (blocks,) = block_table(runner, 1, 32)
    expected = np.asarray(runner.run([Span(tokens, 0, blocks, True)])).copy()
    layer_program = runner._layer_program

    def broken(*asked):
        program = layer_program(*asked)

        def fails(*given):
            program(*given)  # the layer's cache is donated
            raise RuntimeError("the device failed")

        return fails

    monkeypatch.setattr(runner, "_layer_program", broken)
    with pytest.raises(RuntimeError, match="the device failed"):
        runner.run([Span(tokens, 0, blocks, True)])
    monkeypatch.undo()
    assert np.array_equal(np.asarray(runner.run([Span(tokens, 0, blocks, True)])), expected)
