"""What answers Docker's API, a module for each subject."""

from __future__ import annotations

from ..routing import Router
from . import archives, builds, containers, executions, images, networks, output, system, volumes


def router() -> Router:
    return Router(
        [m.routes for m in (system, containers, output, executions, archives, builds, images, networks, volumes)]
    )
