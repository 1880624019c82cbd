"""Manifests, indexes and configurations, read from bytes that nobody vouches for.

Sources: the OCI image specification 1.1 (manifest, image-index, config) and the Docker image manifest V2, schema 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from .._core import sha256
from ..errors import DigestMismatch, ImageTooLarge, InvalidImage, SnapshotReference, UnsupportedMediaType
from .platforms import Platform
from .references import is_digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
#: The configuration of a snapshot that is kept in a registry.
SNAPSHOT_CONFIG = "application/vnd.supermachine.snapshot.config.v1+json"
INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})

_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_OCI_FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
LAYERS = frozenset(
    {_OCI_LAYER, _OCI_FOREIGN, _DOCKER_LAYER, _DOCKER_FOREIGN}
    | {f"{base}{suffix}" for base in (_OCI_LAYER, _OCI_FOREIGN) for suffix in ("+gzip", "+zstd")}
    | {f"{base}{suffix}" for base in (_DOCKER_LAYER, _DOCKER_FOREIGN) for suffix in (".gzip", ".zstd")}
)

# The distribution specification asks registries to take manifests of up to 4 MiB and no more.
MAX_JSON = 4 << 20
MAX_ENTRIES = 4096
MAX_LAYERS = 1024

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Descriptor(NamedTuple):
    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = _NOTHING


class Index(NamedTuple):
    manifests: tuple[Descriptor, ...]


class Manifest(NamedTuple):
    config: Descriptor
    layers: tuple[Descriptor, ...]


class ImageConfig(NamedTuple):
    """What an image says about how to run it; empty where it says nothing."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: Mapping[str, str] = _NOTHING
    healthcheck: Mapping[str, Any] | None = None
    platform: Platform | None = None
    created: str = ""
    diff_ids: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """`env` as a dictionary; the last of equals wins, a name without ``=`` is empty."""
        return dict(item.partition("=")[::2] for item in self.env)


def digest_of(data: bytes, like: str = "sha256:") -> str:
    algorithm = like.partition(":")[0]
    if algorithm == "sha256":
        return f"{algorithm}:{sha256(data)}"
    import hashlib

    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def check_digest(data: bytes, expected: str, what: str) -> None:
    actual = digest_of(data, expected)
    if actual != expected:
        raise DigestMismatch(f"{what} has the digest {actual} where {expected} was expected")


