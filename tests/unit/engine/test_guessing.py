"""Guessing ahead changes how many steps an answer takes, and nothing else."""

import queue
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from baseload.core.step_times import StepTimes
from baseload.domain.model import EngineSpec
from baseload.domain.sampling import Sampling
from baseload.domain.work import Tier
from baseload.engine.draft_model import DraftModel
from baseload.engine.drafting import PromptLookup
from baseload.engine.guessing import GuessSource, PromptLookups
from baseload.engine.jobs import Delta, Ended, Failed, Job, Output
from baseload.engine.loop import EngineLoop
from baseload.engine.sampling import RowSampler
from baseload.engine.spans import Span

VOCAB = 12
WAIT_S = 120.0


def logits_after(text: Sequence[int]) -> np.ndarray:
    """A model that likes to go round in a circle of five, but not always."""
    logits = np.random.default_rng([*text[-3:]]).normal(size=VOCAB)
    logits[(text[-1] + 1) % 5] += 2.5
    return logits.astype(np.float32)


class Clock:
    """Time passes only where work is done."""

    def __init__(self) -> None:
        self.ns = 1

    def __call__(self) -> int:
        return self.ns


class CircleRunner:
    """Keeps tokens in blocks; logits depend on the last three as read back."""

    block_tokens = 4
    max_context = 200
    step_ns = 1_000_000
    token_ns = 10_000
    eos_token_ids = (11,)

    def __init__(self, num_blocks: int, clock: "Clock") -> None:
        self.num_blocks = num_blocks
        self.clock = clock
        self.cells = np.full((num_blocks, self.block_tokens), -1)
        self.steps = 0

    def run(self, spans: Sequence[Span]) -> np.ndarray:
        self.steps += 1
        self.clock.ns += self.step_ns + sum(len(span.tokens) for span in spans) * self.token_ns
        rows = []
        for span in spans:
            end = span.start + len(span.tokens)
            for position, token in zip(range(span.start, end), span.tokens, strict=True):
                self.cells[span.blocks[position // self.block_tokens], position % self.block_tokens] = token
            text = self.cells[span.blocks].reshape(-1)[:end]
            assert (text >= 0).all()
            if span.wants_logits:
                rows += [logits_after(text[: end - back]) for back in range(span.logits - 1, -1, -1)]
        return np.stack(rows) if rows else np.zeros((0, VOCAB), np.float32)


class Babbler:
    """Guesses at random, often more than asked for."""

    apart_ns = 0
    is_known = True

    def __init__(self, clock: Clock | None = None, costs_ns: int = 0) -> None:
        self.clock = clock
        self.costs_ns = costs_ns
        self.random = np.random.default_rng(9)
        self.open_now: dict[str, list[int]] = {}

    def open(self, seq_id: str, tokens: Sequence[int], sampler: RowSampler) -> None:
        self.open_now[seq_id] = list(tokens)

    def push(self, seq_id: str, tokens: Sequence[int]) -> None:
        self.open_now[seq_id] += tokens

    def guess_ns(self, rows: int, pairs: int) -> int:
        return 0

    def behind_ns(self, seq_id: str) -> int:
        return 0

    def guess(self, asked: Mapping[str, int]) -> Mapping[str, Sequence[int]]:
        if self.clock is not None:
            self.clock.ns += self.costs_ns
        return {
            name: self.random.integers(0, 5, most + int(self.random.integers(0, 3))) for name, most in asked.items()
        }

    def close(self, seq_id: str) -> None:
        del self.open_now[seq_id]


def answers(
    source: GuessSource | None, jobs: list[Job], *, num_blocks: int, clock: Clock | None = None, **spec: int
) -> tuple[dict[str, list[Delta]], EngineLoop, int]:
    clock = clock or Clock()
    runner = CircleRunner(num_blocks, clock)
    outputs: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()
    fatal: list[BaseException] = []
    loop = EngineLoop(
        runner,
        lambda token: bytes([0x40 + token]),
        spec=EngineSpec(**({"max_seqs": 4, "max_step_tokens": 32} | spec)),  # type: ignore[arg-type]
        emit=outputs.put,
        on_fatal=fatal.append,
        guesser=source,
        clock=clock,
    )
    for job in jobs:
        loop.submit(job)
    loop.start()
    made: dict[str, list[Delta]] = {job.request_id: [] for job in jobs}
    left = len(jobs)
    while left:
        for output in outputs.get(timeout=WAIT_S):
            match output:
                case Delta():
                    made[output.request_id].append(output)
                case Ended():
                    completion = made[output.request_id]
                    assert output.tokens.completion == len(completion)
                    left -= 1
                case Failed():
                    raise output.refusal
    loop.close()
    assert not fatal
    return made, loop, runner.steps


class SmallRunner(CircleRunner):
    """A draft model of the same kind whose cache is smaller; it does not agree with the large one everywhere."""

    step_ns = 50_000
    token_ns = 500

    def run(self, spans: Sequence[Span]) -> np.ndarray:
        logits = super().run(spans)
        return logits + np.sin(np.arange(VOCAB) * 7.0).astype(np.float32) * 0.3


@pytest.mark.parametrize("draft_blocks", [120, 20])
def test_a_draft_model_changes_no_token(draft_blocks: int) -> None:
    plain, _, plain_steps = answers(None, some_jobs(), num_blocks=200)
    clock = Clock()
    draft = DraftModel(SmallRunner(draft_blocks, clock), most_tokens=5, clock=clock)
    guessed, loop, steps = answers(draft, some_jobs(), num_blocks=200, clock=clock, guess_tokens=3)
    for name, deltas in plain.items():
        for index in range(2):
            assert tokens_of(guessed[name], index) == tokens_of(deltas, index)
    assert loop.totals.right_tokens > 0.4 * loop.totals.guessed_tokens > 0
    assert steps < plain_steps
    assert draft.guess_ns(4, 100) >= 50_000
    assert draft.room == draft_blocks, "it gave every block back"


def test_a_draft_as_large_as_the_model_is_given_up() -> None:
    clock = Clock()
    small = CircleRunner(200, clock)
    draft = DraftModel(small, most_tokens=64, clock=clock)
    _, loop, steps = answers(draft, some_jobs(), num_blocks=200, clock=clock)
    assert small.steps <= 6
    assert loop.totals.guessed_tokens <= 16, "until it is known what a guess costs"
    alone = Clock()
    _, _, plain_steps = answers(None, some_jobs(), num_blocks=200, clock=alone)
    assert steps <= plain_steps
    assert clock.ns < 1.02 * alone.ns, "trying it costs less than two hundredths"


class Seer(Babbler):
    """Guesses what is right."""

    def guess(self, asked: Mapping[str, int]) -> Mapping[str, Sequence[int]]:
        super().guess(asked)
        found = {}
        for name, most in asked.items():
            text = list(self.open_now[name])
            for _ in range(most):
                text.append(int(logits_after(text).argmax()))
            found[name] = text[-most:]
        return found


@pytest.mark.parametrize(("costs_ns", "pays"), [(1000, True), (8_000_000, False)])
def test_what_a_guess_costs_the_host_is_counted(costs_ns: int, pays: bool) -> None:
    clock = Clock()
    job = Job("a", [[0, 1, 2, 3, 4] * 4], Sampling(max_tokens=150, temperature=0.0, ignore_eos=True), seed=0)
    _, loop, _ = answers(Seer(clock, costs_ns), [job], num_blocks=60, clock=clock)
    assert (loop.totals.guessed_tokens > 20) == pays


class SteepRunner(CircleRunner):
    """All arithmetic: a step costs what its tokens cost, and a guess therefore pays nowhere."""

    step_ns = 1000
    token_ns = 400_000


def test_where_guesses_cannot_pay_they_cost_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "CircleRunner", SteepRunner)
    jobs = [
        Job(f"j{i}", [[i % 5, 3, 1]], Sampling(max_tokens=180, temperature=1.5, ignore_eos=True), seed=i)
        for i in range(16)
    ]
    took = []
    for source in (lambda clock: None, lambda clock: PromptLookups(clock=clock)):
        clock = Clock()
        answers(source(clock), jobs, num_blocks=400, clock=clock)
        took.append(clock.ns)
    assert took[1] < 1.02 * took[0]


def tokens_of(deltas: list[Delta], index: int) -> list[int]:
    return [delta.token for delta in deltas if delta.index == index]


def some_jobs() -> list[Job]:
    jobs = []
    for i in range(9):
        prompt = [(i + j) % 5 for j in range(6 + i)]
        greedy = i % 3 == 0
        sampling = Sampling(
            max_tokens=60,
            temperature=0.0 if greedy else 0.8,
            top_p=0.9,
            n=2 if i == 4 else 1,
            stop=("ABCDEABCDEAB",) if i == 5 else (),
            frequency_penalty=0.2 if i == 7 else 0.0,
            logprobs=i == 1,
        )
        jobs.append(Job(f"j{i}", [prompt], sampling, seed=i))
    return jobs


@pytest.mark.parametrize("num_blocks", [200, 34])
def test_answers_are_the_same_token_for_token(num_blocks: int) -> None:
    plain, _, plain_steps = answers(None, some_jobs(), num_blocks=num_blocks)
    babbler = Babbler()
    for source in (PromptLookups(), babbler):
        guessed, loop, steps = answers(source, some_jobs(), num_blocks=num_blocks, guess_tokens=5)
        for name, deltas in plain.items():
            for index in range(2):
                before = [(d.token, d.text, d.logprob, d.shown, d.finish) for d in deltas if d.index == index]
                after = [(d.token, d.text, d.logprob, d.shown, d.finish) for d in guessed[name] if d.index == index]
                assert after == before
        assert loop.totals.guessed_tokens > 0
        assert loop.totals.right_tokens > 0
        if isinstance(source, PromptLookups):
            assert steps < plain_steps, "right guesses save steps"
    assert not babbler.open_now, "every sequence was closed"


def test_what_gives_way_to_a_higher_class_has_the_same_tokens_in_the_end() -> None:
    plain, calm, _ = answers(None, some_jobs(), num_blocks=400, max_seqs=16)
    classes = [Tier.FLEX, Tier.FLEX, Tier.DEFAULT, Tier.FLEX, Tier.PRIORITY]
    jobs = [replace(job, tier=classes[at % len(classes)]) for at, job in enumerate(some_jobs())]
    assert calm.totals.preemptions == 0
    for source in (None, PromptLookups()):
        mixed, loop, _ = answers(source, jobs, num_blocks=34)
        assert loop.totals.preemptions > 0
        for name, deltas in plain.items():
            for index in range(2):
                assert tokens_of(mixed[name], index) == tokens_of(deltas, index)


def test_a_long_answer_in_a_circle_takes_far_fewer_steps() -> None:
    job = Job("a", [[0, 1, 2, 3, 4] * 4], Sampling(max_tokens=100, temperature=0.0), seed=0)
    _, _, plain = answers(None, [job], num_blocks=60)
    _, loop, guessed = answers(PromptLookups(), [job], num_blocks=60, guess_tokens=4)
    assert loop.totals.right_tokens <= loop.totals.guessed_tokens
    assert guessed < plain


def test_prompt_lookup_finds_the_latest_longest_repetition() -> None:
    lookup = PromptLookup([1, 2, 3, 9, 1, 2, 3, 8, 2, 3])
    assert list(lookup.guess(2)) == [8, 2]  # after (2, 3), the latest: 8
    lookup.push(8)
    assert list(lookup.guess(3)) == [2, 3, 8]  # after (2, 3, 8): 2 3 8
    lookup.push(7)
    assert list(lookup.guess(3)) == []
    assert list(lookup.guess(0)) == []


def test_prompt_lookup_goes_round_in_a_short_circle() -> None:
    assert list(PromptLookup([5, 6, 5, 6]).guess(5)) == [5, 6, 5, 6, 5]


def test_step_times_learns_what_steps_cost() -> None:
    times, random = StepTimes(), np.random.default_rng(3)

    def cost(tokens: int, decode_pairs: int, prefill_pairs: int) -> float:
        return 2e7 * max(1.0, tokens / 24) ** 0.9 + 900 * decode_pairs + 200 * prefill_pairs

    assert times.predict(1, 0, 0) == 0
    errors = []
    for step in range(600):
        rows, chunk = int(random.integers(1, 33)), int(random.integers(0, 2) * random.integers(32, 480))
        state = (rows + chunk, rows * int(random.integers(50, 2000)), chunk * int(random.integers(0, 1000)))
        if step > 150:
            errors.append(abs(times.predict(*state) / cost(*state) - 1))
        slow = 6.0 if random.random() < 0.01 else 1.0
        times.observe(*state, int(cost(*state) * random.lognormal(0, 0.04) * slow))
    assert np.mean(errors) < 0.06
    assert times.predict(64, 0, 0) <= times.predict(65, 0, 0) <= times.predict(65, 10, 0) <= times.predict(65, 10, 10)
