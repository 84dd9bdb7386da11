"""The figures as pictures: SVG text of bars and of lines.

Rule of this file: pure, and it knows no scenario: numbers and labels in, one SVG document out. No script, no
font and no colour that a page in dark or light could swallow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape

from msgspec import Struct

WIDTH: Final = 860
ROW: Final = 20
LABEL_WIDTH: Final = 300
FIRST, OTHER, TEXT, FRAME = "#0b7a75", "#9aa5ad", "#6b7680", "#c6ccd1"


class Bar(Struct, frozen=True):
    """``low`` and ``high``: the range about ``value``."""

    label: str
    value: float
    low: float
    high: float


class Group(Struct, frozen=True):
    """Bars on a scale of their own. The first one stands out."""

    title: str
    bars: tuple[Bar, ...]


class Curve(Struct, frozen=True):
    """Points (x, y, low, high) on an axis of powers of ten; y as a multiple of the first."""

    title: str
    points: tuple[tuple[float, float, float, float], ...]


def bars(title: str, groups: Sequence[Group]) -> str:
    """Horizontal bars, group by group, each with its range as a thin line."""
    parts, y = [_text(0, 18, title, weight="bold")], 40
    for group in groups:
        parts.append(_text(0, y + 14, group.title, weight="bold"))
        y += ROW + 4
        most = max((bar.high for bar in group.bars), default=0.0) or 1.0
        scale = (WIDTH - LABEL_WIDTH - 90) / most
        for index, bar in enumerate(group.bars):
            middle = y + ROW / 2
            place = f'x="{LABEL_WIDTH}" y="{y + 3}" width="{bar.value * scale:.1f}" height="{ROW - 6}"'
            parts.append(_text(LABEL_WIDTH - 8, middle + 4, bar.label, anchor="end"))
            parts.append(f'<rect {place} fill="{OTHER if index else FIRST}"/>')
            low, high = LABEL_WIDTH + bar.low * scale, LABEL_WIDTH + bar.high * scale
            parts.append(_line(low, middle, high, middle, TEXT))
            parts.append(_text(high + 6, middle + 4, f"{bar.value:,.0f}"))
            y += ROW
        y += 14
    return _document(y, parts)


def curves(title: str, unit: str, all_curves: Sequence[Curve]) -> str:
    """Small plots below each other: how y grows with x, from 0 on, with a mark at y = 1."""
    height, parts, y = 150, [_text(0, 18, title, weight="bold")], 40
    left, right = 60, WIDTH - 40
    for curve in all_curves:
        parts.append(_text(0, y + 12, f"{curve.title} ({unit})", weight="bold"))
        top, bottom = y + 24, y + 24 + height
        most = max((point[3] for point in curve.points), default=1.0) * 1.1
        logs = [math.log10(point[0]) for point in curve.points]
        span = (max(logs) - min(logs)) or 1.0
        places = [
            (left + (log - min(logs)) / span * (right - left), *(bottom - value / most * height for value in point[1:]))
            for log, point in zip(logs, curve.points, strict=True)
        ]
        parts += [_line(left, bottom, right, bottom, FRAME), _line(left, top, left, bottom, FRAME)]
        one = bottom - height / most
        parts += [_line(left, one, right, one, FRAME), _text(left - 6, one + 4, "1.0", anchor="end")]
        track = " ".join(f"{x:.1f},{middle:.1f}" for x, middle, _, _ in places)
        parts.append(f'<polyline points="{track}" fill="none" stroke="{FIRST}" stroke-width="2"/>')
        for (x, middle, low, high), point in zip(places, curve.points, strict=True):
            parts.append(_line(x, low, x, high, TEXT))
            parts.append(f'<circle cx="{x:.1f}" cy="{middle:.1f}" r="3" fill="{FIRST}"/>')
            parts.append(_text(x, middle - 8, f"{point[1]:.2f}", anchor="middle"))
            parts.append(_text(x, bottom + 16, f"{point[0]:,.0f}", anchor="middle"))
        y = bottom + 34
    return _document(y, parts)


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text {place} fill="{TEXT}">{escape(text)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float, colour: str) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="{colour}"/>'


def _document(height: float, parts: Sequence[str]) -> str:
    size = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, *parts, "</svg>"]) + "\n"
