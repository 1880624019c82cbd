"""The commands about machines with names."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from .attach import attach
from .completion import machine_names, machines_and_images
from .events import events
from .format import human, table
from .listing import ps
from .moments import moment
from .templates import show

if TYPE_CHECKING:
    from ..named.client import Machine


def register(cli: click.Group) -> None:
    """Adds the commands to the command line."""
    commands = (
        ps,
        exec_,
        attach,
        logs,
        top,
        start,
        stop,
        restart,
        pause,
        unpause,
        kill,
        rename,
        rm,
        cp,
        port,
        wait,
        stats,
        inspect,
        fork,
        events,
    )
    for command in commands:
        cli.add_command(command)


def _each(names: tuple[str, ...], work: Any, missing: str | None = None) -> int:
    """Does something with each of the machines, and prints their names; what fails for one keeps no other from it.

    `missing` is the hint for a name that no machine has.
    """
    from ..errors import NoSuchMachine, SupermachineError
    from ..named import client

    status = 0
    for name in names:
        try:
            work(client.attach(name))
        except (SupermachineError, OSError) as error:
            hint = missing if missing and isinstance(error, NoSuchMachine) else getattr(error, "hint", None)
            _complain(error, hint)
            status = 1
        else:
            click.echo(name)
    return status


def _complain(error: Exception, hint: str | None) -> None:
    from ..host.warnings import say

    say(f"{error}" + (f" ({hint})" if hint else ""))


_names = click.argument("name", nargs=-1, required=True, shell_complete=machine_names)


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="Do not wait for it; it goes on without its output.")
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
    detach: bool,
    interactive: bool,
    tty: bool,
    user: str | None,
    workdir: str | None,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
) -> int:
    """Run a command in a machine with a name; the exit status is the command's."""
    from ..named import client
    from ..settings.parsing import environment, environment_files
    from .run import foreground

    machine = client.attach(name)
    words = list(command[1:] if command[0] == "--" else command)
    if not words:
        raise click.UsageError("Missing argument 'COMMAND...'.")
    given = environment([*environment_files(env_file), *env])
    if detach:
        machine.spawn(words, env=given, cwd=workdir, user=user, tty=tty)
        return 0
    context = machine._context(user, workdir)
    context.env.update(given)
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
@click.option("--since", metavar="TIME", help="Only later lines: 2024-01-31T12:00:00Z, or 10m for ten minutes ago.")
@click.option("--until", metavar="TIME", help="Only earlier lines.")
@click.argument("name", shell_complete=machine_names)
def logs(name: str, follow: bool, tail: str, timestamps: bool, since: str | None, until: str | None) -> None:
    """Show what the main process of a machine has written."""
    from ..named import client

    if tail != "all" and not tail.isdecimal():
        raise click.UsageError(f"{tail!r} is not a number of lines")
    streams = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    lines = None if tail == "all" else int(tail)
    for entry in client.attach(name).logs(tail=lines, follow=follow, since=moment(since), until=moment(until)):
        stream = streams.get(entry.stream, sys.stdout.buffer)
        stream.write(f"{entry.time} ".encode() + entry.data if timestamps else entry.data)
        if follow:
            stream.flush()


@click.command()
@_names
def start(name: tuple[str, ...]) -> int:
    """Start machines that have ended again, each in a new guest: what they wrote outside of volumes is gone."""
    return _each(name, lambda machine: machine.start())


@click.command()
@click.option("-s", "--signal", metavar="SIGNAL", help="In place of the machine's stop signal.")
@click.option("-t", "--time", "--timeout", "timeout", type=click.FloatRange(min=0), metavar="SECONDS")
@_names
def stop(name: tuple[str, ...], timeout: float | None, signal: str | None) -> int:
    """End machines: the stop signal, and SIGKILL after a time (10 seconds unless it was started with another)."""
    return _each(name, lambda machine: machine.stop(timeout, signal=signal))


@click.command()
@click.option("-t", "--time", "--timeout", "timeout", type=click.FloatRange(min=0), metavar="SECONDS")
@_names
def restart(name: tuple[str, ...], timeout: float | None) -> int:
    """End the main process of machines as `stop` does, and start it again in the same guest; one that has ended is
    started as by `start`.
    """
    return _each(name, lambda machine: machine.restart(timeout))


@click.command()
@_names
def pause(name: tuple[str, ...]) -> int:
    """Stop all processes of machines where they are."""
    return _each(name, lambda machine: machine.pause())


@click.command()
@_names
def unpause(name: tuple[str, ...]) -> int:
    """Let the processes of paused machines go on."""
    return _each(name, lambda machine: machine.unpause())


@click.command()
@click.argument("name", shell_complete=machine_names)
def top(name: str) -> None:
    """Show the processes of a machine; its image needs no `ps`."""
    from ..guest.process_table import TITLES
    from ..named import client

    click.echo(table([TITLES, *(list(row.values()) for row in client.attach(name).top())]))


