"""From an index to the one manifest that fits a platform; the same for registries and layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..errors import InvalidImage, UnsupportedMediaType
from ..oci.model import (
    INDEXES,
    MANIFESTS,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    check_digest,
    parse_config,
    parse_manifest,
)
from ..oci.platforms import Platform, best, not_found

_MAX_DEPTH = 4
# Entries that have to be opened because they do not name their platform.
_MAX_OPENED = 64

Read = Callable[[Descriptor, str], bytes]


class Selected(NamedTuple):
    """One image for one platform. A layer's digest is empty where the source has none (`docker save`)."""

    digest: str
    platform: Platform
    config: ImageConfig
    config_bytes: bytes
    layers: tuple[Descriptor, ...]


def select(reference: str, top: Index | Descriptor, read: Read, wanted: Platform) -> Selected:
    """The image for `wanted`.

    An index's word on a platform is trusted, as docker does; where it says nothing (umoci), and where there is no
    index, the configuration decides. Raises PlatformNotFound with the list of what there is.
    """
    finder = _Finder(reference, read, wanted)
    chosen = finder.find(top, 0)
    if chosen is None:
        raise not_found(reference, wanted, finder.offered)
    return chosen


class _Finder:
    def __init__(self, reference: str, read: Read, wanted: Platform) -> None:
        self._reference = reference
        self._read = read
        self._wanted = wanted
        self._opened = 0
        self.offered: list[Platform] = []

    def find(self, node: Index | Descriptor, depth: int) -> Selected | None:
        if depth > _MAX_DEPTH:
            raise InvalidImage(f"the indexes of {self._reference} are nested more than {_MAX_DEPTH} deep")
        if isinstance(node, Descriptor):
            parsed = self._open(node)
            if isinstance(parsed, Manifest):
                return self._image(node, parsed)
            node = parsed
        entries = [e for e in node.manifests if _may_be_image(e)]
        named = [e for e in entries if e.platform is not None]
        platforms = [e.platform for e in named if e.platform is not None]
        position = best(self._wanted, platforms)
        if position is not None:
            return self.find(named[position], depth + 1)
        self.offered += platforms
        for entry in entries:
            if entry.platform is None:
                try:
                    found = self.find(entry, depth + 1)
                except UnsupportedMediaType:
                    if len(entries) == 1:
                        raise
                    continue  # a signature or another artefact beside the images
                if found is not None:
                    return found
        return None

    def _open(self, descriptor: Descriptor) -> Index | Manifest:
        self._opened += 1
        if self._opened > _MAX_OPENED:
            raise InvalidImage(f"the index of {self._reference} has too many entries without a platform")
        what = f"manifest {descriptor.digest} of {self._reference}"
        data = self._checked(descriptor, what)
        return parse_manifest(data, descriptor.media_type or None, what)

    def _image(self, descriptor: Descriptor, manifest: Manifest) -> Selected | None:
        what = f"the configuration of {self._reference}"
        data = self._checked(manifest.config, what)
        config = parse_config(data, what)
        if len(config.diff_ids) != len(manifest.layers):
            raise InvalidImage(
                f"{self._reference} has {len(manifest.layers)} layers but its configuration lists "
                f"{len(config.diff_ids)}"
            )
        platform = descriptor.platform or config.platform or self._wanted
        if not self._wanted.runs(platform):
            self.offered.append(platform)
            return None
        return Selected(descriptor.digest, platform, config, data, manifest.layers)

    def _checked(self, descriptor: Descriptor, what: str) -> bytes:
        data = self._read(descriptor, what)
        check_digest(data, descriptor.digest, what)
        return data


def _may_be_image(entry: Descriptor) -> bool:
    if entry.annotations.get("vnd.docker.reference.type") == "attestation-manifest":
        return False
    return not entry.media_type or entry.media_type in INDEXES | MANIFESTS
