"""Registry credentials from where docker and podman keep them.

Looked at in this order, the first that knows the registry wins: the file in ``REGISTRY_AUTH_FILE`` (then nothing else);
``config.json`` in ``DOCKER_CONFIG`` or ``~/.docker``; ``containers/auth.json`` in ``XDG_RUNTIME_DIR`` and in
``XDG_CONFIG_HOME``. In one file a helper from ``credHelpers`` comes first, then ``credsStore``, then ``auths``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import descriptors, directories
from ..errors import CredentialError
from .references import DEFAULT_DOMAIN

# The key under which docker login stores the default registry, since before there was a second version.
DEFAULT_KEYS = (f"https://index.{DEFAULT_DOMAIN}/v1/", f"index.{DEFAULT_DOMAIN}", DEFAULT_DOMAIN)
_MAX_FILE = 4 << 20
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")
# Helpers may ask a keychain, which may ask a person.
HELPER_TIMEOUT = 60.0
_NOT_FOUND = "credentials not found"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a password, or an identity token that the token service takes in their place."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    # Sent as it is, as a bearer token (docker's `registrytoken`).
    registry_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of a search; `note` says why there may be nothing (a helper that is not installed)."""

    credentials: Credentials | None
    note: str | None = None


def find_credentials(
    domain: str, path: str = "", *, environ: Mapping[str, str] | None = None, helper_timeout: float = HELPER_TIMEOUT
) -> Found:
    """Credentials for the repository `path` at the registry `domain`.

    Raises :class:`~supermachine.errors.CredentialError` for files that cannot be read and helpers that fail; a
    default helper (``credsStore``) that is not installed is only noted, as it says nothing about this registry.
    """
    env = os.environ if environ is None else environ
    note: str | None = None
    for file in files(env):
        config = read(file)
        if config is None:
            continue
        keys = list(_keys(domain, path))
        helpers = config.get("credHelpers")
        if isinstance(helpers, dict):
            for key in keys:
                helper = helpers.get(key)
                if isinstance(helper, str) and helper:
                    return Found(_ask_helper(helper, _server(domain, key), env, helper_timeout))
        store = config.get("credsStore")
        if isinstance(store, str) and store:
            try:
                found = _ask_helper(store, _server(domain, domain), env, helper_timeout)
            except _HelperMissing as error:
                note, found = str(error), None
            if found is not None:
                return Found(found)
        auths = config.get("auths")
        if isinstance(auths, dict):
            found = _from_auths(auths, keys, file)
            if found is not None:
                return Found(found)
    return Found(None, note)


def files(env: Mapping[str, str]) -> Iterator[Path]:
    """Where credentials are looked for, in this order."""
    if env.get("REGISTRY_AUTH_FILE"):
        yield Path(env["REGISTRY_AUTH_FILE"])
        return
    home = directories.home(env)
    if env.get("DOCKER_CONFIG"):
        yield Path(env["DOCKER_CONFIG"]) / "config.json"
    elif home is not None:
        yield Path(home) / ".docker" / "config.json"
    if env.get("XDG_RUNTIME_DIR"):
        yield Path(env["XDG_RUNTIME_DIR"]) / "containers" / "auth.json"
    if env.get("XDG_CONFIG_HOME"):
        yield Path(env["XDG_CONFIG_HOME"]) / "containers" / "auth.json"
    elif home is not None:
        yield Path(home) / ".config" / "containers" / "auth.json"


def read(file: Path) -> dict[str, Any] | None:
    """What is in a file; ``None`` where there is none. Raises CredentialError."""
    import json

    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CredentialError(f"the credential file {file} cannot be read", cause=str(error)) from error
    try:
        value = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError) as error:
        raise CredentialError(f"the credential file {file} is not JSON", cause=str(error)) from None
    if not isinstance(value, dict) or len(data) > _MAX_FILE:
        raise CredentialError(f"the credential file {file} is not a docker configuration")
    return value


def _keys(domain: str, path: str) -> Iterator[str]:
    """From the most special to the most general: podman allows host/namespace/repository."""
    parts = [part for part in path.split("/") if part]
    for count in range(len(parts), 0, -1):
        yield "/".join([domain, *parts[:count]])
    yield domain
    if domain == DEFAULT_DOMAIN:
        yield from DEFAULT_KEYS


