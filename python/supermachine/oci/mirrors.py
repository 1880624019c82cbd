"""Registries that stand in for others: asked first, for those whom the user names (SUPERMACHINE_REGISTRY_MIRRORS)."""

from __future__ import annotations

import os

from .. import env
from ..errors import ConfigurationError, InvalidReference
from .references import RegistryReference, parse_registry_reference


def mirrored(reference: RegistryReference) -> list[RegistryReference]:
    """Where the image is looked for before its own registry, in this order. Raises ConfigurationError."""
    found = []
    for item in filter(None, (item.strip() for item in os.environ.get(env.REGISTRY_MIRRORS, "").split(","))):
        domain, equals, place = (part.strip() for part in item.partition("="))
        host, _, prefix = place.removeprefix("https://").rstrip("/").partition("/")
        if not equals or not domain or not host:
            raise ConfigurationError(
                f"{item!r} in {env.REGISTRY_MIRRORS} names no mirror",
                hint="write docker.io=mirror.example.org or ghcr.io=mirror.example.org/ghcr, separated by commas",
            )
        if domain != reference.domain:
            continue
        path = f"{prefix}/{reference.path}" if prefix else reference.path
        try:
            # The grammar, and a host that is none without a dot or a port.
            checked = parse_registry_reference(f"{host}/{path}")
        except InvalidReference as error:
            raise ConfigurationError(f"{item!r} in {env.REGISTRY_MIRRORS} names no mirror", cause=str(error)) from None
        if checked.domain != host:
            raise ConfigurationError(
                f"{host!r} in {env.REGISTRY_MIRRORS} is no host of a registry", hint="a host has a dot or a port"
            )
        found.append(reference._replace(domain=checked.domain, path=checked.path))
    return found
