"""``supermachine events``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from .moments import moment
from .templates import show

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..named.events import Event

#: What `--filter` knows, each a test of an event and the value.
_FILTERS: dict[str, Callable[[Event, str], bool]] = {
    "event": lambda event, value: event.action.startswith(value),
    "container": lambda event, value: event.name == value or event.id.startswith(value),
    "name": lambda event, value: event.name == value,
    "image": lambda event, value: event.image == value,
    "type": lambda _event, value: value == "container",
}


@click.command()
@click.option("-f", "--filter", "filters", multiple=True, metavar="NAME=VALUE", help=f"{', '.join(_FILTERS)}.")
@click.option("--since", metavar="TIME", help="Also what happened since then: 2024-01-31T12:00:00Z, or 10m.")
@click.option("--until", metavar="TIME", help="Leave at that time; one that is over needs no waiting.")
@click.option("--format", "form", default="table", metavar="json|TEMPLATE", help="As '{{.Action}} {{.Name}}'.")
def events(filters: tuple[str, ...], since: str | None, until: str | None, form: str) -> None:
    """Show what happens to machines, until interrupted: start, restart, die, kill, pause, health_status, destroy …"""
    import time

    from ..named.events import read
    from .filters import matching

    wanted = matching(filters, _FILTERS)
    begin = moment(since) if since is not None else time.time()
    for event in read(since=begin, until=moment(until), follow=lambda: True):
        if wanted(event):
            _print(event, form)
            sys.stdout.flush()


def _print(event: Event, form: str) -> None:
    attributes = {"image": event.image, "name": event.name, **event.more}
    if form == "table":
        shown = ", ".join(f"{name}={value}" for name, value in sorted(attributes.items()))
        click.echo(f"{event.time} container {event.action} {event.id} ({shown})")
        return
    fields: dict[str, Any] = {
        "Time": event.time,
        "Type": "container",
        "Action": event.action,
        "Status": event.action,
        "ID": event.id,
        "From": event.image,
        "Name": event.name,
        "Actor": {"ID": event.id, "Attributes": attributes},
    }
    # As docker has it, a line for each.
    click.echo(json.dumps(fields)) if form in ("json", "{{json .}}") else show(form, [fields])
