"""Measured points made fit to judge by: distinct measurements, seeded splits, and a declared rule for anomalies.

The same run often stands under several ids, rounded or with other parallelism columns. Two rows are one measurement
when accelerator, engine, model family, mode, lengths and concurrency agree and both times agree to three
digits (1 %). Splits are by measurement or by group, never by id.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from baseload.domain.rng import Rng
from baseload.limits.serving.features import Features, Floats
from baseload.limits.serving.points import Point

SAME = 0.01
TOO_FAST = 1.0
"""The rule for anomalies, declared before any held-out figure was looked at; it asks no fitted parameter:
a row is an anomaly if its weights exceed the memory of the accelerators stated, or if its TPOT is shorter than the
time to read the weights and cache a step needs at the sheet's full bandwidth (a column is wrong, or it speculates);
the second is not asked of disaggregated rows whose worker counts, and so whose batch, nobody knows."""


def distinct(points: Sequence[Point]) -> list[Point]:
    """One point per measurement, preferring rows that say more: an id with its parallelism, known worker counts."""
    groups: dict[tuple[object, ...], list[Point]] = defaultdict(list)
    for point in points:
        key = (point.system, point.engine, point.family, point.mode, point.isl, point.osl, point.concurrency)
        groups[key].append(point)
    kept: list[Point] = []
    for members in groups.values():
        chosen: list[Point] = []
        for point in sorted(members, key=lambda p: (-_says(p), p.line)):
            if not any(_same(point, other) for other in chosen):
                chosen.append(point)
        kept.extend(chosen)
    return sorted(kept, key=lambda p: p.line)


def group_of(point: Point) -> tuple[str, str, str]:
    """(accelerator, engine, model family): the unit of splits."""
    return (point.system, point.engine, point.family)


def halves(points: Sequence[Point], *, seed: int = 1) -> tuple[list[int], list[int]]:
    """Indices of the development half and of the held-out half: groups are dealt out whole, by a seed."""
    groups = sorted({group_of(point) for point in points})
    rng = Rng(seed, "halves")
    order = sorted(groups, key=lambda group: (rng.u64(), group))
    ours = set(order[: (len(order) + 1) // 2])
    develop = [i for i, point in enumerate(points) if group_of(point) in ours]
    held = [i for i, point in enumerate(points) if group_of(point) not in ours]
    return develop, held


def sample(points: Sequence[Point], *, per_group: int = 20, seed: int = 1) -> list[int]:
    """Indices of at most `per_group` points per (accelerator, engine, mode), drawn by a seed."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for i, point in enumerate(points):
        groups[(point.system, point.engine, point.mode)].append(i)
    chosen: list[int] = []
    for key in sorted(groups):
        rng = Rng(seed, "/".join(key))
        chosen += sorted(groups[key], key=lambda i: (rng.u64(), i))[:per_group]
    return sorted(chosen)


def anomalies(points: Sequence[Point], features: Features) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which points the declared rule leaves out."""
    floor_s = features["decode_dense_read"] + features["decode_expert_read"] + features["decode_kv_read"]
    tpot_s = np.array([point.tpot_ms for point in points]) / 1e3
    fast: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (
        (tpot_s < TOO_FAST * floor_s) & (features["workers_known"] > 0)
    ) | (features["fits"] == 0)
    return fast


def kendall_tau(a: Floats, b: Floats) -> float:
    """Kendall's tau-b, in n² time: for the few hundred points of a group."""
    x, y = np.sign(a[:, None] - a[None, :]), np.sign(b[:, None] - b[None, :])
    bottom = np.sqrt(float((x != 0).sum()) * float((y != 0).sum()))
    return float((x * y).sum() / bottom) if bottom else 0.0


def _says(point: Point) -> int:
    known = point.prefill is not None and point.decode.workers_known and point.prefill.workers_known
    return 2 * known + ("_ep" in point.id)


def _same(a: Point, b: Point) -> bool:
    return _near(a.tpot_ms, b.tpot_ms) and _near(a.ttft_ms, b.ttft_ms)


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= SAME * max(abs(a), abs(b))
