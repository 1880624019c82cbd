"""``supermachine run`` of machines with names: in the background, or in the foreground under a name."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import click

from ..exit_status import OWN_FAILURE

if TYPE_CHECKING:
    from ..._core import Worker
    from ...guest.processes import Popen
    from ...named.spec import Policy, Spec
    from .arguments import Arguments
    from .foreground import Signals
    from .timings import Steps

_KEPT_OPTIONS = [
    click.option("-d", "--detach", is_flag=True, help="Go on in the background, and print the machine's name."),
    click.option("--name", metavar="NAME", help="Name of the machine, for ps, exec, logs …; made up with -d."),
    click.option("--rm", "remove", is_flag=True, help="With a name: keep no record and no logs when it has ended."),
    click.option("-l", "--label", "labels", multiple=True, metavar="NAME[=VALUE]", help="For `ps --filter label=`."),
    click.option("--restart", default="no", metavar="POLICY", help="With -d: no, on-failure[:N] or always."),
    click.option("--init", is_flag=True, help="Accepted for docker's sake: each machine's first process reaps others."),
    click.option("--stop-signal", metavar="SIGNAL", help="What `stop` sends, before what the image says."),
    click.option("--stop-timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="[default: 10]"),
    click.option("--health-cmd", metavar="COMMAND", help="Tells by its exit status how the machine fares."),
    click.option("--health-interval", metavar="TIME", help="As 30s or 1m30s.  [default: 30s]"),
    click.option("--health-timeout", metavar="TIME", help="[default: 30s]"),
    click.option("--health-start-period", metavar="TIME", help="[default: 0s]"),
    click.option("--health-retries", type=click.IntRange(min=1), help="[default: 3]"),
    click.option("--no-healthcheck", is_flag=True, help="Leave out the image's."),
]
_KEPT_NAMES = (
    *("detach", "name", "remove", "labels", "restart", "init", "stop_signal", "stop_timeout", "no_healthcheck"),
    *("health_cmd", "health_interval", "health_timeout", "health_start_period", "health_retries"),
)


def options(command: Any) -> Any:
    """The options of `run` about machines with names."""
    for option in reversed(_KEPT_OPTIONS):
        command = option(command)
    return command


def take(given: dict[str, Any]) -> dict[str, Any]:
    """Those options, taken out of what was given."""
    return {name: given.pop(name) for name in _KEPT_NAMES}


def wanted(kept: dict[str, Any]) -> bool:
    """Whether the machine is one with a name. Raises UsageError for what only such a one has."""
    if kept["restart"] != "no" and not kept["detach"]:
        raise click.UsageError("--restart is for machines in the background: add -d")
    return bool(kept["detach"] or kept["name"])


def run(said: Arguments, kept: dict[str, Any]) -> int:
    """``supermachine run`` of a machine with a name: in the background with ``-d``, else at this terminal.

    Gives what the program exits with, or the command's return code.
    """
    return _detached(said, kept) if kept["detach"] else _foreground(said, kept)


def _spec(said: Arguments, kept: dict[str, Any]) -> Spec:
    """What its keeper is told. The image is downloaded here, where somebody watches, and found in the cache there."""
    from ...errors import SnapshotReference
    from ...host import engines
    from ...images import resolve
    from ...named import names
    from ...named.spec import Spec, restart_policy
    from ..progress import progress
    from . import arguments

    if kept["name"]:
        names.check(kept["name"])
    policy = _policy(said, kept)
    policy.restart, policy.restart_max = restart_policy(kept["restart"])
    if policy.remove and policy.restart != "no":
        raise click.UsageError("--rm and --restart exclude each other")
    options = arguments.machine(said)
    with progress(said["quiet"]) as report:
        engine = engines.choose(options["engine"], options["require_hardware"], options["platform"])
        platform = options["platform"] or f"linux/{engine.architecture}"
        with contextlib.suppress(SnapshotReference):  # which the keeper pulls
            resolve(
                said["image"], platform=platform, pull=options["pull"], insecure=options["insecure"], progress=report
            )
    if options["pull"] == "always":
        options["pull"] = "missing"
    return Spec(
        said["image"],
        kept["name"],
        options,
        arguments.command_words(said),
        None if said["entrypoint"] is None else [said["entrypoint"]],
        policy,
        quiet=said["quiet"],
    )


def _detached(said: Arguments, kept: dict[str, Any]) -> int:
    from ...host.warnings import say
    from ...named import launch

    if said["timeout"] is not None or said["timings"]:
        raise click.UsageError("--timeout and --timings are for commands in the foreground: leave out -d")
    spec = _spec(said, kept)
    started = launch.start(spec, None if said["quiet"] else lambda line: say(line.removeprefix("supermachine: ")))
    click.echo(started["name"])
    return 0


def _foreground(said: Arguments, kept: dict[str, Any]) -> int:
    from ...errors import CommandTimeout
    from ...host.warnings import say
    from ...named.keeper import Keeper
    from . import foreground
    from .timings import Steps

    steps = Steps()
    try:
        with foreground.Signals() as signals:
            spec = _spec(said, kept)
            steps("image")
            here = _Here(said, signals, steps)
            try:
                code, error = Keeper(spec).keep_here(here)
            finally:
                here.over()
    except foreground.Signalled as signalled:
        return 128 + signalled.number
    steps("end")
    if here.timed_out:
        raise CommandTimeout(f"the command was killed: it still ran after {said['timeout']:g} seconds")
    if error:
        say(error)
    if said["timings"]:
        steps.report(said["timings"], f"supermachine run {said['image']}")
    return OWN_FAILURE if code is None else code


class _Here:
    """This process's streams, signals and terminal, for a keeper in the foreground."""

    def __init__(self, said: Arguments, signals: Signals, steps: Steps) -> None:
        from subprocess import DEVNULL

        from . import foreground

        self._timeout = said["timeout"]
        self._signals = signals
        self._steps = steps
        self._terminal = foreground.Terminal() if foreground.wants_terminal(said["tty"]) else None
        self._timer: threading.Timer | None = None
        self.terminal = foreground.terminal_size() if self._terminal is not None else None
        self.stdin = DEVNULL if said["no_stdin"] else 0
        self.timed_out = False

    def starting(self) -> None:
        self._steps("started")
        self._signals.hold()
        if self._terminal is not None:
            self._terminal.make_raw()

    def started(self, main: Popen) -> None:
        self._signals.pass_to(main._exec)
        if self._terminal is not None:
            self._signals.follow_size(main._exec)
        if self._timeout is not None:
            self._timer = threading.Timer(self._timeout, self._kill, [main])
            self._timer.daemon = True
            self._timer.start()

    def _kill(self, main: Popen) -> None:
        self.timed_out = True
        main._exec.send_signal(9)

    def ended(self, worker: Worker, code: int | None) -> None:
        from . import foreground

        self._steps("command")
        self.over()
        foreground.explain(worker, code or 0)

    def over(self) -> None:
        """Nothing of the command's is here any more. Does nothing the second time."""
        self._signals.pass_to(None)
        if self._timer is not None:
            self._timer.cancel()
        if self._terminal is not None:
            self._terminal.restore()


def _policy(said: Arguments, kept: dict[str, Any]) -> Policy:
    from ...named.spec import STOP_TIMEOUT, Policy, signal_number
    from ...settings.durations import duration

    if kept["stop_signal"]:
        signal_number(kept["stop_signal"])
    health: dict[str, Any] | None = None
    if kept["no_healthcheck"]:
        health = {"Test": ["NONE"]}
    elif kept["health_cmd"]:
        health = {"Test": ["CMD-SHELL", kept["health_cmd"]]}
        for option, key in (
            ("health_interval", "Interval"),
            ("health_timeout", "Timeout"),
            ("health_start_period", "StartPeriod"),
        ):
            if kept[option]:
                health[key] = round(duration(kept[option]) * 1e9)
        if kept["health_retries"]:
            health["Retries"] = kept["health_retries"]
    return Policy(
        remove=kept["remove"],
        stop_signal=kept["stop_signal"] or "",
        stop_timeout=STOP_TIMEOUT if kept["stop_timeout"] is None else kept["stop_timeout"],
        tty=bool(said["tty"]),
        interactive=said["interactive"],
        labels={name: value for name, _, value in (text.partition("=") for text in kept["labels"])},
        health=health,
    )
