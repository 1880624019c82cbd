"""``supermachine docker``"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import click

from ..errors import ConfigurationError
from ..oci.references import parse_registry_reference

_OPTIONS = [
    click.option("--engine", default="auto", metavar="ENGINE", help="auto, kvm, hvf or soft.  [default: auto]"),
    click.option("--network", "policy", metavar="POLICY", help="What containers may reach: none, public, all, rules."),
    click.option("--image", "images", multiple=True, metavar="NAME=SOURCE", help="An image of this name, from there."),
]


def _options(command: Any) -> Any:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def sources(texts: Sequence[str]) -> dict[str, str]:
    """``NAME=SOURCE`` of the option --image. Raises ConfigurationError, and InvalidReference for a bad name."""
    found = {}
    for text in texts:
        name, equals, source = text.partition("=")
        if not equals or not source:
            raise ConfigurationError(
                f"{text!r} gives no image a name", hint="write postgres:16=./postgres.oci or postgres:16=HOST/NAME:TAG"
            )
        parse_registry_reference(name)
        found[name] = source
    return found


@click.command()
@_options
@click.option("--socket", metavar="PATH", help="Where.  [default: in a private directory]")
def serve(socket: str | None, engine: str, policy: str | None, images: Sequence[str]) -> int:
    """Serve Docker's API until interrupted; prints what sets DOCKER_HOST."""
    from ..docker import serving

    place = Path(socket) if socket is not None else None
    asyncio.run(serving.serve(place, engine=engine, policy=policy, images=sources(images)))
    return 0


@click.command(
    "docker",
    context_settings={"allow_interspersed_args": False},
    short_help="Serve Docker's API to one command.",
)
@_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="{-- COMMAND [ARG]… | serve}")
def docker(command: tuple[str, ...], engine: str, policy: str | None, images: Sequence[str]) -> int:
    """Run a command with DOCKER_HOST at a socket of this process's own, on which it serves Docker's API.

    Each container is a virtual machine. All of them end with the command, whose exit status this is.
    `supermachine docker serve` has no command: it prints DOCKER_HOST, and serves until it is interrupted.
    """
    if command[0] == "serve":
        given = {"engine": engine, "policy": policy, "images": images}
        said = {name: value for name, value in given.items() if value}
        name = "supermachine docker serve"
        return cast("int", serve.main(command[1:], name, standalone_mode=False, default_map=said))
    from ..docker import serving

    return asyncio.run(serving.run(command, engine=engine, policy=policy, images=sources(images)))


def register_docker(group: click.Group) -> None:
    group.add_command(docker)
