"""The batcher under arbitrary arrivals, cancellations, failures and stops, against its stated invariants."""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from baseload.core.batch import FinishedBy, Plan, Sampled, SeqSpec
from baseload.core.batcher import Batcher
from baseload.domain.errors import Reason, Refusal
from baseload.policy.pacing import UNHURRIED_NS, Pace


class BatcherMachine(RuleBasedStateMachine):
    """Random work on a small pool; at the end everything drains and nothing has leaked."""

    seqs = Bundle("seqs")

    @initialize(
        num_blocks=st.integers(2, 16),
        block_tokens=st.integers(1, 5),
        max_seqs=st.integers(1, 5),
        budget=st.integers(1, 12),
        prefix_cache=st.booleans(),
    )
    def build(self, num_blocks: int, block_tokens: int, max_seqs: int, budget: int, prefix_cache: bool) -> None:
        self.batcher = Batcher(
            num_blocks=num_blocks,
            block_tokens=block_tokens,
            max_seqs=max_seqs,
            max_step_tokens=budget,
            max_context=60,
            max_waiting=6,
            prefix_cache=prefix_cache,
        )
        self.now = 0
        self.count = 0
        self.texts: dict[str, list[int]] = {}  # the tokens each sequence should have
        self.specs: dict[str, SeqSpec] = {}
        self.generated: dict[str, int] = {}
        self.kv: dict[int, tuple[int, ...]] = {}  # block -> the token prefix whose KV it holds
        self.plan: Plan | None = None
        self.decoding: dict[str, None] = {}
        self.guess_next = 0  # tokens to guess ahead in the next plan

    @rule(
        target=seqs,
        length=st.integers(1, 30),
        new=st.integers(1, 12),
        kind=st.integers(0, 2),
        n=st.integers(1, 3),
        real=st.booleans(),
        rank=st.sampled_from([0, 1, 1, 2]),
    )
    def add(self, length: int, new: int, kind: int, n: int, real: bool, rank: int):  # type: ignore[no-untyped-def]
        self.count += 1
        tokens = [(i * i + kind) % 7 for i in range(length)]  # few kinds, so that prefixes are shared
        hashes = tuple(1000 * kind + i for i in range(length // self.batcher.pool.block_tokens))
        group = f"g{self.count}" if n > 1 else ""
        specs = [
            SeqSpec(
                f"s{self.count}.{i}",
                length,
                new,
                tokens if real else None,
                () if real else hashes,
                group,
                pace=Pace(rank=rank),
            )
            for i in range(n)
        ]
        before = self.batcher.running + self.batcher.waiting
        try:
            self.batcher.add(self.now, *specs)
        except Refusal as refusal:
            if refusal.reason is Reason.CONTEXT_TOO_LONG:
                assert length + 1 > self.batcher.max_tokens
            else:
                assert refusal.reason is Reason.QUEUE_FULL  # noqa: PT017  # either refusal may be right
                assert before + n > self.batcher.max_seqs + self.batcher.max_waiting
            assert self.batcher.running + self.batcher.waiting == before
            return multiple()
        for spec in specs:
            self.specs[spec.seq_id] = spec
            self.texts[spec.seq_id] = list(tokens)
            self.generated[spec.seq_id] = 0
        return multiple(*(spec.seq_id for spec in specs))

    @rule(seq_id=consumes(seqs))
    def cancel(self, seq_id: str) -> None:
        finished = self.batcher.cancel(self.now, seq_id)
        assert (finished is not None) == (seq_id in self.specs)
        if finished is not None:
            assert finished.by is FinishedBy.CANCEL
            self.forget(seq_id)
        assert self.batcher.cancel(self.now, seq_id) is None

    @rule(tokens=st.integers(1, 6))
    def guess(self, tokens: int) -> None:
        self.guess_next = tokens

    @rule(minutes=st.integers(1, 3))
    def wait(self, minutes: int) -> None:
        self.now += minutes * UNHURRIED_NS

    @rule()
    def make_plan(self) -> None:
        if self.plan is None:
            self.begin()

    @rule(stops=st.integers(0, 7))
    def commit(self, stops: int) -> None:
        if self.plan is not None:
            self.finish_step(stops)

    @rule(steps=st.integers(1, 12))
    def run_on(self, steps: int) -> None:
        for _ in range(steps):
            if self.plan is None:
                self.begin()
            self.finish_step(5)
            self.batcher.check()

    @rule()
    def fail(self) -> None:
        if self.plan is None:
            return
        ended = self.batcher.abandon(self.now)
        assert {f.seq_id for f in ended} == {s.seq_id for s in self.plan.shares if s.seq_id in self.specs}
        for finished in ended:
            self.forget(finished.seq_id)
        self.plan = None
        self.decoding = {}
        self.kv = {}

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "batcher") and self.plan is None:
            self.batcher.check()

    def begin(self) -> None:
        self.now += 1
        was_busy = self.batcher.busy
        for seq_id in self.decoding if self.guess_next else ():
            length = len(self.texts[seq_id])  # right where the next step is sampled with stops=5
            self.batcher.guess(seq_id, [((length + i) * 3 + 5) % 7 for i in range(self.guess_next)])
        self.guess_next = 0
        plan = self.plan = self.batcher.plan(self.now)
        shares = {share.seq_id: share for share in plan.shares}
        assert len(shares) == len(plan.shares)
        assert bool(shares) == was_busy, "a busy batcher always makes progress"
        assert sum(share.count for share in plan.shares) <= self.batcher.max_step_tokens
        for seq_id in self.decoding:  # a decode never waits behind prefill
            assert seq_id in shares or seq_id in plan.preempted
        written: dict[int, str] = {}
        size = self.batcher.pool.block_tokens
        for share in plan.shares:
            text = self.texts[share.seq_id]
            end = share.start + share.count
            assert share.count > 0
            assert end - share.guessed <= len(text)
            assert share.wants_token == (end - share.guessed == len(text))
            assert share.wants_token or not share.guessed
            assert len(share.blocks) * size >= end
            spec = self.specs[share.seq_id]
            if spec.tokens is not None:
                guessed = [((len(text) + i) * 3 + 5) % 7 for i in range(share.guessed)]
                assert list(share.tokens) == text[share.start :][: share.count] + guessed
                assert self.generated[share.seq_id] + share.guessed < spec.max_new_tokens or not share.guessed
                for i in range(share.start // size):  # what it does not compute is in its blocks
                    assert self.kv[share.blocks[i]] == tuple(text[: (i + 1) * size])
            for i in range(share.start // size, (end - 1) // size + 1):
                assert written.setdefault(share.blocks[i], share.seq_id) == share.seq_id, "two write one block"

    def finish_step(self, stops: int) -> None:
        assert self.plan is not None
        self.now += 1
        size = self.batcher.pool.block_tokens
        sampled = []
        for share in self.plan.shares:
            if share.seq_id not in self.specs:
                continue  # cancelled meanwhile
            text = self.texts[share.seq_id]
            guesses = list(share.tokens[len(share.tokens) - share.guessed :])
            held = text + guesses
            for i in range(share.start // size, (share.start + share.count - 1) // size + 1):
                self.kv[share.blocks[i]] = tuple(held[: min((i + 1) * size, share.start + share.count)])
            right = 0
            while share.wants_token:
                token = (len(text) * 3 + stops) % 7
                text.append(token)
                self.generated[share.seq_id] += 1
                stop = (len(text) + stops) % 8 == 0
                if stop or right == share.guessed or token != guesses[right]:
                    sampled.append(Sampled(share.seq_id, token, stop=stop, right=right))
                    break
                right += 1
        ended = self.batcher.commit(self.now, sampled)
        self.plan = None
        stopped = {s.seq_id for s in sampled if s.stop}
        for finished in ended:
            spec, made = self.specs[finished.seq_id], self.generated[finished.seq_id]
            limit = min(spec.max_new_tokens, self.batcher.max_tokens - spec.prompt_tokens)
            assert finished.by is (FinishedBy.STOP if finished.seq_id in stopped else FinishedBy.LENGTH)
            assert made == limit or finished.by is FinishedBy.STOP
            assert (finished.tokens.prompt, finished.tokens.completion) == (spec.prompt_tokens, made)
            assert 0 <= finished.tokens.cached_in < spec.prompt_tokens
            assert min(finished.phases.queue_ns, finished.phases.prefill_ns, finished.phases.decode_ns) >= 0
            self.forget(finished.seq_id)
        assert stopped <= {finished.seq_id for finished in ended}
        self.decoding = {s.seq_id: None for s in sampled if s.seq_id in self.specs}

    def forget(self, seq_id: str) -> None:
        del self.specs[seq_id]
        self.decoding.pop(seq_id, None)

    def teardown(self) -> None:
        if not hasattr(self, "batcher"):
            return
        steps = 0
        while self.batcher.busy or self.plan is not None:
            if self.plan is None:
                self.begin()
            self.finish_step(1)
            steps += 1
            assert steps < 5_000, "it does not drain"
        assert not self.specs
        self.batcher.check()
        assert self.batcher.kv_usage == 0.0


TestBatcherMachine = BatcherMachine.TestCase
TestBatcherMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
