"""One door to every kind of simulation: a run of requests or of a fleet, or a hunt over seeds of either."""

import shlex
from collections.abc import Callable
from pathlib import Path

from baseload.domain.errors import SettingsError
from baseload.twin.cells import simulate_cells
from baseload.twin.cluster.report import ClusterReport
from baseload.twin.cluster.run import simulate_cluster
from baseload.twin.cluster.swarm import drawn_cluster
from baseload.twin.report import Hunted, SimulateReport, empty_report, hunt_of
from baseload.twin.run import simulate
from baseload.twin.spec import SimulateConfig

Progress = Callable[[int, int], None]


def run_or_hunt(config: SimulateConfig, *, progress: Progress | None = None) -> SimulateReport | ClusterReport:
    """What the specification asks for. A hunt's report holds no run, only `hunt`."""
    if config.only_cell >= 0 and config.cells < 2:
        raise SettingsError("This run is not in cells.", hint="Leave out --cell.")
    if config.cells > 1 and not config.seeds and config.cluster is None:
        return simulate_cells(config, progress=progress)
    if config.cluster is None:
        report = simulate(config, progress=progress)
        if progress is not None and not config.seeds:
            progress(1, 1)
        return report
    if config.seeds:
        return _hunt_fleets(config, progress)
    run = _fleet(config, config.seed)
    if progress is not None:
        progress(1, 1)
    return run


def _fleet(config: SimulateConfig, seed: int) -> ClusterReport:
    assert config.cluster is not None
    is_hunt = config.seeds > 0
    cluster = drawn_cluster(seed, config.cluster) if is_hunt else config.cluster
    spec = f" {shlex.quote(config.spec_path)}" if config.spec_path else ""
    command = f"baseload simulate{spec}{config.flags} --seed {seed}" + (" --seeds 1" if is_hunt else "")
    return simulate_cluster(
        cluster,
        seed=seed,
        name=config.name or Path(config.spec_path).stem,
        base=Path(config.spec_path).parent if config.spec_path else None,
        command=command,
        decisions=config.decisions,
        checked=config.checked,
    )


def _hunt_fleets(config: SimulateConfig, progress: Progress | None) -> SimulateReport:
    runs: list[Hunted] = []
    for done in range(config.seeds):
        run = _fleet(config, config.seed + done)
        runs.append(Hunted(run.jobs, run.steps, 3600.0 * run.hours, 0, run.failure))
        if progress is not None:
            progress(done + 1, config.seeds)
    return empty_report(seed=config.seed, hunt=hunt_of(config.seed, runs))
