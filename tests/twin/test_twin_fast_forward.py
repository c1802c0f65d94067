"""Many steps at once end exactly as one by one: same actions at the same times, same batcher, to the last block."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from baseload.core.batch import SeqSpec
from baseload.core.counted import CountedBatcher, Counts
from baseload.domain.model import EngineSpec
from baseload.limits.step_time import StepTimeSpec, StepTimeTable
from baseload.twin.agenda import Agenda
from baseload.twin.costs import ENDLESS, Line, TableCosts, floor_sum
from baseload.twin.run import Simulation
from baseload.twin.spec import SimulateConfig
from baseload.twin.stepping import Stepper
from baseload.twin.swarm import drawn_config

TABLE = StepTimeTable(
    StepTimeSpec(
        "stated: a test", 1.0, prefill=((7, 1.3), (64, 9.1)), decode=((3, 0.77),), context=((50, 0.3), (90, 1.1))
    )
)


class Played:
    """One stepper under a script, with everything that could be seen of it."""

    def __init__(self, *, exact: bool, engine: EngineSpec, kv_tokens: int) -> None:
        self.agenda = Agenda(1, start_ns=0)
        self.seen: list[object] = []
        self.stepper = Stepper(
            engine,
            kv_tokens=kv_tokens,
            max_context=400,
            costs=TableCosts(TABLE),
            clock=self.agenda,
            on_step=lambda firsts, finished: self.seen.append((self.agenda.now_ns, list(firsts), list(finished))),
            exact=exact,
        )

    def run(self, script: list[tuple[int, str, SeqSpec]]) -> None:
        for at_ns, what, spec in script:
            # An odd nanosecond: no step of this table's ends then, so nothing depends on the order of ties.
            self.agenda.at(at_ns * 2_000 + 1, lambda what=what, spec=spec: self.do(what, spec))
        while self.agenda.step():
            self.stepper.batcher.check()

    def do(self, what: str, spec: SeqSpec) -> None:
        stepper, batcher = self.stepper, self.stepper.batcher
        match what:
            case "add":
                stepper.add(spec)
            case "cancel" if spec.seq_id in batcher._seqs:
                self.seen.append(stepper.generated(spec.seq_id))
                stepper.cancel(spec.seq_id)
            case "look":
                self.seen.append((self.agenda.now_ns, stepper.figures(), stepper.computed_ns()))
            case "hang":
                stepper.halt()
            case "slow":
                stepper.disturb(lambda took_ns: 3 * took_ns)
            case "well":
                stepper.disturb(None)


whats = st.sampled_from(["add", "add", "add", "add", "cancel", "look", "look", "slow", "well", "hang"])
moments = st.lists(
    st.tuples(st.integers(0, 40_000), whats, st.integers(1, 60), st.integers(1, 90), st.integers(0, 3)), max_size=24
)


@settings(max_examples=150, deadline=None)
@given(
    moments=moments, blocks=st.integers(8, 60), block_tokens=st.integers(1, 16), max_seqs=st.integers(1, 6),
    budget=st.integers(1, 64), cache=st.booleans(),
)  # fmt: skip
def test_a_stepper_shows_the_same_either_way(
    moments: list[tuple[int, str, int, int, int]],
    blocks: int,
    block_tokens: int,
    max_seqs: int,
    budget: int,
    cache: bool,
) -> None:
    engine = EngineSpec(
        max_seqs=max_seqs, max_step_tokens=budget, block_tokens=block_tokens, max_waiting=99, prefix_cache=cache
    )
    script = []
    for number, (at, what, prompt, output, kind) in enumerate(moments):
        prompt = min(prompt, blocks * block_tokens - 1)
        hashes = tuple(kind * 1000 + i for i in range((prompt + output) // block_tokens)) if kind else ()
        name = f"s{number}" if what == "add" else f"s{number // 2}"
        script.append(
            (at, what, SeqSpec(name, max(1, prompt), output + kind, prefix_hashes=hashes, stop_after=output))
        )
    fast = Played(exact=False, engine=engine, kv_tokens=blocks * block_tokens)
    exact = Played(exact=True, engine=engine, kv_tokens=blocks * block_tokens)
    fast.run(script)
    exact.run(script)
    assert fast.seen == exact.seen
    assert fast.stepper.batcher.totals == exact.stepper.batcher.totals
    assert fast.stepper.steps == exact.stepper.steps
    mine, theirs = fast.stepper.batcher.pool, exact.stepper.batcher.pool
    assert (mine._refs, mine._free, mine._cached, mine._hash_of) == (
        theirs._refs, theirs._free, theirs._cached, theirs._hash_of,
    )  # fmt: skip


@pytest.mark.parametrize("then", ["look", "cancel a", "cancel c", "add", "slow", "hang", "nothing"])
@pytest.mark.parametrize("cache", [False, True])
def test_what_happens_in_the_step_after_which_somebody_comes_in(then: str, cache: bool) -> None:
    """A newcomer ends a quiet stretch with the step that runs; something else happens before that step has ended."""
    engine = EngineSpec(max_seqs=4, max_step_tokens=64, block_tokens=4, max_waiting=9, prefix_cache=cache)
    hashes = tuple(range(40))
    script = [
        (0, "add", SeqSpec("a", 10, 80, prefix_hashes=hashes, stop_after=60)),
        (0, "add", SeqSpec("b", 9, 70, stop_after=41)),
        (20_000, "add", SeqSpec("c", 30, 50, prefix_hashes=hashes[:7], stop_after=40)),
    ]
    what, _, name = then.partition(" ")
    if what != "nothing":
        script.append((20_050, what, SeqSpec(name or "d", 12, 33, prefix_hashes=hashes[:3], stop_after=20)))
    script += [(at, "look", SeqSpec("", 1, 1)) for at in (20_100, 20_600, 22_000, 30_000)]
    fast, exact = (Played(exact=is_exact, engine=engine, kv_tokens=400) for is_exact in (False, True))
    fast.run(script)
    exact.run(script)
    assert fast.seen == exact.seen
    assert fast.stepper.batcher.totals == exact.stepper.batcher.totals
    assert fast.stepper.steps == exact.stepper.steps


@pytest.mark.parametrize("seed", range(20_001, 20_011))
def test_a_whole_simulation_takes_the_same_actions_either_way(seed: int) -> None:
    """With all faults drawn from the seed: crashes, hangs, stalls, kills of control, clients that hang up."""
    import msgspec

    config = drawn_config(SimulateConfig(), seed=seed)
    fast = Simulation(config, is_hunt=True).run()
    exact = Simulation(msgspec.structs.replace(config, exact=True), is_hunt=True).run()
    assert fast.failure is None
    assert fast.digest == exact.digest
    assert fast == exact


def test_a_window_is_opened_where_there_is_one() -> None:
    played = Played(exact=False, engine=EngineSpec(), kv_tokens=4096)
    happened = 0
    played.agenda.at(0, lambda: played.stepper.add(SeqSpec("a", 10, 300, stop_after=250)))
    while played.agenda.step():
        happened += 1
    assert played.stepper.steps == 250
    assert happened < 10


@given(st.integers(0, 300), st.integers(1, 10_000), st.integers(0, 10**7), st.integers(0, 10**9))
def test_floor_sum_is_the_sum_of_floors(count: int, unit: int, rise: int, first: int) -> None:
    assert floor_sum(count, unit, rise, first) == sum((first + rise * k) // unit for k in range(count))


@given(st.integers(1, 500), st.integers(0, 5_000), st.integers(0, 2_000_000))
def test_steps_within_a_time_are_those_that_have_ended(unit: int, rise: int, time_ns: int) -> None:
    line = Line(first=unit * 900 + 17, rise=rise, unit=unit, steps=ENDLESS)
    steps, took_ns = line.steps_within(time_ns)
    assert took_ns == line.total_ns(steps) <= time_ns < line.total_ns(steps + 1)


def test_a_quiet_batcher_says_for_how_long() -> None:
    batcher = CountedBatcher(
        num_blocks=100, block_tokens=4, max_seqs=4, max_step_tokens=64, max_context=200, max_waiting=4
    )
    assert batcher.quiet_steps() == 0
    batcher.add(0, SeqSpec("a", 10, 50, stop_after=20), SeqSpec("b", 10, 7))
    assert batcher.quiet_steps() == 0, "their prompts are still to be computed"
    assert batcher.plan_counted(0) == Counts(2, 0, 20, 20, 0, 100, 2)
    assert batcher.commit_counted(5) == (["a", "b"], [])
    assert batcher.quiet_steps() == 6, "b ends with its seventh token"
    (end,) = batcher.fast_forward(100, 6)
    assert (end.seq_id, end.by, end.tokens.completion, end.phases.decode_ns) == ("b", "length", 7, 95)
    assert batcher.quiet_steps() == 13
    (end,) = batcher.fast_forward(200, 13)
    assert (end.seq_id, end.by, end.tokens.completion) == ("a", "stop", 20)
    assert not batcher.busy
    batcher.check()
