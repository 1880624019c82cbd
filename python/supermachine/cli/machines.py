"""The commands about machines with names."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from .completion import machine_names, machines_and_images
from .format import ago, human, table

if TYPE_CHECKING:
    from ..named.client import Machine, State
    from ..named.spec import Policy
    from .run.arguments import Arguments

#: Commands of docker's that there are not, and what does it here.
_INSTEAD = {
    "attach": "`supermachine logs -f NAME` shows its output, `supermachine exec -it NAME sh` gives a shell in it",
    "build": "build with docker, buildah or umoci, then `supermachine run oci:DIRECTORY` or `docker-archive:FILE`",
    "commit": "`supermachine snapshot create NAME FILE` keeps all of it, running processes included",
    "compose": "start each service with `supermachine run -d --name SERVICE IMAGE`",
    "container": "leave the word out: `supermachine ps`, `supermachine rm NAME`",
    "create": "`supermachine run -d IMAGE` creates and starts it",
    "diff": "look inside: `supermachine exec NAME COMMAND`",
    "events": "`supermachine wait NAME` tells of its end, `supermachine logs -f NAME` of its output",
    "export": "`supermachine cp NAME:/ DIRECTORY`",
    "history": "`supermachine inspect IMAGE`",
    "image": "leave the word out: `supermachine images`, `supermachine pull IMAGE`, `supermachine rmi IMAGE`",
    "import": "`supermachine run oci-archive:FILE` runs an archive as it is",
    "info": "`supermachine doctor`",
    "load": "`supermachine run docker-archive:FILE` runs an archive as it is",
    "login": "registries are logged in to with docker, podman or skopeo, whose credentials are used",
    "logout": "registries are logged out of with docker, podman or skopeo, whose credentials are used",
    "pause": "`supermachine snapshot create NAME FILE` keeps it as it is; then stop it",
    "push": "images are pushed with skopeo or docker",
    "rename": "a name stays: stop it, and run it again with --name",
    "restart": "`supermachine stop NAME`, `supermachine rm NAME`, and run it again; --restart does it by itself",
    "save": "`skopeo copy docker://IMAGE docker-archive:FILE`",
    "search": "registries have web pages for that",
    "start": "a machine that has ended is not started again: `supermachine rm NAME`, and run it again",
    "system": "`supermachine prune`, `supermachine doctor`",
    "tag": "images keep the names that they were pulled by",
    "top": "`supermachine exec NAME ps`",
    "unpause": "machines are never paused",
    "update": "stop it, and run it again with other options",
    "version": "`supermachine --version`",
}


class HintingGroup(click.Group):
    """Says of docker's commands that there are not what does it here."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            if (instead := _INSTEAD.get(args[0])) is not None:
                raise click.UsageError(f"There is no command '{args[0]}' here: {instead}.", ctx) from None
            raise


