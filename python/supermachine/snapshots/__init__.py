"""Snapshots: what their files hold, and what can be done with them apart from any machine.

The functions here are those of :mod:`supermachine.snapshots.files`; they load on first use, since modules of this
package are on the way of every start.
"""

from __future__ import annotations

# As `typing` has it, which takes longer to load than all that a start needs of this package.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .files import Section, SnapshotInfo, export, flatten, import_, inspect, verify

__all__ = ["Section", "SnapshotInfo", "export", "flatten", "import_", "inspect", "verify"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.files"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
