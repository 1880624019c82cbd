"""What this host has to confine workers with, which on the soft engine is all that keeps a guest from its user."""

from __future__ import annotations

from .. import env
from ..errors import ConfinementRequired, EngineUnavailable

#: Seconds that the worker gets to look; it takes milliseconds.
_TIMEOUT = 20.0


def missing() -> str | None:
    """What is missing, as a sentence with the way out; `None` when nothing is."""
    found = _probe()
    return None if found is None else _said(found, "missing")


def interprets() -> str | None:
    """Why the soft engine translates no code on this host; `None` when it does."""
    found = _probe()
    return "there is a translator for x86-64 hosts only" if found is None else _said(found, "interprets")


def _said(found: dict[str, object], name: str) -> str | None:
    return None if (value := found.get(name)) is None else str(value)


def _probe() -> dict[str, object] | None:
    """What the worker finds; `None` where it does not look."""
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
        found = json.loads(done.stdout)
        if not isinstance(found, dict) or "missing" not in found:
            raise ValueError("the answer is not the expected one")
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise EngineUnavailable(f"{worker} --probe-confinement failed: {error}") from error
    return found


def required(asked: bool | None) -> bool:
    """Whether a host without all of it is refused: the argument, else SUPERMACHINE_REQUIRE_CONFINEMENT."""
    return env.switch(env.REQUIRE_CONFINEMENT) if asked is None else asked


def refused(why: str) -> ConfinementRequired:
    """The error of a worker that was to be confined and cannot be."""
    return ConfinementRequired(f"confinement is required and this host cannot give it: {why}")
