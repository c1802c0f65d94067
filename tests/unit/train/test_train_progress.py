"""What a person sees: a bar on a terminal, lines elsewhere, nothing when asked for silence."""

import io
import re

from rich.console import Console

from baseload.train.progress import Reporter


def _report(*, terminal: bool, progress: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120, highlight=False)
    with Reporter(first_step=4, steps=10, progress=progress, console=console) as reporter:
        reporter.say("Going on from step 4.")
        for step in (5, 6):
            reporter.stepped(step, 100)
            reporter.measured(0.25)
        assert reporter.tokens_per_s > 0
    return text.getvalue()


def test_a_bar_on_a_terminal() -> None:
    shown = _report(terminal=True, progress=True)
    assert "Going on from step 4." in shown
    assert "6/10" in shown
    assert "loss 0.2500" in shown
    assert "tokens/s" in shown


def test_lines_elsewhere() -> None:
    lines = _report(terminal=False, progress=True).splitlines()
    assert lines[0] == "Going on from step 4."
    assert lines[1].startswith("step 5/10  loss 0.2500  0 tokens/s")  # the first step compiled: no rate yet
    assert lines[2].startswith("step 6/10  loss 0.2500")
    rate = re.search(r"  ([\d,]+) tokens/s", lines[2])
    assert rate is not None
    assert int(rate[1].replace(",", "")) > 0


def test_silence() -> None:
    assert _report(terminal=False, progress=False) == ""
