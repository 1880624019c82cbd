"""Ids and names."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from .errors import BadRequest, NotFound

T = TypeVar("T")

#: As docker has it for containers and volumes.
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
_ADJECTIVES = ("amber", "brave", "calm", "eager", "fair", "gentle", "keen", "lively", "quiet", "swift", "true", "warm")
_NOUNS = ("birch", "brook", "cedar", "dune", "fern", "harbor", "heron", "lake", "maple", "otter", "reef", "willow")


def new_id() -> str:
    """64 hexadecimal digits."""
    return secrets.token_hex(32)


def random_name(taken: Callable[[str], bool]) -> str:
    """A name for people that nothing has yet."""
    while True:
        name = f"{secrets.choice(_ADJECTIVES)}_{secrets.choice(_NOUNS)}{secrets.randbelow(1000)}"
        if not taken(name):
            return name


def check(kind: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise BadRequest(
            f"Invalid {kind} name ({name[:80]}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, 255 characters at most"
        )
    return name


def find(kind: str, wanted: str, by_id: Mapping[str, T], name_of: Callable[[T], Iterable[str]]) -> T:
    """What has this id, this name, or an id that begins so. Raises NotFound, and BadRequest where several have."""
    wanted = wanted.lstrip("/")
    if wanted in by_id:
        return by_id[wanted]
    for thing in by_id.values():
        if wanted in name_of(thing):
            return thing
    begins = [thing for id_, thing in by_id.items() if wanted and id_.startswith(wanted)]
    if len(begins) > 1:
        raise BadRequest(f"Multiple IDs found with provided prefix: {wanted[:80]}")
    if not begins:
        raise NotFound(f"No such {kind}: {wanted[:256]}")
    return begins[0]
