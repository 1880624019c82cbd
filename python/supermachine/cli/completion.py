"""What shells complete. A completion that fails completes nothing, and says nothing."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

from ..errors import SupermachineError

_SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


def source(cli: click.Command, shell: str) -> str:
    """The script for a shell."""
    complete = _SHELLS[shell](cli, {}, "supermachine", "_SUPERMACHINE_COMPLETE")
    # Not `source()`, which starts a bash to see how old it is.
    return complete.source_template % complete.source_vars()


def machine_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Machines with names, also those that have ended."""
    from ..named.registry import Registry

    try:
        found = [place.name for place in Registry().places()]
    except (SupermachineError, OSError):
        return []
    return [CompletionItem(name) for name in found if name.startswith(incomplete)]


def image_names(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Images in the cache, by the short names that docker shows."""
    from ..images import Cache
    from ..oci.references import parse_reference

    try:
        full = [name for image in Cache().images() for name in image.references]
        found = {parse_reference(name).familiar for name in full}
    except (SupermachineError, OSError):
        return []
    items = [CompletionItem(name) for name in sorted(found) if name.startswith(incomplete)]
    # Layouts and archives are files.
    return items or [CompletionItem(incomplete, type="file")]


def machines_and_images(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [
        *machine_names(context, parameter, incomplete),
        *(item for item in image_names(context, parameter, incomplete) if item.type == "plain"),
    ]
