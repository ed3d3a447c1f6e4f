"""Panels of lines over one axis, as SVG: enough for the plots of a day, and no dependency.

Colours are Okabe and Ito's, which those who see few colours tell apart. Text is the viewer's own font; the ground is
white, so that it reads in dark pages too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777")
WIDTH, PANEL, GAP, LEFT, RIGHT, TOP, BOTTOM = 920, 130, 42, 64, 170, 58, 42
_STYLE = "font-family:system-ui,sans-serif;font-size:12px"


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    y: Floats
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    lines: Sequence[Line]
    top: float | None = None  # of the axis; else a round number above the data
    marks: Sequence[tuple[float, str]] = ()  # levels with a name


def drawn(title: str, x: Floats, ticks: Sequence[tuple[float, str]], panels: Sequence[Panel], x_name: str) -> str:
    height = TOP + len(panels) * (PANEL + GAP) - GAP + BOTTOM
    right = WIDTH - RIGHT
    low, high = float(x[0]), float(x[-1])

    def across(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (right - LEFT)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}" style="{_STYLE}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="20" font-size="15" font-weight="600" fill="#222">{escape(title)}</text>',
    ]
    for at, panel in enumerate(panels):
        begin = TOP + at * (PANEL + GAP)
        out += _panel(panel, begin, right, x, across, ticks)
    for value, name in ticks:
        out.append(f'<text x="{across(value):.1f}" y="{height - 24}" text-anchor="middle" fill="#444">{name}</text>')
    out.append(
        f'<text x="{(LEFT + right) / 2}" y="{height - 6}" text-anchor="middle" fill="#444">{escape(x_name)}</text>'
    )
    return "\n".join([*out, "</svg>"]) + "\n"


def _panel(
    panel: Panel,
    begin: float,
    right: float,
    x: Floats,
    across: Callable[[float], float],
    ticks: Sequence[tuple[float, str]],
) -> list[str]:
    peak = max(float(np.nanmax(line.y)) for line in panel.lines)
    top = panel.top if panel.top is not None else _round_above(max(peak, *(level for level, _ in panel.marks), 1e-9))

    def up(value: float) -> float:
        return begin + PANEL - min(value, top) / top * PANEL

    out = [f'<text x="{LEFT}" y="{begin - 8}" font-weight="600" fill="#222">{escape(panel.title)}</text>']
    for part in range(5):
        level = top * part / 4
        out.append(f'<line x1="{LEFT}" x2="{right}" y1="{up(level):.1f}" y2="{up(level):.1f}" stroke="#e4e4e4"/>')
        if part % 2 == 0:
            out.append(f'<text x="{LEFT - 8}" y="{up(level) + 4:.1f}" text-anchor="end" fill="#444">{level:g}</text>')
    for value, _ in ticks:
        tick = f"{across(value):.1f}"
        out.append(f'<line x1="{tick}" x2="{tick}" y1="{begin}" y2="{begin + PANEL}" stroke="#f0f0f0"/>')
    for level, name in panel.marks:
        y = f"{up(level):.1f}"
        out.append(f'<line x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}" stroke="#222" stroke-dasharray="4 4"/>')
        out.append(f'<text x="{right + 10}" y="{up(level) + 4:.1f}" fill="#222">{escape(name)}</text>')
    for at, line in enumerate(panel.lines):
        colour = COLOURS[at % len(COLOURS)]
        seen = ~np.isnan(line.y)
        points = " ".join(f"{across(a):.1f},{up(b):.1f}" for a, b in zip(x[seen], line.y[seen], strict=True))
        if line.filled:
            ground = begin + PANEL
            edges = f"{across(x[seen][0]):.1f},{ground} {points} {across(x[seen][-1]):.1f},{ground}"
            out.append(f'<polygon points="{edges}" fill="{colour}" fill-opacity="0.18"/>')
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
    taken = [up(level) for level, _ in panel.marks]
    foot = begin + 12
    for at, line in enumerate(panel.lines):
        while any(abs(foot - each - 2) < 13 for each in taken):
            foot += 4
        colour = COLOURS[at % len(COLOURS)]
        out.append(f'<rect x="{right + 10}" y="{foot - 9}" width="10" height="10" fill="{colour}"/>')
        out.append(f'<text x="{right + 26}" y="{foot}" fill="#222">{escape(line.name)}</text>')
        foot += 17
    return out


def _round_above(value: float) -> float:
    scale = 10.0 ** np.floor(np.log10(value))
    return float(next(step * scale for step in (1, 2, 4, 5, 8, 10) if step * scale >= value))
