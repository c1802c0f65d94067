"""What a person sees while training: a bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """Tells loss, tokens per second and time left. A context manager; silent where `progress` is False."""

    def __init__(self, *, first_step: int, steps: int, progress: bool, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._steps = steps
        self._done = self._first = first_step
        self._silent = not progress
        self._began = time.monotonic()
        self._tokens = 0
        self._bar: Progress | None = None
        if progress and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]train"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TextColumn("{task.fields[rate]} tokens/s"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("train", total=steps, completed=first_step, loss="–", rate="–")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def tokens_per_s(self) -> float:
        """Tokens trained on per second since the first step of this run was done (the first one compiles)."""
        return self._tokens / max(time.monotonic() - self._began, 1e-9)

    def say(self, text: str) -> None:
        """One line, above the bar if there is one."""
        if not self._silent:
            self._console.print(text, markup=False, soft_wrap=True)

    def stepped(self, step: int, tokens: int) -> None:
        """A step was done. The clock starts after the first, which compiles."""
        self._done = step
        if step == self._first + 1:
            self._began, self._tokens = time.monotonic(), 0
        else:
            self._tokens += tokens
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def measured(self, loss: float) -> None:
        """The loss is known: show it."""
        if self._bar is not None:
            self._bar.update(self._task, loss=f"{loss:.4f}", rate=f"{self.tokens_per_s:,.0f}")
            return
        here = max(self._done - self._first - 1, 1)
        left_s = (time.monotonic() - self._began) / here * (self._steps - self._done)
        self.say(
            f"step {self._done}/{self._steps}  loss {loss:.4f}  {self.tokens_per_s:,.0f} tokens/s"
            f"  {left_s / 60:.1f} min left"
        )
