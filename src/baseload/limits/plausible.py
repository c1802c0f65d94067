"""Measured rows whose unit cannot be what their column says, found by physics and by their siblings.

Published logs count tokens where samples are meant, or the other way round, and one such row spoils a calibration.
Declared rules; a row that breaks one is left out, and the answers say so:

1. Faster than the sheet: a time below half of what the arithmetic alone takes at the full peak of the chip's
   narrowest format. (Half, because FLOPs of a sample are means and some are counted roughly.)
2. Off its siblings by the tokens of a sample: against the time counted without any correction, a row is slower or
   faster than the median of the others by a factor within 2.5 times of its tokens, where those are at least 20.
3. Where nobody counted the work: twenty times faster than the median of the others of that work, per unit of peak.

Rules 2 and 3 need three siblings or more that passed rule 1.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence

from msgspec import Struct

IMPOSSIBLE = 0.5
NEAR = 2.5
LEAST_TOKENS = 20.0
SIBLINGS = 3
FAR = 20.0


class Measured(Struct, frozen=True, kw_only=True):
    """One measured row, as the rules see it. Times are seconds, of whatever the room times."""

    line: int
    group: str  # rows of one group are siblings
    seconds: float
    floor_s: float  # arithmetic alone, at the narrowest format's peak; 0: not counted
    usual_s: float  # counted without any correction; 0: the sheet is a stand-in, so nothing is compared
    tokens: float  # of a sample, by which a wrong unit is off


class LeftOut(Struct, frozen=True):
    """A row that calibrates nothing, and the rule it breaks."""

    line: int
    group: str
    why: str

    @property
    def words(self) -> str:
        """For a note."""
        return f"line {self.line} of {self.group} left out of the calibration: {self.why}"


def left_out(rows: Sequence[Measured]) -> dict[int, LeftOut]:
    """What is left out, by place in `rows`."""
    found: dict[int, LeftOut] = {}
    for i, row in enumerate(rows):
        if row.seconds < IMPOSSIBLE * row.floor_s:
            found[i] = LeftOut(row.line, row.group, _impossible(row))
    siblings: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if i not in found and row.usual_s > 0:
            siblings[row.group].append(i)
    for of in siblings.values():
        ratios = {i: rows[i].seconds / rows[i].usual_s for i in of}
        for i in of:
            others = [ratio for j, ratio in ratios.items() if j != i]
            if len(others) >= SIBLINGS and (why := _off(rows[i], ratios[i] / statistics.median(others))):
                found[i] = LeftOut(rows[i].line, rows[i].group, why)
    return found


def notes_of(left: Sequence[LeftOut], group: str) -> str:
    """What an answer of a group says of the rows of it that were left out; at most three are named."""
    mine = [one for one in left if one.group == group]
    words = [one.words for one in mine[:3]]
    return "; ".join([*words, f"and {len(mine) - 3} more" if len(mine) > 3 else ""]).strip("; ")


def _impossible(row: Measured) -> str:
    times = row.floor_s / row.seconds
    meant = "" if row.seconds * row.tokens < IMPOSSIBLE * row.floor_s else " (its log counts tokens, not samples?)"
    return f"{times:.3g} times faster than its sheet's arithmetic{meant}"


def _off(row: Measured, ratio: float) -> str:
    """Why a row is not like its siblings, or nothing; `ratio` above 1: slower than they are."""
    if row.floor_s <= 0:
        return f"{1 / ratio:.3g} times faster than its siblings" if ratio < 1 / FAR else ""
    if row.tokens < LEAST_TOKENS:
        return ""
    for times, how in ((ratio, "slower"), (1.0 / ratio, "faster")):
        if 1 / NEAR < times / row.tokens < NEAR:
            said = f"{times:.3g} times {how} than its siblings, about the {row.tokens:.4g} tokens of a sample"
            return f"{said} (tokens and samples interchanged?)"
    return ""
