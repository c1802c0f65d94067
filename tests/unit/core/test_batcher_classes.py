"""Lower classes give way to higher ones, finish all the same, and compute the same tokens."""

import numpy as np

from baseload.core.batch import Plan, Sampled, SeqSpec
from baseload.core.batcher import Batcher
from baseload.domain.units import NS_PER_MS, NS_PER_S
from baseload.policy.pacing import TOP_RANK, UNHURRIED_NS, Pace, standing

FLEX, DEFAULT, PRIORITY = (Pace(rank=rank) for rank in range(3))


def batcher(*, num_blocks: int = 64, max_seqs: int = 4, prefix_cache: bool = False) -> Batcher:
    return Batcher(
        num_blocks=num_blocks,
        block_tokens=4,
        max_seqs=max_seqs,
        max_step_tokens=64,
        max_context=200,
        max_waiting=400,
        prefix_cache=prefix_cache,
    )


def text_of(seq_id: str, length: int) -> list[int]:
    """The prompt and the answer that belong to a name."""
    return np.random.default_rng([*seq_id.encode()]).integers(0, 50, length).tolist()


def spec(seq_id: str, pace: Pace, *, prompt: int = 8, new: int = 30) -> SeqSpec:
    return SeqSpec(seq_id, prompt, new, text_of(seq_id, prompt), pace=pace)


def step(machine: Batcher, now_ns: int, ended: list[str] | None = None) -> Plan:
    """One step; every token computed is the one that stands there."""
    plan = machine.plan(now_ns)
    for share in plan.shares:
        end = share.start + share.count
        assert list(share.tokens) == text_of(share.seq_id, end)[share.start :]
    sampled = [
        Sampled(share.seq_id, text_of(share.seq_id, share.start + share.count + 1)[-1])
        for share in plan.shares
        if share.wants_token
    ]
    done = machine.commit(now_ns, sampled)
    if ended is not None:
        ended += [one.seq_id for one in done]
    machine.check()
    return plan


def test_a_higher_class_takes_the_slot_of_the_lowest_and_latest() -> None:
    machine, ended = batcher(), list[str]()
    for name, pace in (("d1", DEFAULT), ("f1", FLEX), ("f2", FLEX), ("d2", DEFAULT)):
        machine.add(0, spec(name, pace))
    step(machine, 1)
    machine.add(2, spec("p", PRIORITY), spec("f3", FLEX))
    plan = step(machine, 3)
    assert plan.preempted == ("f2",)
    assert "p" in [share.seq_id for share in plan.shares], "it comes in with the step that made way"
    machine.add(4, spec("p2", PRIORITY), spec("p3", PRIORITY), spec("p4", PRIORITY))
    assert step(machine, 5).preempted == ("f1",)
    assert step(machine, 6).preempted == ("d2",)
    assert step(machine, 7).preempted == ("d1",)
    assert step(machine, 8).preempted == ()
    while machine.busy:
        step(machine, 9, ended)
    assert sorted(ended[:4]) == ["p", "p2", "p3", "p4"]
    assert len(ended) == 9
    assert machine.totals.preemptions == 4


def test_one_class_alone_gives_way_to_nobody() -> None:
    for pace in (FLEX, DEFAULT, PRIORITY):
        machine = batcher()
        machine.add(0, *[spec(f"{pace.rank}{i}", pace) for i in range(6)])
        assert all(not step(machine, now).preempted for now in range(3))
        assert machine.waiting == 2


def test_when_blocks_run_out_the_lowest_class_gives_way_even_if_it_came_first() -> None:
    machine, ended = batcher(num_blocks=12), list[str]()
    machine.add(0, spec("flex", FLEX), spec("first", DEFAULT), spec("last", DEFAULT))
    preempted: list[str] = []
    while machine.busy:
        preempted += step(machine, 1, ended).preempted
    assert preempted[0] == "flex"
    assert ended.index("first") < ended.index("flex")
    assert sorted(ended) == ["first", "flex", "last"]


def test_nobody_gives_way_where_it_would_not_help() -> None:
    machine = batcher(num_blocks=16)
    machine.add(0, spec("first", PRIORITY, prompt=40), spec("flex", FLEX, prompt=8, new=4))
    step(machine, 1)
    machine.add(2, spec("large", PRIORITY, prompt=50))  # 13 blocks: more than are left beside the first
    assert step(machine, 3).preempted == ()
    assert machine.running == 2


def test_a_stream_of_higher_classes_does_not_starve_a_lower_one() -> None:
    """Always more priority work than fits: the flex answer ends within its time of grace and its own work."""
    for prefix_cache in (False, True):
        machine, ended, now, count = batcher(max_seqs=2, num_blocks=24, prefix_cache=prefix_cache), list[str](), 0, 0
        machine.add(0, spec("flex", FLEX, new=60))
        while "flex" not in ended:
            while machine.waiting < 3:
                machine.add(now, spec(f"p{count}", PRIORITY, new=20))
                count += 1
            step(machine, now, ended)
            now += 100 * NS_PER_MS
            assert now < TOP_RANK * UNHURRIED_NS + 20 * NS_PER_S
        assert count > 20
        assert "p0" in ended


def test_standing_rises_with_each_time_of_giving_way_and_with_each_minute() -> None:
    assert [standing(rank=rank, lifts=0, waited_ns=0) for rank in range(3)] == [0, 1, 2]
    assert standing(rank=0, lifts=1, waited_ns=0) == 1
    assert standing(rank=0, lifts=0, waited_ns=UNHURRIED_NS) == 1
    assert standing(rank=1, lifts=1, waited_ns=5 * UNHURRIED_NS) == TOP_RANK
