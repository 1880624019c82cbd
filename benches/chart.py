"""A chart of lines as SVG, small enough to be committed and the same whenever it is drawn from the same numbers."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

_WIDTH, _HEIGHT = 720, 340
#: Pixels around the plot: left, top, right, bottom.
_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 40, 20, 72
_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1")
Line = tuple[str, Sequence[tuple[float, float]]]


def chart(title: str, x_title: str, y_title: str, lines: Sequence[Line], *, dots: bool = False) -> str:
    """A picture of named lines; the vertical axis begins at 0, both end at a round number."""
    xs = [x for _, points in lines for x, _ in points]
    ys = [y for _, points in lines for _, y in points]
    x_ticks = _ticks(min(xs), max(xs))
    y_ticks = _ticks(0.0, max(ys))
    across, down = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x_at(value: float) -> float:
        return _LEFT + across * (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])

    def y_at(value: float) -> float:
        return _TOP + down * (1 - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]))

    bottom = _TOP + down
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text(_LEFT, 22, title, 'font-size="14" font-weight="bold"'),
    ]
    for value in y_ticks:
        y = y_at(value)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{value:g}", 'text-anchor="end"'))
    for value in x_ticks:
        parts.append(_text(x_at(value), bottom + 18, f"{value:g}", 'text-anchor="middle"'))
    parts.append(_text(_LEFT + across / 2, bottom + 36, x_title, 'text-anchor="middle"'))
    middle = _TOP + down / 2
    parts.append(_text(16, middle, y_title, f'text-anchor="middle" transform="rotate(-90 16 {middle:g})"'))
    for number, (name, points) in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(x_at(x), y_at(y)) for x, y in points]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if dots:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        x = _LEFT + number * across / len(lines)
        parts.append(f'<path d="M{x:.0f} {_HEIGHT - 16}h18" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(x + 24, _HEIGHT - 12, name))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{" " if more else ""}{more}>{html.escape(text)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers around all values."""
    span = (high - low) or 1.0
    rough = span / 6
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 9) for number in range(first, max(last, first + 1) + 1)]
