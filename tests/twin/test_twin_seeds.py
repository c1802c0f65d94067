"""Twenty seeds on every commit, many more by hand or at night. What they found is told in test_twin_found.py."""

import os
import subprocess
import sys

import pytest

from baseload.twin.report import SimulateReport
from baseload.twin.run import Simulation, describe_failures, simulate
from baseload.twin.spec import SimulateConfig
from baseload.twin.swarm import drawn_config


def run(seed: int) -> SimulateReport:
    return Simulation(drawn_config(SimulateConfig(), seed=seed), is_hunt=True).run()


@pytest.mark.parametrize("seed", range(10_001, 10_021))
def test_seed(seed: int) -> None:
    failure = run(seed).failure
    assert failure is None, "\n".join(describe_failures([failure]))


def test_the_same_seed_gives_the_same_actions_and_another_seed_others() -> None:
    assert run(10_001).digest == run(10_001).digest
    assert run(10_001).digest != run(10_002).digest


def test_interpreters_with_different_hash_seeds_give_identical_digests() -> None:
    code = (
        "from baseload.twin.run import Simulation\n"
        "from baseload.twin.spec import SimulateConfig\n"
        "from baseload.twin.swarm import drawn_config\n"
        "for seed in (10003, 10004, 10005):\n"
        "    report = Simulation(drawn_config(SimulateConfig(), seed=seed), is_hunt=True).run()\n"
        "    print(seed, report.events, report.digest)\n"
    )
    seen = []
    for hash_seed in ("0", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        seen.append(done.stdout)
    assert seen[0] == seen[1]
    assert seen[0].count("\n") == 3


def test_a_hunt_adds_up_its_seeds() -> None:
    calls: list[tuple[int, int]] = []
    report = simulate(SimulateConfig(seed=10_001, seeds=3), progress=lambda done, seeds: calls.append((done, seeds)))
    assert report.hunt is not None
    assert report.hunt.passed == report.hunt.seeds == 3
    assert report.hunt.failures == ()
    assert report.hunt.events == sum(run(seed).events for seed in (10_001, 10_002, 10_003))
    assert calls == [(1, 3), (2, 3), (3, 3)]
