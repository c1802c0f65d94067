"""The hot loop: plan → run → sample → commit, in a thread of its own.

    loop = EngineLoop(runner, token_bytes, spec=spec, emit=emit, on_fatal=on_fatal)
    loop.start()
    loop.submit(job)        # from any thread; raises Refusal when full
    loop.cancel(request_id) # frees its slot and blocks before the next step

`emit` is called from the loop's thread once per step with all that the step brought. A step that raises ends the
requests that were in it; after three such steps in a row the loop gives up, fails what is left and calls `on_fatal`.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from baseload.core.batcher import Batcher, BatcherTotals, Finished, FinishedBy, Plan, Sampled, SeqSpec, Share
from baseload.domain.errors import Reason, Refusal
from baseload.domain.model import EngineSpec
from baseload.domain.work import PhaseTimes, TokenCounts
from baseload.engine.detokenize import Detokenizer, StopStrings
from baseload.engine.jobs import Delta, Ended, Failed, Job, Output
from baseload.engine.runner import Span
from baseload.engine.sampling import Choice, RowSampler, SamplingFailed, sample

MAX_FAILURES = 3  # steps in a row
_UNBOUNDED = 1 << 30


class StepRunner(Protocol):
    """The part of the runner that the loop uses."""

    @property
    def block_tokens(self) -> int:
        """Tokens per KV block."""

    @property
    def num_blocks(self) -> int:
        """KV blocks."""

    @property
    def max_context(self) -> int:
        """Longest sequence."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    def run(self, spans: Sequence[Span]) -> Any:
        """Logits float32[rows, vocab] of the spans that want them, in order."""


class _Line:
    """One sequence: what turns its tokens into an answer."""

    __slots__ = ("block_array", "block_list", "detokenizer", "grammar", "index", "request_id", "sampler", "stops")

    def __init__(self, job: Job, index: int, token_bytes: Callable[[int], bytes]) -> None:
        choice = index % job.sampling.n
        self.request_id = job.request_id
        self.index = index
        self.grammar = job.grammar.copy() if job.grammar is not None else None
        self.sampler = RowSampler(job.sampling, seed=job.seed, choice=choice, mask=self.grammar)
        self.detokenizer = Detokenizer(token_bytes)
        self.stops = StopStrings(job.sampling.stop)
        self.block_list: Sequence[int] = ()
        self.block_array = np.zeros(0, np.int32)

    def block_table(self, blocks: Sequence[int]) -> NDArray[np.int32]:
        """The blocks as an array, made anew only when they changed (lists grow in place, or are replaced)."""
        if blocks is not self.block_list or len(blocks) != len(self.block_array):
            self.block_list = blocks
            self.block_array = np.array(blocks, np.int32)
        return self.block_array


class _Request:
    """A request's sequences and what the finished ones used."""

    __slots__ = ("finished", "job", "open")

    def __init__(self, job: Job, seq_ids: Sequence[str]) -> None:
        self.job = job
        self.open: dict[str, None] = dict.fromkeys(seq_ids)
        self.finished: list[Finished] = []


