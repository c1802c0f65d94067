"""Usage by day, key, model and class of service: the ledger's entries added up."""

from datetime import UTC, datetime

from msgspec import Struct

from baseload.core.ports import UsageRow
from baseload.domain.units import NS_PER_DAY, NS_PER_S
from baseload.domain.work import MIXED, Entry, Outcome, ReplicaEntry, RequestEntry

_OK = Outcome.OK
_FAILED = frozenset({Outcome.REFUSED, Outcome.REJECTED, Outcome.FAILED})

UsageKey = tuple[str, str, str, str]  # day, key_id ("" for idle and cold time), model, tier ("" likewise)


class Sums(Struct):
    """One (day, key, model, tier) being added up; the fields stand in the order of the `usage` table."""

    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    useful_ns: int = 0
    idle_ns: int = 0
    cold_ns: int = 0
    cost_nusd: int = 0
    energy_uj: int = 0
    energy_basis: str = ""


class Rollup:
    """A running sum over entries."""

    __slots__ = ("_day", "_day_number", "rows")

    def __init__(self) -> None:
        self.rows: dict[UsageKey, Sums] = {}
        self._day_number = -1
        self._day = ""

    def add(self, entry: Entry, *, open_at_ns: int = 0) -> None:
        """Add an entry; decisions cost nothing. `open_at_ns`: it still runs, and a request is not yet counted as one.

        A request counts on the UTC day it ended, a replica's span on the day it ended.
        """
        if isinstance(entry, RequestEntry):
            self._add_request(entry, open_at_ns)
        elif isinstance(entry, ReplicaEntry):
            sums = self._sums(entry.to_ns, "", entry.model, "")
            sums.idle_ns += entry.idle_ns
            sums.cold_ns += entry.cold_ns
            sums.cost_nusd += entry.idle_cost_nusd + entry.cold_cost_nusd
            _add_energy(sums, entry.idle_energy_uj + entry.cold_energy_uj, entry.energy_basis)

    def add_row(self, row: UsageRow, *, sign: int = 1) -> None:
        """Add (or, with sign −1, take away) a row that was added up elsewhere."""
        key = (row.day, row.key_id, row.model, row.tier)
        sums = self.rows.get(key)
        if sums is None:
            sums = self.rows[key] = Sums()
        sums.requests += sign * row.requests
        sums.failed += sign * row.failed
        sums.prompt_tokens += sign * row.prompt_tokens
        sums.cached_tokens += sign * row.cached_tokens
        sums.completion_tokens += sign * row.completion_tokens
        sums.useful_ns += sign * row.useful_ns
        sums.idle_ns += sign * row.idle_ns
        sums.cold_ns += sign * row.cold_ns
        sums.cost_nusd += sign * row.cost_nusd
        _add_energy(sums, sign * row.energy_uj, row.energy_basis)

    def usage(self, names: dict[str, str]) -> list[UsageRow]:
        """The rows by day, key, model and class; `names` are the keys' names by id. Empty rows are left out."""
        return [
            usage_row(key, sums, names.get(key[1], ""))
            for key, sums in sorted(self.rows.items(), key=lambda item: item[0])
            if any((sums.requests, sums.useful_ns, sums.idle_ns, sums.cold_ns, sums.cost_nusd, sums.energy_uj))
        ]

    def _add_request(self, entry: RequestEntry, open_at_ns: int) -> None:
        sums = self._sums(open_at_ns or entry.ended_ns, entry.key_id, entry.model, entry.tier.value)
        if not open_at_ns:
            sums.requests += 1
            if entry.outcome is not _OK and entry.outcome in _FAILED:
                sums.failed += 1
        tokens = entry.tokens
        sums.prompt_tokens += tokens.prompt
        sums.cached_tokens += tokens.cached_in
        sums.completion_tokens += tokens.completion
        sums.useful_ns += entry.useful_ns
        sums.cost_nusd += entry.cost_nusd
        _add_energy(sums, entry.energy_uj, entry.energy_basis)

    def _sums(self, at_ns: int, key_id: str, model: str, tier: str) -> Sums:
        number = at_ns // NS_PER_DAY
        if number != self._day_number:
            self._day_number = number
            self._day = datetime.fromtimestamp(number * (NS_PER_DAY // NS_PER_S), UTC).strftime("%Y-%m-%d")
        key = (self._day, key_id, model, tier)
        sums = self.rows.get(key)
        if sums is None:
            sums = self.rows[key] = Sums()
        return sums


def usage_row(key: UsageKey, sums: Sums, key_name: str) -> UsageRow:
    """The sums as the row that ports speak of."""
    return UsageRow(
        day=key[0],
        key_id=key[1],
        key_name=key_name,
        model=key[2],
        requests=sums.requests,
        failed=sums.failed,
        prompt_tokens=sums.prompt_tokens,
        cached_tokens=sums.cached_tokens,
        completion_tokens=sums.completion_tokens,
        useful_ns=sums.useful_ns,
        idle_ns=sums.idle_ns,
        cold_ns=sums.cold_ns,
        cost_nusd=sums.cost_nusd,
        energy_uj=sums.energy_uj,
        energy_basis=sums.energy_basis,
        tier=key[3],
    )


def _add_energy(sums: Sums, energy_uj: int, basis: str) -> None:
    if not energy_uj:
        sums.energy_basis = sums.energy_basis or basis
        return
    if not sums.energy_uj:
        sums.energy_basis = basis
    elif sums.energy_basis != basis:
        sums.energy_basis = MIXED
    sums.energy_uj += energy_uj
