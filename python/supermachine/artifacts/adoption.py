"""An image's baked snapshot, found at its registry instead of being baked."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import descriptors
from ..errors import SupermachineError, UntrustedSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..images import Progress, RegistryReference, ResolvedImage
    from ..oci.registry import Repository
    from ..snapshots.baking import Baked
    from .arrival import Arrival
    from .model import Config

#: Snapshots of one key that are looked at in a registry.
_MAX_TRIED = 8
#: Seconds for the question whether there is one; a guest boots in less than a slow registry takes.
_PATIENCE = 5.0

#: What this process fetches and guests can start from, by where it will be.
_arrivals: dict[Path, Arrival] = {}


def arriving(baked: Baked) -> Arrival | None:
    """What fetches the snapshot of this key, where this process does and a guest can start from it."""
    return _arrivals.get(baked.path)


def adopt(baked: Baked, image: ResolvedImage, *, insecure: bool, progress: Progress | None) -> Arrival | None:
    """Looks for a baked snapshot of this key at the image's registry, and fetches it to its place if it is trusted.

    It is there, or a guest can start from what is there of it. Without a trusted key no registry is asked. What fails
    here is said, and the guest boots instead.
    """
    from ..host.warnings import warn
    from ..images import RegistryReference, parse_reference
    from ..oci.registry import Repository
    from ..oci.transport import Limits, Transport
    from .trust import Keys

    try:
        parsed = parse_reference(image.reference)
        if not isinstance(parsed, RegistryReference) or not Keys().trusted(parsed.name):
            return None
        # One that answers slowly is not waited for; what it has then may take its time, over the same connection.
        quick = Limits(connect=_PATIENCE, read=_PATIENCE, attempts=1)
        transport = Transport(insecure=insecure, limits=quick)
        repository = Repository(parsed, transport=transport)
        try:
            digest = _find(baked, image, parsed, repository)
        except BaseException:
            transport.close()
            raise
        if digest is None:
            transport.close()
            return None
        transport.limits = Limits.from_environment()
        return _begin(baked, partial(_fetch, baked, image, repository, digest, progress))
    except UntrustedSnapshot as error:
        warn(f"the guest boots: {error}")
    except (SupermachineError, OSError) as error:
        warn(f"the guest boots, as no snapshot of it could be had from its registry: {error}")
    return None


def _find(baked: Baked, image: ResolvedImage, parsed: RegistryReference, repository: Repository) -> str | None:
    """The digest of one that is trusted. Raises UntrustedSnapshot where there are only others."""
    from ..oci import referrers
    from . import model, trust

    found = referrers.find(repository, image.digest, model.ARTIFACT_TYPE)
    wanted = [one for one in found if one.annotations.get(model.KEY) == baked.key][:_MAX_TRIED]
    refusal: UntrustedSnapshot | None = None
    for one in wanted:
        try:
            trust.check(repository, parsed._replace(tag=None, digest=None), one.digest)
        except UntrustedSnapshot as error:
            refusal = error
            continue
        return one.digest
    if refusal is not None:
        raise refusal
    return None


def _begin(baked: Baked, fetch: Callable[[Arrival], None]) -> Arrival:
    from .arrival import Arrival

    arrival = Arrival(fetch)
    arrival.wait_until_startable()
    _arrivals[baked.path] = arrival
    arrival.when_over(lambda: _arrivals.pop(baked.path, None))
    return arrival


def _fetch(
    baked: Baked,
    image: ResolvedImage,
    repository: Repository,
    digest: str,
    progress: Progress | None,
    early: Arrival,
) -> None:
    from ..images import Cache
    from .pull import Puller

    def is_wanted(config: Config) -> bool:
        return (config.key, config.image, config.parent) == (baked.key, image.digest, None)

    cache = Cache()
    with contextlib.closing(repository.transport), cache.scratch() as place:
        temporary = place / "snapshot"
        fd = descriptors.open_file(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            config = Puller.of(repository, cache, progress, early).into(digest, fd, baked.path, is_wanted)
        finally:
            os.close(fd)
        baked.adopt(temporary, config.working_set)
