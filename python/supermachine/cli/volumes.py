"""The commands ``supermachine volume …``."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import IO, TYPE_CHECKING

import click

from .format import human, table

if TYPE_CHECKING:
    from ..storage.volumes import Kind


def register_volumes(cli: click.Group) -> None:
    """Adds the commands."""
    cli.add_command(volume)


@click.group()
def volume() -> None:
    """Make, list, grow, move and remove volumes: disks and directories with names, for `run -v NAME:DIR`."""


@volume.command("create")
@click.option("--size", metavar="SIZE", help="Of the disk, as 20g; it takes room as it is written to.  [default: 64g]")
@click.option(
    "--kind",
    type=click.Choice(["disk", "directory"]),
    default="disk",
    show_default=True,
    help="A disk is one machine's at a time; a directory of the host is several machines' at once.",
)
@click.argument("name")
def create(name: str, size: str | None, kind: Kind) -> None:
    """Make a volume, and print its name."""
    from ..storage.volumes import make

    make(name, size, kind)
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
    rows = [("NAME", "KIND", "SIZE", "ON DISK", "IN USE BY")]
    rows += [
        (
            info.name,
            info.kind,
            human(info.size) if info.kind == "disk" else "",
            human(info.disk_bytes),
            "" if info.holder is None else f"process {info.holder or '?'}",
        )
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
            "kind": info.kind,
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


@volume.command("grow")
@click.argument("name")
@click.argument("size")
def grow(name: str, size: str) -> None:
    """Make a volume larger, with what is in it, also while a machine has it: SIZE is of the disk, as 100g."""
    from ..storage import volumes

    volumes.grow(name, size)
    click.echo(name)


@volume.command("export")
@click.option("-o", "--output", metavar="FILE", type=click.Path(dir_okay=False), help="[default: standard output]")
@click.argument("name")
def export(name: str, output: str | None) -> None:
    """Write what is in a volume as a tar."""
    from ..machine.volume_tars import export_volume

    if output is None:
        if sys.stdout.isatty():
            raise click.UsageError("a tar is not written to a terminal; say where it goes with --output")
        export_volume(name, sys.stdout.buffer)
        return
    unfinished = f"{output}.{os.getpid()}"
    try:
        with open(unfinished, "xb") as file:  # noqa: PTH123
            export_volume(name, file)
        os.replace(unfinished, output)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)  # noqa: PTH108
        raise


@volume.command("import")
@click.option("--size", metavar="SIZE", help="Of a volume that is made for it, as 20g.  [default: 64g]")
@click.argument("name")
@click.argument("file", metavar="[FILE]", type=click.File("rb"), default="-")
def import_(name: str, file: IO[bytes], size: str | None) -> None:
    """Unpack a tar, from standard input unless FILE is named, into a volume, which is made if it is not there."""
    from ..machine.volume_tars import import_volume
    from ..storage.volumes import DEFAULT_SIZE

    import_volume(name, file, size or DEFAULT_SIZE)
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
