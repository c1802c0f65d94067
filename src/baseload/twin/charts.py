"""Charts as inline SVG: lines over time with axes, units and a legend; strips of marks. No scripts, no resources."""

import math
from collections.abc import Sequence
from html import escape

from msgspec import Struct

WIDTH, HEIGHT = 640, 238
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 38
COLOURS = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)")


class Line(Struct, frozen=True):
    """One line. None: a gap. `kind`: "line", "area" (filled down to zero) or "dash"."""

    name: str
    values: Sequence[float | None]
    colour: int = 0
    kind: str = "line"


class Mark(Struct, frozen=True):
    """Something that happened at an instant, or for a while."""

    at_s: float
    until_s: float
    words: str
    colour: int = 3


def line_chart(
    title: str,
    unit: str,
    at_s: Sequence[float],
    lines: Sequence[Line],
    *,
    note: str = "",
    top: float = 0.0,
    log: bool = False,
    marks: Sequence[Mark] = (),
    end_s: float = 0.0,
) -> str:
    """A figure. `top`: where the axis ends at least; `log`: decades; `end_s`: where time ends, or the last point."""
    known = [value for line in lines for value in line.values if value is not None and math.isfinite(value)]
    if not known or not at_s:
        return _figure(title, unit, '<p class="none">nothing to show</p>', lines=())
    end_s = max(end_s, at_s[-1], 1e-9)
    positive = [value for value in known if value > 0]
    log = log and len(positive) > 0 and max(positive) / min(positive) > 20
    axis = _LogAxis(positive) if log else _Axis(max([top, *known]))
    parts = [_grid(axis, end_s)]
    for mark in marks:
        x1, x2 = _x(mark.at_s, end_s), _x(max(mark.until_s, mark.at_s), end_s)
        parts.append(
            f'<rect class="mark" x="{x1:.1f}" y="{TOP}" width="{max(1.2, x2 - x1):.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}" style="fill:{COLOURS[mark.colour]}">'
            f"<title>{escape(mark.words)}</title></rect>"
        )
    parts += [_path(line, at_s, end_s, axis) for line in lines]
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}'
        f'<line class="cross" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></svg>'
    )
    data = ";".join(
        f"{escape(line.name.replace(';', ','))}|" + ",".join("" if v is None else f"{v:.6g}" for v in line.values)
        for line in lines
    )
    xs = ",".join(f"{value:.6g}" for value in at_s)
    return _figure(
        title, unit, svg, lines=lines, note=note, data=f'data-x="{xs}" data-end="{end_s:.6g}" data-y="{data}"'
    )


def strip(title: str, rows: Sequence[tuple[str, Sequence[Mark]]], *, end_s: float) -> str:
    """Rows of marks over time: what happened when, and for how long."""
    if not rows:
        return _figure(title, "", '<p class="none">none</p>', lines=())
    row_px, left = 26, 176
    height = TOP + row_px * len(rows) + BOTTOM
    end_s = max(end_s, 1e-9)
    parts = []
    for step in _time_ticks(end_s):
        x = left + (WIDTH - left - RIGHT) * step / end_s
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
            f'<text class="tick" x="{x:.1f}" y="{height - 10}" text-anchor="middle">{time_words(step, end_s)}</text>'
        )
    for at, (name, marks) in enumerate(rows):
        y = TOP + row_px * at
        parts.append(f'<text class="row" x="{left - 10}" y="{y + 17}" text-anchor="end">{escape(name)}</text>')
        for mark in marks:
            x1 = left + (WIDTH - left - RIGHT) * min(mark.at_s, end_s) / end_s
            x2 = left + (WIDTH - left - RIGHT) * min(max(mark.until_s, mark.at_s), end_s) / end_s
            parts.append(
                f'<rect x="{x1:.1f}" y="{y + 5}" width="{max(2.5, x2 - x1):.1f}" height="{row_px - 10}" rx="2" '
                f'class="event" style="fill:{COLOURS[mark.colour]}"><title>{escape(mark.words)}</title></rect>'
            )
    svg = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return _figure(title, "", svg, lines=())


def number(value: float) -> str:
    """Three digits that matter, with k, M, G where large."""
    size = abs(value)
    for limit, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if sign == 'k' else limit):.3g} {sign}" if sign != "k" else f"{value / 1e3:.3g} k"
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def time_words(at_s: float, end_s: float) -> str:
    """An instant in the unit that suits the whole: seconds, minutes, hours or days."""
    for unit_s, word in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min")):
        if end_s >= 3 * unit_s:
            return f"{at_s / unit_s:g} {word}"
    return f"{at_s:g} s"