def _server(domain: str, key: str) -> str:
    return DEFAULT_KEYS[0] if domain == DEFAULT_DOMAIN and "/" not in key.removeprefix("https://") else key


def _from_auths(auths: dict[str, Any], keys: list[str], file: Path) -> Credentials | None:
    by_host = {_host(key): key for key in auths if isinstance(key, str)}
    for key in keys:
        entry = auths.get(key, auths.get(by_host.get(key, key)))
        if not isinstance(entry, dict) or not entry:
            continue
        text = {name: value for name, value in entry.items() if isinstance(value, str)}
        username, password = text.get("username", ""), text.get("password", "")
        if text.get("auth"):
            username, password = _decode(text["auth"], key, file)
        credentials = Credentials(username, password, text.get("identitytoken", ""), text.get("registrytoken", ""))
        if credentials != Credentials():
            return credentials
    return None


def _host(key: str) -> str:
    """A key as old clients wrote it, https://host/v1/, reduced to the host; keys of podman stay as they are."""
    rest = key.partition("://")[2]
    if rest:
        return rest.partition("/")[0]
    return key.removesuffix("/").removesuffix("/v1").removesuffix("/v2")


def _decode(auth: str, key: str, file: Path) -> tuple[str, str]:
    import base64

    try:
        decoded = base64.b64decode(auth, validate=True).decode()
        username, colon, password = decoded.partition(":")
        if not colon:
            raise ValueError("there is no colon in it")
    except ValueError as error:
        raise CredentialError(
            f"the entry for {key} in {file} is not base64 of user:password", cause=str(error), hint="log in again"
        ) from None
    return username, password.rstrip("\0")


class _HelperMissing(CredentialError):
    pass


def _ask_helper(name: str, server: str, env: Mapping[str, str], timeout: float) -> Credentials | None:
    """The protocol of docker-credential-helpers: `get`, the server on stdin, JSON on stdout."""
    import json

    text = run_helper(name, "get", server, server, env, timeout)
    if text is None:
        return None
    try:
        answer = json.loads(text)
        username, secret = answer["Username"], answer["Secret"]
        if not isinstance(username, str) or not isinstance(secret, str):
            raise TypeError("Username and Secret have to be strings")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        # The text may hold the secret, so it is not shown.
        raise CredentialError(
            f"the answer of the credential helper docker-credential-{name} is not what its protocol says",
            cause=type(error).__name__,
        ) from None
    if username == "<token>":
        return Credentials(identity_token=secret)
    return Credentials(username, secret)


def run_helper(
    name: str, action: str, said: str, server: str, env: Mapping[str, str], timeout: float = HELPER_TIMEOUT
) -> str | None:
    """What a helper answers to `get`, `store` or `erase`; ``None`` where it knows nobody for the server.

    Raises CredentialError.
    """
    import shutil
    import signal
    import subprocess

    if not _HELPER_NAME.fullmatch(name):
        raise CredentialError(f"{name[:100]!r} is not the name of a credential helper")
    program = f"docker-credential-{name}"
    executable = shutil.which(program, path=env.get("PATH"))
    if executable is None:
        raise _HelperMissing(
            f"the credential helper {program} for {server} is not installed", hint=f"put {program} on the PATH"
        )
    descriptors.reserve()
    try:
        process = subprocess.Popen(
            [executable, action],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(env),
            start_new_session=True,
        )
    except OSError as error:
        raise CredentialError(f"the credential helper {program} cannot be started", cause=str(error)) from error
    with process:
        try:
            output, _ = process.communicate(said.encode(), timeout=timeout)
        except BaseException as error:
            # The whole group: a helper that is a script leaves children behind that hold the pipe.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise CredentialError(
                    f"the credential helper {program} did not answer for {server} within {timeout:g} seconds"
                ) from None
            raise
    text = output[:_MAX_FILE].decode("utf-8", "replace").strip()
    if process.returncode != 0:
        if _NOT_FOUND in text.lower():
            return None
        raise CredentialError(
            f"the credential helper {program} failed for {server} with status {process.returncode}",
            cause=text[:500] or None,
        )
    return text
