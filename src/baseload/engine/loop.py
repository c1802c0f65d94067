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

import numpy as np
from numpy.typing import NDArray

from baseload.core.batch import BatcherTotals, Finished, FinishedBy, Plan, Sampled, SeqSpec, Share, attended
from baseload.core.batcher import Batcher
from baseload.core.step_times import StepTimes
from baseload.domain.errors import Reason, Refusal
from baseload.domain.model import EngineSpec
from baseload.domain.units import NS_PER_S
from baseload.engine.guessing import GuessAhead, GuessSource
from baseload.engine.jobs import Delta, Failed, Job, Output
from baseload.engine.lines import Answer, Line, Made, OpenRequest, ended
from baseload.engine.sampling import SamplingFailed
from baseload.engine.spans import Span, StepRunner
from baseload.policy.pacing import paces

MAX_FAILURES = 3  # steps in a row
_UNBOUNDED = 1 << 30
_UNLEARNED_STEPS = 3
_LEARNING_STEPS = 64
_LEAST_UNKEPT = 16  # observations worth a write of some milliseconds
_KEPT_EVERY_NS = 60 * NS_PER_S
_OFTEN, _SELDOM = 4, 16  # steps from one that is learned from to the next, after those


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
        guesser: GuessSource | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        times: StepTimes | None = None,
        keep: Callable[[StepTimes], None] | None = None,
    ) -> None:
        """`times`: what steps cost, where that is known; `keep` is given what was learned, now and then."""
        self._runner = runner
        self._clock = clock
        self._token_bytes = token_bytes
        self._emit = emit
        self._on_fatal = on_fatal
        self._eos = frozenset(runner.eos_token_ids)
        self._times = times or StepTimes()
        self._keep = keep
        self._unkept = 0  # observations since the last time
        self._kept_ns = clock()
        self._seen = 0  # steps
        self._batcher = Batcher(
            num_blocks=runner.num_blocks,
            block_tokens=runner.block_tokens,
            max_seqs=spec.max_seqs,
            max_step_tokens=spec.max_step_tokens,
            max_context=runner.max_context,
            max_waiting=spec.max_waiting,
            prefix_cache=spec.prefix_cache,
            step_times=self._times,
        )
        self._paces = paces(spec)
        self._guesses = GuessAhead(guesser, most=spec.guess_tokens, clock=clock)
        self.capacity = spec.max_seqs + spec.max_waiting  # sequences in the house at once
        self._lines: dict[str, Line] = {}
        self._requests: dict[str, OpenRequest] = {}
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
                    self._keep_times(1)
                    return
                if self._batcher.busy:
                    outputs += self._step()
                elif not outputs:
                    self._keep_times(_LEAST_UNKEPT)
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
        pace = self._paces[job.tier]
        specs = []
        for at, prompt in enumerate(job.prompts):
            group = f"{job.request_id}/{at}" if n > 1 else ""
            for choice in range(n):
                seq_id = f"{job.request_id}/{at * n + choice}"
                specs.append(SeqSpec(seq_id, len(prompt), wanted, prompt, group=group, salt=job.salt, pace=pace))
        self._batcher.add(self._clock(), *specs)
        self._requests[job.request_id] = OpenRequest(job, [spec.seq_id for spec in specs])
        for index, spec in enumerate(specs):
            line = self._lines[spec.seq_id] = Line(job, index, self._token_bytes)
            self._guesses.open(spec.seq_id, job.prompts[index // n], line.sampler)

    def _step(self) -> list[Output]:
        self._guesses.propose(self._batcher, self._times)
        plan = self._batcher.plan(self._clock())
        assert plan.shares, "a busy batcher plans something"
        spans = [self._span(share) for share in plan.shares]
        began = self._clock()
        try:
            logits = np.asarray(self._runner.run(spans))
            made = self._choose(plan, logits)
        except Exception as error:
            return self._step_failed(plan, error)
        self._observe(plan, self._clock() - began)
        self._failures = 0
        broken: dict[str, SamplingFailed] = {}
        results = []
        for share, answer in made:
            if answer.failure is not None:
                broken[self._lines[share.seq_id].request_id] = answer.failure
                results.append(Sampled(share.seq_id, stop=True))
            else:
                last = answer.tokens[-1]
                results.append(Sampled(share.seq_id, last.choice.token, last.stop, right=len(answer.tokens) - 1))
                self._guesses.settle(share.seq_id, share.guessed, [made.choice.token for made in answer.tokens])
        finished = {end.seq_id: end for end in self._batcher.commit(self._clock(), results)}
        outputs = self._fail(broken)
        for share, answer in made:
            if share.seq_id in self._lines:  # otherwise its request broke
                outputs += self._report(share.seq_id, answer.tokens, finished.get(share.seq_id))
        return outputs

    def _choose(self, plan: Plan, logits: NDArray[np.float32]) -> list[tuple[Share, Answer]]:
        """What each share that wants a token gets: one, or more where it had guesses."""
        made, row = [], 0
        for share in plan.shares:
            if share.wants_token:
                rows = logits[row : row + 1 + share.guessed]
                row += 1 + share.guessed
                guesses = share.tokens[len(share.tokens) - share.guessed :]
                made.append((share, self._lines[share.seq_id].answer(rows, guesses, self._eos)))
        assert row == len(logits), "as many rows as were asked for"
        return made

    def _observe(self, plan: Plan, step_ns: int) -> None:
        """Learn what steps cost, where that is asked for; once learned, some are enough.

        The first ones may have compiled a program, which says nothing of the next.
        """
        self._seen += 1
        if not (self._guesses.active or self._batcher.paced) or self._seen <= _UNLEARNED_STEPS:
            return
        is_idle = self._guesses.rests and not self._batcher.paced
        if self._seen < _LEARNING_STEPS or not self._seen % (_SELDOM if is_idle else _OFTEN):
            decode_pairs, prefill_pairs = attended(plan.shares)
            self._times.observe(plan.decode_tokens + plan.prefill_tokens, decode_pairs, prefill_pairs, step_ns)
            self._unkept += 1
            if self._clock() - self._kept_ns > _KEPT_EVERY_NS:
                self._keep_times(_LEAST_UNKEPT)

    def _keep_times(self, least: int) -> None:
        """Where enough was learned since the last time: a worker may be killed without another word."""
        if self._keep is not None and self._unkept >= least:
            self._keep(self._times)
            self._unkept, self._kept_ns = 0, self._clock()

    def _span(self, share: Share) -> Span:
        table = self._lines[share.seq_id].block_table(share.blocks)
        return Span(np.array(share.tokens, np.int32), share.start, table, share.wants_token, logits=1 + share.guessed)

    def _report(self, seq_id: str, tokens: Sequence[Made], end: Finished | None) -> list[Output]:
        line = self._lines[seq_id]
        outputs: list[Output] = []
        for at, made in enumerate(tokens, start=1):
            text, finish = made.text, None
            if end is not None and at == len(tokens):
                finish = "stop" if end.by is FinishedBy.STOP else "length"
                text += line.stops.flush()
            choice = made.choice
            outputs.append(
                Delta(line.request_id, line.index, text, choice.token, choice.logprob, choice.top, made.shown, finish)
            )
        if end is not None:
            request = self._requests[line.request_id]
            request.finished.append(end)
            del request.open[seq_id], self._lines[seq_id]
            self._guesses.close(seq_id)
            if not request.open:
                outputs.append(ended(request))
                self._forget(line.request_id)
        return outputs

    # -- ends other than the good one -------------------------------------------------------------------------------

    def _step_failed(self, plan: Plan, error: Exception) -> list[Output]:
        """End the requests that were in the step; the others start again from their first token."""
        self._batcher.abandon(self._clock())
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise error
        failure = SamplingFailed(f"The engine's step failed: {type(error).__name__}: {error}")
        return self._fail({self._lines[share.seq_id].request_id: failure for share in plan.shares})

    def _fail(self, broken: dict[str, SamplingFailed]) -> list[Output]:
        outputs: list[Output] = []
        for request_id, failure in broken.items():
            self._drop(request_id)
            refusal = Refusal(failure.reason, failure.message, hint=failure.hint, param=failure.param)
            outputs.append(Failed(request_id, refusal))
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
                self._batcher.cancel(self._clock(), seq_id)
                del self._lines[seq_id]
                self._guesses.close(seq_id)
        self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        self._requests.pop(request_id, None)
        with self._lock:
            self._widths.pop(request_id, None)
