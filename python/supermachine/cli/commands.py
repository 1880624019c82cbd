"""The commands and their options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from ..settings.table import WRITTEN, Setting
from .completion import image_names, machine_names
from .docker import register_docker
from .format import ago, human, table
from .instead import HintingGroup, RunCommand
from .logins import login, logout
from .machines import register
from .run import dispatch
from .run import kept as kept_machines
from .templates import show
from .volumes import register_volumes

if TYPE_CHECKING:
    from ..cache.store import CachedImage
    from .run.arguments import Arguments

_IMAGE_OPTIONS = [
    click.option("--platform", metavar="OS/ARCH", help="Platform of the image; the engine is one that runs it."),
    click.option("--insecure", is_flag=True, help="Allow plain HTTP and unverified TLS for this registry."),
]


def _image_options(command: Any) -> Any:
    for option in reversed(_IMAGE_OPTIONS):
        command = option(command)
    return command


def _machine_options(command: Any) -> Any:
    """The options of every setting that the command line can say."""
    for setting in reversed(WRITTEN):
        more: dict[str, Any] = {"metavar": setting.metavar or None, "help": setting.help or None}
        shown = setting.default not in (None, False, ()) and "[default" not in setting.help
        if setting.kind == "flag":
            more.update(is_flag=True, flag_value=setting.value, default=setting.default, metavar=None)
        elif setting.kind == "texts":
            more.update(multiple=True)
        else:
            more.update(default=setting.default, show_default=shown, type=_type(setting))
        command = click.option(*setting.options, setting.name, **more)(command)
    return command


def _type(setting: Setting) -> Any:
    if setting.choices:
        return click.Choice(setting.choices)
    return {"number": int, "seconds": click.FloatRange(min=0, min_open=True)}.get(setting.kind, str)


def _version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from .. import __version__

        click.echo(f"supermachine {__version__}")
        context.exit()


@click.group(cls=HintingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli() -> None:
    """Run any OCI image as a microVM."""


@cli.command(cls=RunCommand, context_settings={"allow_interspersed_args": False})
@_machine_options
@click.option("--env-file", multiple=True, type=click.Path(exists=True, dir_okay=False), help="Variables, one a line.")
@click.option("--entrypoint", metavar="PROGRAM", help="In place of the image's ENTRYPOINT and CMD.")
@click.option("-i", "--interactive", is_flag=True, help="Accepted for docker's sake: stdin is always passed on.")
@click.option("-n", "--no-stdin", is_flag=True, help="Do not read stdin.")
@click.option("-t/-T", "--tty/--no-tty", default=None, help="Give it a terminal.  [default: when stdin and stdout are]")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Kill it after this; the exit status is 124 then.",
)
@click.option("--timings", is_flag=True, help="Say on stderr how long each step took; --timings=html draws a page.")
@click.option("--timings-page", hidden=True)
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
@kept_machines.options
@click.argument("image", shell_complete=image_names)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(**given: Any) -> int:
    """Run a command, or the image's own, in a fresh virtual machine.

    The exit status is the command's, 128+N when signal N ended it, 124 when --timeout did, 125 for failures of
    supermachine itself. With -d the machine goes on by itself: see `supermachine ps`. With --name it is listed there,
    in the foreground too.
    """
    said, kept = told(given)
    return kept_machines.run(said, kept) if kept_machines.wanted(kept) else dispatch(said)


def told(given: dict[str, Any]) -> tuple[Arguments, dict[str, Any]]:
    """What was said of the command and its machine, and of machines with names."""
    page = given.pop("timings_page")
    given["timings"] = page or given["timings"]
    settings = {setting.name: given.pop(setting.name) for setting in WRITTEN}
    kept = kept_machines.take(given)
    return cast("Arguments", {**given, "settings": settings}), kept


@cli.command()
@_image_options
@click.option("-o", "--output", metavar="PATH", help="Write a snapshot to this file, rather than to the cache.")
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
@click.argument("image", shell_complete=image_names)
def pull(image: str, platform: str | None, insecure: bool, output: str | None, quiet: bool) -> None:
    """Download and convert an image, or download a snapshot, and print its digest."""
    from ..errors import SnapshotReference
    from ..images import resolve
    from .progress import progress

    with progress(quiet) as report:
        try:
            if output is None:
                click.echo(resolve(image, platform=platform, pull="always", insecure=insecure, progress=report).digest)
                return
        except SnapshotReference:
            pass
        from . import artifacts

        artifacts.pull(image, output, insecure, report)


@cli.command()
@_machine_options
@click.option("--sign", metavar="KEY", help="Sign it with this key; `supermachine key generate` makes one.")
@click.option(
    "--first",
    metavar="COMMAND",
    help="Of an image: what guests are started for. The memory that it needs is what a start fetches first. "
    "Without it the image's own command.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress on stderr.")
@click.argument("what", metavar="SNAPSHOT|IMAGE")
@click.argument("reference", required=False)
def push(what: str, reference: str | None, sign: str | None, first: str | None, quiet: bool, **settings: Any) -> None:
    """Put a snapshot file, or an image's baked snapshot, into a registry, and print what it is pinned by.

    Without REFERENCE an image's snapshot is put beside the image, where `supermachine run IMAGE` finds it. The options
    of a machine are an image's: which of its snapshots.
    """
    from . import artifacts
    from .progress import progress

    with progress(quiet) as report:
        artifacts.push(what, reference, sign, first, settings, report)


@cli.group()
def key() -> None:
    """Make and list the keys that snapshots in registries are signed with, and say which are trusted."""


@key.command("generate")
@click.argument("name")
def key_generate(name: str) -> None:
    """Make a key, trust it, and print its public part, which others trust."""
    from ..artifacts.trust import Keys

    click.echo(Keys().generate(name).text)


@key.command("trust")
@click.option("--for", "scope", metavar="REPOSITORY", default="", help="Only in repositories that begin with this.")
@click.option("--issuer", metavar="URL", default="", help="Who vouches for an identity of sigstore's.")
@click.argument("name")
@click.argument("public", metavar="ed25519:…|sigstore:IDENTITY")
def key_trust(name: str, public: str, scope: str, issuer: str) -> None:
    """Restore the snapshots that this key, or identity, has signed: they are code that runs here."""
    from ..artifacts.trust import Keys

    Keys().trust(public, name, scope, issuer)


@key.command("ls")
def key_ls() -> None:
    """List the keys: name, public part, whether its owner is trusted and where, and whether it can sign."""
    from ..artifacts.trust import Keys

    for found in Keys().all():
        trusted = f"trusted{' for ' + found.scope if found.scope else ''}" if found.trusted else "not trusted"
        click.echo(f"{found.name}  {found.text}  {trusted}{', can sign' if found.own else ''}")


@key.command("rm")
@click.argument("name", nargs=-1, required=True)
def key_rm(name: tuple[str, ...]) -> None:
    """Forget keys; a secret one is gone for good."""
    from ..artifacts.trust import Keys

    for each in name:
        Keys().remove(each)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.option("-q", "--quiet", is_flag=True, help="Only digests.")
@click.option("--format", "form", default="table", metavar="table|json|TEMPLATE", help="As '{{.Repository}}:{{.Tag}}'.")
def images(as_json: bool, quiet: bool, form: str) -> None:
    """List the images in the cache."""
    from ..images import Cache

    found = Cache().images()
    if quiet:
        for image in found:
            click.echo(image.digest)
        return
    if as_json or form == "json":
        import json

        rows = [
            {
                "digest": i.digest,
                "platform": i.platform,
                "references": list(i.references),
                "size": i.size,
                "rootfs": str(i.rootfs),
                "last_used": i.last_used,
            }
            for i in found
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    if form != "table":
        show(form, [row for image in found for row in image_rows(image)])
        return
    lines = [("REFERENCE", "DIGEST", "PLATFORM", "SIZE")]
    for image in found:
        digest = image.digest.partition(":")[2][:12]
        lines += [(name, digest, image.platform, human(image.size)) for name in image.references or ("<none>",)]
    click.echo(table(lines))


def image_rows(image: CachedImage) -> list[dict[str, str]]:
    """What docker's templates call it, a row for each of its names."""
    import time

    rows = []
    for name in image.references or ("<none>",):
        repository, colon, tag = name.rpartition(":")
        tagged = bool(colon) and "/" not in tag and "@" not in name
        rows.append(
            {
                "Repository": repository if tagged else name,
                "Tag": tag if tagged else "<none>",
                "ID": image.digest.partition(":")[2][:12],
                "Digest": image.digest,
                "Platform": image.platform,
                "Size": human(image.size),
                "LastUsed": f"{ago(time.time() - image.last_used)} ago",
            }
        )
    return rows


