"""Faults that come by themselves: kills of control, administration, a clock that stands still, clients that hang up.

Faults of one occasion (a start, a dispatch) are drawn where the occasion is, in `world` and `workers`.
"""

from collections.abc import Callable, Sequence

import msgspec

from baseload.domain.events import KeyCreated, KeyRevoked, ModelPut, ModelRemoved
from baseload.domain.model import ModelSpec
from baseload.domain.rng import Rng
from baseload.domain.tenant import Key, KeyLimits
from baseload.domain.units import seconds
from baseload.twin.chance import exponential_ns
from baseload.twin.clients import Client
from baseload.twin.published import network_mttf_s
from baseload.twin.spec import Faults
from baseload.twin.workers import Worker
from baseload.twin.world import World

NONE = Faults()


class FaultMaker:
    """Makes faults in a world until told to end."""

    def __init__(self, world: World, *, models: Sequence[ModelSpec], keys: Sequence[Key]) -> None:
        self._world = world
        self._models = {spec.name: spec for spec in models}
        self._keys = list(keys)
        self._removed: dict[str, None] = {}
        self._rng = Rng(world.seed, "twin.faults")
        self._active = False

    def begin(self) -> None:
        """From now on."""
        self._active = True
        faults = self._world.faults
        self._repeat(faults.control_restart_every_s, self._kill_control)
        self._repeat(faults.power_loss_every_s, self._lose_power)
        self._repeat(faults.admin_every_s, self._administrate)
        self._repeat(faults.clock_stands_every_s, self._stop_clock)
        self._repeat(faults.node_every_s, self._fail_node)
        self._repeat(faults.switch_every_s, self._fail_switch)
        self._repeat(self._flap_every_s(faults), self._flap)
        self._repeat(faults.partition_every_s, self._part)
        self._repeat(faults.slow_every_s, self._slow_one)
        self._repeat(faults.throttle_every_s, self._throttle)
        self._repeat(faults.spot_every_s, self._reclaim)
        self._repeat(faults.disk_full_every_s, self._fill_disk)
        self._repeat(faults.price_every_s, self._raise_prices)

    def end(self) -> None:
        """No more of them; what is broken stays so until the machines mend it. Removed models come back."""
        self._active = False
        self._world.faults = NONE
        self._world.disk_full_until_ns = 0
        for worker in self._world.slots.values():
            worker.slow_down(1.0)
        for name in list(self._removed):
            self._world.tell(ModelPut(self._models[name]))
        self._removed = {}

    def watch(self, client: Client) -> None:
        """This client may hang up at some moment."""
        if self._active and self._rng.unit() < self._world.faults.disconnects:
            patience_ns = exponential_ns(self._rng, 1.0)
            self._world.tally.small_fault("client gone")
            self._world.agenda.after(patience_ns, client.hang_up)

    def key_id(self, number: int) -> str:
        """The key a client uses; a revoked one is still tried."""
        return self._keys[number % len(self._keys)].key_id

    def _repeat(self, mean_s: float, fault: Callable[[], None]) -> None:
        if mean_s <= 0:
            return

        def occur() -> None:
            if self._active:
                fault()
                self._world.agenda.after(exponential_ns(self._rng, mean_s), occur)

        self._world.agenda.after(exponential_ns(self._rng, mean_s), occur)

    def _kill_control(self) -> None:
        kill = self._world.kill_control if self._rng.below(2) else self._world.kill_control_in_step
        kill(down_ns=exponential_ns(self._rng, 0.5))

    def _lose_power(self) -> None:
        self._world.lose_power(down_ns=exponential_ns(self._rng, 120.0))

    def _stop_clock(self) -> None:
        self._world.tally.small_fault("clock that stands")
        self._world.stop_clock(exponential_ns(self._rng, 0.5))

    # -- machines, links, power, prices --------------------------------------------------------------------------

    def _flap_every_s(self, faults: Faults) -> float:
        """Links flap as told, and as published for as many accelerators as there may be."""
        rate = 1.0 / faults.flap_every_s if faults.flap_every_s > 0 else 0.0
        if faults.published > 0:
            hosting = self._world.hosting
            most = sum(s.scaling.max_replicas * hosting.accelerators_of(s.name) for s in self._models.values())
            rate += faults.published * most / network_mttf_s()
        return 1.0 / rate if rate else 0.0

    def _drawn_worker(self) -> Worker | None:
        workers = [worker for _, worker in sorted(self._world.slots.items())]
        return workers[self._rng.below(len(workers))] if workers else None

    def _fail_node(self) -> None:
        chosen = self._drawn_worker()
        if chosen is not None:
            size = self._world.physics.replicas_per_node
            node = chosen.slot // size
            for slot in range(node * size, (node + 1) * size):
                if slot in self._world.slots:
                    self._world.break_worker(self._world.slots[slot], "node")

    def _fail_switch(self) -> None:
        chosen = self._drawn_worker()
        if chosen is not None:
            physics = self._world.physics
            size = physics.replicas_per_node * physics.nodes_per_switch
            below = [w for slot, w in sorted(self._world.slots.items()) if slot // size == chosen.slot // size]
            self._cut(below, "switch", exponential_ns(self._rng, self._world.faults.switch_s))

    def _flap(self) -> None:
        chosen = self._drawn_worker()
        if chosen is not None:
            self._cut([chosen], "link flap", exponential_ns(self._rng, 1.0))

    def _part(self) -> None:
        """A partition: of the workers about a half is on the other side."""
        beyond = [worker for _, worker in sorted(self._world.slots.items()) if self._rng.below(2)]
        if beyond:
            self._cut(beyond, "partition", exponential_ns(self._rng, self._world.faults.partition_s))

    def _cut(self, workers: Sequence[Worker], kind: str, for_ns: int) -> None:
        world = self._world
        place = world.note(kind, ", ".join(worker.replica_id for worker in workers[:3]))
        for worker in workers:
            worker.cut_until_ns = max(worker.cut_until_ns, world.now_ns + for_ns)
        world.agenda.after(for_ns, lambda: world.mended(place))

    def _slow_one(self) -> None:
        chosen = self._drawn_worker()
        if chosen is not None:
            faults = self._world.faults
            self._slow([chosen], "slow", faults.slow_by, exponential_ns(self._rng, faults.slow_for_s))

    def _throttle(self) -> None:
        faults, slots = self._world.faults, self._world.slots
        workers = [worker for _, worker in sorted(slots.items())]
        self._slow(workers, "power or cooling", faults.throttle_by, exponential_ns(self._rng, faults.throttle_for_s))

    def _slow(self, workers: Sequence[Worker], kind: str, factor: float, for_ns: int) -> None:
        world = self._world
        place = world.note(kind, ", ".join(worker.replica_id for worker in workers[:3]))
        for worker in workers:
            worker.slow_down(factor)

        def over() -> None:
            world.mended(place)
            for worker in workers:
                worker.slow_down(1.0)

        world.agenda.after(for_ns, over)

    def _reclaim(self) -> None:
        chosen, world = self._drawn_worker(), self._world
        if chosen is not None:

            def take() -> None:
                if self._active:
                    world.break_worker(chosen, "spot reclaim")

            world.agenda.after(seconds(world.faults.spot_notice_s), take)

    def _fill_disk(self) -> None:
        world = self._world
        for_ns = exponential_ns(self._rng, 10.0)
        world.disk_full_until_ns = max(world.disk_full_until_ns, world.now_ns + for_ns)
        place = world.note("disk full", "no worker starts")
        world.agenda.after(for_ns, lambda: world.mended(place))

    def _raise_prices(self) -> None:
        world, factor = self._world, self._world.faults.price_by
        if world.control is None:
            return
        place = world.note("price", f"{factor:g} times")
        for name in [name for name in self._models if name not in self._removed]:
            spec = self._models[name]
            price = msgspec.structs.replace(spec.price, usd_per_hour=spec.price.usd_per_hour * factor)
            world.tell(ModelPut(msgspec.structs.replace(spec, price=price)))

        def over() -> None:
            world.mended(place)
            for name in [name for name in self._models if name not in self._removed]:
                if world.control is not None:
                    world.tell(ModelPut(self._models[name]))

        world.agenda.after(exponential_ns(self._rng, 60.0), over)

    # -- administration ------------------------------------------------------------------------------------------

    def _administrate(self) -> None:
        world, rng = self._world, self._rng
        if world.control is None:
            return
        name = list(self._models)[rng.below(len(self._models))]
        match rng.below(4):
            case 0:
                self._removed[name] = None
                world.tell(ModelRemoved(name))
                world.agenda.after(exponential_ns(rng, 1.0), lambda: self._put_back(name))
            case 1 | 2:
                self._removed.pop(name, None)
                self._models[name] = self._changed(self._models[name])
                world.tell(ModelPut(self._models[name]))
            case _:
                key = self._keys[rng.below(len(self._keys))]
                world.tell(KeyRevoked(key.key_id))
                world.agenda.after(exponential_ns(rng, 1.0), lambda: self._create_again(key))
        world.settle()  # administration is acknowledged once durable

    def _put_back(self, name: str) -> None:
        if name in self._removed and self._world.control is not None:
            del self._removed[name]
            self._world.tell(ModelPut(self._models[name]))
            self._world.settle()

    def _create_again(self, key: Key) -> None:
        self._world.tell(KeyCreated(key))  # where control is down, the key stays revoked: nobody acknowledged it
        self._world.settle()

    def _changed(self, spec: ModelSpec) -> ModelSpec:
        """The model with another scale, bound, price, engine setting or home."""
        rng = self._rng
        match rng.below(8):
            case 0:
                price = msgspec.structs.replace(spec.price, usd_per_hour=4 * rng.unit(), busy_w=500 * rng.unit())
                return msgspec.structs.replace(spec, price=price)
            case 1 | 2:
                return msgspec.structs.replace(
                    spec, engine=msgspec.structs.replace(spec.engine, max_seqs=1 + rng.below(16))
                )
            case 3 if rng.below(3) == 0:
                source = "simulated" if spec.is_remote else f"http://{spec.name}.elsewhere"
                return msgspec.structs.replace(spec, source=source)
            case 4:
                admission = msgspec.structs.replace(
                    spec.admission, max_concurrency_per_replica=1 + rng.below(8), max_queue=1 + rng.below(64)
                )
                return msgspec.structs.replace(spec, admission=admission)
            case _:
                high = 1 + rng.below(4)
                scaling = msgspec.structs.replace(spec.scaling, max_replicas=high, min_replicas=rng.below(high + 1))
                return msgspec.structs.replace(spec, scaling=scaling)


def make_keys(count: int, limits: KeyLimits, *, created_ns: int) -> list[Key]:
    """So many keys; their secrets exist nowhere."""
    return [
        Key(
            key_id=f"key_{number:012x}",
            name=f"simulated-{number}",
            secret_sha256=f"{number:064x}",
            created_ns=created_ns,
            limits=limits,
        )
        for number in range(1, max(1, count) + 1)
    ]
