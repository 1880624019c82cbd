"""``supermachine run``, the whole way; `fast` is the short one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ...errors import SnapshotReference
from ...host import boots
from ..progress import progress
from . import arguments, fast, foreground
from .timings import Steps

if TYPE_CHECKING:
    from .arguments import Arguments


def whole_way(said: Arguments) -> int:
    """The command's return code as `subprocess` has it; 128 and its number for a signal before there was a command."""
    from ...machine.vm import VM

    steps, began = Steps(), time.time()
    if said["quiet"]:
        boots.silence()
    file, arrival = fast.place(said), None
    terminal = foreground.wants_terminal(said["tty"])
    with foreground.Signals() as signals, progress(said["quiet"]) as report:
        try:
            options = {**arguments.machine(said), "progress": report}
            vm = VM(said["image"], **options)
            entrypoint = None if said["entrypoint"] is None else [said["entrypoint"]]
            words = arguments.command_words(said)
            try:
                argv = vm.command(words, entrypoint)
            except SnapshotReference:
                from ...machine import remote

                vm, file = remote.restored(said["image"], **options), None
                arrival = remote.arrival_of(vm)
                argv = vm.command(words, entrypoint)
            steps("image")
            report.close()
            with vm:
                steps.add(vm.timings)
                steps("started")
                if arrival is None and (guest := vm._guest) is not None and guest.origin is not None:
                    arrival = guest.origin.arrival
                code = foreground.execute(
                    vm._running(),
                    vm._context(),
                    argv,
                    signals,
                    terminal=terminal,
                    no_stdin=said["no_stdin"],
                    timeout=said["timeout"],
                )
                steps("command")
                foreground.explain(vm._running(), code)
            steps("end")
            if arrival is not None:
                from ...machine import remote

                remote.finish(arrival)
            if file is not None:
                fast.remember(file, said, vm, began)
        except foreground.Signalled as signalled:
            if arrival is not None:
                arrival.cancel()
            return 128 + signalled.number
    if said["timings"]:
        steps.report(said["timings"], f"supermachine run {said['image']}")
    return code
