"""Images in files: OCI layouts, as directories and tars, and what `docker save` writes.

Layers are never copied: a layer is a region of a file, given as path, offset and length.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ImageNotFound, ImageTooLarge, InvalidImage, InvalidReference, UnsupportedMediaType
from .archive import Archive, compression_of, open_regular
from .model import MAX_ENTRIES, MAX_JSON, MAX_LAYERS, Descriptor, Index, digest_of, parse_config, parse_manifest
from .platforms import Platform, not_found
from .references import FileReference
from .selection import Selected, select

_REF_NAME = "org.opencontainers.image.ref.name"
# containerd and docker put the whole reference here, and only the tag into ref.name.
_FULL_NAME = "io.containerd.image.name"


class Region(NamedTuple):
    """A layer in place. `digest` is of these bytes, `diff_id` of what they decompress to."""

    path: Path
    offset: int
    length: int
    digest: str | None
    diff_id: str | None


class FileSource(ABC):
    """An image source in the file system."""

    def __init__(self, reference: FileReference, index: list[Path]) -> None:
        """`index` are the files that say which images there are: an image is another one only when they change."""
        self.reference = reference
        self.index = index

    @abstractmethod
    def select(self, wanted: Platform) -> Selected:
        """The image for a platform."""

    @abstractmethod
    def regions(self, selected: Selected) -> list[Region]:
        """Its layers, lowest first."""


def open_source(reference: FileReference, decompressed: Callable[[Path, str], Path]) -> FileSource:
    """Finds out what is at a path; `decompressed` gives the place of an uncompressed copy of a compressed archive."""
    path, kind = reference.path, reference.kind
    try:
        if path.is_dir():
            if kind not in ("oci", "path"):
                raise InvalidReference(f"{path} is a directory, not an archive")
            if not (path / "oci-layout").exists():
                raise InvalidReference(
                    f"{path} is not an OCI layout: it has no file oci-layout",
                    hint="umoci, skopeo (oci:) and buildah make such directories",
                )
            return OciSource(reference, _DirectoryBlobs(path), [path / "oci-layout", path / "index.json"])
        if kind == "oci":
            raise (
                InvalidReference(f"{path} is not a directory", hint="for a tar write oci-archive:PATH")
                if path.exists()
                else ImageNotFound(f"there is no {path}")
            )
        compression = compression_of(path)
        archive = Archive(path if compression is None else decompressed(path, compression))
    except FileNotFoundError as error:
        if isinstance(error, ImageNotFound):
            raise
        raise ImageNotFound(f"there is no {path}") from None
    except OSError as error:
        if isinstance(error, InvalidReference):
            raise
        raise InvalidImage(f"{path} cannot be read", cause=str(error)) from error
    # docker writes both since version 25; manifest.json then lists just what was asked for.
    if kind != "oci-archive" and archive.find("manifest.json") is not None:
        return DockerSource(reference, archive, [path])
    if kind != "docker-archive" and archive.find("index.json") is not None:
        return OciSource(reference, _ArchiveBlobs(archive), [path])
    raise InvalidImage(
        f"{path} is neither an OCI archive (index.json) nor one of docker save (manifest.json)",
        hint="a plain root file system (docker export) is not an image; docker save makes one",
    )


class _DirectoryBlobs:
    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, name: str, limit: int) -> bytes | None:
        try:
            with open_regular(self._root / name) as stream:
                data = stream.read(limit + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InvalidImage(f"{self._root / name} cannot be read", cause=str(error)) from error
        if len(data) > limit:
            raise ImageTooLarge(f"{self._root / name} has more than {limit} bytes")
        return data

    def region(self, name: str) -> tuple[Path, int, int] | None:
        path = self._root / name
        try:
            with open_regular(path) as stream:
                return path, 0, os.fstat(stream.fileno()).st_size
        except FileNotFoundError:
            return None


class _ArchiveBlobs:
    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def read(self, name: str, limit: int) -> bytes | None:
        return self._archive.read(name, limit)

    def region(self, name: str) -> tuple[Path, int, int] | None:
        place = self._archive.find(name)
        return None if place is None else (self._archive.path, *place)


class OciSource(FileSource):
    """The OCI image layout specification 1.1."""

    def __init__(self, reference: FileReference, blobs: _DirectoryBlobs | _ArchiveBlobs, index: list[Path]) -> None:
        super().__init__(reference, index)
        self._blobs = blobs

    def select(self, wanted: Platform) -> Selected:
        what = f"index.json of {self.reference.path}"
        data = self._blobs.read("index.json", MAX_JSON)
        if data is None:
            raise InvalidImage(f"{self.reference.path} has no index.json")
        index = parse_manifest(data, None, what)
        if not isinstance(index, Index):
            raise InvalidImage(f"{what} is a manifest, not an index")
        return select(str(self.reference), self._choose(index), self._read, wanted)

    def _choose(self, index: Index) -> Index | Descriptor:
        reference, entries = self.reference, index.manifests
        if not entries:
            raise ImageNotFound(f"the layout {reference.path} has no image in it")
        if reference.digest:
            entries = tuple(e for e in entries if e.digest == reference.digest)
            if not entries:
                raise ImageNotFound(f"the layout {reference.path} has no {reference.digest}")
        if reference.tag:
            entries = tuple(e for e in entries if reference.tag in _names(e))
            if not entries:
                raise _no_such_tag(reference, {name for e in index.manifests for name in _names(e)[:1]})
        elif not reference.digest:
            tags = {e.annotations.get(_REF_NAME, "") for e in entries}
            if len(tags) > 1:
                latest = tuple(e for e in entries if "latest" in _names(e))
                if not latest:
                    raise _ambiguous(reference, tags)
                entries = latest
        return entries[0] if len(entries) == 1 else Index(entries)

    def _read(self, descriptor: Descriptor, what: str) -> bytes:
        data = self._blobs.read(_blob_name(descriptor.digest), MAX_JSON)
        if data is None:
            raise InvalidImage(f"{what} is missing: {self.reference.path} has no blob {descriptor.digest}")
        return data

    def regions(self, selected: Selected) -> list[Region]:
        regions = []
        for number, (layer, diff_id) in enumerate(zip(selected.layers, selected.config.diff_ids, strict=True)):
            place = self._blobs.region(_blob_name(layer.digest))
            if place is None:
                raise InvalidImage(f"layer {number} ({layer.digest}) is missing from {self.reference.path}")
            if place[2] != layer.size:
                raise InvalidImage(
                    f"layer {number} ({layer.digest}) in {self.reference.path} has {place[2]} bytes where its "
                    f"descriptor says {layer.size}"
                )
            regions.append(Region(*place, digest=layer.digest, diff_id=diff_id))
        return regions


class DockerSource(FileSource):
    """`docker save`, old and new: manifest.json names configuration, tags and layer files."""

    def __init__(self, reference: FileReference, archive: Archive, index: list[Path]) -> None:
        super().__init__(reference, index)
        self._archive = archive

    def select(self, wanted: Platform) -> Selected:
        offered = []
        for entry in self._entries():
            name = entry["Config"]
            data = self._archive.read(name, MAX_JSON)
            if data is None:
                raise InvalidImage(f"{self.reference.path} has no {name[:200]!r}, which its manifest.json names")
            config = parse_config(data, f"{name[:200]} in {self.reference.path}")
            if len(config.diff_ids) != len(entry["Layers"]):
                raise InvalidImage(
                    f"{self.reference.path} has {len(entry['Layers'])} layers but the configuration lists "
                    f"{len(config.diff_ids)}"
                )
            platform = config.platform or wanted
            if not wanted.runs(platform):
                offered.append(platform)
                continue
            layers = []
            for number, layer in enumerate(entry["Layers"]):
                place = self._archive.find(layer)
                if place is None:
                    raise InvalidImage(f"layer {number} ({layer[:200]!r}) is missing from {self.reference.path}")
                layers.append(Descriptor("", "", place[1], annotations={"name": layer}))
            return Selected(digest_of(data), platform, config, data, tuple(layers))
        raise not_found(str(self.reference), wanted, offered)

    def regions(self, selected: Selected) -> list[Region]:
        regions = []
        for layer, diff_id in zip(selected.layers, selected.config.diff_ids, strict=True):
            place = self._archive.find(layer.annotations["name"])
            if place is None:  # select has seen it
                raise InvalidImage(f"a layer is missing from {self.reference.path}")
            regions.append(Region(self._archive.path, *place, digest=None, diff_id=diff_id))
        return regions

    def _entries(self) -> list[dict[str, Any]]:
        reference = self.reference
        what = f"manifest.json of {reference.path}"
        data = self._archive.read("manifest.json", MAX_JSON)
        if data is None:
            raise InvalidImage(f"{reference.path} has no manifest.json")
        try:
            entries = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InvalidImage(f"{what} is not JSON", cause=str(error)) from None
        if not isinstance(entries, list) or not 0 < len(entries) <= MAX_ENTRIES:
            raise InvalidImage(f"{what} is not an array of images")
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("Config"), str):
                raise InvalidImage(f"{what} has an entry without `Config`")
            layers, tags = entry.get("Layers"), entry.get("RepoTags") or []
            for name, value in (("Layers", layers), ("RepoTags", tags)):
                if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                    raise InvalidImage(f"`{name}` in {what} is not an array of strings")
            if layers is not None and len(layers) > MAX_LAYERS:
                raise ImageTooLarge(f"{what} lists {len(layers)} layers; {MAX_LAYERS} is the limit")
            entry["RepoTags"] = tags
        if reference.digest:
            raise UnsupportedMediaType(
                f"{reference.path} is of docker save, which has no manifest digests", hint="choose by name:tag"
            )
        if reference.tag:
            chosen = [e for e in entries if any(_same_name(reference.tag, tag) for tag in e["RepoTags"])]
            if not chosen:
                raise _no_such_tag(reference, {tag for e in entries for tag in e["RepoTags"]})
            return chosen
        names = {tuple(sorted(e["RepoTags"])) for e in entries}
        if len(names) > 1:
            raise _ambiguous(reference, {tag for e in entries for tag in e["RepoTags"]})
        return entries


def _blob_name(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    return f"blobs/{algorithm}/{value}"


def _names(entry: Descriptor) -> list[str]:
    names = [entry.annotations.get(key, "") for key in (_REF_NAME, _FULL_NAME)]
    return [name for name in names if name]


def _same_name(wanted: str, stored: str) -> bool:
    """Tags in these archives are written in full, without docker's default domain, or with it."""
    from .references import parse_registry_reference

    if wanted == stored:
        return True
    try:
        have = parse_registry_reference(stored).with_default_tag()
        if ":" not in wanted and "/" not in wanted and have.tag == wanted:
            return True
        return parse_registry_reference(wanted).with_default_tag() == have
    except InvalidReference:
        return False


def _no_such_tag(reference: FileReference, tags: set[str]) -> ImageNotFound:
    there_is = ", ".join(sorted(tags)[:40]) or "no name at all"
    return ImageNotFound(f"{reference.path} has no image {reference.tag!r}; it has {there_is}")


def _ambiguous(reference: FileReference, tags: set[str]) -> InvalidReference:
    names = ", ".join(sorted(filter(None, tags))[:40])
    return InvalidReference(
        f"{reference.path} holds several images: {names}", hint=f"choose one, as in {reference}:TAG"
    )
