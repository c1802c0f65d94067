"""The door before a fleet's cells: which cell serves whom, by the production router's policy over cells.

A cell is to the door what a replica is to a router: so many places, requests in flight, prompt tokens held and still
to be computed, prompts' beginnings it has lately seen (`policy.routing`: of many cells a few drawn at random, the one
with the least work ahead, unless another knows the prompt's beginning). A real door sees requests begin and end. This
one deals all arrivals before any cell runs, so it expects when they would: the prompt's step, then a decode step per
token at the pace of the cell's mean batch. What it cannot see is what goes wrong inside a cell. Conversations stay
where they began.
"""

from collections import OrderedDict
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from pathlib import Path

from baseload.core.counted import Counts
from baseload.core.router import PREFIXES_KEPT
from baseload.domain.fleet import ReplicaView
from baseload.domain.model import ModelSpec
from baseload.domain.rng import Rng
from baseload.domain.units import NS_PER_S
from baseload.policy.routing import SEQUENCE, choose_replica, draw
from baseload.twin.chance import Draws
from baseload.twin.costs import Costs
from baseload.twin.hosting import Fleet
from baseload.twin.prefixes import router_hashes
from baseload.twin.sources import all_arrivals
from baseload.twin.spec import DEFAULT_MODEL, SimulateConfig
from baseload.twin.workload import Arrival

BEGIN, FIRST, END = range(3)
SPAN_NS = NS_PER_S
_Due = tuple[int, int, int, int, Arrival]  # when, order, what, cell, of whom


def part(count: int, cell: int, cells: int) -> int:
    """An even share; the first cells take what is left over."""
    return count // cells + (cell < count % cells)


def dealt(config: SimulateConfig) -> list[list[Arrival]]:
    """The arrivals of each cell of `config.cells`, in order of time."""
    base = Path(config.spec_path).parent if config.spec_path else None
    models = config.models or (DEFAULT_MODEL,)
    arrivals = all_arrivals(config.workload, models=[spec.name for spec in models], seed=config.seed, base=base)
    fleet = Fleet(config.physics, config.hardware, base=base)
    rng = Draws(Rng(config.seed, "twin.door"))
    doors = {spec.name: _Lane(spec, fleet.costs_of(spec), config.cells, rng) for spec in models}
    places: list[list[Arrival]] = [[] for _ in range(config.cells)]
    for arrival in arrivals:
        door = doors.get(arrival.model)
        places[door.place(arrival) if door is not None else 0].append(arrival)
    return places


class _Cell:
    """One model's replicas in one cell, as far as the door knows."""

    __slots__ = ("capacity", "held_tokens", "in_flight", "name", "replicas", "waiting_tokens")

    def __init__(self, name: str, replicas: int, capacity: int) -> None:
        self.name = name
        self.replicas = replicas
        self.capacity = capacity
        self.in_flight = self.held_tokens = self.waiting_tokens = 0

    def view(self, hits: int) -> ReplicaView:
        """The cell as its mean replica: a known beginning saves one replica's work, not a whole cell's. What is left
        of requests in flight counts as tokens of the same work."""
        running = self.in_flight // self.replicas
        held = (SEQUENCE * (self.in_flight - running * self.replicas) + self.held_tokens) // self.replicas
        waiting = self.waiting_tokens // self.replicas
        return ReplicaView(self.name, running, self.capacity, 0.0, hits, held, waiting)


