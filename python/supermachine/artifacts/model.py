"""A snapshot's manifest and configuration in a registry, written and read.

The configuration is a JSON object: what the snapshot is of, the recorded working set, the table of frames
(``rust/snapshot/src/parts``), and the manifest of the snapshot that it builds on, if any. Whoever believes a manifest's
digest can believe all that it names, and nothing else is believed.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._core import sha256
from ..errors import BadSnapshot, InvalidImage
from ..oci.model import OCI_MANIFEST, SNAPSHOT_CONFIG, Descriptor, load_json
from ..oci.references import is_digest

ARTIFACT_TYPE = "application/vnd.supermachine.snapshot.v1+json"
SIGNATURE_TYPE = "application/vnd.supermachine.signature.v1"
#: Of a part's blob, by the part's name.
PART_TYPE = "application/vnd.supermachine.snapshot.{}.v1+zstd"
#: Of the file of the guest's kernel, as installations have it.
KERNEL_TYPE = "application/vnd.supermachine.kernel.v1"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"

ANNOTATION = "dev.supermachine."
ID, KEY, BASE, SIGNATURE = (ANNOTATION + name for name in ("snapshot", "baked-key", "base", "signature"))

#: Bytes of a configuration: the table of a guest with 64 GiB of incompressible RAM has 13 MiB.
MAX_CONFIG = 32 << 20
#: Bytes of a configuration, and of another blob, that a manifest has in itself as well, which saves asking for it.
#: Registries take manifests of 4 MiB.
MAX_INLINE_CONFIG, MAX_INLINE = 256 << 10, 16 << 10
#: Bytes of a kernel's file.
MAX_KERNEL = 64 << 20
_MAX_LAYERS = 16
#: Version 2 is that of snapshots whose frames are packed against a kernel, or whose pages are said to be blocks of the
#: root image, and has its bytes deflated (RFC 1950); others are written as version 1.
_VERSION = 2
_ID = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Base:
    """A snapshot in the same repository: the parent of a diff, or one whose pages a whole snapshot shares."""

    manifest: str
    id: str


@dataclass(frozen=True)
class Root:
    """The root image of a snapshot's guest, and which of its blocks the pages of these parts are."""

    #: As `Cache.rootfs` names it.
    image: str
    parts: Mapping[str, bytes]


@dataclass(frozen=True)
class Config:
    """What a snapshot says of itself, in addition to its file."""

    id: str
    #: The id of the snapshot that it is a diff to.
    parent: str | None
    engine: str
    architecture: str
    vcpus: int
    memory: int
    #: Of the image's manifest.
    image: str
    release: str
    #: What a baked snapshot is found by.
    key: str | None
    base: Base | None
    #: As `snapshots.working_set` encodes it.
    working_set: bytes
    table: bytes
    #: The digest of the file of the kernel that frames are packed against, if any are: a blob of the repository, which
    #: an installation with the same kernel does not fetch.
    kernel: str | None = None
    #: The root image whose blocks pages are, if any are.
    root: Root | None = None

    def encode(self) -> bytes:
        """The same bytes for the same snapshot."""
        plain = self.kernel is None and self.root is None
        body: dict[str, Any] = {
            "version": 1 if plain else _VERSION,
            "snapshot": {
                "id": self.id,
                "parent": self.parent,
                "engine": self.engine,
                "architecture": self.architecture,
                "vcpus": self.vcpus,
                "memory": self.memory,
                "image": self.image,
                "release": self.release,
            },
            "key": self.key,
            "base": None if self.base is None else {"manifest": self.base.manifest, "id": self.base.id},
        }
        if not plain:
            body["kernel"] = self.kernel
        if self.root is not None:
            parts = {name: _packed(said, plain) for name, said in self.root.parts.items()}
            body["root"] = {"image": self.root.image, "parts": parts}
        body["workingSet"], body["table"] = _packed(self.working_set, plain), _packed(self.table, plain)
        return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes, what: str) -> Config:
        """Raises BadSnapshot, which names `what`."""
        try:
            body = json.loads(data)
            if (version := body["version"]) not in range(1, _VERSION + 1):
                raise ValueError(f"it has version {version}, and this release reads versions up to {_VERSION}")
            said, base = body["snapshot"], body["base"]
            kernel, root = (body.get(name) if version > 1 else None for name in ("kernel", "root"))
            if version > 1 and kernel is None and root is None:
                raise ValueError("it has neither a kernel nor a root image, and is of version 2")
            return cls(
                id=_id(said["id"]),
                parent=None if said["parent"] is None else _id(said["parent"]),
                engine=_text(said["engine"]),
                architecture=_text(said["architecture"]),
                vcpus=_number(said["vcpus"]),
                memory=_number(said["memory"]),
                image=_digest(said["image"]),
                release=_text(said["release"]),
                key=None if body["key"] is None else _id(body["key"]),
                base=None if base is None else Base(_digest(base["manifest"]), _id(base["id"])),
                working_set=_bytes(body["workingSet"], version),
                table=_bytes(body["table"], version),
                kernel=None if kernel is None else _digest(kernel),
                root=None if root is None else _root(root, version),
            )
        except (
            *(ValueError, TypeError, KeyError, AttributeError, RecursionError),
            *(binascii.Error, zlib.error),
        ) as error:
            reason = str(error) if isinstance(error, ValueError) else "it is malformed"
            raise BadSnapshot(f"the configuration of {what} cannot be used: {reason}") from None

    def annotations(self) -> dict[str, str]:
        """What others see of it in lists."""
        said = {
            ID: self.id,
            ANNOTATION + "engine": self.engine,
            ANNOTATION + "architecture": self.architecture,
            ANNOTATION + "memory": str(self.memory),
            ANNOTATION + "vcpus": str(self.vcpus),
            ANNOTATION + "release": self.release,
        }
        if self.key is not None:
            said[KEY] = self.key
        if self.base is not None:
            said[BASE] = self.base.manifest
        return said


