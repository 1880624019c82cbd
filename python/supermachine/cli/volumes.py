"""The commands ``supermachine volume …``."""

from __future__ import annotations

import json

import click

from .format import human, table


def register_volumes(cli: click.Group) -> None:
    """Adds the commands."""
    cli.add_command(volume)


@click.group()
def volume() -> None:
    """Make, list and remove volumes: disks with names, for `run -v NAME:DIR`."""


@volume.command("create")
@click.option("--size", metavar="SIZE", help="Of the disk, as 20g; it takes room as it is written to.  [default: 64g]")
@click.argument("name")
def create(name: str, size: str | None) -> None:
    """Make a volume, and print its name."""
    from ..storage.volumes import DEFAULT_SIZE, make

    make(name, size or DEFAULT_SIZE)
    click.echo(name)


@volume.command("ls")
@click.option("-q", "--quiet", is_flag=True, help="Names alone.")
def list_(quiet: bool) -> None:
    """List volumes."""
    from ..storage import volumes

    found = [volumes.inspect(name) for name in volumes.names()]
    if quiet:
        for info in found:
            click.echo(info.name)
        return
    rows = [("NAME", "SIZE", "ON DISK", "IN USE BY")]
    rows += [
        (info.name, human(info.size), human(info.disk_bytes), "" if info.holder is None else f"process {info.holder}")
        for info in found
    ]
    click.echo(table(rows))


@volume.command("inspect")
@click.argument("names", nargs=-1, required=True)
def inspect(names: tuple[str, ...]) -> None:
    """Print what there is to know of volumes, as JSON."""
    from ..storage import volumes

    found = [volumes.inspect(name) for name in names]
    said = [
        {
            "name": info.name,
            "path": str(info.path),
            "size": info.size,
            "disk_bytes": info.disk_bytes,
            "created": info.created.isoformat(),
            "holder": info.holder,
        }
        for info in found
    ]
    click.echo(json.dumps(said, indent=2))


@volume.command("rm")
@click.argument("names", nargs=-1, required=True)
def remove(names: tuple[str, ...]) -> None:
    """Remove volumes with all that is in them."""
    from ..storage import volumes

    for name in names:
        volumes.remove(name)
        click.echo(name)


@volume.command("prune")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
def prune(force: bool) -> None:
    """Remove every volume that no virtual machine has."""
    from ..storage import volumes

    if not force:
        click.confirm("Remove every volume that no virtual machine has, with all that is in it?", abort=True)
    freed = volumes.prune()
    for name in freed:
        click.echo(name)
    click.echo(f"{human(sum(freed.values()))} freed")