@cli.command()
@click.option("-f", "--force", is_flag=True, help="Accepted for docker's sake: what runs keeps its files.")
@click.argument("image", nargs=-1, required=True, shell_complete=image_names)
def rmi(image: tuple[str, ...], force: bool) -> None:  # noqa: ARG001
    """Remove images from the cache, by reference or digest."""
    from ..errors import ImageNotFound
    from ..images import Cache, RegistryReference, parse_reference
    from ..snapshots import baking

    cache = Cache()
    for name in image:
        parsed = parse_reference(name) if not _is_digest(name) else None
        full = str(parsed.with_default_tag()) if isinstance(parsed, RegistryReference) else str(parsed or name)
        before = cache.images()
        freed = cache.remove(full)
        if _is_digest(name) and full == name and before == cache.images():
            freed += cache.remove(name)
        if not freed and before == cache.images():
            raise ImageNotFound(f"the cache has no image {name}")
        freed += baking.prune(cache, orphans=True)
        click.echo(f"{name}: {human(freed)} freed")


def _is_digest(name: str) -> bool:
    digits = name.partition(":")[2] if name.startswith(("sha256:", "sha512:")) else name
    return len(digits) >= 12 and all(c in "0123456789abcdef" for c in digits)


@cli.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Every image, not only what nothing needs.")
@click.option("-f", "--force", is_flag=True, help="Accepted for docker's sake: nothing is asked.")
def prune(everything: bool, force: bool) -> None:  # noqa: ARG001
    """Free disk space: what no image needs, and snapshots in the cache that no virtual machine runs from; say what."""
    from ..artifacts.pull import prune as prune_artifacts
    from ..images import Cache
    from ..snapshots import baking

    def removed(what: str, size: int) -> None:
        click.echo(f"{what}: {human(size)}")

    cache = Cache()
    freed = baking.prune(cache, removed=removed)
    pulled = prune_artifacts(cache)
    if pulled:
        removed("pulled snapshots", pulled)
    freed += pulled + cache.prune(everything=everything, removed=removed)
    click.echo(f"{human(freed)} freed")


