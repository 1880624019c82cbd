"""From a method and a path to what answers it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import BadRequest, NotImplementedHere

if TYPE_CHECKING:
    from .http import Answer

#: Versions of Docker's API that are spoken. Clients negotiate theirs down to the first.
API_VERSION = "1.44"
MIN_API_VERSION = "1.24"

_VERSION = re.compile(r"/v(\d{1,3})\.(\d{1,3})(/.*)")
_PARAMETER = re.compile(r"\{(\w+)(:path)?\}")

Handler = Callable[..., Awaitable["Answer"]]


class Route(NamedTuple):
    method: str
    #: As documentation writes it: ``/containers/{id}/json``; ``{name:path}`` may hold slashes.
    path: str
    handler: Handler
    pattern: re.Pattern[str]


class Routes:
    """Routes of one subject, by the decorators below."""

    def __init__(self) -> None:
        self.all: list[Route] = []

    def _add(self, method: str, path: str) -> Callable[[Handler], Handler]:
        def add(handler: Handler) -> Handler:
            self.all.append(Route(method, path, handler, _pattern(path)))
            return handler

        return add

    def get(self, path: str) -> Callable[[Handler], Handler]:
        return self._add("GET", path)

    def head(self, path: str) -> Callable[[Handler], Handler]:
        return self._add("HEAD", path)

    def post(self, path: str) -> Callable[[Handler], Handler]:
        return self._add("POST", path)

    def put(self, path: str) -> Callable[[Handler], Handler]:
        return self._add("PUT", path)

    def delete(self, path: str) -> Callable[[Handler], Handler]:
        return self._add("DELETE", path)


def _pattern(path: str) -> re.Pattern[str]:
    text, at = "", 0
    for found in _PARAMETER.finditer(path):
        text += re.escape(path[at : found.start()]) + f"(?P<{found[1]}>{'.+' if found[2] else '[^/]+'})"
        at = found.end()
    return re.compile(text + re.escape(path[at:]))


class Router:
    """All routes there are."""

    def __init__(self, subjects: list[Routes]) -> None:
        self.routes = [route for subject in subjects for route in subject.all]

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, Any]]:
        """What answers a request, and the parameters in its path. Raises ApiError where nothing does."""
        plain = path
        if (versioned := _VERSION.fullmatch(path)) is not None:
            said = (int(versioned[1]), int(versioned[2]))
            plain = versioned[3]
            if said > _numbers(API_VERSION):
                raise BadRequest(
                    f"client version {said[0]}.{said[1]} is too new. Maximum supported API version is {API_VERSION}"
                )
            if said < _numbers(MIN_API_VERSION):
                raise BadRequest(
                    f"client version {said[0]}.{said[1]} is too old. Minimum supported API version is "
                    f"{MIN_API_VERSION}, please upgrade your client to a newer version"
                )
        for route in self.routes:
            if route.method == method and (found := route.pattern.fullmatch(plain)) is not None:
                return route.handler, found.groupdict()
        raise NotImplementedHere(f"supermachine does not serve {method} {plain[:200]} of Docker's API")


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")
    return int(major), int(minor)
