"""The picture: for each point a group of bars, one an engine, as a share of the fastest. Written as SVG by hand."""

import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from roster import Contender
from tables import ALLOWED, LOWER, figures

OURS = ("#0b6e4f", "#2a9d74", "#7cc6a4", "#b7dfca", "#0b6e6e", "#5fb3b3", "#a9d6d6")
PEERS = ("#7a7f87", "#9aa0a8", "#bcc1c7", "#d5d9dd", "#8a7f77", "#b0a79f", "#cfc8c2")
LEFT, BAR, GAP, WIDE = 210, 15, 26, 620


def write_svg(path: Path, result: dict[str, Any], contenders: Sequence[Contender]) -> None:
    """All shapes below each other."""
    rows: list[str] = []
    y = 24
    machine = result["machine"]
    shapes = list(dict.fromkeys(turn["shape"] for turn in result["turns"]))
    for shape in shapes:
        found = figures(result, shape)
        here = [one for one in contenders if any(one.name in series for series in found.values())]
        colours = _colours(here)
        title = f"{shape} · {machine['processor']}, {machine['cores']} cores · {result['date']} · medians"
        rows.append(_text(12, y, title, weight="bold"))
        y += 18
        for one in here:
            rows.append(f'<rect x="{LEFT}" y="{y - 10}" width="12" height="12" fill="{colours[one.name]}"/>')
            rows.append(_text(LEFT + 18, y, one.name))
            y += 16
        for (point, unit), series in found.items():
            if unit == ALLOWED:
                continue
            rows.append(_text(12, y + 12, f"{point} ({unit}{', less is better' if unit in LOWER else ''})"))
            y += 20
            most = max(statistics.median(values.values()) for values in series.values())
            for one in here:
                if one.name not in series:
                    continue
                value = statistics.median(series[one.name].values())
                width = max(1.0, WIDE * value / most) if most else 1.0
                rows.append(
                    f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 3}" fill="{colours[one.name]}">'
                    f"<title>{escape(one.name)}: {value:.4g} {unit}</title></rect>"
                )
                rows.append(_text(LEFT + width + 6, y + 10, f"{value:,.4g}"))
                y += BAR
            y += GAP - BAR
        y += GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDE + 90}" height="{y}" font-family="sans-serif">'
    )
    path.write_text("\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *rows, "</svg>"]) + "\n")


def _colours(here: Sequence[Contender]) -> dict[str, str]:
    ours = [one.name for one in here if one.is_ours]
    peers = [one.name for one in here if not one.is_ours]
    return {name: OURS[i % len(OURS)] for i, name in enumerate(ours)} | {
        name: PEERS[i % len(PEERS)] for i, name in enumerate(peers)
    }


def _text(x: float, y: float, words: str, *, weight: str = "normal") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="12" font-weight="{weight}" fill="#222">{escape(words)}</text>'