_path = click.Path(path_type=str)
_replace = click.option("-f", "--replace", is_flag=True, help="Replace what is there.")


@cli.group()
def snapshot() -> None:
    """Look at snapshot files, check them, pack and unpack them."""


@snapshot.command("create")
@click.option("--diff", is_flag=True, help="Only what has changed since the snapshot that it goes on from.")
@click.argument("name", shell_complete=machine_names)
@click.argument("path", type=_path)
def snapshot_create(name: str, path: str, diff: bool) -> None:
    """Take a snapshot of a machine with a name; it goes on."""
    from ..named.client import attach

    made = attach(name).snapshot(path, diff=diff)
    click.echo(f"{made['path']}: {human(made['data_bytes'])}, the machine stood still for {made['pause'] * 1e3:.0f} ms")


@snapshot.command("inspect")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.argument("path", type=_path)
def snapshot_inspect(path: str, as_json: bool) -> None:
    """Show what a snapshot, or an export of one, is of."""
    from ..snapshots.files import inspect
    from . import snapshot as shown

    info = inspect(path)
    click.echo(shown.as_json(info) if as_json else shown.as_text(info))


@snapshot.command("verify")
@click.argument("path", type=_path, nargs=-1, required=True)
def snapshot_verify(path: tuple[str, ...]) -> None:
    """Read and check all of each snapshot, and print its id."""
    from ..snapshots.files import verify

    for name in path:
        click.echo(f"{name}: {verify(name) or 'no fault found; version 8 has no checksums'}")


@snapshot.command("export")
@_replace
@click.argument("path", type=_path)
@click.argument("out", type=_path)
def snapshot_export(path: str, out: str, replace: bool) -> None:
    """Verify a snapshot and pack it into one compressed file."""
    from ..snapshots.files import export

    click.echo(f"{out}: {human(export(path, out, replace=replace))}")


@snapshot.command("import")
@_replace
@click.argument("path", type=_path)
@click.argument("dest", type=_path)
def snapshot_import(path: str, dest: str, replace: bool) -> None:
    """Unpack an exported snapshot; it is there once it was verified."""
    from ..snapshots.files import import_

    click.echo(f"{dest}: {import_(path, dest, replace=replace) or 'version 8'}")


@snapshot.command("flatten")
@_replace
@click.argument("path", type=_path, nargs=-1, required=True)
@click.argument("dest", type=_path)
def snapshot_flatten(path: tuple[str, ...], dest: str, replace: bool) -> None:
    """Make one whole snapshot of a whole one and the diffs after it."""
    from ..snapshots.files import flatten

    click.echo(f"{dest}: {flatten(path, dest, replace=replace)}")


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options and names: eval "$(supermachine completion bash)"."""
    from .completion import source

    click.echo(source(cli, shell))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(as_json: bool) -> int:
    """Say what this host offers, and what to do about what is missing."""
    from ..host.doctor import examine

    report = examine()
    if as_json:
        import json

        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        click.echo(report.text())
    return 0 if report.usable else 1


register(cli)
cli.add_command(login)
cli.add_command(logout)
register_docker(cli)
register_volumes(cli)
