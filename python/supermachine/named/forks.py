"""Machines that go on where another one is, each with a keeper of its own."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import SupermachineError
from ..machine import snapshotting
from . import launch
from .client import Machine
from .registry import Registry
from .spec import Fork, Spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from .keeper import Keeper


def fork(keeper: Keeper, count: int, names: list[str] | None, report: Callable[[str], object]) -> list[str]:
    """`count` machines that go on where this one is, each with a keeper of its own; their names.

    Without `names` they are called after this one. Either all run in the end, or there is none.
    """
    vm = keeper.vm
    begun: list[int] = []
    made: list[dict[str, Any]] = []
    with snapshotting.captured(vm._started(), vm._settings, vm._disks(), timeout=launch.FORK_TIMEOUT) as path:
        try:
            for number in range(count):
                forked = Fork(path, keeper.main_pid, keeper.record.command, keeper.place.name)
                options = {k: v for k, v in keeper.spec.options.items() if k not in ("hostname", "ports")}
                policy = replace(keeper.policy, restart="no", restart_max=None)
                name = None if names is None else names[number]
                begun.append(launch.begin(Spec(keeper.spec.image, name, options, policy=policy, fork=forked)))
            while begun:
                made.append(launch.wait(begun.pop(0), report))
        except BaseException:
            # Those that are on their way may run already: they are ended once they have said so.
            for reader in begun:
                with contextlib.suppress(Exception):
                    made.append(launch.wait(reader))
            for said in made:
                _remove(said)
            raise
    found = [str(said["name"]) for said in made]
    # Which of them came first to its name is of no interest.
    return found if names is not None else sorted(found, key=lambda name: int(name.rpartition("-")[2]))


def _remove(said: dict[str, Any]) -> None:
    """Ends a fork that nobody will hear of."""
    registry = Registry()
    with contextlib.suppress(SupermachineError, OSError):
        place = registry.place(said["name"])
        record = place.record()
        if record is not None and record.id == said["id"]:
            Machine(place, registry).remove(force=True)
