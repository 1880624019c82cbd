"""``filters=`` of a query: JSON, ``{"label": ["a=b"]}``, or in the form of old clients ``{"label": {"a=b": true}}``."""

from __future__ import annotations

import json
from collections.abc import Mapping

from .errors import BadRequest


class Filters:
    """Names with the values of which one must match."""

    def __init__(self, values: Mapping[str, list[str]]) -> None:
        self._values = values

    @classmethod
    def parse(cls, text: str, known: frozenset[str]) -> Filters:
        """Raises BadRequest for what is no filter, and for one that is not `known`."""
        if not text:
            return cls({})
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            raise BadRequest("filters is not JSON") from None
        if not isinstance(said, dict):
            raise BadRequest("filters is not a JSON object")
        found: dict[str, list[str]] = {}
        for name, values in said.items():
            if name not in known:
                raise BadRequest(f"invalid filter {name[:50]!r}")
            if isinstance(values, dict):
                values = [value for value, wanted in values.items() if wanted]
            if not isinstance(values, list):
                raise BadRequest(f"the filter {name} has no list of values")
            found[name] = [str(value) for value in values]
        return cls(found)

    def __bool__(self) -> bool:
        return bool(self._values)

    def values(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def one_of(self, name: str, value: str) -> bool:
        """Whether the value is among those wanted; true where none is."""
        return not self.values(name) or value in self.values(name)

    def labels(self, labels: Mapping[str, str]) -> bool:
        """Whether all labels that are wanted are there."""
        wanted = all(_has(labels, text) for text in self.values("label"))
        return wanted and not any(_has(labels, text) for text in self.values("label!"))

    def flag(self, name: str) -> bool | None:
        """A filter that says true or false; ``None`` where it is not given."""
        values = self.values(name)
        return values[-1].lower() in ("1", "true", "t") if values else None


def _has(labels: Mapping[str, str], text: str) -> bool:
    name, equals, value = text.partition("=")
    return name in labels and (not equals or labels[name] == value)