class EngineLoop:
    """Owns the batcher and drives the runner. `start` begins, `close` ends."""

    def __init__(
        self,
        runner: StepRunner,
        token_bytes: Callable[[int], bytes],
        *,
        spec: EngineSpec,
        emit: Callable[[list[Output]], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._runner = runner
        self._token_bytes = token_bytes
        self._emit = emit
        self._on_fatal = on_fatal
        self._eos = frozenset(runner.eos_token_ids)
        self._batcher = Batcher(
            num_blocks=runner.num_blocks,
            block_tokens=runner.block_tokens,
            max_seqs=spec.max_seqs,
            max_step_tokens=spec.max_step_tokens,
            max_context=runner.max_context,
            max_waiting=spec.max_waiting,
            prefix_cache=spec.prefix_cache,
        )
        self.capacity = spec.max_seqs + spec.max_waiting  # sequences in the house at once
        self._lines: dict[str, _Line] = {}
        self._requests: dict[str, _Request] = {}
        self._inbox: deque[Job | str] = deque()  # jobs, and ids to cancel; bounded by `capacity` open sequences
        self._widths: dict[str, int] = {}  # sequences of each request not yet ended; guarded by _lock
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # -- from any thread ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to take steps."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Hand a request in. Raises Refusal(QUEUE_FULL) at once where there is no room."""
        with self._lock:
            if sum(self._widths.values()) + job.width > self.capacity:
                raise Refusal(
                    Reason.QUEUE_FULL,
                    f"The worker is full: {self._batcher.running} sequences run and {self._batcher.waiting} wait.",
                    hint="Try again later.",
                    retry_after_ns=1_000_000_000,
                )
            self._widths[job.request_id] = job.width
        self._inbox.append(job)
        self._wake.set()

    def cancel(self, request_id: str) -> None:
        """Drop a request; nothing more is emitted for it once the loop has seen this."""
        self._inbox.append(request_id)
        self._wake.set()

    def close(self) -> None:
        """Stop after the step at hand; what is still open is dropped."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def running(self) -> int:
        """Sequences that hold a slot."""
        return self._batcher.running

    @property
    def waiting(self) -> int:
        """Sequences that wait, those not yet seen by the loop among them."""
        return self._batcher.waiting + len(self._inbox)

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks in use."""
        return self._batcher.kv_usage

    @property
    def totals(self) -> BatcherTotals:
        """Counters since the start."""
        return self._batcher.totals

    # -- the loop's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                self._wake.clear()
                outputs = self._take_inbox()
                if self._closing:
                    return
                if self._batcher.busy:
                    outputs += self._step()
                elif not outputs:
                    self._wake.wait()
                if outputs:
                    self._emit(outputs)
        except BaseException as error:  # a defect in the loop itself, or too many failed steps: the process must end
            self._give_up()
            self._on_fatal(error)

    def _take_inbox(self) -> list[Output]:
        outputs: list[Output] = []
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, str):
                self._drop(item)
                continue
            try:
                self._admit(item)
            except Refusal as refusal:
                self._forget(item.request_id)
                outputs.append(Failed(item.request_id, refusal))
        return outputs

    def _admit(self, job: Job) -> None:
        n = job.sampling.n
        wanted = job.sampling.max_tokens or _UNBOUNDED
        specs = []
        for at, prompt in enumerate(job.prompts):
            group = f"{job.request_id}/{at}" if n > 1 else ""
            for choice in range(n):
                seq_id = f"{job.request_id}/{at * n + choice}"
                specs.append(SeqSpec(seq_id, len(prompt), wanted, prompt, group=group, salt=job.salt))
        self._batcher.add(time.monotonic_ns(), *specs)
        self._requests[job.request_id] = _Request(job, [spec.seq_id for spec in specs])
        for index, spec in enumerate(specs):
            self._lines[spec.seq_id] = _Line(job, index, self._token_bytes)

    def _step(self) -> list[Output]:
        plan = self._batcher.plan(time.monotonic_ns())
        assert plan.shares, "a busy batcher plans something"
        wanted = [share for share in plan.shares if share.wants_token]
        try:
            logits = np.asarray(self._runner.run([self._span(share) for share in plan.shares]))
            chosen = sample(logits, [self._lines[share.seq_id].sampler for share in wanted])
        except Exception as error:
            return self._step_failed(plan, error)
        self._failures = 0
        broken: dict[str, SamplingFailed] = {}
        advanced: dict[str, tuple[str, Choice, bool]] = {}
        results = []
        for share, choice in zip(wanted, chosen, strict=True):
            if isinstance(choice, SamplingFailed):
                broken[self._lines[share.seq_id].request_id] = choice
                results.append(Sampled(share.seq_id, stop=True))
                continue
            text, shown, stop = self._advance(self._lines[share.seq_id], choice.token)
            advanced[share.seq_id] = (text, choice, shown)
            results.append(Sampled(share.seq_id, choice.token, stop))
        finished = {end.seq_id: end for end in self._batcher.commit(time.monotonic_ns(), results)}
        outputs = self._fail(broken)
        for seq_id, (text, choice, shown) in advanced.items():
            if seq_id in self._lines:  # otherwise its request broke
                outputs += self._report(seq_id, text, choice, shown, finished.get(seq_id))
        return outputs

    def _span(self, share: Share) -> Span:
        table = self._lines[share.seq_id].block_table(share.blocks)
        return Span(np.array(share.tokens, np.int32), share.start, table, share.wants_token)

    def _advance(self, line: _Line, token: int) -> tuple[str, bool, bool]:
        """(text to show, whether the token is part of the answer, whether the answer ends here)."""
        sampling = line.sampler.sampling
        if token in self._eos and not sampling.ignore_eos:
            return line.stops.flush(), False, True
        if token in sampling.stop_token_ids:
            return line.stops.flush(), False, True
        text = line.stops.push(line.detokenizer.push(token))
        if line.stops.found is not None:
            return text, True, True
        if line.grammar is not None and line.grammar.complete:
            return text + line.stops.flush(), token not in self._eos, True
        return text, True, False

    def _report(self, seq_id: str, text: str, choice: Choice, shown: bool, end: Finished | None) -> list[Output]:
        line = self._lines[seq_id]
        finish = None
        if end is not None:
            finish = "stop" if end.by is FinishedBy.STOP else "length"
            text += line.stops.flush()
        outputs: list[Output] = [
            Delta(line.request_id, line.index, text, choice.token, choice.logprob, choice.top, shown, finish)
        ]
        if end is not None:
            request = self._requests[line.request_id]
            request.finished.append(end)
            del request.open[seq_id], self._lines[seq_id]
            if not request.open:
                outputs.append(_ended(request))
                self._forget(line.request_id)
        return outputs

    # -- ends other than the good one -------------------------------------------------------------------------------

    def _step_failed(self, plan: Plan, error: Exception) -> list[Output]:
        """End the requests that were in the step; the others start again from their first token."""
        self._batcher.abandon(time.monotonic_ns())
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise error
        failure = SamplingFailed(f"The engine's step failed: {type(error).__name__}: {error}")
        return self._fail({self._lines[share.seq_id].request_id: failure for share in plan.shares})

    def _fail(self, broken: dict[str, SamplingFailed]) -> list[Output]:
        outputs: list[Output] = []
        for request_id, failure in broken.items():
            self._drop(request_id)
            outputs.append(Failed(request_id, Refusal(Reason.WORKER_ERROR, failure.message)))
        return outputs

    def _give_up(self) -> None:
        refusal = Refusal(Reason.WORKER_ERROR, "The worker's engine failed and is ending.")
        with self._lock:
            self._emit([Failed(request_id, refusal) for request_id in self._widths])
            self._widths.clear()

    def _drop(self, request_id: str) -> None:
        request = self._requests.get(request_id)
        if request is not None:
            for seq_id in request.open:
                self._batcher.cancel(time.monotonic_ns(), seq_id)
                del self._lines[seq_id]
        self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        self._requests.pop(request_id, None)
        with self._lock:
            self._widths.pop(request_id, None)


def _ended(request: _Request) -> Ended:
    """The request's sums. A prompt counts once, however many choices; phases are those of the whole request."""
    ends = {end.seq_id: end for end in request.finished}
    job = request.job
    firsts = [ends[f"{job.request_id}/{at * job.sampling.n}"] for at in range(len(job.prompts))]
    counts = TokenCounts(
        prompt=sum(end.tokens.prompt for end in firsts),
        cached_in=sum(end.tokens.cached_in for end in firsts),
        completion=sum(end.tokens.completion for end in request.finished),
    )
    queue = min(end.phases.queue_ns for end in request.finished)
    first = min(end.phases.queue_ns + end.phases.prefill_ns for end in request.finished)
    last = max(end.phases.queue_ns + end.phases.prefill_ns + end.phases.decode_ns for end in request.finished)
    return Ended(job.request_id, counts, PhaseTimes(queue, first - queue, last - first))
