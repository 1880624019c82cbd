"""What the commands ``supermachine push`` and ``supermachine pull`` do with snapshots."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import BadSnapshot, ConfigurationError
from ..host.warnings import say
from .format import human

if TYPE_CHECKING:
    from .progress import Reporter


def pull(reference: str, output: str | None, insecure: bool, report: Reporter) -> None:
    """Has the snapshot in the cache or at `output`, and prints its digest."""
    from ..artifacts import pull as artifacts

    path = None if output is None else Path(os.path.abspath(output))  # noqa: PTH100 - a link is not followed
    found = artifacts.pull(reference, path, insecure=insecure, progress=report)
    if found.signer is not None:
        say(f"signed by {found.signer}")
    click.echo(found.digest)


def push(
    what: str,
    reference: str | None,
    sign: str | None,
    first: str | None,
    settings: dict[str, Any],
    report: Reporter,
) -> None:
    """Pushes a snapshot file, or the baked snapshot of an image, which is baked for it if need be."""
    from ..artifacts import push as artifacts

    insecure = bool(settings.get("insecure"))
    if _is_snapshot(what):
        if reference is None:
            raise ConfigurationError(f"{what} is a file, so a reference must say where it is to go")
        if first is not None:
            raise ConfigurationError(
                f"{what} is a snapshot, and --first is for images",
                hint="what the first command of a machine needs that goes on from it is recorded by itself",
            )
        done = artifacts.push(Path(what), reference, sign=sign, insecure=insecure, progress=report)
    else:
        from ..machine.remote import push_baked

        words = None if first is None else _words(first)
        done = push_baked(what, reference, sign=sign, first=words, progress=report, **_machine(settings))
    if not done.linked:
        say("the image is not in that repository, so the snapshot is not found from it; copy the image there first")
    shared = f", the rest shared with {done.base}" if done.base is not None else ""
    say(f"{human(done.sent)} sent, {human(done.size)} in all{shared}")
    click.echo(done.reference)


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigurationError(f"--first {command!r} cannot be read: {error}") from None
    if not words:
        raise ConfigurationError("--first names no command")
    return words


def _is_snapshot(what: str) -> bool:
    from ..snapshots.records import look

    if not Path(what).is_file():
        return False
    try:
        look(Path(what))
    except BadSnapshot:
        return False  # an archive of an image
    return True


def _machine(settings: dict[str, Any]) -> dict[str, Any]:
    from .run import arguments

    return arguments.machine({"settings": settings, "env_file": ()})  # type: ignore[typeddict-item]
