"""Images that are made in a session, by ``build`` and ``commit``, and the archives and pushes of any image.

An image is converted to a root file system when it is pulled, and its layers are not kept. What is made of a guest's
root is therefore one layer with all of it; so is what is saved or pushed of an image that was pulled.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache.store import Cache
from ..errors import InvalidReference, SupermachineError
from ..guest.tars import Out
from ..images.resolution import ResolvedImage, resolve
from ..machine.starts import Root
from ..machine.vm import VM
from ..oci import uploads
from ..oci.layout_writing import LAYER, LayoutWriter
from ..oci.model import OCI_MANIFEST, Descriptor
from ..oci.platforms import Platform
from ..oci.references import parse_registry_reference
from ..oci.registry import Repository
from ..settings.machine import MachineSettings
from .archives import pack_root
from .errors import BadRequest
from .logs import timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..oci.references import RegistryReference
    from ..oci.transport import Transport
    from .images import Image
    from .session import Session

#: Builds that are remembered.
_MAX_BUILDS = 1000


def step(created_by: str, comment: str = "") -> dict[str, Any]:
    """A line of an image's history."""
    said = {"created": timestamp(time.time_ns()), "created_by": created_by, "comment": comment}
    return {name: value for name, value in said.items() if value}


class Layout:
    """A directory in the form of the OCI image layout with one image of one layer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def blob(self, digest: str) -> Path:
        return self.path / "blobs" / digest.replace(":", "/")

    @property
    def manifest(self) -> bytes:
        index = json.loads((self.path / "index.json").read_bytes())
        return self.blob(index["manifests"][0]["digest"]).read_bytes()

    @classmethod
    def write(
        cls,
        path: Path,
        vm: VM,
        config: Mapping[str, Any],
        platform: str,
        *,
        history: list[dict[str, Any]],
        author: str = "",
    ) -> Layout:
        """Of all that is on a guest's root. Blocks; takes as long as reading it.

        `history` has what led to it, the oldest first; the last of it is said to have made the layer.
        """
        writer = LayoutWriter(path)
        layer = writer.write(LAYER, partial(pack_root, vm))
        parsed = Platform.parse(platform)
        *before, last = history
        said = {
            "architecture": parsed.architecture,
            "os": "linux",
            **({"variant": parsed.variant} if parsed.variant else {}),
            "created": timestamp(time.time_ns()),
            **({"author": author} if author else {}),
            "config": {name: value for name, value in config.items() if value not in (None, "", [], {})},
            "history": [
                *({**line, "empty_layer": True} for line in before),
                {name: value for name, value in last.items() if name != "empty_layer"},
            ],
        }
        writer.finish([writer.image(said, [layer])])
        return cls(path)

    def resolved(self, platform: str) -> ResolvedImage:
        """The image, converted into the cache."""
        return resolve(f"oci:{self.path}", platform=platform)

    def push(self, target: RegistryReference, transport: Transport, progress: Callable[[str, int], None]) -> str:
        """Puts it under a name into a registry; the manifest's digest."""
        repository = Repository(target, transport=transport, push=True)
        data = self.manifest
        manifest = json.loads(data)
        for said in (*manifest["layers"], manifest["config"]):
            descriptor = Descriptor(said["mediaType"], said["digest"], said["size"])
            with self.blob(descriptor.digest).open("rb") as file:
                news = partial(progress, descriptor.digest)
                uploads.push_blob(repository, descriptor, file, descriptor.digest, progress=news)
        uploads.put_manifest(repository, target.tag or "latest", data, OCI_MANIFEST)
        return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Made:
    """The images that a session has made. Their names are the session's, as those of loaded ones are."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._count = 0
        #: By the image's id.
        self._layouts: dict[str, Layout] = {}
        self._resolved: dict[str, ResolvedImage] = {}
        #: Builds by what they depended on: the image's id.
        self._built: dict[str, str] = {}

    def _path(self) -> Path:
        with self._lock:
            self._count += 1
            return self._session.directory / f"image-{self._count}"

    def of_guest(
        self,
        vm: VM,
        config: Mapping[str, Any],
        platform: str,
        *,
        history: list[dict[str, Any]],
        author: str = "",
    ) -> Image:
        """An image of what is on a guest's root now. Blocks."""
        layout = Layout.write(self._path(), vm, config, platform, history=history, author=author)
        resolved = layout.resolved(platform)
        image = self._session.images.image_of(resolved)
        image.resolved = resolved
        with self._lock:
            self._layouts[image.id], self._resolved[image.id] = layout, resolved
        return image

    def built(self, key: str) -> Image | None:
        """The image of an earlier build that depended on the same, if it is still there."""
        resolved = self._resolved.get(self._built.get(key, ""))
        if resolved is None or not resolved.rootfs.exists():
            return None
        image = self._session.images.image_of(resolved)
        image.resolved = resolved
        return image

    def remember(self, key: str, image: Image) -> None:
        with self._lock:
            while len(self._built) >= _MAX_BUILDS:
                self._built.pop(next(iter(self._built)))
            self._built[key] = image.id

    def name(self, names: list[str], image: Image) -> list[str]:
        """Gives an image names, from any thread; as docker shows them. Raises BadRequest."""
        targets = []
        for text in names:
            try:
                targets.append(parse_registry_reference(text).with_default_tag())
            except InvalidReference as error:
                raise BadRequest(f"invalid reference format: {error}") from None
        assert image.resolved is not None
        for target in targets:
            self._session.loop.call_soon_threadsafe(self._session.images.name, target, image.resolved)
        return [target.familiar for target in targets]

    def layout(self, image: Image) -> Layout:
        """An image in a form that can be saved and pushed; of one that was pulled it is made now. Blocks."""
        found = self._layouts.get(image.id)
        if found is not None:
            return found
        resolved = image.resolved or self._session.images.resolved_by_id(image.id)
        settings = MachineSettings.of(network="none", platform=str(resolved.platform))
        with VM._of(image.id, settings, Root(resolved)) as vm:
            history = image.history or [step("supermachine", "saved")]
            made = Layout.write(self._path(), vm, image.config, str(resolved.platform), history=history)
        with self._lock:
            self._layouts[image.id] = made
        return made

    def forget(self) -> None:
        """Removes them from the cache, whose they are no longer."""
        for resolved in self._resolved.values():
            with contextlib.suppress(SupermachineError, OSError):
                Cache().remove(resolved.digest)


def save(layouts: list[tuple[Layout, list[str]]], write: Callable[[bytes], None]) -> None:
    """Writes ``docker save``'s archive of images with their names: docker's own form, which `docker load` reads."""
    entries = []
    with tarfile.open(fileobj=Out(write), mode="w|") as tar:  # type: ignore[call-overload]
        there: set[str] = set()

        def add(name: str, path: Path) -> str:
            if name not in there:
                there.add(name)
                tar.add(path, name, filter=_plain)
            return name

        for layout, names in layouts:
            manifest = json.loads(layout.manifest)
            config, layer = manifest["config"]["digest"], manifest["layers"][0]["digest"]
            entries.append(
                {
                    "Config": add(f"{config[7:]}.json", layout.blob(config)),
                    "RepoTags": names,
                    "Layers": [add(f"{layer[7:]}/layer.tar", layout.blob(layer))],
                }
            )
        data = json.dumps(entries).encode()
        info = tarfile.TarInfo("manifest.json")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    info.mode = 0o644
    return info
