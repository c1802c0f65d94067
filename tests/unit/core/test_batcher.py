import pytest

from baseload.core.batch import FinishedBy, Plan, Sampled, SeqSpec
from baseload.core.batcher import Batcher
from baseload.domain.errors import Reason, Refusal
from baseload.domain.work import PhaseTimes, TokenCounts


def build(**changes: object) -> Batcher:
    settings: dict[str, object] = {
        "num_blocks": 32,
        "block_tokens": 4,
        "max_seqs": 4,
        "max_step_tokens": 16,
        "max_context": 100,
        "max_waiting": 8,
    }
    return Batcher(**(settings | changes))  # type: ignore[arg-type]


def sizes(plan: Plan) -> dict[str, tuple[int, int]]:
    return {share.seq_id: (share.start, share.count) for share in plan.shares}


def step(batcher: Batcher, now: int = 0) -> tuple[Plan, list[str]]:
    plan = batcher.plan(now)
    ended = batcher.commit(now, [Sampled(share.seq_id, 7) for share in plan.shares if share.wants_token])
    return plan, [end.seq_id for end in ended]


def test_prefill_is_chunked_beside_decodes() -> None:
    batcher = build()
    batcher.add(0, SeqSpec("a", 3, 10))
    assert sizes(step(batcher)[0]) == {"a": (0, 3)}
    batcher.add(0, SeqSpec("b", 40, 10))
    batcher.add(0, SeqSpec("c", 5, 10))
    plan = step(batcher)[0]
    assert sizes(plan) == {"a": (3, 1), "b": (0, 15)}
    assert (plan.decode_tokens, plan.prefill_tokens, plan.context_tokens) == (1, 15, 4 + 15)
    assert sizes(step(batcher)[0]) == {"a": (4, 1), "b": (15, 15)}
    assert sizes(step(batcher)[0]) == {"a": (5, 1), "b": (30, 10), "c": (0, 5)}
    assert sizes(step(batcher)[0]) == {"a": (6, 1), "b": (40, 1), "c": (5, 1)}


def test_the_latest_arrival_is_preempted_and_finishes_all_the_same() -> None:
    batcher = build(num_blocks=6, max_seqs=2)
    batcher.add(0, SeqSpec("a", 4, 16, tokens=[1] * 4))
    batcher.add(0, SeqSpec("b", 4, 16, tokens=[2] * 4))
    preempted, ended = [], []
    while batcher.busy:
        plan, done = step(batcher)
        preempted += plan.preempted
        ended += done
        batcher.check()
    assert preempted
    assert set(preempted) == {"b"}
    assert ended == ["a", "b"]
    assert batcher.totals.generated_tokens == 32
    assert batcher.totals.preemptions == len(preempted)


def test_phases_and_counts() -> None:
    batcher = build(max_seqs=1)
    batcher.add(5, SeqSpec("a", 6, 2, tokens=range(6)))
    batcher.add(6, SeqSpec("b", 6, 1, tokens=range(6)))
    batcher.plan(10)
    assert batcher.commit(14, [Sampled("a", 1)]) == []
    batcher.plan(15)
    (end,) = batcher.commit(19, [Sampled("a", 1)])
    assert end.by is FinishedBy.LENGTH
    assert end.tokens == TokenCounts(prompt=6, cached_in=0, completion=2)
    assert end.phases == PhaseTimes(queue_ns=5, prefill_ns=4, decode_ns=5)
    batcher.plan(20)
    (end,) = batcher.commit(22, [Sampled("b", 1, stop=True)])
    assert end.by is FinishedBy.STOP
    assert end.tokens == TokenCounts(prompt=6, cached_in=4, completion=1)
    assert end.phases == PhaseTimes(queue_ns=14, prefill_ns=2, decode_ns=0)


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("real", [True, False])
def test_choices_of_one_request_share_the_prompts_blocks(prefix_cache: bool, real: bool) -> None:
    batcher = build(prefix_cache=prefix_cache)
    tokens = list(range(10)) if real else None
    batcher.add(0, *[SeqSpec(f"a{i}", 10, 4, tokens, group="a") for i in range(3)])
    assert sizes(step(batcher)[0]) == {"a0": (0, 10)}
    plan = step(batcher)[0]
    assert sizes(plan) == {"a0": (10, 1), "a1": (8, 2), "a2": (8, 2)}
    blocks = {share.seq_id: list(share.blocks) for share in plan.shares}
    assert blocks["a0"][:2] == blocks["a1"][:2] == blocks["a2"][:2]
    assert len({blocks[seq_id][2] for seq_id in blocks}) == 3
    batcher.add(0, *[SeqSpec(f"b{i}", 10, 4, tokens, group="b") for i in range(1)])
    start = dict(sizes(step(batcher)[0]))["b0"][0]
    assert start == (8 if prefix_cache and real else 0)