class RunCommand(click.Command):
    """Takes ``--timings`` with a value or without; the library knows options that have either."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from .run.arguments import is_page

        flags = {name for p in self.params if isinstance(p, click.Option) and p.is_flag for name in p.opts}
        flags |= {name for p in self.params if isinstance(p, click.Option) for name in p.secondary_opts}
        words, at = list(args), 0
        # As far as the image's name.
        while at < len(words) and words[at].startswith("-") and words[at] != "--":
            name, equals, value = words[at].partition("=")
            if name == "--timings" and equals:
                if not is_page(value):
                    raise click.UsageError(f"--timings={value}: html, or a file NAME.html or NAME.svg", ctx)
                words[at] = f"--timings-page={value}"
            takes = not equals and name not in flags and (name.startswith("--") or len(name) == 2)
            at += 2 if takes else 1
        return super().parse_args(ctx, words)


_KEPT_OPTIONS = [
    click.option("-d", "--detach", is_flag=True, help="Go on in the background, and print the machine's name."),
    click.option("--name", metavar="NAME", help="Name of the machine with -d; of the host in any case."),
    click.option("--rm", "remove", is_flag=True, help="With -d: keep no record and no logs when it has ended."),
    click.option("--restart", default="no", metavar="POLICY", help="With -d: no, on-failure[:N] or always."),
    click.option("--init", is_flag=True, help="Accepted for docker's sake: each machine's first process reaps others."),
    click.option("--stop-signal", metavar="SIGNAL", help="With -d: what `stop` sends, before what the image says."),
    click.option("--stop-timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="[default: 10]"),
    click.option("--health-cmd", metavar="COMMAND", help="With -d: tells by its exit status how the machine fares."),
    click.option("--health-interval", metavar="TIME", help="As 30s or 1m30s.  [default: 30s]"),
    click.option("--health-timeout", metavar="TIME", help="[default: 30s]"),
    click.option("--health-start-period", metavar="TIME", help="[default: 0s]"),
    click.option("--health-retries", type=click.IntRange(min=1), help="[default: 3]"),
    click.option("--no-healthcheck", is_flag=True, help="Leave out the image's."),
]
_KEPT_NAMES = (
    *("detach", "name", "remove", "restart", "init", "stop_signal", "stop_timeout", "no_healthcheck"),
    *("health_cmd", "health_interval", "health_timeout", "health_start_period", "health_retries"),
)


def kept_options(command: Any) -> Any:
    """The options of `run` about machines with names."""
    for option in reversed(_KEPT_OPTIONS):
        command = option(command)
    return command


def take_kept(given: dict[str, Any]) -> dict[str, Any]:
    """Those options, taken out of what was given."""
    return {name: given.pop(name) for name in _KEPT_NAMES}


def without_keeper(said: Arguments, kept: dict[str, Any]) -> Arguments:
    """What a command that runs in the foreground makes of them. Raises UsageError for what makes no sense there."""
    if kept["restart"] != "no":
        raise click.UsageError("--restart is for machines in the background: add -d")
    if kept["name"] and not said["settings"]["hostname"]:
        said["settings"]["hostname"] = kept["name"]
    return said


def run_kept(said: Arguments, kept: dict[str, Any]) -> int:
    """``supermachine run -d``: starts a machine and prints its name."""
    from ..errors import SnapshotReference
    from ..host.warnings import say
    from ..images import resolve
    from ..named import launch, names
    from ..named.spec import Spec, restart_policy
    from .progress import progress
    from .run import arguments

    if said["timeout"] is not None or said["timings"]:
        raise click.UsageError("--timeout and --timings are for commands in the foreground: leave out -d")
    if kept["name"]:
        names.check(kept["name"])
    policy = _policy(said, kept)
    policy.restart, policy.restart_max = restart_policy(kept["restart"])
    if policy.remove and policy.restart != "no":
        raise click.UsageError("--rm and --restart exclude each other")
    options = arguments.machine(said)
    # Here, where somebody watches the download; the keeper then finds it in the cache.
    with progress(said["quiet"]) as report:
        from ..host import engines

        engine = engines.choose(options["engine"], options["require_hardware"], options["platform"])
        platform = options["platform"] or f"linux/{engine.architecture}"
        with contextlib.suppress(SnapshotReference):  # which the keeper pulls
            resolve(
                said["image"], platform=platform, pull=options["pull"], insecure=options["insecure"], progress=report
            )
    if options["pull"] == "always":
        options["pull"] = "missing"
    spec = Spec(
        said["image"],
        kept["name"],
        options,
        arguments.command_words(said),
        None if said["entrypoint"] is None else [said["entrypoint"]],
        policy,
        quiet=said["quiet"],
    )
    started = launch.start(spec, None if said["quiet"] else lambda line: say(line.removeprefix("supermachine: ")))
    click.echo(started["name"])
    return 0


def _policy(said: Arguments, kept: dict[str, Any]) -> Policy:
    from ..named.spec import STOP_TIMEOUT, Policy, signal_number

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
                health[key] = _nanoseconds(kept[option])
        if kept["health_retries"]:
            health["Retries"] = kept["health_retries"]
    return Policy(
        remove=kept["remove"],
        stop_signal=kept["stop_signal"] or "",
        stop_timeout=STOP_TIMEOUT if kept["stop_timeout"] is None else kept["stop_timeout"],
        tty=bool(said["tty"]),
        interactive=said["interactive"],
        health=health,
    )


def _nanoseconds(text: str) -> int:
    """A time as Go writes it: 1m30s, 500ms, 1.5h."""
    import re

    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise click.UsageError(f"{text!r} is not a time: write 30s, 1m30s or 500ms")
    return round(sum(float(number) * units[unit] for number, unit in parts) * 1e9)


def register(cli: click.Group) -> None:
    """Adds the commands to the command line."""
    for command in (ps, exec_, logs, stop, kill, rm, cp, port, wait, stats, inspect, fork):
        cli.add_command(command)


def _each(names: tuple[str, ...], work: Any, missing: str | None = None) -> int:
    """Does something with each of the machines, and prints their names; what fails for one keeps no other from it.

    `missing` is the hint for a name that no machine has.
    """
    from ..errors import NoSuchMachine, SupermachineError
    from ..host.warnings import say
    from ..named.client import attach

    status = 0
    for name in names:
        try:
            work(attach(name))
        except (SupermachineError, OSError) as error:
            hint = missing if missing and isinstance(error, NoSuchMachine) else getattr(error, "hint", None)
            say(f"{error}" + (f" ({hint})" if hint else ""))
            status = 1
        else:
            click.echo(name)
    return status


_names = click.argument("name", nargs=-1, required=True, shell_complete=machine_names)


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that have ended.")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def ps(everything: bool, quiet: bool, form: str) -> None:
    """List machines with names."""
    from ..errors import NoSuchMachine
    from ..named.client import machines

    found = []
    for machine in machines(all=everything):
        try:
            state = machine.state
        except NoSuchMachine:
            continue  # removed meanwhile
        if everything or state.running:
            found.append(state)
    if quiet:
        for state in found:
            click.echo(state.name)
    elif form == "json":
        click.echo(json.dumps([state.as_dict() for state in found], indent=2))
    else:
        head = ("NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS")
        click.echo(table([head, *(_line(state) for state in found)]))


def _line(state: State) -> tuple[str, ...]:
    command = " ".join(state.command)
    return (
        state.name,
        state.image if len(state.image) <= 40 else f"…{state.image[-39:]}",
        command if len(command) <= 30 else f"{command[:29]}…",
        f"{ago(time.time() - state.created)} ago",
        status(state),
        ", ".join(f"{address}:{at}->{name}" for name, places in state.ports.items() for address, at in places),
    )


def status(state: State) -> str:
    """As docker says it."""
    if state.status == "exited":
        code = "unknown" if state.exit_code is None else state.exit_code
        return f"Exited ({code}) {ago(time.time() - (state.finished or state.created))} ago"
    if state.status == "dead":
        return f"Dead ({state.error})"
    if state.status == "running":
        health = f" ({'health: starting' if state.health == 'starting' else state.health})" if state.health else ""
        return f"Up {ago(time.time() - (state.started or state.created))}{health}"
    return state.status.capitalize()


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin on.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Who runs it.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="Set a variable; a bare name passes it on.")
@click.option("--env-file", multiple=True, type=click.Path(exists=True, dir_okay=False), help="Variables, one a line.")
@click.argument("name", shell_complete=machine_names)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(
    name: str,
    command: tuple[str, ...],
    interactive: bool,
    tty: bool,
    user: str | None,
    workdir: str | None,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
) -> int:
    """Run a command in a machine with a name; the exit status is the command's."""
    from ..named.client import attach
    from ..settings.parsing import environment, environment_files
    from .run import foreground

    machine = attach(name)
    words = list(command[1:] if command[0] == "--" else command)
    if not words:
        raise click.UsageError("Missing argument 'COMMAND...'.")
    context = machine._context(user, workdir)
    context.env.update(environment([*environment_files(env_file), *env]))
    try:
        with foreground.Signals() as signals:
            code = foreground.execute(
                context.worker(), context, words, signals, terminal=tty, no_stdin=not interactive, timeout=None
            )
    except foreground.Signalled as signalled:
        return 128 + signalled.number
    return 128 - code if code < 0 else code


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until it has ended.")
@click.option("-n", "--tail", default="all", metavar="N", help="Only the last lines.")
@click.option("-t", "--timestamps", is_flag=True, help="Say when each line was written.")
@click.argument("name", shell_complete=machine_names)
def logs(name: str, follow: bool, tail: str, timestamps: bool) -> None:
    """Show what the main process of a machine has written."""
    from ..named.client import attach

    if tail != "all" and not tail.isdecimal():
        raise click.UsageError(f"{tail!r} is not a number of lines")
    streams = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    for entry in attach(name).logs(tail=None if tail == "all" else int(tail), follow=follow):
        stream = streams.get(entry.stream, sys.stdout.buffer)
        stream.write(f"{entry.time} ".encode() + entry.data if timestamps else entry.data)
        if follow:
            stream.flush()


