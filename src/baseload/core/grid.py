"""Nodes and what is free on them, by switch and site: the scheduler's map, kept so that finding a place is cheap."""

from collections import OrderedDict

from msgspec import Struct

from baseload.policy.placement import choose_switches


class Topology(Struct, frozen=True):
    """Sites of nodes in a row; switches are runs of nodes within a site, pods runs of switches."""

    sites: tuple[int, ...]  # nodes of each
    per_node: int = 8  # accelerators
    nodes_per_switch: int = 32
    switches_per_pod: int = 16

    @property
    def nodes(self) -> int:
        """All nodes."""
        return sum(self.sites)

    def switch_of(self, node: int) -> int:
        """The switch a node hangs on, numbered through all sites."""
        switch = 0
        for count in self.sites:
            if node < count:
                return switch + node // self.nodes_per_switch
            node -= count
            switch += -(-count // self.nodes_per_switch)
        raise IndexError(node)


class Grid:
    """Free accelerators per node. Nodes that are down hold nothing and give nothing."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._site: list[int] = []
        self._switch: list[int] = []  # within the site
        self._whole: list[list[dict[int, None]]] = []  # site → switch → nodes that are wholly free
        self._whole_count: list[list[int]] = []  # site → switch → how many
        self._whole_total = [0] * len(topology.sites)
        self._partial: list[list[OrderedDict[int, None]]] = []  # site → free accelerators → nodes with some in use
        self._free = [topology.per_node] * topology.nodes
        self._is_up = [True] * topology.nodes
        self._free_total = [0] * len(topology.sites)
        self._jobs: dict[int, dict[str, int]] = {}  # node → jobs on it
        node = 0
        for site, count in enumerate(topology.sites):
            switches = -(-count // topology.nodes_per_switch)
            self._whole.append([{} for _ in range(switches)])
            self._whole_count.append([0] * switches)
            self._partial.append([OrderedDict() for _ in range(topology.per_node + 1)])
            for at in range(count):
                self._site.append(site)
                self._switch.append(at // topology.nodes_per_switch)
                self._list(node)
                node += 1

    def site_of(self, node: int) -> int:
        """The site of a node."""
        return self._site[node]

    def whole_at(self, site: int) -> int:
        """Wholly free nodes of a site."""
        return self._whole_total[site]

    def free_at(self, site: int) -> int:
        """Free accelerators of a site's nodes that are up."""
        return self._free_total[site]

    def jobs_on(self, node: int) -> list[str]:
        """The jobs that hold accelerators of a node."""
        return list(self._jobs.get(node, ()))

    def find(self, site: int, accelerators: int) -> tuple[tuple[int, int], ...]:
        """(node, accelerators) for a gang, or () where there is no place."""
        per_node = self.topology.per_node
        if accelerators < per_node:
            for free in range(accelerators, per_node):  # best fit
                if self._partial[site][free]:
                    return ((next(iter(self._partial[site][free])), accelerators),)
        needed = max(1, -(-accelerators // per_node))
        if self._whole_total[site] < needed:
            return ()
        counts = self._whole_count[site]
        chosen = choose_switches(counts, needed, switches_per_pod=self.topology.switches_per_pod)
        each = min(accelerators, per_node)
        places: list[tuple[int, int]] = []
        for switch, count in chosen:
            nodes = self._whole[site][switch]
            places += [(node, each) for node, _ in zip(nodes, range(count), strict=False)]
        return tuple(places)

    def take(self, job_id: str, places: tuple[tuple[int, int], ...]) -> None:
        """The gang runs there."""
        for node, count in places:
            assert self._is_up[node], f"node {node} is down"
            assert self._free[node] >= count, f"node {node} has no room for {job_id}"
            self._unlist(node)
            self._free[node] -= count
            self._jobs.setdefault(node, {})[job_id] = count
            self._list(node)

    def give_back(self, job_id: str, places: tuple[tuple[int, int], ...]) -> None:
        """The gang has left."""
        for node, count in places:
            self._unlist(node)
            self._free[node] += count
            del self._jobs[node][job_id]
            self._list(node)

    def take_down(self, node: int) -> None:
        """The node cannot be used; nobody may be on it any more."""
        assert not self._jobs.get(node), f"node {node} goes down under {self._jobs[node]}"
        if self._is_up[node]:
            self._unlist(node)
            self._is_up[node] = False

    def bring_up(self, node: int) -> None:
        """The node can be used again."""
        if not self._is_up[node]:
            self._is_up[node] = True
            self._list(node)

    def check(self, places: dict[str, tuple[tuple[int, int], ...]]) -> None:
        """Assert that the map agrees with who runs where."""
        free = [self.topology.per_node] * self.topology.nodes
        for job_id, held in places.items():
            for node, count in held:
                free[node] -= count
                assert self._is_up[node], f"{job_id} runs on node {node}, which is down"
                assert self._jobs[node][job_id] == count
        assert free == self._free, "accelerators were lost or given twice"
        assert min(free) >= 0
        for site in range(len(self.topology.sites)):
            nodes = [n for n in range(self.topology.nodes) if self._site[n] == site and self._is_up[n]]
            assert self._free_total[site] == sum(free[n] for n in nodes)
            assert self._whole_total[site] == sum(self._whole_count[site])
            assert self._whole_total[site] == sum(free[n] == self.topology.per_node for n in nodes)

    def _list(self, node: int) -> None:
        if not self._is_up[node]:
            return
        site, free = self._site[node], self._free[node]
        self._free_total[site] += free
        if free == self.topology.per_node:
            self._whole[site][self._switch[node]][node] = None
            self._whole_count[site][self._switch[node]] += 1
            self._whole_total[site] += 1
        else:
            self._partial[site][free][node] = None

    def _unlist(self, node: int) -> None:
        if not self._is_up[node]:
            return
        site, free = self._site[node], self._free[node]
        self._free_total[site] -= free
        if free == self.topology.per_node:
            del self._whole[site][self._switch[node]][node]
            self._whole_count[site][self._switch[node]] -= 1
            self._whole_total[site] -= 1
        else:
            del self._partial[site][free][node]