@click.command()
@click.option("-s", "--signal", default="KILL", show_default=True)
@_names
def kill(name: tuple[str, ...], signal: str) -> int:
    """Send a signal to the main process of machines."""
    return _each(name, lambda machine: machine.kill(signal))


@click.command()
@click.argument("name", shell_complete=machine_names)
@click.argument("new")
def rename(name: str, new: str) -> None:
    """Give a machine another name; its host name stays."""
    from ..named import client

    client.attach(name).rename(new)


@click.command()
@click.option("-f", "--force", is_flag=True, help="End those that run.")
@click.option("-v", "--volumes", is_flag=True, help="Accepted for docker's sake: only volumes with names are kept.")
@_names
def rm(name: tuple[str, ...], force: bool, volumes: bool) -> int:  # noqa: ARG001
    """Remove machines that have ended, with their logs; images are removed by `supermachine rmi`."""
    return _each(
        name,
        lambda machine: machine.remove(force=force),
        "`supermachine ps -a` lists machines; an image is removed with `supermachine rmi`",
    )


@click.command()
@click.option("-a", "--archive", is_flag=True, help="Accepted for docker's sake.")
@click.option("-q", "--quiet", is_flag=True, help="Accepted for docker's sake: nothing is said.")
@click.argument("source")
@click.argument("target")
def cp(source: str, target: str, archive: bool, quiet: bool) -> None:  # noqa: ARG001
    """Copy files: one of SOURCE and TARGET is NAME:PATH, the other a path of the host."""
    from ..named import client

    if "-" in (source, target):
        raise click.UsageError("a tar is moved by tar: supermachine exec -i NAME tar -xC DIR, or exec NAME tar -c DIR")
    here, there = _side(source), _side(target)
    if (here[0] is None) == (there[0] is None):
        raise click.UsageError("one of the two is in a machine: supermachine cp FILE NAME:PATH, or NAME:PATH FILE")
    if here[0] is not None:
        client.attach(here[0]).copy_out(here[1], there[1])
    elif there[0] is not None:
        client.attach(there[0]).copy_in(here[1], there[1])


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
    from ..named import client

    wanted = None if guest is None else guest if "/" in guest else f"{guest}/tcp"
    found = client.attach(name).ports
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
def wait(name: tuple[str, ...]) -> int:
    """Wait until machines have ended, and print their exit codes."""
    from ..errors import SupermachineError
    from ..named import client

    status = 0
    for one in name:
        try:
            code = client.attach(one).wait()
        except (SupermachineError, OSError) as error:
            _complain(error, getattr(error, "hint", None))
            status = 1
        else:
            click.echo("unknown" if code is None else code)
    return status


@click.command()
@click.option("--no-stream", is_flag=True, help="Once.  [default: when stdout is no terminal]")
@click.option("--format", "form", default="table", metavar="table|json|TEMPLATE", help="As '{{.Name}} {{.CPUPerc}}'.")
@click.argument("name", nargs=-1, shell_complete=machine_names)
def stats(name: tuple[str, ...], no_stream: bool, form: str) -> None:
    """Show what machines use of the host."""
    from ..named import client
    from ..named.client import machines

    once = no_stream or form != "table" or not sys.stdout.isatty()
    while True:
        chosen = [client.attach(one) for one in name] if name else machines()
        rows = _usage(chosen, 0.25 if once else 1.0)
        if form == "json":
            click.echo(json.dumps(rows, indent=2))
            return
        shown = [
            {
                "Name": str(row["name"]),
                "CPUPerc": f"{row['cpu_percent']:.1f}%",
                "MemUsage": f"{human(row['memory'])} / {human(row['memory_limit'])}",
                "PIDs": str(row["pid"]),
                "Instructions": str(row["instructions"]),
            }
            for row in rows
        ]
        if form != "table":
            show(form, shown)
            return
        lines = [("NAME", "CPU %", "MEM USAGE / LIMIT", "PID", "INSTRUCTIONS"), *(tuple(row.values()) for row in shown)]
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
@click.option("-f", "--format", "form", default="json", metavar="json|TEMPLATE", help="As '{{.State.Status}}'.")
@click.argument("name", nargs=-1, required=True, shell_complete=machines_and_images)
def inspect(name: tuple[str, ...], platform: str | None, form: str) -> None:
    """Show all that is known of machines, or of images in the cache, as JSON. A machine goes before an image."""
    from ..errors import NoSuchMachine
    from ..named import client

    shown = []
    for one in name:
        try:
            shown.append(client.attach(one).inspect())
        except NoSuchMachine:
            shown.append(_image(one, platform))
    if form == "json":
        click.echo(json.dumps(shown, indent=2))
    else:
        show(form, shown)


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
    from ..named import client

    if names and len(names) != count:
        raise click.UsageError(f"{count} forks need {count} names, not {len(names)}")
    for made in client.attach(name).fork(count, names=names or None):
        click.echo(made.name)
