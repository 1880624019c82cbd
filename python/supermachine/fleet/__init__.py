"""Virtual machines on several hosts, under an engine that exists: see ``docs/how-to/fleet.md``.

Names load on first use: the engines of distribution are no part of a fleet on this host.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .executor import FleetExecutor
    from .fleet import Fleet
    from .vm import FleetVM

_HOMES = {"Fleet": "fleet", "FleetExecutor": "executor", "FleetVM": "vm"}

__all__ = ["Fleet", "FleetExecutor", "FleetVM"]


def __getattr__(name: str) -> Any:
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value
