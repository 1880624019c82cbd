"""What this host has to confine workers with, which on the soft engine is all that keeps a guest from its user."""

from __future__ import annotations

from .. import env
from ..errors import ConfinementRequired, EngineUnavailable

#: Seconds that the worker gets to look; it takes milliseconds.
_TIMEOUT = 20.0


def missing() -> str | None:
    """What is missing, as a sentence with the way out; `None` when nothing is."""
    import json
    import subprocess
    import sys

    from . import bundle

    if sys.platform == "darwin":
        return None
    worker = bundle.worker()
    try:
        done = subprocess.run(
            [worker, "--probe-confinement"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=True,
        )
        found = json.loads(done.stdout)["missing"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        raise EngineUnavailable(f"{worker} --probe-confinement failed: {error}") from error
    return None if found is None else str(found)


def required(asked: bool | None) -> bool:
    """Whether a host without all of it is refused: the argument, else SUPERMACHINE_REQUIRE_CONFINEMENT."""
    return env.switch(env.REQUIRE_CONFINEMENT) if asked is None else asked


def refused(why: str) -> ConfinementRequired:
    """The error of a worker that was to be confined and cannot be."""
    return ConfinementRequired(f"confinement is required and this host cannot give it: {why}")