def manifest(
    artifact_type: str,
    config: Descriptor,
    layers: Sequence[Descriptor],
    subject: Descriptor | None,
    annotations: Mapping[str, str],
    inline: Mapping[str, bytes] | None = None,
) -> bytes:
    """A manifest, the same bytes for the same things. `inline` are blobs, by digest, that it is to have in itself."""
    held = inline or {}
    body: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": _entry(config, held.get(config.digest)),
        "layers": [_entry(layer, held.get(layer.digest)) for layer in layers],
        "annotations": dict(annotations),
    }
    if subject is not None:
        body["subject"] = _entry(subject)
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def descriptor(data: bytes, media_type: str) -> Descriptor:
    """Of bytes at hand."""
    return Descriptor(media_type, f"sha256:{sha256(data)}", len(data))


def _entry(found: Descriptor, data: bytes | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"mediaType": found.media_type, "digest": found.digest, "size": found.size}
    if data is not None:
        entry["data"] = base64.b64encode(data).decode()
    return entry


@dataclass(frozen=True)
class Manifest:
    """A snapshot's manifest."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]
    #: Blobs that it has in itself, by their digests.
    inline: Mapping[str, bytes]

    @classmethod
    def decode(cls, data: bytes, what: str) -> Manifest:
        """Raises BadSnapshot for what is no snapshot's."""
        try:
            body = load_json(data, what)
            config, layers = described(body["config"]), body["layers"]
            if config.media_type != SNAPSHOT_CONFIG or body.get("artifactType", ARTIFACT_TYPE) != ARTIFACT_TYPE:
                raise ValueError("it is no snapshot")
            if config.size > MAX_CONFIG:
                raise ValueError(f"its configuration has {config.size} bytes, and {MAX_CONFIG} is the limit")
            if not isinstance(layers, list) or not 0 < len(layers) <= _MAX_LAYERS:
                raise ValueError(f"it has no list of 1 to {_MAX_LAYERS} layers")
            texts = body.get("annotations") or {}
            inline = {}
            for entry in (body["config"], *layers):
                if entry.get("data") is not None:
                    blob = base64.b64decode(_ascii(entry["data"]), validate=True)
                    if (len(blob), f"sha256:{sha256(blob)}") != (entry["size"], entry["digest"]):
                        raise ValueError("it has a blob in itself that is another one than it says")
                    inline[str(entry["digest"])] = blob
            said = {k: v for k, v in texts.items() if isinstance(v, str)}
            return cls(config, tuple(map(described, layers)), said, inline)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = str(error) if isinstance(error, (ValueError, InvalidImage)) else "it is malformed"
            raise BadSnapshot(f"{what} cannot be used as a snapshot: {reason}") from None


def _ascii(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("a blob in it is no text")
    return value.encode("ascii")


def described(value: dict[str, Any]) -> Descriptor:
    """What an entry of a manifest says. Raises ValueError, and others for what is no entry."""
    size = _number(value["size"])
    return Descriptor(_text(value["mediaType"]), _digest(value["digest"]), size)


def _root(value: dict[str, Any], version: int) -> Root:
    parts = {_text(name): _bytes(said, version) for name, said in value["parts"].items()}
    return Root(_id(value["image"]), parts)


def _packed(data: bytes, plain: bool) -> str:
    return base64.b64encode(data if plain else zlib.compress(data, 9)).decode()


def _bytes(value: str, version: int) -> bytes:
    data = base64.b64decode(value, validate=True)
    if version == 1:
        return data
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(data, MAX_CONFIG)
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"what is packed in it is no whole, or more than {MAX_CONFIG} bytes")
    return data


def _id(value: object) -> str:
    text = _text(value)
    if not _ID.match(text):
        raise ValueError("an id is not 64 hexadecimal digits")
    return text


def _digest(value: object) -> str:
    if not is_digest(value):
        raise ValueError("a digest is malformed")
    return str(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 512 or not value.isprintable():
        raise ValueError("a text is missing, too long or not printable")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError("a number is missing or out of range")
    return value
