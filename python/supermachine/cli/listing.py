"""``supermachine ps``."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from .filters import matching, parse
from .format import ago, table
from .templates import show

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..named.client import State

#: docker's names of statuses that have others here.
_STATUSES = {"created": "starting", "removing": "stopping"}
#: What `--filter` knows, each a test of a machine and the value.
_FILTERS: dict[str, Callable[[State, str], bool]] = {
    "name": lambda state, value: value.strip("^/$") in state.name,
    "id": lambda state, value: state.id.startswith(value),
    "status": lambda state, value: state.status == _STATUSES.get(value, value),
    "label": lambda state, value: _labelled(state, value),
    "ancestor": lambda state, value: value in (state.image, state.image.rpartition(":")[0]),
    "exited": lambda state, value: state.status == "exited" and str(state.exit_code) == value,
    "health": lambda state, value: (state.health or "none") == value,
}
#: Those of them that are for machines that have ended, too.
_OF_ALL = ("status", "exited")


def _labelled(state: State, text: str) -> bool:
    name, equals, value = text.partition("=")
    return name in state.labels and (not equals or state.labels[name] == value)


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that have ended.")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="NAME=VALUE", help=f"{', '.join(_FILTERS)}.")
@click.option("-l", "--latest", is_flag=True, help="The one that was made last, be it that it has ended.")
@click.option("-n", "--last", type=click.IntRange(min=1), metavar="N", help="The last that were made.")
@click.option("--no-trunc", is_flag=True, help="Show all of the image's name and of the command.")
@click.option("--format", "form", default="table", metavar="table|json|TEMPLATE", help="As '{{.Names}} {{.Status}}'.")
def ps(
    everything: bool,
    quiet: bool,
    filters: tuple[str, ...],
    latest: bool,
    last: int | None,
    no_trunc: bool,
    form: str,
) -> None:
    """List machines with names."""
    from ..named.client import machines, states

    wanted, matches = parse(filters, _FILTERS), matching(filters, _FILTERS)
    last = 1 if latest else last
    everything = everything or last is not None or any(name in wanted for name in _OF_ALL)
    found = [
        state
        for state in states(machines(all=everything))
        if state is not None and (everything or state.running) and matches(state)
    ]
    if last is not None:
        found = sorted(found, key=lambda state: state.created)[-last:]
    if quiet:
        for state in found:
            click.echo(state.name)
    elif form == "json":
        click.echo(json.dumps([state.as_dict() for state in found], indent=2))
    elif form == "table":
        head = ("NAME", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS")
        click.echo(table([head, *(_line(state, no_trunc) for state in found)]))
    else:
        show(form, [_fields(state, no_trunc) for state in found])


def _line(state: State, no_trunc: bool) -> tuple[str, ...]:
    command, image = " ".join(state.command), state.image
    return (
        state.name,
        image if len(image) <= 40 or no_trunc else f"…{image[-39:]}",
        command if len(command) <= 30 or no_trunc else f"{command[:29]}…",
        f"{ago(time.time() - state.created)} ago",
        status(state),
        _ports(state),
    )


def _fields(state: State, no_trunc: bool) -> dict[str, Any]:
    """What docker's templates call it, and what it is called here."""
    name, image, command, since, shown, ports = _line(state, no_trunc)
    created = time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(state.created))
    labels = ",".join(f"{key}={value}" for key, value in state.labels.items())
    return {
        "Names": name,
        "ID": state.id if no_trunc else state.id[:12],
        "Image": image,
        "Command": f'"{command}"',
        "CreatedAt": created,
        "RunningFor": since,
        "State": state.status,
        "Status": shown,
        "Ports": ports,
        "Labels": labels,
        "Name": name,
        "ExitCode": state.exit_code,
        "Health": state.health,
        "Restarts": state.restarts,
    }


def _ports(state: State) -> str:
    return ", ".join(f"{address}:{at}->{name}" for name, places in state.ports.items() for address, at in places)


def status(state: State) -> str:
    """As docker says it."""
    if state.status == "exited":
        code = "unknown" if state.exit_code is None else state.exit_code
        return f"Exited ({code}) {ago(time.time() - (state.finished or state.created))} ago"
    if state.status == "dead":
        return f"Dead ({state.error})"
    if state.status in ("running", "paused"):
        health = f" ({'health: starting' if state.health == 'starting' else state.health})" if state.health else ""
        health = " (Paused)" if state.status == "paused" else health
        return f"Up {ago(time.time() - (state.started or state.created))}{health}"
    return state.status.capitalize()