@click.command()
@click.option("-t", "--time", "--timeout", "timeout", type=click.FloatRange(min=0), metavar="SECONDS")
@_names
def stop(name: tuple[str, ...], timeout: float | None) -> int:
    """End machines: the stop signal, and SIGKILL after a time (10 seconds unless it was started with another)."""
    return _each(name, lambda machine: machine.stop(timeout))


@click.command()
@click.option("-s", "--signal", default="KILL", show_default=True)
@_names
def kill(name: tuple[str, ...], signal: str) -> int:
    """Send a signal to the main process of machines."""
    return _each(name, lambda machine: machine.kill(signal))


@click.command()
@click.option("-f", "--force", is_flag=True, help="End those that run.")
@_names
def rm(name: tuple[str, ...], force: bool) -> int:
    """Remove machines that have ended, with their logs; images are removed by `supermachine rmi`."""
    return _each(
        name,
        lambda machine: machine.remove(force=force),
        "`supermachine ps -a` lists machines; an image is removed with `supermachine rmi`",
    )


@click.command()
@click.argument("source")
@click.argument("target")
def cp(source: str, target: str) -> None:
    """Copy files: one of SOURCE and TARGET is NAME:PATH, the other a path of the host."""
    from ..named.client import attach

    here, there = _side(source), _side(target)
    if (here[0] is None) == (there[0] is None):
        raise click.UsageError("one of the two is in a machine: supermachine cp FILE NAME:PATH, or NAME:PATH FILE")
    if here[0] is not None:
        attach(here[0]).copy_out(here[1], there[1])
    elif there[0] is not None:
        attach(there[0]).copy_in(here[1], there[1])


