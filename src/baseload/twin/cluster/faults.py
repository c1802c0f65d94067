"""Faults of a whole fleet: rates from published figures, and others on request. Each is a Poisson process."""

from collections.abc import Callable

from baseload.domain.jobs import NodeDown, SiteCapped, SitePriced
from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_HOUR, NS_PER_S
from baseload.twin.chance import exponential_ns
from baseload.twin.cluster.world import ClusterWorld
from baseload.twin.published import accelerator_mttf_s, network_mttf_s

DAY_S = 86_400.0
SWITCH_SHARE = 0.2  # of network faults, those of a switch; the others are of one link
MIN_S = 60.0


class ClusterFaultMaker:
    """Makes faults until told to end."""

    def __init__(self, world: ClusterWorld) -> None:
        self._world = world
        self._rng = Rng(world.seed, "twin.cluster.faults")
        self._active = False
        self._prices = [1.0] * len(world.cluster.sites)
        self._caps: list[list[float]] = [[] for _ in world.cluster.sites]  # what is left of each, while it lasts

    def begin(self) -> None:
        """From now on."""
        self._active = True
        world, faults = self._world, self._world.faults
        for site in range(len(world.cluster.sites)):
            self.set_price(site)
        everywhere = world.topology.nodes * world.topology.per_node
        if faults.published > 0:
            network_s = network_mttf_s(everywhere) / faults.published
            self._repeat(accelerator_mttf_s(everywhere) / faults.published, lambda: self._node("accelerator or host"))
            self._repeat(network_s / SWITCH_SHARE, self._switch)
            self._repeat(network_s / (1.0 - SWITCH_SHARE), lambda: self._node("link flap", share=1.0 / 3.0))
        for per_day, fault in (
            (faults.nodes_per_day, lambda: self._node("node")),
            (faults.switches_per_day, self._switch),
            (faults.slow_per_day, self._slow),
            (faults.power_per_day, lambda: self._cap("power")),
            (faults.cooling_per_day, lambda: self._cap("cooling")),
            (faults.price_spikes_per_day, self._spike),
            (faults.spot_per_day, self._reclaim),
            (faults.disk_full_per_day, self._fill_disk),
            (faults.partitions_per_day, self._partition),
        ):
            if per_day > 0:
                self._repeat(DAY_S / per_day, fault)

    def end(self) -> None:
        """No more of them; what is broken gets mended in its time."""
        self._active = False

    def set_price(self, site: int) -> None:
        """The scheduler learns what electricity costs there now, and again each hour."""
        world = self._world
        world.tell(SitePriced(site, self.price_of(site)))

        def again() -> None:
            if self._active:
                self.set_price(site)

        if self._active:
            world.agenda.after(NS_PER_HOUR - world.now_ns % NS_PER_HOUR, again)

    def price_of(self, site: int) -> float:
        """Dollars a kWh, now."""
        prices = self._world.cluster.sites[site].usd_per_kwh or (0.0,)
        return prices[self._world.now_ns // NS_PER_HOUR % len(prices)] * self._prices[site]

    def _repeat(self, mean_s: float, fault: Callable[[], None]) -> None:
        def occur() -> None:
            if self._active:
                fault()
                self._world.agenda.after(exponential_ns(self._rng, mean_s), occur)

        self._world.agenda.after(exponential_ns(self._rng, mean_s), occur)

    def _drawn_ns(self, mean_s: float) -> int:
        return exponential_ns(self._rng, max(1.0, mean_s))

    def _a_node(self) -> int:
        return self._rng.below(self._world.topology.nodes)

    def _a_site(self) -> int:
        return self._rng.below(len(self._world.cluster.sites))

    def _node(self, why: str, *, share: float = 1.0) -> None:
        world, node = self._world, self._a_node()
        for_ns = self._drawn_ns(world.faults.repair_h * 3600 * share)
        world.note(why, f"node {node}", world.now_ns + for_ns)
        world.break_node(node, why, for_ns=for_ns, told_after_ns=self._drawn_ns(world.faults.detect_s))

    def _switch(self) -> None:
        world, chosen = self._world, self._a_node()
        site, size = world.site_of[chosen], world.topology.nodes_per_switch
        first = world.first_node[site] + (chosen - world.first_node[site]) // size * size
        last = min(first + size, world.first_node[site] + world.cluster.sites[site].nodes)
        for_ns = self._drawn_ns(world.faults.switch_min * MIN_S)
        told_ns = self._drawn_ns(world.faults.detect_s)
        world.note("switch", f"nodes {first} to {last - 1}", world.now_ns + for_ns)
        for node in range(first, last):
            world.break_node(node, "switch", for_ns=for_ns, told_after_ns=told_ns)

    def _slow(self) -> None:
        """A node is slow, and whoever waits for it; once that is found, it is taken out and tested."""
        world, node = self._world, self._a_node()
        world.slow[node] = world.slow.get(node, 0) + 1
        for run in list(world.on.get(node, {}).values()):
            world.slow_down(run, 1.0 / world.faults.slow_by)
        found_ns = self._drawn_ns(world.faults.slow_found_min * MIN_S)
        for_ns = found_ns + self._drawn_ns(world.faults.repair_h * 1200)
        world.note("slow node", f"node {node}", world.now_ns + for_ns)

        def found() -> None:
            world.broken[node] = world.broken.get(node, 0) + 1
            world.slow[node] -= 1
            if not world.slow[node]:
                del world.slow[node]
            for run in list(world.on.get(node, {}).values()):
                world.slow_down(run, 1.0)
            world.tell(NodeDown(node, "found to be slow"), site=world.site_of[node])
            world.agenda.after(for_ns - found_ns, lambda: world.mend_node(node))

        world.agenda.after(found_ns, found)

    def _cap(self, kind: str) -> None:
        world, site = self._world, self._a_site()
        for_ns = self._drawn_ns(world.faults.cap_min * MIN_S)
        world.note(kind, world.cluster.sites[site].name, world.now_ns + for_ns)
        self._caps[site].append(world.faults.cap_share)
        self._tell_cap(site, f"{kind} allows {world.faults.cap_share:.0%} of the site")

        def over() -> None:
            self._caps[site].pop()
            self._tell_cap(site, f"{kind} is back")

        world.agenda.after(for_ns, over)

    def _tell_cap(self, site: int, why: str) -> None:
        world = self._world
        share = min(self._caps[site], default=1.0)
        most = int(world.cluster.sites[site].nodes * world.topology.per_node * share)
        world.tell(SiteCapped(site, most, why))

    def _spike(self) -> None:
        world, site = self._world, self._a_site()
        for_ns = self._drawn_ns(world.faults.spike_min * MIN_S)
        world.note("price spike", world.cluster.sites[site].name, world.now_ns + for_ns)
        self._prices[site] *= world.faults.price_by
        world.tell(SitePriced(site, self.price_of(site)))

        def over() -> None:
            self._prices[site] /= world.faults.price_by
            world.tell(SitePriced(site, self.price_of(site)))

        world.agenda.after(for_ns, over)

    def _reclaim(self) -> None:
        world = self._world
        spot = [int(site.nodes * site.spot_share) for site in world.cluster.sites]
        if not sum(spot):
            return
        at = self._rng.below(sum(spot))
        site = 0
        while at >= spot[site]:
            at -= spot[site]
            site += 1
        node = world.first_node[site] + world.cluster.sites[site].nodes - 1 - at
        for_ns = self._drawn_ns(world.faults.spot_h * 3600)
        world.note("spot reclaim", f"node {node}", world.now_ns + for_ns)
        world.break_node(node, "spot reclaim", for_ns=for_ns, told_after_ns=NS_PER_S)

    def _fill_disk(self) -> None:
        world, site = self._world, self._a_site()
        until_ns = world.now_ns + self._drawn_ns(world.faults.disk_min * MIN_S)
        world.disk_full_until_ns[site] = max(world.disk_full_until_ns[site], until_ns)
        world.note("disk full", world.cluster.sites[site].name, until_ns)

    def _partition(self) -> None:
        world, site = self._world, self._a_site()
        until_ns = world.now_ns + self._drawn_ns(world.faults.partition_min * MIN_S)
        world.cut_until_ns[site] = max(world.cut_until_ns[site], until_ns)
        world.note("partition", world.cluster.sites[site].name, until_ns)
