"""One replica's engine on the virtual clock: the production batcher, stepped by what the model says a step takes.

Where nothing but decoding goes on, the coming steps stand in one `_Window`: they are performed together when they are
over, which is earlier where a sequence comes, or as far as they have come when something else happens. The end is
that of exact stepping to the last block and nanosecond; `exact=True` steps one by one through `plan` and `commit`, as
the live engine does, and a property test compares the two.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from baseload.core.batch import Finished, Sampled, SeqSpec
from baseload.core.counted import CountedBatcher, Counts
from baseload.domain.fleet import WorkerSample
from baseload.domain.model import EngineSpec
from baseload.twin.costs import Costs, Line

Stretch = Callable[[int], int]
Happening = Callable[[], None]


class Clock(Protocol):
    """The agenda, as far as engines need it."""

    now_ns: int

    def at_step(self, at_ns: int, happening: Happening) -> int:
        """Let the end of a step happen at `at_ns`. Returns a handle for `drop`."""

    def drop(self, handle: int) -> None:
        """Let it not happen."""


class _Window:
    """Quiet steps that run: the first began at `start_ns`, and there are `steps` of them."""

    __slots__ = ("handle", "is_cut", "line", "start_ns", "steps")

    def __init__(self, start_ns: int, line: Line, steps: int, handle: int) -> None:
        self.start_ns = start_ns
        self.line = line
        self.steps = steps
        self.handle = handle
        self.is_cut = False  # the step that runs is its last: somebody waits

    def so_far(self, now_ns: int) -> tuple[int, int]:
        """(steps that have ended, their time). The last step ends by its own event, not before."""
        steps, took_ns = self.line.steps_within(now_ns - self.start_ns)
        if steps >= self.steps:
            steps = self.steps - 1
            took_ns = self.line.total_ns(steps)
        return steps, took_ns


class Stepper:
    """Steps a batcher. `on_step(firsts, finished)` is called where a step gave first tokens or ended some."""

    __slots__ = (
        "_clock", "_computed_ns", "_costs", "_exact", "_is_halted", "_is_stepping", "_on_step", "_stop_after",
        "_stretch", "_window", "batcher", "steps",
    )  # fmt: skip

    def __init__(
        self,
        engine: EngineSpec,
        *,
        kv_tokens: int,
        max_context: int,
        costs: Costs,
        clock: Clock,
        on_step: Callable[[Sequence[str], Sequence[Finished]], None],
        exact: bool = False,
        stretch: Stretch | None = None,
    ) -> None:
        self.batcher = CountedBatcher(
            num_blocks=max(1, kv_tokens // engine.block_tokens),
            block_tokens=engine.block_tokens,
            max_seqs=engine.max_seqs,
            max_step_tokens=engine.max_step_tokens,
            max_context=max_context,
            max_waiting=engine.max_waiting,
            prefix_cache=engine.prefix_cache,
        )
        self.steps = 0
        self._costs = costs
        self._clock = clock
        self._on_step = on_step
        self._exact = exact
        self._stretch = stretch  # a step's time → its time with whatever disturbs it; None: undisturbed
        self._is_stepping = False
        self._is_halted = False
        self._window: _Window | None = None
        self._computed_ns = 0
        self._stop_after: dict[str, int] = {}  # only where exact

    # -- inputs -------------------------------------------------------------------------------------------------

    def add(self, spec: SeqSpec) -> None:
        """Queue a sequence (Refusal as `Batcher.add`); the engine goes on, or begins."""
        self._cut()
        self.batcher.add(self._clock.now_ns, spec)
        if self._exact:
            self._stop_after[spec.seq_id] = spec.stop_after
        self.go_on()

    def cancel(self, seq_id: str) -> None:
        """End a sequence at once."""
        self._interrupt()
        self.batcher.cancel(self._clock.now_ns, seq_id)

    def disturb(self, stretch: Stretch | None) -> None:
        """From the next step on, steps take what `stretch` makes of their time; None: as they should."""
        self._interrupt()
        self._stretch = stretch

    def halt(self) -> None:
        """Nothing ends any more: the process is dead, or hangs."""
        self._interrupt()
        self._is_halted = True

    # -- looking ------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether anything is queued or runs."""
        return self.batcher.busy

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks that are held."""
        return self.batcher.kv_usage

    def generated(self, seq_id: str) -> int:
        """Tokens made so far for a sequence that has not ended."""
        made = self.batcher.generated(seq_id)
        if self._window is None or not self.batcher.holds_slot(seq_id):
            return made
        return made + self._window.so_far(self._clock.now_ns)[0]

    def computed_ns(self) -> int:
        """Time of all steps that have begun."""
        window = self._window
        if window is None:
            return self._computed_ns
        return self._computed_ns + window.line.total_ns(window.so_far(self._clock.now_ns)[0] + 1)

    def figures(self) -> WorkerSample:
        """What the worker would tell a poll now. What a window has done so far is counted, not performed."""
        batcher = self.batcher
        totals, window = batcher.totals, self._window
        if window is None:
            return WorkerSample(
                batcher.running, batcher.waiting, batcher.kv_usage, totals.prompt_tokens, totals.generated_tokens
            )
        steps = window.so_far(self._clock.now_ns)[0]
        made = totals.generated_tokens + steps * batcher.running
        return WorkerSample(batcher.running, batcher.waiting, batcher.usage_after(steps), totals.prompt_tokens, made)

    # -- steps --------------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Begin the next step or window, unless one runs or there is nothing to do."""
        batcher = self.batcher
        if self._is_stepping or self._is_halted or not batcher.busy:
            return
        if self._exact:
            self._begin_exact()
            return
        if self._stretch is None:
            steps, context = batcher.quiet()
            if steps > 1:
                self._open_window(steps, context)
                return
        now_ns = self._clock.now_ns
        self._begin(now_ns, batcher.plan_counted(now_ns))

    def _begin(self, start_ns: int, counts: Counts) -> None:
        took_ns = self._costs.step_ns(counts)
        if self._stretch is not None:
            took_ns = self._stretch(took_ns)
        self._is_stepping = True
        self.steps += 1
        self._computed_ns += took_ns
        self._clock.at_step(start_ns + took_ns, self._stepped)

    def _stepped(self) -> None:
        if self._is_halted:
            return
        self._is_stepping = False
        firsts, finished = self.batcher.commit_counted(self._clock.now_ns)
        if firsts or finished:
            self._on_step(firsts, finished)
        self.go_on()

    def _open_window(self, steps: int, context_tokens: int) -> None:
        line = self._costs.line(self.batcher.running, context_tokens)
        start_ns, steps = self._clock.now_ns, min(steps, line.steps)
        self._is_stepping = True
        handle = self._clock.at_step(start_ns + line.total_ns(steps), self._window_over)
        self._window = _Window(start_ns, line, steps, handle)

    def _window_over(self) -> None:
        window = self._window
        assert window is not None
        now_ns = self._clock.now_ns
        self._window = None
        self._is_stepping = False
        self.steps += window.steps
        self._computed_ns += now_ns - window.start_ns
        finished = self.batcher.fast_forward(now_ns, window.steps)
        if finished:
            self._on_step((), finished)
        self.go_on()

    def _cut(self) -> None:
        """Somebody is about to wait: the window ends with the step that runs, which began without them."""
        window, clock = self._window, self._clock
        if window is None or window.is_cut:
            return
        steps, took_ns = window.so_far(clock.now_ns)
        clock.drop(window.handle)
        window.steps, window.is_cut = steps + 1, True
        end_ns = window.start_ns + took_ns + window.line.step_ns(steps)
        window.handle = clock.at_step(end_ns, self._window_over)

    def _interrupt(self) -> None:
        """The batch is about to change: perform what has ended, and let the step that runs be a common one."""
        window = self._window
        if window is None:
            return
        steps, took_ns = window.so_far(self._clock.now_ns)
        self._clock.drop(window.handle)
        self._window = None
        at_ns = window.start_ns + took_ns
        self.steps += steps
        self._computed_ns += took_ns
        if steps:
            self.batcher.fast_forward(at_ns, steps)
        self._begin(at_ns, self.batcher.plan_decodes(at_ns))

    # -- one by one, as the live engine -------------------------------------------------------------------------

    def _begin_exact(self) -> None:
        plan = self.batcher.plan(self._clock.now_ns)
        counts = self.batcher.counts()
        assert (counts.decode_tokens, counts.prefill_tokens) == (plan.decode_tokens, plan.prefill_tokens)
        assert counts.context_tokens == plan.context_tokens
        took_ns = self._costs.step_ns(counts)
        if self._stretch is not None:
            took_ns = self._stretch(took_ns)
        self._is_stepping = True
        self.steps += 1
        self._computed_ns += took_ns
        wanted = [share.seq_id for share in plan.shares if share.wants_token]
        self._clock.at_step(self._clock.now_ns + took_ns, lambda: self._stepped_exact(wanted))

    def _stepped_exact(self, wanted: list[str]) -> None:
        if self._is_halted:
            return
        self._is_stepping = False
        batcher, firsts, sampled = self.batcher, [], []
        for seq_id in wanted:
            made = batcher.generated(seq_id) + 1
            if made == 1 and not batcher.is_doomed(seq_id):
                firsts.append(seq_id)
            sampled.append(Sampled(seq_id, stop=0 < self._stop_after[seq_id] <= made))
        finished = batcher.commit(self._clock.now_ns, sampled)
        if firsts or finished:
            self._on_step(firsts, finished)
        self.go_on()
