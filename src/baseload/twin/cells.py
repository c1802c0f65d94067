"""A large fleet as cells that share nothing: each has its own control machine and its part of replicas and traffic.

Who is served by which cell is chosen at the door before them, by the router's policy (`twin/door`). Cells are
simulated one after the other on each process, so memory holds as many cells as there are processes.
"""

import multiprocessing
import os
import shlex
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import msgspec

from baseload.domain.errors import BaseloadError, SettingsError
from baseload.domain.rng import Rng
from baseload.twin.door import dealt, part
from baseload.twin.report import Failure, SimulateReport, make_report
from baseload.twin.run import Simulation
from baseload.twin.spec import DEFAULT_MODEL, SimulateConfig
from baseload.twin.tally import Tally
from baseload.twin.workload import Arrival

_SHARED_S = (
    "node_every_s", "switch_every_s", "flap_every_s", "slow_every_s", "throttle_every_s", "spot_every_s",
    "disk_full_every_s", "price_every_s", "partition_every_s",
)  # fmt: skip
_ENCODER, _DECODER = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(list[Arrival])


def cell_of(config: SimulateConfig, cell: int) -> SimulateConfig:
    """The specification of one cell, whose arrivals `door.dealt` tells. SettingsError where replicas are too few."""
    cells, faults = config.cells, config.faults
    models = []
    for spec in config.models or (DEFAULT_MODEL,):
        if spec.scaling.max_replicas < cells:
            raise SettingsError(
                f"cells: {spec.name} has at most {spec.scaling.max_replicas} replicas for {cells} cells.",
                hint="Raise its `max_replicas`, or ask for fewer cells.",
            )
        low, high = (part(n, cell, cells) for n in (spec.scaling.min_replicas, spec.scaling.max_replicas))
        models.append(
            msgspec.structs.replace(
                spec, scaling=msgspec.structs.replace(spec.scaling, min_replicas=low, max_replicas=high)
            )
        )
    return msgspec.structs.replace(
        config,
        seed=Rng(config.seed, f"twin.cell.{cell}").u64() >> 1,
        models=tuple(models),
        faults=msgspec.structs.replace(faults, **{name: getattr(faults, name) * cells for name in _SHARED_S}),
        cell=cell,
    )


def simulate_cells(config: SimulateConfig, *, progress: Callable[[int, int], None] | None = None) -> SimulateReport:
    """Run all cells (or `config.only_cell`) on `config.processes` processes (0: as many as there are cores) and join
    what they showed."""
    if config.only_cell >= config.cells:
        raise SettingsError(f"There is no cell {config.only_cell}.", hint=f"They count from 0 to {config.cells - 1}.")
    processes = config.processes or os.cpu_count() or 1
    whole = Tally(start_ns=0, most_decisions=config.decisions)
    ended: list[_Ended] = []
    for done, one in enumerate(_run_all(config, min(processes, config.cells)), 1):
        ended.append(one)
        if progress is not None:
            progress(done, config.cells)
    ended.sort(key=lambda one: one.cell)
    for one in ended:
        whole.join(one.tally)
    failures = [_located(one.failure, config, one.cell) for one in ended if one.failure is not None]
    digest = Rng(0, " ".join(one.digest for one in ended))
    return make_report(
        whole,
        name=config.name,
        seed=config.seed,
        basis=ended[0].basis,
        slo=config.slo,
        energy=config.energy,
        unreached=sum(one.unreached for one in ended),
        restarts=sum(one.restarts for one in ended),
        events=sum(one.events for one in ended),
        virtual_ns=max(one.virtual_ns for one in ended),
        digest="".join(f"{digest.u64():016x}" for _ in range(4)),
        failure=failures[0] if failures else None,
    )


def _located(failure: Failure, config: SimulateConfig, cell: int) -> Failure:
    """Reproduced by the seed of the whole and the number of the cell; its own seed would give it other traffic."""
    spec = f" {shlex.quote(config.spec_path)}" if config.spec_path else ""
    command = f"baseload simulate{spec}{config.flags} --seed {config.seed} --cell {cell}"
    return msgspec.structs.replace(
        failure, seed=config.seed, message=f"cell {cell}: {failure.message}", command=command
    )


class _Ended(msgspec.Struct):
    """What a process hands back of a cell."""

    cell: int
    tally: Tally
    basis: str
    unreached: int
    restarts: int
    events: int
    virtual_ns: int
    digest: str
    failure: Failure | None


def _run_all(config: SimulateConfig, processes: int) -> Generator[_Ended, None, None]:
    cells = range(config.cells) if config.only_cell < 0 else (config.only_cell,)
    for cell in cells:
        cell_of(config, cell)  # what cannot be split is refused before the door deals
    work = dealt(config)
    if processes == 1 or len(cells) == 1:
        for cell in cells:
            yield _run_cell(config, cell, _ENCODER.encode(work[cell]))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        try:
            with _deaf():
                futures: list[Future[_Ended]] = [
                    pool.submit(_run_cell, config, cell, _ENCODER.encode(work[cell])) for cell in cells
                ]
            work.clear()
            for future in as_completed(futures):
                yield future.result()
        except BaseException as error:  # Ctrl-C above all: cells that run would be waited for otherwise
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                raise BaseloadError(
                    f"One of the {processes} processes that simulate cells was ended from outside.",
                    hint="If memory ran out: `processes = 1` in the specification, or `--cell 0` for one cell alone.",
                ) from error
            raise


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes started here ignore Ctrl-C: it is their parent's to end them, without a word of theirs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run_cell(config: SimulateConfig, cell: int, arrivals: bytes) -> _Ended:
    simulation = Simulation(cell_of(config, cell), arrivals=_DECODER.decode(arrivals))
    report = simulation.run()
    world = simulation.world
    return _Ended(
        cell=cell,
        tally=world.tally,
        basis=simulation.basis,
        unreached=world.unreached,
        restarts=world.restarts,
        events=world.events,
        virtual_ns=world.now_ns - world.start_ns,
        digest=report.digest,
        failure=report.failure,
    )