def load_json(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object of at most 4 MiB."""
    import json

    if len(data) > MAX_JSON:
        raise ImageTooLarge(f"{what} has more than {MAX_JSON} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidImage(f"{what} is not JSON", cause=str(error) or type(error).__name__) from None
    if not isinstance(value, dict):
        raise InvalidImage(f"{what} is not a JSON object")
    return value


def parse_manifest(data: bytes, media_type: str | None, what: str) -> Index | Manifest:
    """Either kind, by `media_type`, the body's own ``mediaType``, or its members, as umoci writes neither."""
    body = load_json(data, what)
    inner = body.get("mediaType")
    known = INDEXES | MANIFESTS
    stated = media_type if media_type in known else None
    if isinstance(inner, str) and inner:
        if inner not in known:
            raise _unsupported(what, inner)
        if stated is not None and (stated in INDEXES) != (inner in INDEXES):
            raise InvalidImage(f"{what} was announced as {stated} but says that it is {inner}")
        stated = inner
    has_layers, has_manifests = "layers" in body, "manifests" in body
    if has_layers and has_manifests:
        # The OCI specification tells clients to refuse this: two readers would see two images.
        raise InvalidImage(f"{what} is a manifest and an index at once")
    if body.get("schemaVersion", 2) != 2:
        raise UnsupportedMediaType(
            f"{what} has the schema version {_shown(body['schemaVersion'])}; only 2 is supported",
            hint="push the image again with a current docker, podman or skopeo",
        )
    if stated is None:
        if not (has_layers or has_manifests):
            raise _unsupported(what, media_type or "no media type")
        stated = OCI_MANIFEST if has_layers else OCI_INDEX
    if stated in INDEXES:
        entries = _list(body, "manifests", what, MAX_ENTRIES)
        return Index(tuple(_descriptor(e, f"manifest {i} of {what}") for i, e in enumerate(entries)))
    layers = _list(body, "layers", what, MAX_LAYERS)
    config = _descriptor(body.get("config"), f"the configuration of {what}")
    if config.media_type == SNAPSHOT_CONFIG:
        raise SnapshotReference(f"{what} is that of a snapshot, which is no container image")
    if config.media_type not in CONFIGS:
        raise UnsupportedMediaType(
            f"{what} is not a container image: its configuration is {_shown(config.media_type)}",
            hint="other artefacts (charts, signatures, modules) live in registries too; name an image",
        )
    manifest = Manifest(config, tuple(_descriptor(e, f"layer {i} of {what}") for i, e in enumerate(layers)))
    for number, layer in enumerate(manifest.layers):
        if layer.media_type not in LAYERS:
            raise UnsupportedMediaType(
                f"layer {number} of {what} has the media type {_shown(layer.media_type)}; plain, gzip and zstd tar "
                "layers are supported",
                hint="encrypted layers have to be decrypted first" if "encrypted" in layer.media_type else None,
            )
    return manifest


def parse_config(data: bytes, what: str) -> ImageConfig:
    body = load_json(data, what)
    inner = body.get("config")
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise InvalidImage(f"`config` in {what} is not an object")
    rootfs = body.get("rootfs")
    if not isinstance(rootfs, dict):
        raise InvalidImage(f"{what} has no `rootfs` object")
    diff_ids = _strings(rootfs, "diff_ids", what, MAX_LAYERS)
    for diff_id in diff_ids:
        if not is_digest(diff_id):
            raise InvalidImage(f"{what} has the malformed diff id {_shown(diff_id)}")
    healthcheck = inner.get("Healthcheck")
    return ImageConfig(
        entrypoint=_strings(inner, "Entrypoint", what),
        cmd=_strings(inner, "Cmd", what),
        env=_strings(inner, "Env", what),
        working_dir=_string(inner, "WorkingDir", what),
        user=_string(inner, "User", what),
        exposed_ports=tuple(_mapping(inner, "ExposedPorts", what)),
        volumes=tuple(_mapping(inner, "Volumes", what)),
        stop_signal=_string(inner, "StopSignal", what),
        labels={k: v for k, v in _mapping(inner, "Labels", what).items() if isinstance(v, str)},
        healthcheck=healthcheck if isinstance(healthcheck, dict) else None,
        platform=_platform(body, what),
        created=_string(body, "created", what),
        diff_ids=diff_ids,
    )


def _descriptor(value: object, what: str) -> Descriptor:
    if not isinstance(value, dict):
        raise InvalidImage(f"the descriptor of {what} is not an object")
    digest, size = value.get("digest"), value.get("size")
    media_type = value.get("mediaType", "")
    if not is_digest(digest):
        raise InvalidImage(f"the descriptor of {what} has the digest {_shown(digest)}; sha256 or sha512 is needed")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 62:
        raise InvalidImage(f"the descriptor of {what} has the size {_shown(size)}")
    if not isinstance(media_type, str):
        raise InvalidImage(f"the descriptor of {what} has a media type that is not a string")
    platform = value.get("platform")
    annotations = value.get("annotations")
    return Descriptor(
        media_type=media_type,
        digest=str(digest),
        size=size,
        platform=_platform(platform, what) if isinstance(platform, dict) else None,
        annotations={k: v for k, v in annotations.items() if isinstance(v, str)}
        if isinstance(annotations, dict)
        else {},
    )


def _platform(value: dict[str, Any], what: str) -> Platform | None:
    system, architecture, variant = value.get("os") or "linux", value.get("architecture"), value.get("variant") or ""
    if not architecture:
        return None
    for text in (system, architecture, variant):
        if not isinstance(text, str) or len(text) > 64 or not text.isprintable():
            raise InvalidImage(f"the platform of {what} is malformed")
    return Platform.normalised(str(system), str(architecture), variant)


def _list(body: Mapping[str, Any], key: str, what: str, limit: int) -> list[Any]:
    value = body.get(key)
    if value is None:
        raise InvalidImage(f"{what} has no `{key}`")
    if not isinstance(value, list):
        raise InvalidImage(f"`{key}` in {what} is not an array")
    if len(value) > limit:
        raise ImageTooLarge(f"{what} has {len(value)} {key}; {limit} is the limit")
    return value


def _strings(body: Mapping[str, Any], key: str, what: str, limit: int | None = None) -> tuple[str, ...]:
    value = body.get(key)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) and "\0" not in item for item in value):
        raise InvalidImage(f"`{key}` in {what} is not an array of strings")
    if limit is not None and len(value) > limit:
        raise ImageTooLarge(f"{what} has {len(value)} {key}; {limit} is the limit")
    return tuple(value)


def _string(body: Mapping[str, Any], key: str, what: str) -> str:
    value = body.get(key)
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value:
        raise InvalidImage(f"`{key}` in {what} is not a string")
    return value


def _mapping(body: Mapping[str, Any], key: str, what: str) -> dict[str, Any]:
    value = body.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidImage(f"`{key}` in {what} is not an object")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:120] + "…"


def _unsupported(what: str, media_type: str) -> UnsupportedMediaType:
    return UnsupportedMediaType(
        f"{what} has the media type {_shown(media_type)}, which is neither a manifest nor an index"
    )
