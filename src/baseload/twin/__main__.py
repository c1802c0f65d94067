"""`python -m baseload.twin --seeds 1000 [--seed 1]`: hunt without the rest of Baseload; exit code 1 on a failure."""

import argparse
import sys
import time

from baseload.twin.run import describe_failures, simulate
from baseload.twin.spec import SimulateConfig


def main() -> int:
    """Run the hunt and say how it went."""
    parser = argparse.ArgumentParser(prog="python -m baseload.twin")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    options = parser.parse_args()
    began = time.monotonic()
    report = simulate(SimulateConfig(seed=options.seed, seeds=options.seeds), progress=_show)
    took_s = time.monotonic() - began
    hunt = report.hunt
    assert hunt is not None
    lines = describe_failures(hunt.failures)
    lines.append(
        f"{hunt.passed} of {hunt.seeds} seeds pass: {hunt.requests} requests, {hunt.events} events, "
        f"{hunt.restarts} kills of control, {hunt.virtual_s:.0f} virtual seconds in {took_s:.1f} s "
        f"({hunt.events / took_s:.0f} events/s, {hunt.virtual_s / took_s:.0f}× real time)"
    )
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if hunt.failures else 0


def _show(done: int, seeds: int) -> None:
    if done % 100 == 0 or done == seeds:
        sys.stderr.write(f"\r{done}/{seeds} seeds")
        sys.stderr.flush()
        if done == seeds:
            sys.stderr.write("\n")


if __name__ == "__main__":
    sys.exit(main())
