"""What a snapshot says for this interface: the image, and how a virtual machine of it was configured.

It is the snapshot's section ``api``: a JSON object whose ``version`` is 1. A snapshot may come from anywhere, so
nothing in it is believed before it is checked.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadSnapshot, ConfigurationError, ImageNotFound, InvalidImage, SnapshotNotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._core import _Snapshot
    from ..images import ImageConfig, Progress, ResolvedImage
    from ..images.resolution import Pull
    from ..network.policy import Network
    from ..network.ports import Wanted
    from ..settings.machine import MachineSettings

VERSION = 1
_MAX_BYTES = 4 << 20
#: Diffs that may follow a whole snapshot.
_MAX_CHAIN = 64
#: Files that are looked at for a parent that is not where it is said to be.
_MAX_LOOKED_AT = 256
#: Ports of the host that are listened on again at most: who wrote the file may be anybody.
_MAX_PORTS = 256
_MAX_DIRECTORIES = 64
#: Rules of its network at most.
_MAX_RULES = 4096
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MARK = re.compile(r"[0-9a-f]{32}\Z")
_KEY = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Record:
    """A virtual machine's settings, as far as its guest does not hold them itself."""

    reference: str
    digest: str
    platform: str
    #: Which root file system of the cache is the guest's /dev/vda.
    rootfs: str
    config: ImageConfig
    environment: dict[str, str]
    working_dir: str | None
    user: str | None
    #: As `VM(ports=...)` takes them, each with the ports of the host that they had.
    ports: dict[str, list[tuple[str, int]]]
    #: The files that a diff builds on, the whole one first: id and path.
    parents: list[tuple[str, str]]
    #: What it might reach; ``None`` where that is not said.
    network: Network | None = None
    #: Volumes that were mounted: name, place in the guest, slot, and what each was known by.
    volumes: tuple[tuple[str, str, int, str], ...] = ()
    #: Those that are directories: name, place in the guest, and whether it only reads it.
    directories: tuple[tuple[str, str, bool], ...] = ()

    @classmethod
    def of(
        cls,
        image: ResolvedImage,
        settings: MachineSettings,
        *,
        ports: Wanted | None = None,
        parents: Sequence[Head] = (),
        bare: bool = False,
        mark: bytes = b"",
    ) -> Record:
        """What a snapshot says of a machine; a `bare` one is without what only this machine was given."""
        return cls(
            reference=image.reference,
            digest=image.digest,
            platform=str(image.platform),
            rootfs=image.rootfs.stem,
            config=image.config,
            environment={} if bare else settings.environment,
            working_dir=None if bare else settings.working_dir,
            user=None if bare else settings.user,
            ports={} if bare else ports or settings.ports,
            parents=[(head.id, str(head.path)) for head in parents],
            network=None if bare else settings.network,
            volumes=() if bare else tuple((v.name, v.target, v.slot, mark.hex()) for v in settings.volumes),
            directories=() if bare else tuple((s.volume, s.target, s.read_only) for s in settings.shares if s.volume),
        )

    def encode(self) -> bytes:
        import json

        config = self.config
        return json.dumps(
            {
                "version": VERSION,
                "image": {
                    "reference": self.reference,
                    "digest": self.digest,
                    "platform": self.platform,
                    "rootfs": self.rootfs,
                    # As in an image, so that the same code reads it.
                    "config": {
                        "config": {
                            "Entrypoint": config.entrypoint,
                            "Cmd": config.cmd,
                            "Env": config.env,
                            "WorkingDir": config.working_dir,
                            "User": config.user,
                            "ExposedPorts": {port: {} for port in config.exposed_ports},
                            "Volumes": {volume: {} for volume in config.volumes},
                            "StopSignal": config.stop_signal,
                            "Labels": dict(config.labels),
                            **({"Healthcheck": dict(config.healthcheck)} if config.healthcheck is not None else {}),
                        },
                        "rootfs": {"type": "layers", "diff_ids": config.diff_ids},
                    },
                },
                "environment": self.environment,
                "working_dir": self.working_dir,
                "user": self.user,
                "ports": self.ports,
                "parents": self.parents,
                "network": None if self.network is None else self.network.record(),
                "volumes": self.volumes,
                "directories": self.directories,
            }
        ).encode()

    @classmethod
    def decode(cls, data: bytes, what: str) -> Record:
        """Raises BadSnapshot, which names `what`, for anything that `encode` would not have written."""
        import json

        from ..oci.model import parse_config
        from ..oci.platforms import Platform
        from ..oci.references import is_digest
        from ..settings import parsing

        if not data:
            raise BadSnapshot(f"{what} does not say which image it is of: it was not written by this interface")
        try:
            if len(data) > _MAX_BYTES:
                raise ValueError("it is too long")
            body = json.loads(data)
            if body["version"] != VERSION:
                raise ValueError(f"it has version {body['version']}, and this release reads version {VERSION}")
            image = body["image"]
            reference, digest, rootfs = (_text(image[name]) for name in ("reference", "digest", "rootfs"))
            if not is_digest(digest) or not _KEY.match(rootfs):
                raise ValueError("it names its image by something that is no digest")
            return cls(
                reference=reference,
                digest=digest,
                platform=str(Platform.parse(_text(image["platform"]))),
                rootfs=rootfs,
                config=parse_config(json.dumps(image["config"]).encode(), "its image's configuration"),
                environment=parsing.environment({_text(k): _text(v) for k, v in body["environment"].items()}),
                working_dir=_optional(body["working_dir"]),
                user=_optional(body["user"]),
                ports=_ports(body["ports"]),
                parents=[(_text(id_), _text(path)) for id_, path in body["parents"]][:_MAX_CHAIN],
                network=_network(body.get("network")),
                volumes=_volumes(body.get("volumes", [])),
                directories=_directories(body.get("directories", [])),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = str(error) if isinstance(error, (ConfigurationError, InvalidImage, ValueError)) else "malformed"
            raise BadSnapshot(f"what {what} says of its virtual machine cannot be used: {reason}") from None

    def image(
        self, what: str, *, pull: Pull = "never", insecure: bool = False, progress: Progress | None = None
    ) -> ResolvedImage:
        """The image, whose root file system must be the very one that the guest had."""
        from ..images import Cache, ResolvedImage, resolve
        from ..oci.platforms import Platform
        from ..oci.references import FileReference, parse_reference

        rootfs = Cache().rootfs(self.rootfs)
        if not rootfs.is_file():
            parsed = parse_reference(self.reference)
            exact = self.reference
            if not isinstance(parsed, FileReference):
                exact = f"{parsed.familiar.partition('@')[0]}@{self.digest}"
            missing = ImageNotFound(
                f"{what} is of the image {self.reference} ({self.digest}), which is not in the cache",
                hint=f"get it with `supermachine pull {exact}`",
            )
            if pull == "never":
                raise missing
            found = resolve(exact, platform=self.platform, pull=pull, insecure=insecure, progress=progress)
            if found.rootfs.stem != self.rootfs:
                raise BadSnapshot(
                    f"{what} needs the image {self.reference} ({self.digest}) as another release converted it, "
                    f"and this one gives {found.digest}",
                    hint="take the snapshot anew with this release",
                )
        return ResolvedImage(
            self.reference, self.digest, Platform.parse(self.platform), self.config, rootfs, rootfs.stat().st_size
        )


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("a text is missing")
    return value


def _optional(value: object) -> str | None:
    return None if value is None else _text(value)


def _ports(value: dict[str, list[tuple[str, int]]]) -> dict[str, list[tuple[str, int]]]:
    """Ports of this host that were published; on loopback, whatever is said: who restores it may say otherwise."""
    ports: dict[str, list[tuple[str, int]]] = {}
    for name, places in value.items():
        found = [(host if _text(host) in _LOOPBACK else _LOOPBACK[0], _port(port)) for host, port in places]
        ports[_text(name)] = list(dict.fromkeys(found))
    if sum(map(len, ports.values())) > _MAX_PORTS:
        raise ValueError(f"it had more than {_MAX_PORTS} ports published")
    return ports


def _network(value: list[Any] | None) -> Network | None:
    if value is None:
        return None
    from ..network.policy import Network

    preset, allow, deny = value
    if len(allow) + len(deny) > _MAX_RULES:
        raise ValueError(f"its network has more than {_MAX_RULES} rules")
    return Network(_text(preset), allow=[_text(rule) for rule in allow], deny=[_text(rule) for rule in deny])


def _volumes(value: Sequence[tuple[str, str, int, str]]) -> tuple[tuple[str, str, int, str], ...]:
    from ..storage.volumes import SLOTS, check_name

    found = []
    for name, target, slot, mark in value:
        if slot not in SLOTS or not _text(target).startswith("/") or not _MARK.match(_text(mark)):
            raise ValueError("a volume is none")
        found.append((check_name(_text(name)), target, slot, mark))
    if len({slot for _, _, slot, _ in found}) < len(found):
        raise ValueError("two volumes are in one slot")
    return tuple(found)


def _directories(value: Sequence[tuple[str, str, bool]]) -> tuple[tuple[str, str, bool], ...]:
    from ..storage.volumes import check_name

    found = tuple((check_name(_text(name)), _text(target), read_only is True) for name, target, read_only in value)
    if not all(target.startswith("/") for _, target, _ in found) or len(found) > _MAX_DIRECTORIES:
        raise ValueError("a volume is none")
    return found


def _port(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= 65535:
        raise ValueError("a port is no port")
    return value


@dataclass(frozen=True)
class Head:
    """A snapshot without its RAM."""

    path: Path
    id: str
    parent: str | None
    engine: str
    memory: int
    #: Bytes of the root's disk; 0 when it has none.
    disk: int
    vcpus: int
    api: bytes

    @classmethod
    def read(cls, path: Path) -> Head:
        """Raises SnapshotNotFound or BadSnapshot."""
        return cls.of(path, look(path))

    @classmethod
    def of(cls, path: Path, found: _Snapshot) -> Head:
        """Of what `look` found there. Raises BadSnapshot for version 8."""
        if (state := found["v9"]) is None:
            raise BadSnapshot(f"{path} is a snapshot of version 8, which does not say which image it is of")
        identity = state["identity"]
        api = next((data for kind, _, _, _, data in state["sections"] if kind == "api"), b"")
        return cls(
            path=path,
            id=state["id"],
            parent=identity["parent"],
            engine=identity["engine"],
            memory=identity["memory_bytes"],
            disk=found["disk"][0] if found["disk"] is not None else 0,
            vcpus=identity["vcpus"],
            api=api,
        )

    def record(self) -> Record:
        return Record.decode(self.api, str(self.path))


def look(path: Path) -> _Snapshot:
    """What is in a snapshot file but for RAM. Raises SnapshotNotFound or BadSnapshot."""
    from .._core import read_snapshot

    try:
        # A pipe or a device would keep whoever opens it waiting.
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadSnapshot(f"{path} is not a file, so it is no snapshot")
    except FileNotFoundError as error:
        raise SnapshotNotFound(f"the snapshot {path} does not exist") from error
    found = read_snapshot(str(path))
    if found["export"]:
        raise BadSnapshot(
            f"{path} is an exported snapshot, which must be unpacked first",
            hint=f"supermachine snapshot import {path} SNAPSHOT",
        )
    return found


def chain(path: Path, found: _Snapshot | None = None) -> list[Head]:
    """The snapshot `path` and before it those that it builds on, the whole one first.

    A parent is known by its id. It is looked for where it was when the diff was taken, then beside the diff, then among
    the baked snapshots of the cache.
    """
    heads = [Head.of(path, found or look(path))]
    while (wanted := heads[0].parent) is not None:
        if len(heads) > _MAX_CHAIN or wanted in {head.id for head in heads}:
            raise BadSnapshot(f"{path} builds on more than {_MAX_CHAIN} other snapshots")
        heads.insert(0, _find(wanted, heads[0]))
    return heads


def _find(wanted: str, child: Head) -> Head:
    try:
        hints = [Path(place) for id_, place in child.record().parents if id_ == wanted]
    except BadSnapshot:
        hints = []
    seen: set[Path] = set()
    for candidate in candidates(child.path.parent, hints):
        if candidate in seen:
            continue
        seen.add(candidate)
        try:
            head = Head.read(candidate)
        except (BadSnapshot, OSError):
            continue
        if head.id == wanted:
            return head
    raise SnapshotNotFound(
        f"{child.path} holds only what changed since the snapshot {wanted}, which is not there",
        cause=f"it was at {hints[0]}" if hints else None,
        hint="put that file beside it",
    )


def candidates(beside: Path, hints: Sequence[Path] = ()) -> list[Path]:
    """Files that may be what a snapshot in the directory `beside` builds on; the likely ones first."""
    from ..images import Cache

    def files(place: Path, pattern: str) -> list[Path]:
        try:
            return sorted(place.glob(pattern))[:_MAX_LOOKED_AT]
        except OSError:
            return []

    near = [beside / hint.name for hint in hints]
    baked = files(Cache().directory / "snapshots", "*/snapshot")
    return [*near, *(hint for hint in hints if os.path.isabs(hint)), *files(beside, "*"), *baked]  # noqa: PTH117
