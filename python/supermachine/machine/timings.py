"""Where the time of a start went: steps, and a picture of them."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable
from pathlib import Path

#: Of the picture, in pixels: of a row, of the names, of the bars, of the numbers.
_ROW, _NAMES, _BARS, _NUMBERS = 22, 190, 520, 150
_MARGIN = 10
#: Characters of a name.
_NAME = 28


class Timings(list[tuple[str, int]]):
    """Steps in their order: name, nanoseconds from the beginning to the end of the step."""

    def plot(self, path: str | os.PathLike[str] | None = None, *, title: str = "a start") -> str:
        """A picture with a bar for each step, as SVG, or a page where `path` ends in ``.html``; written there."""
        picture = _svg(sorted(self, key=lambda step: step[1]), title)
        text = picture
        if path is not None:
            if Path(path).suffix.lower() in (".html", ".htm"):
                text = _page(picture, title)
            Path(path).write_text(text, encoding="utf-8")
        return text


def _svg(steps: Iterable[tuple[str, int]], title: str) -> str:
    rows = list(steps)
    whole = max([at for _, at in rows] or [1]) or 1
    width = _NAMES + _BARS + _NUMBERS + 2 * _MARGIN
    height = (len(rows) + 1) * _ROW + 2 * _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_MARGIN}" y="{_MARGIN + 14}" font-weight="bold">{_escaped(title)}: {whole / 1e6:.1f} ms</text>',
    ]
    began = 0
    for number, (name, at) in enumerate(rows, 1):
        y = _MARGIN + number * _ROW
        x = _MARGIN + _NAMES + _BARS * began / whole
        length = max(1.0, _BARS * (at - began) / whole)
        took = f"{(at - began) / 1e6:.1f} ms, until {at / 1e6:.1f}"
        parts += [
            f'<text x="{_MARGIN}" y="{y + 15}">{_escaped(name[:_NAME])}</text>',
            f'<rect x="{x:.1f}" y="{y + 4}" width="{length:.1f}" height="{_ROW - 8}" fill="#3572a5"/>',
            f'<text x="{_MARGIN * 2 + _NAMES + _BARS}" y="{y + 15}" fill="#555555">{took}</text>',
        ]
        began = at
    return "\n".join([*parts, "</svg>"]) + "\n"


def _page(picture: str, title: str) -> str:
    head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{_escaped(title)}</title>\n'
    return f"{head}<body>\n{picture}</body></html>\n"


def _escaped(text: str) -> str:
    return html.escape("".join(c if c.isprintable() else "?" for c in text))
