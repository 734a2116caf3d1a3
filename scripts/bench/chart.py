"""Draws a line chart as SVG, with a logarithmic x axis and one panel per quantity. Does not interpret the numbers."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

WIDTH, HEIGHT, LEFT, BELOW, ABOVE, RIGHT = 420, 220, 56, 40, 34, 16


class Panel(NamedTuple):
    """The panel of one quantity. `points`: (x > 0, y >= 0), ascending in x."""

    title: str
    unit: str
    points: Sequence[tuple[float, float]]


def svg(panels: Sequence[Panel], x_name: str) -> str:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT * len(panels)}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT * len(panels)}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        *(_panel(panel, number * HEIGHT, x_name) for number, panel in enumerate(panels)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _panel(panel: Panel, top: int, x_name: str) -> str:
    low, high = math.log10(panel.points[0][0]), math.log10(panel.points[-1][0])
    most = max(y for _, y in panel.points) * 1.25 or 1.0
    bottom = top + HEIGHT - BELOW

    def at(x: float, y: float) -> tuple[float, float]:
        share = (math.log10(x) - low) / (high - low) if high > low else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT), bottom - y / most * (HEIGHT - ABOVE - BELOW)

    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in panel.points))
    parts = [
        f'<text x="{LEFT}" y="{top + 18}" font-size="13">{html.escape(f"{panel.title} ({panel.unit})")}</text>',
        f'<path d="M{LEFT} {top + ABOVE}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="#888"/>',
        f'<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="2"/>',
        f'<text x="{WIDTH - RIGHT}" y="{bottom + 30}" text-anchor="end" fill="#555">{html.escape(x_name)}</text>',
    ]
    for x, y in panel.points:
        left, up = at(x, y)
        parts.append(f'<circle cx="{left:.1f}" cy="{up:.1f}" r="3" fill="#1f6feb"/>')
        parts.append(f'<text x="{left:.1f}" y="{up - 8:.1f}" text-anchor="middle">{y:.3g}</text>')
        parts.append(f'<text x="{left:.1f}" y="{bottom + 15}" text-anchor="middle" fill="#555">{x:.5g}</text>')
    return "\n".join(parts)
