"""What a long operation tells while it goes on; the command line renders it, nothing here prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

Phase = Literal["resolve", "wait", "download", "upload", "exists", "convert", "done"]


class ProgressEvent(NamedTuple):
    """One step forward.

    `phase` is ``resolve`` (asking which image it is), ``wait`` (another process is doing the same work),
    ``download`` (one layer), ``upload`` (one blob),
    ``exists`` (one layer that need not be downloaded), ``convert`` (all layers into the root
    file system) or ``done``. `digest` names the layer, or the image where the event is about all of it. `done` and
    `total` are bytes; a `total` of 0 means that it is not known. Events of different layers interleave and may come
    from several threads, though never two at a time.
    """

    phase: Phase
    digest: str
    done: int = 0
    total: int = 0


Progress = Callable[[ProgressEvent], None]


class Reporter:
    """Serialises events of several threads into one callback, or into nothing."""

    def __init__(self, progress: Progress | None) -> None:
        from threading import Lock

        self._progress = progress
        self._lock = Lock()

    def __call__(self, phase: Phase, digest: str, done: int = 0, total: int = 0) -> None:
        if self._progress is not None:
            with self._lock:
                self._progress(ProgressEvent(phase, digest, done, total))
