"""Values as people write them, checked."""

from __future__ import annotations

import os

from ..errors import ConfigurationError

# As `typing` has it, which this module, on the way of every `supermachine run`, does without, as without `re`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import TypeAlias

    StrOrBytes: TypeAlias = str | bytes
    Environment: TypeAlias = Mapping[str, str] | Sequence[str]

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = r"(?i:(\d+(?:\.\d+)?)\s*([bkmgt]?)(?:i?b)?)"
_HOSTNAME = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?"


def memory_bytes(value: int | str) -> int:
    """Bytes of RAM: a number of bytes, or as docker writes it ("512m", "2g", "1.5GiB"), rounded up to 2 MiB."""
    if isinstance(value, str):
        import re

        match = re.fullmatch(_SIZE, value.strip())
        if match is None:
            raise ConfigurationError(f"{value!r} is not an amount of memory; write 512m or 2g")
        size = int(float(match[1]) * _UNITS[match[2].lower()])
    else:
        size = value
    from .._core import MAX_MEMORY, MIN_MEMORY

    if not MIN_MEMORY <= size <= MAX_MEMORY:
        limits = f"{MIN_MEMORY >> 20} MiB to {MAX_MEMORY >> 30} GiB"
        raise ConfigurationError(f"{value!r} of memory is outside {limits}")
    step = 2 << 20
    return -(-size // step) * step


def vcpu_count(value: int, architecture: str) -> int:
    from .._core import MAX_VCPUS

    most = MAX_VCPUS[architecture]
    if not 1 <= value <= most:
        raise ConfigurationError(f"{value} vCPUs are outside 1 to {most}, as guests that are {architecture} have")
    return value


def hostname(value: str) -> str:
    import re

    if not re.fullmatch(_HOSTNAME, value):
        raise ConfigurationError(f"{value!r} is not a host name: letters, digits, dots and hyphens, at most 64")
    return value


def environment(value: Environment | None) -> dict[str, str]:
    """A mapping, or ``NAME=value`` strings, of which a bare NAME takes this process's value as docker does."""
    if value is None:
        return {}
    if hasattr(value, "items"):
        pairs = [(str(k), str(v)) for k, v in value.items()]
    else:
        pairs = []
        for item in value:
            name, equals, text = item.partition("=")
            if equals:
                pairs.append((name, text))
            elif name in os.environ:
                pairs.append((name, os.environ[name]))
    for name, text in pairs:
        if not name or "=" in name or "\0" in name or "\0" in text:
            raise ConfigurationError(f"{name!r} cannot be the name of an environment variable")
    return dict(pairs)


def environment_files(names: Iterable[str]) -> list[str]:
    """The items of docker's --env-file: one a line, comments from # at the start of a line."""
    items: list[str] = []
    for name in names:
        with open(name, encoding="utf-8") as file:  # noqa: PTH123
            stripped = (line.rstrip("\r\n").lstrip() for line in file)
            items += [line for line in stripped if line and not line.startswith("#")]
    return items


def encode(value: StrOrBytes | os.PathLike[str] | os.PathLike[bytes]) -> bytes:
    """Arguments, variables and paths as the guest sees them."""
    data = os.fsencode(value)
    if b"\0" in data:
        raise ValueError("embedded null byte")
    return data
