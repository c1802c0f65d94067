"""The specification in docs/simulate.md is a real one, and does what the page says."""

import re
from pathlib import Path

from baseload.twin.reading import load
from baseload.twin.run import simulate

PAGE = Path(__file__).parents[2] / "docs" / "simulate.md"


def test_the_example_runs_and_everything_in_it_is_known(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    path = tmp_path / "fleet.toml"
    path.write_text(example)
    report = simulate(load(path))
    assert report.failure is None
    assert report.requests == 300
    assert report.outcomes["ok"] > 280
    assert report.cached_tokens > 0
    assert report.step_time_basis == "stated: an accelerator we may rent"
    assert report.digest == simulate(load(path)).digest
