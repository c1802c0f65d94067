"""The loop on a fake runner that keeps tokens in blocks, as the real one keeps keys and values."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from baseload.core.step_times import StepTimes
from baseload.domain.errors import Reason, Refusal
from baseload.domain.model import EngineSpec
from baseload.domain.sampling import Sampling
from baseload.engine.jobs import Delta, Ended, Failed, Job, Output
from baseload.engine.loop import MAX_FAILURES, EngineLoop
from baseload.engine.sampling import SamplingFailed
from baseload.engine.spans import Span

VOCAB = 40
EOS = 0
WAIT_S = 120.0


def token_bytes(token: int) -> bytes:
    return b"" if token == EOS else bytes([0x40 + token])


def logits_after(text: Sequence[int]) -> np.ndarray:
    random = np.random.default_rng([*text])
    return (random.normal(size=VOCAB) * 2).astype(np.float32)


class FakeRunner:
    """Logits depend on the whole prefix as read back from the blocks: a wrong block table changes the answer."""

    def __init__(self, *, num_blocks: int = 64, block_tokens: int = 4, eos: tuple[int, ...] = (EOS,)) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.max_context = 128
        self.eos_token_ids = eos
        self.cells = np.full((num_blocks, block_tokens), -1)
        self.before: Callable[[Sequence[Span]], None] = lambda spans: None
        self.steps = 0

    def run(self, spans: Sequence[Span]) -> np.ndarray:
        self.steps += 1
        self.before(spans)
        rows = []
        for span in spans:
            end = span.start + len(span.tokens)
            for position, token in zip(range(span.start, end), span.tokens, strict=True):
                block = span.blocks[position // self.block_tokens]
                self.cells[block, position % self.block_tokens] = token
            text = self.cells[span.blocks].reshape(-1)[:end]
            assert (text >= 0).all(), "positions that nobody computed"
            if span.wants_logits:
                rows += [logits_after(text[: end - back]) for back in range(span.logits - 1, -1, -1)]
        return np.stack(rows) if rows else np.zeros((0, VOCAB), np.float32)


@dataclass
class Bench:
    """A loop and what it emitted."""

    runner: FakeRunner
    spec: EngineSpec
    outputs: queue.SimpleQueue[Output] = field(default_factory=queue.SimpleQueue)
    fatal: list[BaseException] = field(default_factory=list)
    died: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.loop = EngineLoop(self.runner, token_bytes, spec=self.spec, emit=self.take, on_fatal=self.fatal_error)

    def take(self, outputs: list[Output]) -> None:
        for output in outputs:
            self.outputs.put(output)

    def fatal_error(self, error: BaseException) -> None:
        self.fatal.append(error)
        self.died.set()

    def until_over(self, count: int) -> tuple[dict[str, list[Delta]], dict[str, Ended | Failed]]:
        deltas: dict[str, list[Delta]] = {}
        over: dict[str, Ended | Failed] = {}
        while len(over) < count:
            output = self.outputs.get(timeout=WAIT_S)
            if isinstance(output, Delta):
                deltas.setdefault(output.request_id, []).append(output)
            else:
                over[output.request_id] = output
        return deltas, over


Make = Callable[..., Bench]


@pytest.fixture
def make() -> Iterator[Make]:
    benches: list[Bench] = []

    def build(*, start: bool = True, runner: FakeRunner | None = None, **spec: object) -> Bench:
        settings: dict[str, object] = {"max_seqs": 4, "max_step_tokens": 16, "max_waiting": 60}
        bench = Bench(runner or FakeRunner(), EngineSpec(**(settings | spec)))  # type: ignore[arg-type]
        benches.append(bench)
        if start:
            bench.loop.start()
        return bench

    yield build
    for bench in benches:
        bench.loop.close()


def job(name: str, prompt: Sequence[int] = (5, 6, 7), *, seed: int = 1, **sampling: object) -> Job:
    settings: dict[str, object] = {"max_tokens": 12, "ignore_eos": True}
    return Job(name, [list(prompt)], Sampling(**(settings | sampling)), seed)  # type: ignore[arg-type]


def tokens_of(deltas: list[Delta], index: int = 0) -> list[int]:
    return [delta.token for delta in deltas if delta.index == index]


def text_of(deltas: list[Delta], index: int = 0) -> str:
    return "".join(delta.text for delta in deltas if delta.index == index)


def greedy(prompt: Sequence[int], count: int) -> list[int]:
    text = list(prompt)
    for _ in range(count):
        text.append(int(logits_after(text).argmax()))
    return text[len(prompt) :]


def test_greedy_follows_the_model(make: Make) -> None:
    bench = make()
    bench.loop.submit(job("a", range(1, 22), temperature=0.0))
    deltas, over = bench.until_over(1)
    assert tokens_of(deltas["a"]) == greedy(range(1, 22), 12)
    assert [delta.finish for delta in deltas["a"]] == [None] * 11 + ["length"]
    end = over["a"]
    assert isinstance(end, Ended)
    assert (end.tokens.prompt, end.tokens.completion) == (21, 12)
    assert end.phases.prefill_ns > 0
    assert end.phases.decode_ns > 0


def test_tokens_do_not_depend_on_company_chunks_cache_or_preemption(make: Make) -> None:
    random = np.random.default_rng(3)
    shared = random.integers(1, VOCAB, 9).tolist()
    jobs = [
        job(f"j{i}", [*shared[: i % 10], *random.integers(1, VOCAB, 3 + 5 * (i % 4)).tolist()], seed=i, max_tokens=20)
        for i in range(12)
    ]
    results = []
    for blocks, spec in (
        (64, {"max_seqs": 1}),
        (64, {"max_seqs": 8, "max_step_tokens": 64}),
        (64, {"max_seqs": 8, "max_step_tokens": 8, "prefix_cache": False}),
        (20, {"max_seqs": 8, "max_step_tokens": 11}),
    ):
        bench = make(runner=FakeRunner(num_blocks=blocks), start=False, **spec)
        for each in jobs:
            bench.loop.submit(each)
        bench.loop.start()
        deltas, _ = bench.until_over(len(jobs))
        results.append({name: tokens_of(found) for name, found in deltas.items()})
        if blocks == 20:
            assert bench.loop.totals.preemptions > 0
    assert results[0] == results[1] == results[2] == results[3]


def test_choices_differ_but_share_the_prompt(make: Make) -> None:
    bench = make()
    bench.loop.submit(job("a", range(1, 12), n=3))
    deltas, over = bench.until_over(1)
    lines = [tokens_of(deltas["a"], index) for index in range(3)]
    assert [len(line) for line in lines] == [12, 12, 12]
    assert len({tuple(line) for line in lines}) == 3
    end = over["a"]
    assert isinstance(end, Ended)
    assert (end.tokens.prompt, end.tokens.cached_in, end.tokens.completion) == (11, 0, 36)
    bench.loop.submit(job("b", range(1, 12)))
    deltas, over = bench.until_over(1)
    assert tokens_of(deltas["b"]) == lines[0]
    end = over["b"]
    assert isinstance(end, Ended)
    assert end.tokens.cached_in == 8


def test_several_prompts_in_one_request(make: Make) -> None:
    bench = make()
    both = Job("a", [[1, 2, 3], [4, 5]], Sampling(max_tokens=5, temperature=0.0, ignore_eos=True, n=2), 1)
    bench.loop.submit(both)
    deltas, over = bench.until_over(1)
    assert [tokens_of(deltas["a"], i) for i in range(4)] == [greedy([1, 2, 3], 5)] * 2 + [greedy([4, 5], 5)] * 2
    end = over["a"]
    assert isinstance(end, Ended)
    assert (end.tokens.prompt, end.tokens.completion) == (5, 20)


def test_ends_by_eos_stop_id_and_stop_string(make: Make) -> None:
    line = greedy([5, 6, 7], 30)
    at = next(i for i in range(2, 30) if line[i] not in line[:i] and line[i] != EOS)
    bench = make(runner=FakeRunner(eos=(line[at],)))
    text = "".join(token_bytes(token).decode() for token in line[:at])
    asked = {"temperature": 0.0, "max_tokens": 30}
    bench.loop.submit(job("eos", ignore_eos=False, **asked))
    bench.loop.submit(job("ignored", **asked))
    bench.loop.submit(job("id", stop_token_ids=(line[at],), **asked))
    stop = text[-2:] + token_bytes(line[at]).decode()  # three tokens long
    bench.loop.submit(job("string", stop=(stop, "never"), **asked))
    deltas, over = bench.until_over(4)
    assert text_of(deltas["eos"]) == text_of(deltas["id"]) == text
    assert not deltas["eos"][-1].shown
    assert [deltas[name][-1].finish for name in ("eos", "id", "string", "ignored")] == ["stop"] * 3 + ["length"]
    assert text_of(deltas["string"]) == text[:-2]
    assert tokens_of(deltas["ignored"]) == line
    end = over["eos"]
    assert isinstance(end, Ended)
    assert end.tokens.completion == at + 1


def test_text_held_for_a_stop_string_comes_out_at_the_end(make: Make) -> None:
    line = greedy([5, 6, 7], 4)
    text = "".join(token_bytes(token).decode() for token in line)
    bench = make()
    bench.loop.submit(job("a", temperature=0.0, max_tokens=4, stop=(text[-1] + "#",)))
    deltas, _ = bench.until_over(1)
    assert text_of(deltas["a"]) == text


def test_logprobs_come_with_each_token(make: Make) -> None:
    bench = make()
    bench.loop.submit(job("a", logprobs=True, top_logprobs=3))
    deltas, _ = bench.until_over(1)
    for delta in deltas["a"]:
        assert len(delta.top) == 3
        assert delta.top[0][1] >= delta.logprob


def test_cancel_frees_everything_within_one_step(make: Make) -> None:
    bench = make(start=False, max_seqs=2)
    bench.loop.submit(job("long", max_tokens=120))
    bench.loop.submit(job("other", max_tokens=3))
    running: list[int] = []

    def before(spans: Sequence[Span]) -> None:
        running.append(len(spans))
        if len(running) == 2:
            bench.loop.cancel("long")

    bench.runner.before = before
    bench.loop.start()
    deltas, over = bench.until_over(1)
    assert list(over) == ["other"]
    assert running[:3] == [2, 2, 1]
    assert len(deltas["long"]) <= 2
    assert bench.loop.kv_usage == 0.0
    assert bench.loop.running == 0


def test_what_does_not_fit_is_refused(make: Make) -> None:
    bench = make(start=False, max_seqs=1, max_waiting=1)
    bench.loop.submit(job("a", max_tokens=1))
    bench.loop.submit(job("long", [3] * 128))
    with pytest.raises(Refusal) as caught:
        bench.loop.submit(job("c"))
    assert caught.value.reason is Reason.QUEUE_FULL
    bench.loop.start()
    _, over = bench.until_over(2)
    failed = over["long"]
    assert isinstance(failed, Failed)
    assert failed.refusal.reason is Reason.CONTEXT_TOO_LONG
    bench.loop.submit(job("c"))  # room again
    _, over = bench.until_over(1)
    assert isinstance(over["c"], Ended)


def test_a_failing_step_ends_its_requests_and_the_engine_goes_on(make: Make) -> None:
    bench = make(start=False, max_seqs=1)

    def before(spans: Sequence[Span]) -> None:
        if 13 in spans[0].tokens:
            raise RuntimeError("bad luck")

    bench.runner.before = before
    bench.loop.submit(job("bad", [13]))
    bench.loop.submit(job("good", [5, 6, 7], temperature=0.0, max_tokens=2))
    bench.loop.start()
    deltas, over = bench.until_over(2)
    failed = over["bad"]
    assert isinstance(failed, Failed)
    assert failed.refusal.reason is Reason.WORKER_ERROR
    assert "bad luck" in failed.refusal.message
    assert tokens_of(deltas["good"]) == greedy([5, 6, 7], 2)
    assert not bench.fatal


def test_failing_again_and_again_is_fatal(make: Make) -> None:
    bench = make(start=False, max_seqs=1)

    def before(spans: Sequence[Span]) -> None:
        raise RuntimeError("gone for good")

    bench.runner.before = before
    for i in range(MAX_FAILURES + 2):
        bench.loop.submit(job(f"j{i}"))
    bench.loop.start()
    assert bench.died.wait(WAIT_S)
    _, over = bench.until_over(MAX_FAILURES + 2)
    assert all(isinstance(each, Failed) for each in over.values())
    assert "gone for good" in str(bench.fatal[0])


def test_a_row_that_is_not_a_number_fails_alone(make: Make) -> None:
    class Broken(FakeRunner):
        def run(self, spans: Sequence[Span]) -> np.ndarray:
            rows = super().run(spans)
            for row, span in zip(rows, [span for span in spans if span.wants_logits], strict=True):
                if len(span.blocks) > 2:
                    row[:] = np.nan
            return rows

    bench = make(runner=Broken(), start=False)
    bench.loop.submit(job("short", [1, 2], max_tokens=5, temperature=0.0))
    bench.loop.submit(job("long", [1, 2, 3, 4], max_tokens=20, n=2))
    bench.loop.start()
    deltas, over = bench.until_over(2)
    assert tokens_of(deltas["short"]) == greedy([1, 2], 5)
    assert isinstance(over["long"], Failed)
    bench.loop.submit(job("again", [1, 2], max_tokens=5))
    assert isinstance(bench.until_over(1)[1]["again"], Ended)
    assert bench.loop.kv_usage == 0.0


class TooLarge:
    """A grammar that can be begun, but not followed."""

    complete = False

    def allowed(self, vocab_size: int) -> np.ndarray:
        return np.ones(vocab_size, np.bool_)

    def accept(self, token: int) -> None:
        raise SamplingFailed("It is too large.", hint="Less.", reason=Reason.BAD_REQUEST, param="response_format")

    def copy(self) -> "TooLarge":
        return self


def test_whose_fault_it_is_that_a_sequence_broke_is_told(make: Make) -> None:
    bench = make()
    wanted = job("large")
    bench.loop.submit(Job(wanted.request_id, wanted.prompts, wanted.sampling, 1, grammar=TooLarge()))  # type: ignore[arg-type]
    failed = bench.until_over(1)[1]["large"]
    assert isinstance(failed, Failed)
    refusal = failed.refusal
    assert (refusal.reason, refusal.param, refusal.hint) == (Reason.BAD_REQUEST, "response_format", "Less.")


def test_what_steps_cost_is_kept_when_nothing_is_left_to_do_and_known_to_the_next_loop() -> None:
    kept: queue.SimpleQueue[int] = queue.SimpleQueue()
    spec = EngineSpec(max_seqs=4, max_step_tokens=16, max_waiting=60, tpot_target_ns=50_000_000)
    outputs: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()

    def begin(times: StepTimes | None) -> StepTimes:
        learned: list[StepTimes] = []

        def keep(times: StepTimes) -> None:
            learned[:] = [times]
            kept.put(times.steps)

        loop = EngineLoop(
            FakeRunner(), token_bytes, spec=spec, emit=outputs.put, on_fatal=lambda error: None,
            times=times, keep=keep,
        )  # fmt: skip
        loop.submit(job("r", max_tokens=40))
        loop.start()
        assert kept.get(timeout=WAIT_S) >= 16, "kept while it lives: it may be killed without another word"
        loop.close()
        return learned[0]

    times = begin(None)
    known = StepTimes.of(times.learned())
    before = known.steps
    assert begin(known) is known
    assert known.steps > before