def _side(text: str) -> tuple[str | None, str]:
    """The machine, if there is one, and the path. What begins like a path is one, as docker has it."""
    name, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")) or "/" in name:
        return None, text
    return name, path or "/"


@click.command()
@click.argument("name", shell_complete=machine_names)
@click.argument("guest", required=False, metavar="[PORT[/tcp]]")
def port(name: str, guest: str | None) -> int:
    """Show where the ports of a machine are published."""
    from ..named.client import attach

    wanted = None if guest is None else guest if "/" in guest else f"{guest}/tcp"
    found = attach(name).ports
    for published, places in found.items():
        for address, number in places:
            shown = f"[{address}]" if ":" in address else address
            if wanted is None:
                click.echo(f"{published} -> {shown}:{number}")
            elif wanted == published:
                click.echo(f"{shown}:{number}")
    if wanted is not None and wanted not in found:
        raise click.ClickException(f"the port {wanted} of {name} is not published")
    return 0


@click.command()
@_names
def wait(name: tuple[str, ...]) -> None:
    """Wait until machines have ended, and print their exit codes."""
    from ..named.client import attach

    for one in name:
        code = attach(one).wait()
        click.echo("unknown" if code is None else code)


@click.command()
@click.option("--no-stream", is_flag=True, help="Once.  [default: when stdout is no terminal]")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.argument("name", nargs=-1, shell_complete=machine_names)
def stats(name: tuple[str, ...], no_stream: bool, form: str) -> None:
    """Show what machines use of the host."""
    from ..named.client import attach, machines

    once = no_stream or form == "json" or not sys.stdout.isatty()
    while True:
        chosen = [attach(one) for one in name] if name else machines()
        rows = _usage(chosen, 0.25 if once else 1.0)
        if form == "json":
            click.echo(json.dumps(rows, indent=2))
            return
        lines = [("NAME", "CPU %", "MEM USAGE / LIMIT", "PID", "INSTRUCTIONS")]
        lines += [
            (
                str(row["name"]),
                f"{row['cpu_percent']:.1f}%",
                f"{human(row['memory'])} / {human(row['memory_limit'])}",
                str(row["pid"]),
                str(row["instructions"]),
            )
            for row in rows
        ]
        if not once:
            click.clear()
        click.echo(table(lines))
        if once:
            return