def test_counted_prompts_share_by_their_prefix_hashes() -> None:
    batcher = build()
    batcher.add(0, SeqSpec("a", 10, 1, prefix_hashes=(11, 12)))
    step(batcher)
    batcher.add(0, SeqSpec("b", 12, 1, prefix_hashes=(11, 12, 13)))
    batcher.add(0, SeqSpec("c", 10, 1, prefix_hashes=(11, 99)))
    assert sizes(step(batcher)[0]) == {"b": (8, 4), "c": (4, 6)}
    assert batcher.totals.cached_tokens == 12


def test_an_answer_is_cached_for_the_next_turn() -> None:
    batcher = build()
    batcher.add(0, SeqSpec("a", 4, 5, tokens=[1, 2, 3, 4]))
    while batcher.busy:
        step(batcher)
    batcher.add(0, SeqSpec("b", 10, 1, tokens=[1, 2, 3, 4, 7, 7, 7, 7, 7, 9]))
    assert sizes(step(batcher)[0]) == {"b": (8, 2)}


def test_salts_do_not_share() -> None:
    batcher = build()
    batcher.add(0, SeqSpec("a", 9, 1, tokens=[1] * 9, salt="x"))
    step(batcher)
    batcher.add(0, SeqSpec("b", 9, 1, tokens=[1] * 9, salt="y"))
    assert sizes(step(batcher)[0]) == {"b": (0, 9)}


def test_refusals() -> None:
    batcher = build(num_blocks=5, max_context=30, max_seqs=1, max_waiting=2)
    with pytest.raises(Refusal, match="20 tokens") as caught:
        batcher.add(0, SeqSpec("long", 20, 1))
    assert caught.value.reason is Reason.CONTEXT_TOO_LONG
    batcher.add(0, SeqSpec("fits", 19, 100))
    with pytest.raises(Refusal) as caught:
        batcher.add(0, *[SeqSpec(str(i), 1, 1) for i in range(3)])
    assert caught.value.reason is Reason.QUEUE_FULL
    assert caught.value.retry_after_ns > 0
    batcher.add(0, SeqSpec("1", 1, 1), SeqSpec("2", 1, 1))
    ended: list[str] = []
    while batcher.busy:
        ended += step(batcher)[1]
    assert ended == ["fits", "1", "2"]
    assert batcher.totals.generated_tokens == 3  # "fits" ends where the cache does


def test_cancel_before_during_and_after_a_step() -> None:
    batcher = build()
    batcher.add(0, SeqSpec("a", 4, 9), SeqSpec("b", 4, 9))
    end = batcher.cancel(1, "b")
    assert end is not None
    assert end.by is FinishedBy.CANCEL
    batcher.plan(2)
    assert batcher.cancel(3, "a") is not None
    assert batcher.cancel(3, "a") is None
    assert batcher.kv_usage > 0  # the step still writes there
    assert batcher.commit(4, [Sampled("a", 1)]) == []
    assert batcher.kv_usage == 0.0
    assert not batcher.busy
    batcher.check()


def test_a_failed_step_ends_its_sequences_and_forgets_the_cache() -> None:
    batcher = build(max_step_tokens=4)
    batcher.add(0, SeqSpec("a", 4, 9, tokens=[1] * 4))
    step(batcher)
    batcher.add(0, SeqSpec("b", 8, 2, tokens=[1] * 8), SeqSpec("c", 8, 2, tokens=[1] * 8))
    assert set(sizes(batcher.plan(0))) == {"a", "b"}
    assert [end.seq_id for end in batcher.abandon(0)] == ["a", "b"]
    batcher.check()
    assert sizes(step(batcher)[0]) == {"c": (0, 4)}
