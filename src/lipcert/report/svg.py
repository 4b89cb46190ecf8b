"""Figures as SVG text whose colours are the page's: it has a light and a dark side, and a slider that moves a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Plot", "ticks"]


def ticks(top: float, about: int = 6) -> list[float]:
    """Round numbers from 0 to ``top``.

    >>> ticks(1.58), ticks(0.42)
    ([0.0, 0.5, 1.0, 1.5], [0.0, 0.1, 0.2, 0.3, 0.4])
    """
    rough = top / about
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(m * scale for m in (1, 2, 5, 10) if m * scale >= rough * 0.8)
    return [round(i * step, 12) for i in range(int(top / step + 1e-9) + 1)]


@dataclass
class Plot:
    """Axes from 0 to ``x_top`` and from 0 to ``y_top``, in a drawing of ``width`` × ``height`` units."""

    x_top: float
    y_top: float
    x_label: str
    y_label: str
    width: int = 760
    height: int = 340
    left: int = 66
    bottom: int = 44
    top: int = 10
    right: int = 14

    def __post_init__(self) -> None:
        self._parts: list[str] = []

    def x(self, value: float) -> float:
        """Where a value lies."""
        return self.left + (self.width - self.left - self.right) * value / self.x_top

    def y(self, value: float) -> float:
        """Where a value lies; SVG counts downwards."""
        return self.height - self.bottom - (self.height - self.bottom - self.top) * value / self.y_top

    def _points(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in points)

    def line(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """A line through points."""
        self._parts.append(f'<polyline class="line {style}" points="{self._points(points)}"/>')

    def between(self, low: Sequence[tuple[float, float]], high: Sequence[tuple[float, float]], style: str) -> None:
        """The area between two lines."""
        self._parts.append(f'<polygon class="area {style}" points="{self._points([*low, *reversed(high)])}"/>')

    def bars(self, edges: Sequence[float], values: Sequence[float], style: str) -> None:
        """Bars from one edge to the next."""
        for a, b, v in zip(edges, edges[1:], values, strict=False):
            if v > 0:
                x, y = self.x(a), self.y(v)
                box = f'x="{x:.1f}" y="{y:.1f}" width="{self.x(b) - x - 0.5:.1f}" height="{self.y(0) - y:.1f}"'
                self._parts.append(f'<rect class="bar {style}" {box}/>')

    def marker(self) -> None:
        """The line that the slider moves."""
        ends = f'x1="{self.left}" x2="{self.left}" y1="{self.top}" y2="{self.y(0):.1f}"'
        span = f'data-left="{self.left}" data-span="{self.width - self.left - self.right}" data-top="{self.x_top!r}"'
        self._parts.append(f'<line class="marker" {ends} {span}/>')

    def text(self, title: str, *, y_ticks: int = 5, percent: bool = False) -> str:
        """The drawing; the title is what a screen reader says."""
        axes = []
        for v in ticks(self.x_top):
            axes.append(
                f'<line class="grid" x1="{self.x(v):.1f}" x2="{self.x(v):.1f}" y1="{self.top}" y2="{self.y(0):.1f}"/>'
            )
            axes.append(f'<text class="tick mid" x="{self.x(v):.1f}" y="{self.y(0) + 17:.1f}">{v:g}</text>')
        for v in ticks(self.y_top, y_ticks):
            ends = f'y1="{self.y(v):.1f}" y2="{self.y(v):.1f}"'
            axes.append(f'<line class="grid" x1="{self.left}" x2="{self.width - self.right}" {ends}/>')
            unit = " %" if percent else ""
            axes.append(f'<text class="tick end" x="{self.left - 7}" y="{self.y(v) + 4:.1f}">{v:g}{unit}</text>')
        middle = (self.left + self.width - self.right) / 2
        axes.append(f'<text class="tick mid" x="{middle}" y="{self.height - 6}">{escape(self.x_label)}</text>')
        if self.y_label:
            high = (self.top + self.y(0)) / 2
            place = f'x="12" y="{high:.1f}" transform="rotate(-90 12 {high:.1f})"'
            axes.append(f'<text class="tick mid" {place}>{escape(self.y_label)}</text>')
        size = f'viewBox="0 0 {self.width} {self.height}"'
        inside = "".join([*axes, *self._parts])
        return f'<svg class="plot" {size} role="img" aria-label="{escape(title)}">{inside}</svg>'

    def strip(self, title: str) -> str:
        """The drawing without axes, to be stretched."""
        size = f'viewBox="0 0 {self.width} {self.height}" preserveAspectRatio="none"'
        return f'<svg class="strip" {size} role="img" aria-label="{escape(title)}">{"".join(self._parts)}</svg>'
