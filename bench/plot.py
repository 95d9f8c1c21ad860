"""Throughput and p99 against load, as one SVG: a column for each path, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape

from bench import open_loop

WIDTH: Final = 300
HEIGHT: Final = 200
LEFT: Final = 60
TOP: Final = 40
GAP_X: Final = 64
GAP_Y: Final = 56
COLOURS: Final = {"gateway": "#2563eb", "nginx": "#16a34a", "litellm": "#dc2626", "portkey": "#d97706"}
OTHER_COLOUR: Final = "#6b7280"
STYLE: Final = (
    "text{font:12px sans-serif;fill:#374151}.title{font-weight:bold}.grid{stroke:#9ca3af;stroke-opacity:.35}"
    ".frame{fill:none;stroke:#9ca3af}polyline{fill:none;stroke-width:2}"
    "@media(prefers-color-scheme:dark){text{fill:#d1d5db}}"
)

Curve = tuple[str, str, open_loop.Point]
"""Path, server, what a rate came to."""


def draw(points: Sequence[Curve], titles: dict[str, str]) -> str:
    """`titles`: the paths that are drawn, from left to right, with their headings."""
    width = LEFT + len(titles) * (WIDTH + GAP_X)
    height = TOP + 2 * (HEIGHT + GAP_Y) + 24
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<style>{STYLE}</style>",
    ]
    for column, (path, title) in enumerate(titles.items()):
        some = [(server, at) for each, server, at in points if each == path]
        if not some:
            continue
        left = LEFT + column * (WIDTH + GAP_X)
        drawn.append(f'<text class="title" x="{left}" y="{TOP - 16}">{escape(title)}</text>')
        speeds = [(server, at.offered_per_s, max(at.answered_per_s, 0.1)) for server, at in some]
        waits = [(server, at.offered_per_s, max(at.p99_ms, 0.01)) for server, at in some]
        drawn += _panel(speeds, left, TOP, "answered per second")
        drawn += _panel(waits, left, TOP + HEIGHT + GAP_Y, "p99, ms")
    for at, server in enumerate(dict.fromkeys(server for _, server, _ in points)):
        x = LEFT + at * 140
        drawn.append(f'<rect x="{x}" y="{height - 20}" width="12" height="12" fill="{_colour(server)}"/>')
        drawn.append(f'<text x="{x + 18}" y="{height - 9}">{escape(server)}</text>')
    return "\n".join([*drawn, "</svg>", ""])


def _panel(points: Sequence[tuple[str, float, float]], left: float, top: float, what: str) -> list[str]:
    across, up = _Axis([x for _, x, _ in points]), _Axis([y for _, _, y in points])
    drawn = [f'<rect class="frame" x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}"/>']
    for value in across.decades():
        x = left + across.place(value) * WIDTH
        drawn.append(f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{top + HEIGHT}"/>')
        drawn.append(f'<text x="{x:.1f}" y="{top + HEIGHT + 16}" text-anchor="middle">{value:,g}</text>')
    for value in up.decades():
        y = top + HEIGHT - up.place(value) * HEIGHT
        drawn.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{left + WIDTH}" y2="{y:.1f}"/>')
        drawn.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:,g}</text>')
    drawn.append(f'<text x="{left + WIDTH}" y="{top + HEIGHT + 32}" text-anchor="end">offered per second</text>')
    drawn.append(f'<text x="{left + 6}" y="{top + 16}">{escape(what)}</text>')
    for server in dict.fromkeys(server for server, _, _ in points):
        line = " ".join(
            f"{left + across.place(x) * WIDTH:.1f},{top + HEIGHT - up.place(y) * HEIGHT:.1f}"
            for name, x, y in sorted(points, key=lambda each: each[1])
            if name == server
        )
        drawn.append(f'<polyline stroke="{_colour(server)}" points="{line}"/>')
    return drawn


class _Axis:
    """A logarithmic axis over whole decades."""

    def __init__(self, values: Sequence[float]) -> None:
        self._first = math.floor(math.log10(min(values)))
        self._last = max(math.ceil(math.log10(max(values))), self._first + 1)

    def decades(self) -> list[float]:
        return [10.0**power for power in range(self._first, self._last + 1)]

    def place(self, value: float) -> float:
        """0 to 1."""
        return (math.log10(value) - self._first) / (self._last - self._first)


def _colour(server: str) -> str:
    return COLOURS.get(server, OTHER_COLOUR)
