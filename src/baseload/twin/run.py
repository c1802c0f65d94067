"""Simulations from start to end: a plain run, or a hunt over many seeds with faults drawn from each."""

import gc
import shlex
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from baseload.core.control import ControlMachine
from baseload.domain.errors import BaseloadError, SettingsError
from baseload.domain.events import ControlStarted, KeyCreated, ModelPut, ShutdownAsked
from baseload.domain.fleet import ReplicaState
from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_DAY, NS_PER_S
from baseload.domain.work import Outcome
from baseload.limits.serving.replica import StepCost
from baseload.twin.baselines import machine_for
from baseload.twin.chance import NEVER_NS
from baseload.twin.clients import Client
from baseload.twin.faults import FaultMaker, make_keys
from baseload.twin.hosting import Fleet
from baseload.twin.pools import UnitCost
from baseload.twin.report import Failure, Hunted, SimulateReport, hunt_of, make_report
from baseload.twin.sources import all_arrivals
from baseload.twin.spec import DEFAULT_MODEL, SimulateConfig
from baseload.twin.swarm import drawn_config
from baseload.twin.tally import FleetSample
from baseload.twin.workers import Life
from baseload.twin.workload import Arrival
from baseload.twin.world import POLICY_VERSION, START_NS, World

SHUTDOWN_GRACE_NS = 120 * NS_PER_S
LIVENESS_NS = 3_600 * NS_PER_S  # after the faults everything must be over within this
LEAN_SAMPLES = 60
SAMPLES = 400  # of the fleet in a run, unless that would be more often than each second


def simulate(
    config: SimulateConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    costs: Mapping[str, StepCost | UnitCost] | None = None,
) -> SimulateReport:
    """Run it. With `seeds` > 0: a hunt; `progress(done, seeds)` is called after each seed.

    `costs`: step costs by model, instead of `config.hardware` and `config.physics.step_time`.

    A broken invariant does not raise: it stands in `report.failure` (a plain run) or `report.hunt.failures`. Bad
    settings raise SettingsError, a bad trace or table DataError.
    """
    if config.seeds <= 0:
        return Simulation(config, costs=costs).run()
    runs: list[Hunted] = []
    for done in range(config.seeds):
        report = Simulation(drawn_config(config, seed=config.seed + done), is_hunt=True).run()
        runs.append(Hunted(report.requests, report.events, report.virtual_s, report.restarts, report.failure))
        if progress is not None:
            progress(done + 1, config.seeds)
    return msgspec.structs.replace(report, hunt=hunt_of(config.seed, runs))


