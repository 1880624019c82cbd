"""Where this package keeps what it makes."""

from __future__ import annotations

import os
import sys


def cache_directory() -> str:
    """What can be made again: SUPERMACHINE_CACHE, else where the system has its users' caches."""
    explicit = os.environ.get("SUPERMACHINE_CACHE")
    if explicit:
        return os.path.join(os.getcwd(), os.path.expanduser(explicit))  # noqa: PTH109, PTH111, PTH118
    home = os.path.expanduser("~")  # noqa: PTH111
    if sys.platform == "darwin":
        return os.path.join(home, "Library", "Caches", "supermachine")  # noqa: PTH118
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The base directory specification: a relative path is to be ignored.
    if not os.path.isabs(base):  # noqa: PTH117
        base = os.path.join(home, ".cache")  # noqa: PTH118
    return os.path.join(base, "supermachine")  # noqa: PTH118
