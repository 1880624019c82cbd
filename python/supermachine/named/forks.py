"""Machines that go on where another one is, each with a keeper of its own."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from ..machine import snapshotting
from . import launch
from .spec import Fork, Spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from .keeper import Keeper


def fork(keeper: Keeper, count: int, names: list[str], report: Callable[[str], object]) -> list[str]:
    """`count` machines that go on where this one is, each with a keeper of its own; their names."""
    vm = keeper.vm
    begun: list[int] = []
    made: list[str] = []
    with snapshotting.captured(vm._started(), vm._settings, vm._disks(), timeout=launch.FORK_TIMEOUT) as path:
        try:
            for number in range(count):
                forked = Fork(path, keeper.main_pid, keeper.record.command, keeper.place.name)
                options = {k: v for k, v in keeper.spec.options.items() if k not in ("hostname", "ports")}
                policy = replace(keeper.policy, restart="no", restart_max=None)
                begun.append(launch.begin(Spec(keeper.spec.image, names[number], options, policy=policy, fork=forked)))
            while begun:
                made.append(launch.wait(begun.pop(0), report)["name"])
        except BaseException:
            for reader in begun:
                os.close(reader)
            raise
    return made