class _Lane:
    """The door for one model."""

    def __init__(self, spec: ModelSpec, costs: Costs, cells: int, rng: Draws) -> None:
        most = [max(1, part(spec.scaling.max_replicas, cell, cells)) for cell in range(cells)]
        places = spec.admission.max_concurrency_per_replica
        self._cells = [_Cell(str(at), replicas, places) for at, replicas in enumerate(most)]
        self._seqs = spec.engine.max_seqs
        self._costs = costs
        self._rng = rng
        self._due: list[_Due] = []  # a heap of what is expected in this span of time
        self._later: dict[int, list[_Due]] = {}  # by span: a heap of all would be slow
        self._span = 0
        self._order = 0
        self._prefixes: OrderedDict[int, int] = OrderedDict()  # hash of a prompt's beginning → the cell that saw it
        self._paces: dict[tuple[int, int], int] = {}
        self._prompts: dict[int, int] = {}

    def place(self, arrival: Arrival) -> int:
        """Its cell. Arrivals come in order of time."""
        self._advance(arrival.at_ns)
        hashes = router_hashes(arrival) if arrival.prefix >= 0 or arrival.thread >= 0 or arrival.blocks else ()
        at = self._choose(hashes)
        self._begin(arrival.at_ns, at, arrival)
        for value in hashes:
            self._prefixes[value] = at
            self._prefixes.move_to_end(value)
        while len(self._prefixes) > PREFIXES_KEPT:
            self._prefixes.popitem(last=False)
        return at

    def _choose(self, hashes: Sequence[int]) -> int:
        cells = self._cells
        drawn = draw(len(cells), self._rng)
        knower, hits = -1, len(hashes)
        while hits:
            knower = self._prefixes.get(hashes[hits - 1], -1)
            if knower >= 0:
                break
            hits -= 1
        if knower >= 0 and knower not in drawn:
            drawn.append(knower)
        views = [cells[at].view(hits if at == knower else 0) for at in drawn]
        return drawn[choose_replica(views)]

    def _advance(self, now_ns: int) -> None:
        """What was expected until now has happened."""
        until = now_ns // SPAN_NS
        while self._span < until:
            self._happen(now_ns)
            self._span += 1
            self._due = self._later.pop(self._span, [])
            heapify(self._due)
        self._happen(now_ns)

    def _happen(self, now_ns: int) -> None:
        due = self._due
        while due and due[0][0] <= now_ns:
            at_ns, _, what, at, arrival = heappop(due)
            cell = self._cells[at]
            if what == FIRST:
                cell.waiting_tokens -= arrival.prompt_tokens
            elif what == END:
                cell.in_flight -= 1
                cell.held_tokens -= arrival.prompt_tokens
                if arrival.then is not None:
                    self._expect(at_ns + arrival.then.at_ns, BEGIN, at, arrival.then)
            else:
                self._begin(at_ns, at, arrival)

    def _begin(self, now_ns: int, at: int, arrival: Arrival) -> None:
        cell, prompt = self._cells[at], arrival.prompt_tokens
        cell.in_flight += 1
        cell.held_tokens += prompt
        cell.waiting_tokens += prompt
        rows = min(self._seqs, -(-cell.in_flight // cell.replicas))
        queued = max(0, cell.in_flight - cell.replicas * self._seqs)  # these wait for a round of those before them
        first_ns = self._prompt_ns(prompt)
        stay_ns = first_ns + arrival.output_tokens * self._pace_ns(rows, prompt + arrival.output_tokens // 2)
        stay_ns += stay_ns * queued // (cell.replicas * self._seqs)
        self._expect(now_ns + first_ns, FIRST, at, arrival)
        self._expect(now_ns + stay_ns, END, at, arrival)

    def _expect(self, at_ns: int, what: int, at: int, arrival: Arrival) -> None:
        self._order += 1
        one, span = (at_ns, self._order, what, at, arrival), at_ns // SPAN_NS
        if span <= self._span:
            heappush(self._due, one)
        else:
            self._later.setdefault(span, []).append(one)

    def _pace_ns(self, rows: int, context: int) -> int:
        """A decode step of so many rows, each of about so many positions."""
        key = (rows, context.bit_length())
        pace = self._paces.get(key)
        if pace is None:
            typical = 3 << max(0, key[1] - 2)  # three quarters of the power of two above
            self._paces[key] = pace = self._costs.line(rows, rows * typical).step_ns(0)
        return pace

    def _prompt_ns(self, tokens: int) -> int:
        rounded = -(-tokens // 64) * 64
        took = self._prompts.get(rounded)
        if took is None:
            pairs = rounded * rounded // 2
            took = self._costs.step_ns(Counts(1, 0, rounded, rounded, 0, pairs, 1))
            self._prompts[rounded] = took
        return took
