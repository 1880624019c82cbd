"""Progress on stderr: bars on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ..host.warnings import say

if TYPE_CHECKING:
    from ..images import ProgressEvent

_VERBS = {
    "download": "downloading",
    "upload": "uploading",
    "convert": "converting",
    "resolve": "resolving",
    "wait": "waiting for",
}


class Reporter:
    """Shows nothing until something takes place that deserves it."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet or sys.stderr is None
        self._terminal = not self._quiet and sys.stderr.isatty()
        self._bars: Any = None
        self._tasks: dict[tuple[str, str], Any] = {}
        self._said: set[tuple[str, str]] = set()

    def __call__(self, event: ProgressEvent) -> None:
        if self._quiet or event.phase not in ("download", "upload", "convert", "wait"):
            return
        if self._terminal:
            try:
                self._bar(event)
            except OSError:
                # The terminal is gone; the work goes on.
                self._terminal, self._quiet = False, True
        else:
            self._line(event)

    def _line(self, event: ProgressEvent) -> None:
        key = (event.phase, event.digest)
        if key not in self._said:
            self._said.add(key)
            size = f" ({event.total / 1e6:.1f} MB)" if event.total else ""
            say(f"{_VERBS[event.phase]} {_short(event.digest)}{size}")

    def _bar(self, event: ProgressEvent) -> None:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bars.start()
        key = (event.phase, event.digest)
        if key not in self._tasks:
            description = f"{_VERBS[event.phase]} {_short(event.digest)}"
            self._tasks[key] = self._bars.add_task(description, total=event.total or None)
        self._bars.update(self._tasks[key], completed=event.done, total=event.total or None)

    def close(self) -> None:
        if self._bars is not None:
            with suppress(OSError):
                self._bars.stop()
            self._bars = None
            self._tasks.clear()


def _short(digest: str) -> str:
    algorithm, colon, digits = digest.partition(":")
    return digits[:12] if colon and algorithm in ("sha256", "sha512") else digest


@contextmanager
def progress(quiet: bool) -> Iterator[Reporter]:
    """A callback for `resolve`, whose traces on the terminal are gone afterwards."""
    reporter = Reporter(quiet)
    try:
        yield reporter
    finally:
        reporter.close()
