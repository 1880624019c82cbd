"""The pictures that `make bench-plots` draws."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from benches import plots
from benches.chart import chart

_SVG = "{http://www.w3.org/2000/svg}"
numbers = st.floats(min_value=0, max_value=1e7).filter(lambda x: x == 0 or x > 1e-3)


@given(st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20), min_size=1, max_size=4), st.text())
def test_lines_are_within_the_picture(lines: list[list[tuple[float, float]]], text: str) -> None:
    name = "".join(c for c in text if c.isprintable())
    picture = chart(name, "x & y", "<y>", [(name, points) for points in lines], dots=True)
    root = ET.fromstring(picture)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    found = root.findall(f"{_SVG}polyline")
    assert len(found) == len(lines)
    for line, points in zip(found, lines, strict=True):
        places = [tuple(map(float, place.split(","))) for place in line.attrib["points"].split()]
        assert len(places) == len(points)
        assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
        # What is larger is further to the right, and higher.
        for (x, y), (left, top) in zip(points, places, strict=True):
            assert all(left <= l for (a, _), (l, _) in zip(points, places, strict=True) if a >= x)  # noqa: E741
            assert all(top >= t for (_, b), (_, t) in zip(points, places, strict=True) if b >= y)
        assert all(math.isfinite(number) for place in places for number in place)
    assert root.findall(f"{_SVG}text")[0].text == (name or None)


def test_the_pictures_are_what_was_recorded() -> None:
    """Those that are committed."""
    recorded = {
        "environment": {"cores": 2, "load_1_min": 0.1, "date": "2026-01-01"},
        "restores_ms": {"256m": [16.0, 15.0, 30.0], "2g": [17.0, 18.0, 17.5]},
        "forks": [{"count": n, "ready_ms": 4.0 * n, "answered_ms": 9.0 * n} for n in plots.FORKS],
    }
    drawn = plots.draw(recorded)
    assert "256 MiB: median 16 ms" in drawn["restores.svg"]
    assert "2 GiB: median 18 ms" in drawn["restores.svg"]
    assert "until all have run a command" in drawn["forks.svg"]
    for name, picture in plots.draw(json.loads(plots.RECORDED.read_text())).items():
        assert (plots.PICTURES / name).read_text() == picture, "draw them again: python -m benches.plots draw"