class Simulation:
    """One run: a safety phase with faults while requests come, then a liveness phase in which all must end."""

    def __init__(
        self,
        config: SimulateConfig,
        *,
        is_hunt: bool = False,
        machine: type[ControlMachine] | None = None,
        costs: Mapping[str, StepCost | UnitCost] | None = None,
        arrivals: Sequence[Arrival] | None = None,
    ) -> None:
        """`arrivals`, in order of time, instead of those that `config.workload` describes."""
        self.config = config
        self.is_hunt = is_hunt
        if config.lean and (config.faults.control_restart_every_s or config.faults.power_loss_every_s or is_hunt):
            raise SettingsError(
                "lean: without the journal control cannot be restarted.", hint="Leave one of them out."
            )
        base = Path(config.spec_path).parent if config.spec_path else None
        self.fleet = Fleet(config.physics, config.hardware, base=base, costs=costs)
        self.models = tuple(self.fleet.priced(spec) for spec in config.models or (DEFAULT_MODEL,))
        names = [spec.name for spec in self.models]
        self.basis = self.fleet.basis_of(names)
        self.arrivals = (
            list(arrivals)
            if arrivals is not None
            else all_arrivals(config.workload, models=names, seed=config.seed, base=base)
        )
        self.world = World(
            seed=config.seed,
            physics=config.physics,
            hosting=self.fleet,
            faults=config.faults,
            start_ns=START_NS + (_drawn_start(config.seed) if is_hunt else 0),
            checked=config.checked and not config.lean,
            exact=config.exact,
            lean=config.lean,
            most_decisions=config.decisions,
            machine=machine or machine_for(config.policies),
        )
        self.world.snapshot_every = 50 + config.seed % 200 if config.faults.control_restart_every_s > 0 else 0
        keys = make_keys(config.workload.keys, config.workload.key_limits, created_ns=self.world.start_ns)
        self.faults = FaultMaker(self.world, models=self.models, keys=keys)
        self.keys = keys
        self.world.on_ended = self._client_ended
        self._asked = 0
        self._to_come = 0  # later turns of conversations that think
        last_ns = self.arrivals[-1].at_ns if self.arrivals else 0
        samples = SAMPLES if not config.lean else LEAN_SAMPLES
        self._sample_ns = max(1, -(-last_ns // samples // NS_PER_S)) * NS_PER_S

    def run(self) -> SimulateReport:
        """From the first start of control to its orderly end."""
        failure = None
        thresholds = gc.get_threshold()
        gc.set_threshold(200_000, 50, 100)  # little of a run is cyclic garbage; looking for it often costs a tenth
        try:
            self._live()
        except Exception as error:  # whatever breaks, the seed and the events before it are the report
            if isinstance(error, BaseloadError):
                raise
            failure = self._failure(error)
        finally:
            gc.set_threshold(*thresholds)
        world = self.world
        for client in world.clients.values():
            world.tally.client(client)
        for item in world.journal:
            world.tally.entries(item.entries())
        return make_report(
            world.tally,
            name=self.config.name or Path(self.config.spec_path).stem,
            seed=self.config.seed,
            basis=self.basis,
            slo=self.config.slo,
            energy=self.config.energy,
            unreached=world.unreached,
            restarts=world.restarts,
            events=world.events,
            virtual_ns=world.now_ns - world.start_ns,
            digest=world.digest(),
            failure=failure,
        )

    def _live(self) -> None:
        world = self.world
        world.tell(ControlStarted(POLICY_VERSION, world.seed))
        for spec in self.models:
            world.tell(ModelPut(spec))
        for key in self.keys:
            world.tell(KeyCreated(key))
        world.settle()
        self.faults.begin()
        self._schedule_next()
        if not self.is_hunt:
            self._draw_timeline()
        asked = len(self.arrivals) * 3 // 4 if self._ends_early else len(self.arrivals)
        self._until(lambda: self._asked >= asked, "the requests were sent", within_ns=0)
        self._until(lambda: world.control is not None, "control is up")
        self.faults.end()
        if not self._ends_early:
            within_ns = LIVENESS_NS if not self._has_turns else 0
            self._until(lambda: not world.clients and not self._to_come, "all requests ended", within_ns=within_ns)
        if self.is_hunt and self.config.seed % 3 == 1:
            self._until(self._is_asleep, "all models without a minimum sleep")
        grace_ns = SHUTDOWN_GRACE_NS if not self._ends_early else self.config.seed * 7_919 % SHUTDOWN_GRACE_NS
        world.tell(ShutdownAsked(grace_ns))
        self._until(lambda: world.is_shut_down and not world.clients, "control has shut down")
        self._until(self._are_workers_dead, "all workers have ended")
        assert world.control is not None
        if world.checkers:
            world.checkers.finish(world.stamp_ns(), world.control)

    @property
    def _ends_early(self) -> bool:
        """A third of a hunt's seeds shut down while requests still come and run."""
        return self.is_hunt and self.config.seed % 3 == 2

    def _until(self, holds: Callable[[], bool], what: str, *, within_ns: int = LIVENESS_NS) -> None:
        """Let things happen until it holds. 0: however long it takes."""
        agenda = self.world.agenda
        limit_ns = agenda.now_ns + within_ns if within_ns else NEVER_NS
        if agenda.run(holds, limit_ns=limit_ns):
            return
        if agenda.now_ns > limit_ns:
            raise AssertionError(f"after {within_ns / NS_PER_S:.0f} virtual seconds still not: {what}")
        raise AssertionError(f"nothing is left to happen, but not: {what}")

    def _schedule_next(self) -> None:
        if self._asked < len(self.arrivals):
            arrival = self.arrivals[self._asked]
            self.world.agenda.at(self.world.start_ns + arrival.at_ns, partial(self._arrive, arrival))

    @property
    def _has_turns(self) -> bool:
        return any(source.kind in ("sessions", "agents") for source in self.config.workload.sources)

    def _arrive(self, arrival: Arrival) -> None:
        self._asked += 1
        self._ask(arrival)
        self._schedule_next()

    def _client_ended(self, client: Client) -> None:
        """Who was answered may ask again, after a while."""
        then = client.arrival.then
        if then is None or client.outcome is not Outcome.OK or self.world.is_shut_down:
            return
        self._to_come += 1

        def again() -> None:
            self._to_come -= 1
            self._ask(then)

        self.world.agenda.after(then.at_ns, again)

    def _ask(self, arrival: Arrival) -> None:
        deadline_ns = round(self.config.workload.deadline_s * NS_PER_S)
        client = self.world.ask(arrival, key_id=self.faults.key_id(arrival.key), deadline_ns=deadline_ns)
        if client is not None:
            self.faults.watch(client)

    def _is_asleep(self) -> bool:
        control = self.world.control
        if control is None:
            return False
        minimum = {spec.name: spec.scaling.min_replicas for spec in control.models() if not spec.is_remote}
        replicas = control.status(self.world.stamp_ns()).replicas
        return not any(minimum.get(replica.model) == 0 for replica in replicas)

    def _are_workers_dead(self) -> bool:
        return all(worker.life is Life.DEAD or worker.spec.is_remote for worker in self.world.workers.values())

    def _draw_timeline(self) -> None:
        world = self.world
        if world.is_shut_down:
            return
        if world.control is not None:
            world.tally.samples.append(self._sample(world.control))
        world.agenda.after(self._sample_ns, self._draw_timeline)

    def _sample(self, control: ControlMachine) -> FleetSample:
        status = control.status(self.world.stamp_ns())
        prices = {spec.name: spec.price.usd_per_hour for spec in control.models()}
        live = [replica for replica in status.replicas if replica.state is not ReplicaState.GONE]
        return FleetSample(
            at_s=(self.world.now_ns - self.world.start_ns) / NS_PER_S,
            queued=status.queued,
            in_flight=status.in_flight,
            starting=sum(model.starting for model in status.models),
            ready=sum(model.ready for model in status.models),
            draining=sum(model.draining for model in status.models),
            busy=sum(replica.in_flight > 0 and replica.state is ReplicaState.READY for replica in live),
            power_w=sum(replica.power_w for replica in live),
            usd_per_hour=sum(prices.get(replica.model, 0.0) for replica in live),
        )

    def _failure(self, error: Exception) -> Failure:
        config = self.config
        spec = f" {shlex.quote(config.spec_path)}" if config.spec_path else ""
        command = f"baseload simulate{spec}{config.flags} --seed {config.seed}" + (
            " --seeds 1" if self.is_hunt else ""
        )
        frames = traceback.extract_tb(error.__traceback__)[-4:]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
        tail = tuple(
            f"{(at_ns - self.world.start_ns) / NS_PER_S:12.6f} s  {event}" for at_ns, event in self.world.tail
        )
        return Failure(config.seed, f"{type(error).__name__}: {error} [{where}]", command, tail)


def _drawn_start(seed: int) -> int:
    """When a hunt's run starts: any time of day, half of them within a minute before midnight."""
    rng = Rng(seed, "twin.start")
    return NS_PER_DAY - rng.below(60 * NS_PER_S) if rng.below(2) else rng.below(NS_PER_DAY)


WIDEST = 200  # characters of an event before a failure, for people; JSON has all of it


def describe_failures(failures: Sequence[Failure]) -> list[str]:
    """Lines for people: each failing seed, what broke, the events before it and the command that reproduces it."""
    lines = []
    for failure in failures:
        tail = (line if len(line) <= WIDEST else f"{line[:WIDEST]} …" for line in failure.tail)
        lines += [f"seed {failure.seed}: {failure.message}", *(f"    {line}" for line in tail)]
        lines.append(f"reproduce: {failure.command}")
    return lines
