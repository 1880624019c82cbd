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

#: Bytes of a file of variables at most; a process's environment is smaller.
_MAX_ENV_FILE = 4 << 20
_HOSTNAME = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?"


def disk_bytes(value: int | str) -> int:
    """Bytes of the root's disk; 0 is for none."""
    from ..storage import sizes

    return sizes.disk_bytes(value)


def memory_bytes(value: int | str) -> int:
    """Bytes of RAM: a number of bytes, or as docker writes it ("512m", "2g", "1.5GiB"), rounded up to 2 MiB."""
    from ..storage.sizes import size_bytes

    size = size_bytes(value, "an amount of memory")
    from .._core import MAX_MEMORY, MEMORY_STEP, MIN_MEMORY

    if not MIN_MEMORY <= size <= MAX_MEMORY:
        limits = f"{MIN_MEMORY >> 20} MiB to {MAX_MEMORY >> 30} GiB"
        raise ConfigurationError(f"{value!r} of memory is outside {limits}")
    return -(-size // MEMORY_STEP) * MEMORY_STEP


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
    """The items of docker's --env-file: one a line, comments from # at the start of a line.

    What follows ``=`` is taken as it is, quotes and blanks included; a bare name passes this process's value on.
    """
    items: list[str] = []
    for name in names:
        with open(name, "rb") as file:  # noqa: PTH123
            data = file.read(_MAX_ENV_FILE + 1)
        if len(data) > _MAX_ENV_FILE:
            raise ConfigurationError(f"the file of variables {name} has more than {_MAX_ENV_FILE >> 20} MiB")
        for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
            where = f"line {number} of the file of variables {name}"
            try:
                line = raw.removesuffix(b"\r").decode().lstrip()
            except UnicodeDecodeError:
                raise ConfigurationError(f"{where} is no UTF-8") from None
            if not line or line.startswith("#"):
                continue
            variable = line.partition("=")[0]
            if not variable:
                raise ConfigurationError(f"{where} has no name before the =")
            if any(c.isspace() for c in variable):
                raise ConfigurationError(
                    f"{where} has white space in the name {variable!r}", hint="write NAME=value, one a line"
                )
            items.append(line)
    return items


def encode(value: StrOrBytes | os.PathLike[str] | os.PathLike[bytes]) -> bytes:
    """Arguments, variables and paths as the guest sees them."""
    data = os.fsencode(value)
    if b"\0" in data:
        raise ValueError("embedded null byte")
    return data
