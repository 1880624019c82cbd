"""Logging in to registries and out of them: what docker, podman and skopeo read, written as docker writes it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import descriptors
from ..errors import CredentialError
from .credentials import DEFAULT_KEYS, Credentials, files, read, run_helper
from .references import DEFAULT_DOMAIN
from .registry import check_login
from .transport import Transport


def log_in(domain: str, credentials: Credentials, *, insecure: bool = False) -> str:
    """Asks the registry whether it knows somebody, and keeps user name and password; says where.

    They go to the credential helper that docker's configuration names, else into that file, for this user's eyes alone.
    Raises RegistryUnauthorized, and CredentialError where they cannot be kept.
    """
    transport = Transport(insecure=insecure)
    try:
        check_login(domain, credentials, transport)
    finally:
        transport.close()
    file, config = _configuration()
    server = _server(domain)
    if (helper := _helper(config, domain)) is not None:
        said = {"ServerURL": server, "Username": credentials.username, "Secret": credentials.password}
        run_helper(helper, "store", json.dumps(said), server, os.environ)
        return f"docker-credential-{helper}"
    pair = f"{credentials.username}:{credentials.password}".encode()
    _auths(config)[server] = {"auth": base64.b64encode(pair).decode()}
    _write(file, config)
    return str(file)


def log_out(domain: str) -> bool:
    """Forgets who somebody is to a registry; whether anything was known. Raises CredentialError."""
    file, config = _configuration()
    known = False
    if (helper := _helper(config, domain)) is not None:
        known = run_helper(helper, "erase", _server(domain), _server(domain), os.environ) is not None
    auths = _auths(config)
    for key in (domain, f"https://{domain}", *(DEFAULT_KEYS if domain == DEFAULT_DOMAIN else ())):
        known = auths.pop(key, None) is not None or known
    if known:
        _write(file, config)
    return known


def _configuration() -> tuple[Path, dict[str, Any]]:
    """The file that is looked at first, and what is in it."""
    file = next(files(os.environ), None)
    if file is None:
        raise CredentialError("there is no home directory for credentials", hint="name one with DOCKER_CONFIG")
    return file, read(file) or {}


def _auths(config: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(config.get("auths"), dict):
        config["auths"] = {}
    auths: dict[str, Any] = config["auths"]
    return auths


def _helper(config: Mapping[str, Any], domain: str) -> str | None:
    helpers = config.get("credHelpers")
    own = helpers.get(domain) if isinstance(helpers, dict) else None
    for name in (own, config.get("credsStore")):
        if isinstance(name, str) and name:
            return name
    return None


def _server(domain: str) -> str:
    """The key under which docker keeps a registry."""
    return DEFAULT_KEYS[0] if domain == DEFAULT_DOMAIN else domain


def _write(file: Path, config: Mapping[str, Any]) -> None:
    """Replaces the file as a whole. Raises CredentialError."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = descriptors.open_file(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.fchmod(fd, 0o600)
            os.write(fd, json.dumps(config, indent="\t").encode() + b"\n")
        finally:
            os.close(fd)
        # What a link leads to is replaced, and not the link.
        part.replace(file.resolve())
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise CredentialError(f"the credential file {file} cannot be written", cause=str(error)) from error
