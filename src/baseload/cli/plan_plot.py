"""Plots of a plan's page as SVG text: the Pareto plot, whose labels never lie on one another, and bars."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from baseload.policy.plan.answer import ModelAnswer

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 30, 52
LETTER, LINE = 6.2, 13.0  # of a label, in units of the plot: a letter's width at its font size, and its height
DOT = 5.0
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Label:
    """A placed label: its anchor's point, and the box it fills."""

    text: str
    x: float
    y: float
    anchor: str  # "start" | "end" | "middle"
    box: Box


def pareto_svg(one: ModelAnswer) -> str:
    """Dollars per million tokens against milliseconds of an answer, both logarithmic; the best are joined.

    A label that finds no free place is left to the point's tooltip.
    """
    points = [(usd, ms, name) for usd, ms, name in one.cloud if usd > 0 and ms > 0]
    front = sorted((c.usd_per_mtok, c.answer_ms, c.accelerator) for c in one.pareto)
    if not points:
        return ""
    across = _Axis([p[0] for p in points + front], LEFT, WIDTH - RIGHT)
    up = _Axis([p[1] for p in points + front], HEIGHT - BOTTOM, TOP)
    parts = [*_grid(across, up)]
    parts += [_dot(across.at(usd), up.at(ms), 4.0, "other", _words(name, usd, ms)) for usd, ms, name in points]
    # The front is one of three measures (tokens per joule too): only what nothing drawn beats is joined.
    joined = [
        (usd, ms)
        for usd, ms, _ in front
        if not any(u <= usd and m <= ms and (u, m) != (usd, ms) for u, m, _ in front)
    ]
    path = " ".join(f"{across.at(usd):.1f},{up.at(ms):.1f}" for usd, ms in joined)
    parts.append(f'<polyline points="{path}" class="joined"/>')
    parts += [_dot(across.at(usd), up.at(ms), DOT, "front", _words(name, usd, ms)) for usd, ms, name in front]
    named = [(across.at(usd), up.at(ms), name) for usd, ms, name in [*front, *points]]
    for label in place(named):
        parts.append(
            f'<text x="{label.x:.1f}" y="{label.y:.1f}" font-size="11" text-anchor="{label.anchor}">'
            f"{escape(label.text)}</text>"
        )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" fill="currentColor">{"".join(parts)}</svg>'


def place(points: Sequence[tuple[float, float, str]]) -> list[Label]:
    """Labels for (x, y, text) points, the first first, each where it covers no point and no other label.

    A text is placed once within a hundred units of its like; what finds no place is left out.
    """
    dots = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y, _ in points]
    placed: list[Label] = []
    for x, y, text in points:
        if any(p.text == text and math.hypot(p.x - x, p.y - y) < 100 for p in placed):
            continue
        for label in _tries(x, y, text):
            inside = label.box[0] >= LEFT and label.box[2] <= WIDTH and label.box[1] >= 0
            inside &= label.box[3] <= HEIGHT - BOTTOM
            if inside and not any(_meet(label.box, other) for other in [*dots, *(p.box for p in placed)]):
                placed.append(label)
                break
    return placed


def bars_svg(bars: Sequence[tuple[str, float]]) -> str:
    """Horizontal bars with their values; each label stands above its bar, so that none runs into it."""
    most = max(value for _, value in bars) or 1.0
    parts = []
    for i, (label, value) in enumerate(bars):
        y = 4 + 42 * i
        width = (WIDTH - 90) * value / most
        parts.append(
            f'<text x="0" y="{y + 12}" font-size="13">{escape(label)}</text>'
            f'<rect x="0" y="{y + 18}" width="{width:.1f}" height="14" rx="2" class="front"/>'
            f'<text x="{width + 6:.1f}" y="{y + 30}" font-size="13">${value:.3g}</text>'
        )
    return f'<svg viewBox="0 0 {WIDTH} {10 + 42 * len(bars)}" role="img" fill="currentColor">{"".join(parts)}</svg>'


class _Axis:
    """A logarithmic axis over some values, between two ends of the plot."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = math.log(min(values)), math.log(max(values))
        spare = max(0.06 * (high - low), 0.06)
        self.low, self.high, self.start, self.end = low - spare, high + spare, start, end

    def at(self, value: float) -> float:
        """Where a value stands."""
        return self.start + (math.log(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values, at most about eight of them."""
        low, high = math.exp(self.low), math.exp(self.high)
        found: list[float] = []
        for steps in (
            (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0),
            (1.0, 1.5, 2.0, 3.0, 5.0),
            (1.0, 2.0, 5.0),
            (1.0,),
        ):
            first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
            found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            found = [value for value in found if low <= value <= high]
            if len(found) <= 8:
                break
        return found


def _grid(across: _Axis, up: _Axis) -> list[str]:
    parts = []
    bottom = HEIGHT - BOTTOM
    for usd in across.ticks():
        x = across.at(usd)
        parts.append(f'<path d="M{x:.1f} {TOP}V{bottom}" class="grid"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" font-size="11" text-anchor="middle">${usd:.3g}</text>')
    for ms in up.ticks():
        y = up.at(ms)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" font-size="11" text-anchor="end">{ms:,.0f}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" font-size="12" text-anchor="middle">'
        f'$ per million tokens</text><text x="4" y="{TOP - 14}" font-size="12">time of a whole answer, ms</text>'
    )
    return parts


def _words(name: str, usd: float, ms: float) -> str:
    return f"{name}: ${usd:.3g} per Mtok, {ms:,.0f} ms"


def _dot(x: float, y: float, radius: float, kind: str, title: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}"><title>{escape(title)}</title></circle>'


def _tries(x: float, y: float, text: str) -> Iterable[Label]:
    """Places around a point, the best first: beside it, above, below, then farther off."""
    wide = LETTER * len(text)
    for away in (7.0, 16.0, 28.0):
        for across, down in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
            at_x, middle = x + across * away, y + down * (away + (3.0 if not across else 0.0))
            left = at_x if across > 0 else at_x - wide if across < 0 else at_x - wide / 2
            anchor = "start" if across > 0 else "end" if across < 0 else "middle"
            box = (left, middle - LINE / 2, left + wide, middle + LINE / 2)
            yield Label(text, at_x, middle + 4.0, anchor, box)


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