def took_words(took_s: float) -> str:
    """A stretch of time in its own unit."""
    for unit_s, word in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min")):
        if took_s >= 2 * unit_s:
            return f"{took_s / unit_s:,.1f} {word}"
    return f"{took_s:,.1f} s"


def unit_of(most: float, units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """(factor, unit) that shows a figure as large as `most` in one to three digits; `units` rise: (size, name)."""
    fitting = [(1.0 / size, name) for size, name in units if most >= size]
    return fitting[-1] if fitting else (1.0 / units[0][0], units[0][1])


class _Axis:
    """From zero to a round number."""

    def __init__(self, most: float) -> None:
        step = _round_step(most / 4) if most > 0 else 1.0  # of nothing but zeros: from 0 to 1
        self.end = step * max(1, math.ceil(most / step - 1e-9))
        count = round(self.end / step)
        self.ticks = [step * at for at in range(count + 1)]

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(value, 0.0), self.end) / self.end


class _LogAxis:
    """Decades around the values; zeros lie on the floor."""

    def __init__(self, values: Sequence[float]) -> None:
        self._low = math.floor(math.log10(min(values)) + 1e-9)
        self._high = max(self._low + 1, math.ceil(math.log10(max(values)) - 1e-9))
        self.ticks = [10.0**at for at in range(self._low, self._high + 1)]

    def y(self, value: float) -> float:
        share = (math.log10(max(value, 10.0**self._low)) - self._low) / (self._high - self._low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(share, 1.0)


def _figure(title: str, unit: str, body: str, *, lines: Sequence[Line], note: str = "", data: str = "") -> str:
    keys = "".join(
        f'<span class="key"><i class="{line.kind}" style="--k:{COLOURS[line.colour]}"></i>{escape(line.name)}</span>'
        for line in lines
        if line.name
    )
    of = f" <small>{escape(unit)}</small>" if unit else ""
    under = f"<p class='note'>{escape(note)}</p>" if note else ""
    return (
        f'<figure {data}><figcaption><b>{escape(title)}</b>{of}<span class="keys">{keys}</span></figcaption>'
        f"{body}{under}</figure>"
    )


def _grid(axis: _Axis | _LogAxis, end_s: float) -> str:
    parts = []
    for tick in axis.ticks:
        y = axis.y(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT - 7}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for tick in _time_ticks(end_s):
        x = _x(tick, end_s)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{time_words(tick, end_s)}</text>'
        )
    return "".join(parts)


def _path(line: Line, at_s: Sequence[float], end_s: float, axis: _Axis | _LogAxis) -> str:
    runs: list[list[tuple[float, float]]] = [[]]
    for at, value in zip(at_s, line.values, strict=True):
        if value is None or not math.isfinite(value):
            runs.append([])
        else:
            runs[-1].append((_x(at, end_s), axis.y(value)))
    style = f'style="stroke:{COLOURS[line.colour]};--k:{COLOURS[line.colour]}"'
    made = []
    for run in runs:
        if not run:
            continue
        d = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in run)
        if len(run) == 1:
            d += "h0.1"
        if line.kind == "area":
            floor = HEIGHT - BOTTOM
            made.append(f'<path class="fill" {style} d="{d}L{run[-1][0]:.1f},{floor}L{run[0][0]:.1f},{floor}Z"/>')
        made.append(f'<path class="{line.kind}" {style} d="{d}"/>')
    return "".join(made)


def _x(at_s: float, end_s: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * min(max(at_s / end_s, 0.0), 1.0)


def _time_ticks(end_s: float) -> list[float]:
    for unit_s in (86_400.0, 3_600.0, 60.0):
        if end_s >= 3 * unit_s:
            break
    else:
        unit_s = 1.0
    step = unit_s * _round_step(end_s / unit_s / 6, whole=unit_s == 3_600.0)
    return [step * at for at in range(int(end_s / step + 1e-9) + 1)]


def _round_step(least: float, *, whole: bool = False) -> float:
    """The least round number that is not below; `whole`: of hours, 1, 2, 3, 4, 6, 12 …"""
    if whole:
        return next(
            (step for step in (1.0, 2.0, 3.0, 4.0, 6.0, 12.0, 24.0) if step >= least), 24.0 * math.ceil(least / 24)
        )
    decade = 10.0 ** math.floor(math.log10(least))
    return next(step * decade for step in (1.0, 2.0, 2.5, 5.0, 10.0) if step * decade >= least * (1 - 1e-9))
