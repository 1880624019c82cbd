"""``supermachine login`` and ``supermachine logout``."""

from __future__ import annotations

import sys

import click

from ..oci.references import DEFAULT_DOMAIN

_registry = click.argument("registry", default=DEFAULT_DOMAIN, metavar="[REGISTRY]")


@click.command()
@click.option("-u", "--username", metavar="USER", help="Who.  [default: asked for]")
@click.option("-p", "--password", metavar="PASSWORD", help="Others on this host see it: better --password-stdin.")
@click.option("--password-stdin", is_flag=True, help="Read the password from stdin.")
@click.option("--insecure", is_flag=True, help="Allow plain HTTP and unverified TLS for this registry.")
@_registry
def login(registry: str, username: str | None, password: str | None, password_stdin: bool, insecure: bool) -> None:
    """Log in to a registry, and keep the password where docker, podman and skopeo find it, too."""
    from ..oci.credentials import Credentials
    from ..oci.logins import log_in

    if password is not None and password_stdin:
        raise click.UsageError("--password and --password-stdin exclude each other")
    if password_stdin:
        if username is None:
            raise click.UsageError("--password-stdin needs --username")
        password = sys.stdin.readline().rstrip("\r\n")
    if username is None:
        username = click.prompt("Username", err=True)
    if password is None:
        password = click.prompt("Password", hide_input=True, err=True)
    if not username or ":" in username or not password:
        raise click.UsageError("a user name without a colon, and a password, are needed")
    place = log_in(_domain(registry), Credentials(username, password), insecure=insecure)
    click.echo(f"Login Succeeded; kept in {place}")


@click.command()
@_registry
def logout(registry: str) -> None:
    """Forget the password for a registry."""
    from ..oci.logins import log_out

    domain = _domain(registry)
    click.echo(f"Removing login credentials for {domain}" if log_out(domain) else f"Not logged in to {domain}")


def _domain(registry: str) -> str:
    """The host of what may be written as an address."""
    host = (registry.partition("://")[2] or registry).partition("/")[0]
    return DEFAULT_DOMAIN if host == f"index.{DEFAULT_DOMAIN}" else host
