"""Directories in the form of the OCI image layout (OCI image specification 1.1, image-layout), written blob by blob."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .model import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Descriptor
from .platforms import Platform

#: A layer that is not compressed.
LAYER = "application/vnd.oci.image.layer.v1.tar"


class LayoutWriter:
    """A layout in a directory that has none yet; it is one once `finish` has been called."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._blobs = path / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)

    def write(self, media_type: str, produce: Callable[[Callable[[bytes], object]], object]) -> Descriptor:
        """A blob of what `produce` gives to the function that it is called with, piece by piece."""
        unfinished = self._blobs / "unfinished"
        digest, size = hashlib.sha256(), 0
        with unfinished.open("wb") as file:

            def take(data: bytes) -> None:
                nonlocal size
                digest.update(data)
                size += len(data)
                file.write(data)

            produce(take)
        unfinished.rename(self._blobs / digest.hexdigest())
        return Descriptor(media_type, f"sha256:{digest.hexdigest()}", size)

    def put(self, media_type: str, data: bytes) -> Descriptor:
        return self.write(media_type, lambda take: take(data))

    def image(self, config: Mapping[str, Any], layers: Sequence[Descriptor]) -> Descriptor:
        """The manifest of an image with this configuration and these layers, none of which is compressed."""
        said = {**config, "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _document(self.put(OCI_CONFIG, json.dumps(said).encode())),
            "layers": [_document(layer) for layer in layers],
        }
        written = self.put(OCI_MANIFEST, json.dumps(manifest).encode())
        return written._replace(platform=Platform.parse(f"{config['os']}/{config['architecture']}"))

    def finish(self, manifests: Iterable[Descriptor]) -> None:
        """Writes the index of the images that there are."""
        entries = [_document(manifest) for manifest in manifests]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        (self._path / "index.json").write_text(json.dumps(index))
        (self._path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _document(descriptor: Descriptor) -> dict[str, Any]:
    said: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if (platform := descriptor.platform) is not None:
        said["platform"] = {"architecture": platform.architecture, "os": platform.os}
    return said
