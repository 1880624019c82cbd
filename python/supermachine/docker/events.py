"""What happened, for those who listen."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

from .filters import Filters

#: Events that are kept for who asks later, and those that wait for one listener; who is slower than that is left.
KEPT = 1024
_WAITING = 1024


class Events:
    """The session's events, the last of them kept."""

    def __init__(self) -> None:
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._listeners: set[asyncio.Queue[dict[str, Any] | None]] = set()

    def publish(self, kind: str, action: str, subject: str, attributes: Mapping[str, str]) -> None:
        now = time.time_ns()
        event: dict[str, Any] = {
            "Type": kind,
            "Action": action,
            "Actor": {"ID": subject, "Attributes": dict(attributes)},
            "scope": "local",
            "time": now // 1_000_000_000,
            "timeNano": now,
        }
        if kind == "container":
            event.update(status=action, id=subject, **{"from": attributes.get("image", "")})
        elif kind == "image":
            event.update(status=action, id=subject)
        self._kept.append(event)
        for listener in list(self._listeners):
            try:
                listener.put_nowait(event)
            except asyncio.QueueFull:
                self._listeners.discard(listener)
                # It finds the end after what it has.
                listener.get_nowait()
                listener.put_nowait(None)

    async def listen(self, filters: Filters, since: float | None, until: float | None) -> AsyncIterator[dict[str, Any]]:
        """Events that match: those since then, and those to come until then. Times are seconds since 1970."""
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(_WAITING)
        self._listeners.add(queue)
        try:
            if since is not None:
                for event in list(self._kept):
                    at = event["timeNano"] / 1e9
                    if at >= since and (until is None or at <= until) and matches(event, filters):
                        yield event
            while True:
                left = None if until is None else until - time.time()
                if left is not None and left <= 0:
                    return
                try:
                    found = await asyncio.wait_for(queue.get(), left)
                except asyncio.TimeoutError:
                    return
                if found is None:
                    return
                if matches(found, filters):
                    yield found
        finally:
            self._listeners.discard(queue)

    def close(self) -> None:
        """Lets every listener find the end."""
        for listener in self._listeners:
            while listener.full():
                listener.get_nowait()
            listener.put_nowait(None)


def matches(event: Mapping[str, Any], filters: Filters) -> bool:
    """Docker's filters of events."""
    attributes: Mapping[str, str] = event["Actor"]["Attributes"]
    subject = event["Actor"]["ID"]
    kind = event["Type"]

    def is_of(wanted_kind: str) -> bool:
        names = filters.values(wanted_kind)
        if not names:
            return True
        if kind == wanted_kind:
            return any(subject.startswith(n) or attributes.get("name") == n.lstrip("/") for n in names)
        return attributes.get(wanted_kind) in names

    return (
        filters.one_of("type", kind)
        and (not filters.values("event") or any(event["Action"].startswith(a) for a in filters.values("event")))
        and filters.labels(attributes)
        and all(is_of(name) for name in ("container", "image", "network", "volume"))
    )