def _usage(machines: list[Machine], seconds: float) -> list[dict[str, Any]]:
    """What each uses, its processor time over so many seconds."""
    from ..errors import SupermachineError

    def look(machine: Machine) -> dict[str, Any] | None:
        try:
            return machine.stats()
        except SupermachineError:
            return None  # it has ended

    before, began = {machine.name: look(machine) for machine in machines}, time.monotonic()
    time.sleep(seconds)
    rows = []
    for machine in machines:
        first, after = before[machine.name], look(machine)
        if first is None or after is None:
            continue
        used = (after["cpu_seconds"] - first["cpu_seconds"]) / (time.monotonic() - began)
        rows.append({"name": machine.name, "cpu_percent": 100 * used, **after})
    return rows


@click.command()
@click.option("--platform", metavar="OS/ARCH", help="Platform of an image.")
@click.argument("name", nargs=-1, required=True, shell_complete=machines_and_images)
def inspect(name: tuple[str, ...], platform: str | None) -> None:
    """Show all that is known of machines, or of images in the cache, as JSON. A machine goes before an image."""
    from ..errors import NoSuchMachine
    from ..named.client import attach

    shown = []
    for one in name:
        try:
            shown.append(attach(one).inspect())
        except NoSuchMachine:
            shown.append(_image(one, platform))
    click.echo(json.dumps(shown, indent=2))


def _image(name: str, platform: str | None) -> dict[str, Any]:
    from ..images import resolve

    image = resolve(name, platform=platform, pull="never")
    config = image.config
    return {
        "reference": image.reference,
        "digest": image.digest,
        "platform": str(image.platform),
        "rootfs": str(image.rootfs),
        "size": image.size,
        "created": config.created,
        "entrypoint": config.entrypoint,
        "cmd": config.cmd,
        "env": config.env,
        "working_dir": config.working_dir,
        "user": config.user,
        "exposed_ports": config.exposed_ports,
        "volumes": config.volumes,
        "stop_signal": config.stop_signal,
        "healthcheck": dict(config.healthcheck) if config.healthcheck is not None else None,
        "labels": dict(config.labels),
        "layers": config.diff_ids,
    }


@click.command()
@click.option("-n", "count", type=click.IntRange(min=1, max=1000), default=1, show_default=True, help="How many.")
@click.option("--name", "names", multiple=True, help="Their names, one for each.  [default: NAME-1, NAME-2 …]")
@click.argument("name", shell_complete=machine_names)
def fork(name: str, count: int, names: tuple[str, ...]) -> None:
    """Start machines that go on where one is now, and print their names."""
    from ..named.client import attach

    if names and len(names) != count:
        raise click.UsageError(f"{count} forks need {count} names, not {len(names)}")
    for made in attach(name).fork(count, names=names or None):
        click.echo(made.name)
