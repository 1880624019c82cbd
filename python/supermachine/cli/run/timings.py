"""``supermachine run --timings``: the steps of a start, on stderr or as a page."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


#: Where `--timings=html` draws them.
_PAGE = "supermachine-timings.html"


class Steps:
    """Steps by their names, each with the nanoseconds since this object was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter_ns()
        self._steps: list[tuple[str, int]] = []

    def __call__(self, name: str) -> None:
        """Notes the end of a step."""
        self._steps.append((name, time.perf_counter_ns() - self._began))

    def add(self, steps: Iterable[tuple[str, int]]) -> None:
        """Steps whose times are since the last one that was noted."""
        last = self._steps[-1][1]
        self._steps.extend([(name, last + at) for name, at in steps])

    def report(self, where: str | bool, title: str) -> None:
        """Says them on stderr, or draws a page: where is ``html`` or a file's name."""
        from ...host.warnings import say

        if isinstance(where, str):
            from ...machine.timings import Timings

            path = _PAGE if where == "html" else where
            Timings(self._steps).plot(path, title=title)
            say(f"timings: {path}")
            return
        last = 0
        for name, at in sorted(self._steps, key=lambda step: step[1]):
            say(f"{name:<24} {at / 1e6:10.1f} ms  +{(at - last) / 1e6:.1f}")
            last = at
