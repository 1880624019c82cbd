"""How a pull tells its client what it does: lines of JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from ..errors import InvalidReference
from ..images.progress import ProgressEvent
from ..oci.references import RegistryReference, is_digest, parse_registry_reference
from .errors import BadRequest, NotImplementedHere

#: Seconds between two looks at what there is to tell.
PACE = 0.1

_PHASES = {"wait": "Waiting", "download": "Downloading", "exists": "Already exists", "convert": "Extracting"}


class News:
    """The last that each layer had to tell, from the threads that pull to the client."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._first = asyncio.Event()
        self._latest: dict[str, ProgressEvent] = {}
        self.downloaded = False

    def tell(self, event: ProgressEvent) -> None:
        if event.phase in _PHASES:
            self._latest[event.digest] = event
            self.downloaded |= event.phase in ("download", "convert")
            self._loop.call_soon_threadsafe(self._first.set)

    def wake(self) -> None:
        self._first.set()

    async def first(self) -> None:
        await self._first.wait()

    def take(self) -> list[dict[str, Any]]:
        latest, self._latest = self._latest, {}
        return [_progress(event) for event in latest.values()]


def _progress(event: ProgressEvent) -> dict[str, Any]:
    line: dict[str, Any] = {"status": _PHASES[event.phase], "id": event.digest.partition(":")[2][:12] or event.digest}
    if event.total:
        line["progressDetail"] = {"current": event.done, "total": event.total}
        if event.done >= event.total:
            line["status"] = "Download complete" if event.phase == "download" else "Pull complete"
    return line


def encoded(value: object) -> bytes:
    return json.dumps(value).encode() + b"\r\n"


async def told(lines: list[dict[str, Any]]) -> AsyncIterator[bytes]:
    for line in lines:
        yield encoded(line)


def pull_target(source: str, tag: str) -> RegistryReference:
    """What ``POST /images/create`` names. Raises BadRequest."""
    if not source:
        raise NotImplementedHere("images are pulled here, not imported: fromImage is needed")
    separator = "@" if is_digest(tag) else ":"
    try:
        given = parse_registry_reference(source)
        if tag:
            given = parse_registry_reference(f"{source}{separator}{tag}")
        return given.with_default_tag()
    except InvalidReference as error:
        raise BadRequest(f"invalid reference format: {error}") from None
