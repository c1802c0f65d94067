"""Who runs where and how often: a mixed-integer program over columns (units at places), solved by HiGHS in SciPy.

minimise   Σ score · x + score_on · (x > 0)
subject to Σ rate · x ≥ demand          of each model (with spares) and training job
           gpus, watts, dollars, carbon within what is stated
           at most one kind of unit a model and site, more only where its stocks are too few alone; x whole
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

GAP = 1e-4
TIME_LIMIT_S = 10.0
MOST_KINDS = 3  # of units of one model at a site


@dataclass(frozen=True, slots=True)
class Column:
    """One kind of unit at one place. `rate` is in the unit of its demand."""

    demand: str
    site: str
    stock: str  # accelerators at the site that tiers share
    rate: float
    gpus: int
    score: float  # of one unit, in the objective
    usd_per_hour: float
    peak_w: float
    mean_w: float
    kg_per_hour: float
    spare: int = 0
    whole: bool = False  # all of the demand or nothing: a training job
    score_on: float = 0.0  # of having it at all, however many: a first unit that never sleeps
    usd_on: float = 0.0


@dataclass(frozen=True, slots=True)
class Bound:
    """A sum over columns that may not exceed `most`."""

    name: str
    most: float
    figure: str  # the attribute of a column that is summed
    site: str = ""  # "" or where
    stock: str = ""


def allocate(demands: dict[str, float], columns: Sequence[Column], bounds: Sequence[Bound]) -> list[int] | None:
    """Units of each column, or None where nothing satisfies all bounds."""
    if any(not any(c.demand == name for c in columns) for name in demands):
        return None
    if not columns:
        return []
    count = len(columns)
    most = [_most(column, demands[column.demand]) for column in columns]
    rows: list[dict[int, float]] = []
    low: list[float] = []
    high: list[float] = []
    for name, demand in demands.items():
        row: dict[int, float] = {}
        for i, column in enumerate(columns):
            if column.demand == name:
                row[i] = column.rate / demand
                row[count + i] = -column.spare * column.rate / demand
        rows.append(row)
        low.append(1.0 - 1e-9)
        high.append(np.inf)
    for bound in bounds:
        row = {}
        for i, column in enumerate(columns):
            if bound.site in ("", column.site) and bound.stock in ("", column.stock):
                row[i] = getattr(column, bound.figure) / bound.most
                if bound.figure == "usd_per_hour":
                    row[count + i] = column.usd_on / bound.most
        rows.append(row)
        low.append(-np.inf)
        high.append(1.0 + 1e-9)
    for i in range(count):
        rows.append({i: 1.0, count + i: -float(most[i])})
        low.append(-np.inf)
        high.append(0.0)
    short = _short(columns, demands, bounds)
    for key in dict.fromkeys((c.demand, c.site) for c in columns):
        rows.append({count + i: 1.0 for i, c in enumerate(columns) if (c.demand, c.site) == key})
        low.append(-np.inf)
        high.append(float(min(MOST_KINDS, max(1, short.get(key, 0) + 1))))
    for stock in dict.fromkeys((c.demand, c.site, c.stock) for c in columns):
        rows.append({count + i: 1.0 for i, c in enumerate(columns) if (c.demand, c.site, c.stock) == stock})
        low.append(-np.inf)
        high.append(1.0)
    return _solve(rows, low, high, columns, most)


def _short(
    columns: Sequence[Column], demands: dict[str, float], bounds: Sequence[Bound]
) -> dict[tuple[str, str], int]:
    """How many stocks of a site hold too few accelerators for all of a demand, by demand and site."""
    counts = {(b.site, b.stock): b.most for b in bounds if b.stock and b.figure == "gpus"}
    held: dict[tuple[str, str, str], float] = {}
    for c in columns:
        most = counts.get((c.site, c.stock))
        if most is not None and not c.whole:
            key = (c.demand, c.site, c.stock)
            held[key] = max(held.get(key, 0.0), most / c.gpus * c.rate)
    found: dict[tuple[str, str], int] = {}
    for (demand, site, _), most in held.items():
        found[demand, site] = found.get((demand, site), 0) + (most < demands[demand])
    return found


def _most(column: Column, demand: float) -> int:
    needed = int(np.ceil(demand / column.rate - 1e-9))
    return 1 if column.whole else max(1, needed) + column.spare


def _solve(
    rows: list[dict[int, float]], low: list[float], high: list[float], columns: Sequence[Column], most: list[int]
) -> list[int] | None:
    count = len(columns)
    scale = max((abs(c.score) * m for c, m in zip(columns, most, strict=True)), default=1.0) or 1.0
    cost = np.concatenate([[c.score / scale for c in columns], [c.score_on / scale + 1e-9 for c in columns]])
    entries = [(r, i, value) for r, row in enumerate(rows) for i, value in row.items() if value]
    matrix = csr_array(
        ([e[2] for e in entries], ([e[0] for e in entries], [e[1] for e in entries])), shape=(len(rows), 2 * count)
    )
    found = milp(
        cost,
        constraints=LinearConstraint(matrix, np.array(low), np.array(high)),
        bounds=Bounds(np.zeros(2 * count), np.concatenate([most, np.ones(count)])),
        integrality=np.ones(2 * count),
        options={"mip_rel_gap": GAP, "time_limit": TIME_LIMIT_S},
    )
    if found.x is None:
        return None
    return [round(value) for value in found.x[:count]]
