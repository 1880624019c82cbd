"""From a snapshot's file to a registry. What is there already is not sent again, and of a second snapshot of an image
no page that one before had at the same place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .._core import VERSION
from ..cache.store import Cache
from ..errors import BadSnapshot, ImageNotFound, InvalidReference, SupermachineError
from ..host.warnings import warn
from ..images import Progress
from ..images.progress import Reporter
from ..oci import referrers
from ..oci.model import OCI_MANIFEST, SNAPSHOT_CONFIG, Descriptor
from ..oci.references import RegistryReference, parse_registry_reference
from ..oci.registry import Repository
from ..oci.transport import Transport
from ..oci.uploads import push_blob
from ..snapshots import working_set
from ..snapshots.records import Head, candidates, chain, look
from . import model, parts, trust
from .pull import opened
from .upload import Remembered, put_bytes


@dataclass(frozen=True)
class Pushed:
    """A snapshot in a registry."""

    #: By its digest, as it is pinned.
    reference: str
    digest: str
    #: Bytes that were sent for it and for what it builds on.
    sent: int
    #: Bytes of its own blobs, which its kernel is not.
    size: int
    #: The snapshot whose pages it shares.
    base: str | None
    #: Whether it is found from its image.
    linked: bool
    #: Variables of the environment that the snapshot holds.
    environment: tuple[str, ...]
    signer: str | None = None


def push(
    path: Path,
    reference: str,
    *,
    key: str | None = None,
    hot: Path | None = None,
    sign: str | None = None,
    insecure: bool = False,
    mount: str | None = None,
    progress: Progress | None = None,
    cache: Cache | None = None,
    keys: trust.Keys | None = None,
    transport: Transport | None = None,
) -> Pushed:
    """Pushes a snapshot, and before it what it builds on, and signs it with the key `sign`.

    What variables of the environment it holds is said before.

    Without a tag in `reference` it is found by its digest and from its image. `hot` is the file of its working set,
    otherwise the cache is asked; `key` is a baked snapshot's; `mount` a repository there that may have the blobs.
    """
    parsed = parse_registry_reference(reference)
    if parsed.digest is not None:
        raise InvalidReference(f"{reference} has a digest, which a push comes to by itself", hint="name a tag, or none")
    cache = cache or Cache()
    signer = None if sign is None else (keys or trust.Keys()).signer(sign)
    with opened(parsed, insecure, transport, push=True) as repository:
        pusher = _Pusher(repository, cache, Reporter(progress), mount)
        heads = chain(path)
        # Before anything of it is sent: there is no taking back.
        if environment := tuple(sorted({name for head in heads for name in head.record().environment})):
            names = ", ".join(environment)
            warn(f"the snapshot holds these variables, for all who can read {parsed.familiar}: {names}")
        base: model.Base | None = None
        for head in heads[:-1]:
            # What a registry says of an id is checked by who pulls, against the contents.
            there = pusher.there(head.record().digest).get(head.id)
            base = model.Base(there or pusher.one(head.path, None, None, None, base).digest, head.id)
        own = pusher.one(path, parsed.tag, key, hot, base)
        if signer is not None:
            signer.push(repository, own.digest, own.size)
    name = RegistryReference(parsed.domain, parsed.path, None, own.digest).familiar
    return Pushed(
        name,
        own.digest,
        pusher.sent,
        pusher.size,
        pusher.base,
        pusher.linked,
        environment,
        sign,
    )


class _Pusher:
    def __init__(self, repository: Repository, cache: Cache, report: Reporter, mount: str | None) -> None:
        self._repository = repository
        self._cache = cache
        self._report = report
        self._mount = mount
        self._sessions = Remembered(cache, repository.name)
        self.sent = 0
        self.size = 0
        self.base: str | None = None
        self.linked = False

    def one(
        self, path: Path, tag: str | None, key: str | None, hot: Path | None, parent: model.Base | None
    ) -> Descriptor:
        """Pushes one snapshot; gives its manifest's descriptor."""
        found = look(path)
        head = Head.of(path, found)
        record = head.record()
        assert found["v9"] is not None
        identity = found["v9"]["identity"]
        subject = self._subject(record.digest)
        ranges = working_set.load(hot or working_set.beside(self._cache, head.id))
        base, file = parent, None
        if head.parent is None and (shared := self._shared(head, record.digest, tag)) is not None:
            base, file = shared
        with self._cache.scratch() as place:
            packed = parts.pack(
                path,
                found,
                [(start, start + count) for start, count, _ in ranges],
                place,
                None if file is None else (file, look(file)["ram_offset"]),
                parts.KernelFile.of(identity["architecture"]),
                root if (root := self._cache.rootfs(record.rootfs)).is_file() else None,
            )
            if head.parent is None and not packed.shared:
                base = None
            config = model.Config(
                id=head.id,
                parent=head.parent,
                engine=head.engine,
                architecture=identity["architecture"],
                vcpus=head.vcpus,
                memory=head.memory,
                image=record.digest,
                release=VERSION,
                key=key,
                base=base,
                working_set=working_set.encode(ranges) if ranges else b"",
                table=packed.table,
                kernel=None if packed.kernel is None else packed.kernel.digest,
                root=model.Root(record.rootfs, packed.root) if packed.root else None,
            )
            inline = {}
            for number, layer in enumerate(packed.layers):
                with packed.open(number) as source:
                    if layer.size <= model.MAX_INLINE:
                        inline[layer.digest] = source.read()
                        source.seek(0)
                    self.sent += push_blob(
                        self._repository,
                        layer,
                        source,
                        f"the part {packed.files[number].name} of {path}",
                        mount=self._mount,
                        sessions=self._sessions,
                        progress=self._progress(layer),
                    )
        encoded = config.encode()
        if len(encoded) > model.MAX_CONFIG:
            raise BadSnapshot(f"the table of {path} has {len(encoded)} bytes, and {model.MAX_CONFIG} is the limit")
        own = model.descriptor(encoded, SNAPSHOT_CONFIG)
        self.sent += put_bytes(self._repository, own, encoded, f"the configuration of {path}")
        said = config.annotations()
        if len(encoded) <= model.MAX_INLINE_CONFIG:
            inline[own.digest] = encoded
        data = model.manifest(model.ARTIFACT_TYPE, own, packed.layers, subject, said, inline)
        trust.put_referrer(self._repository, data, model.ARTIFACT_TYPE, said, subject.digest if subject else None, tag)
        if head.parent is None and base is None:
            self._sessions.note(head.id, model.descriptor(data, OCI_MANIFEST).digest)
        own_layers = [layer for layer in packed.layers if layer.media_type != model.KERNEL_TYPE]
        self.size = own.size + sum(layer.size for layer in own_layers)
        self.base = base.manifest if base is not None else None
        self.linked = subject is not None
        return model.descriptor(data, OCI_MANIFEST)

    def _progress(self, layer: Descriptor) -> Callable[[int], None]:
        return lambda done: self._report("upload", layer.digest, done, layer.size)

    def _subject(self, image: str) -> Descriptor | None:
        """The image's manifest, where this repository has it: only then is its length known."""
        try:
            data, media_type, _ = self._repository.manifest(image)
        except ImageNotFound:
            return None
        return Descriptor(media_type or OCI_MANIFEST, image, len(data))

    def there(self, image: str, *, whole: bool = False) -> dict[str, str]:
        """The snapshots of an image in the repository: id to manifest; `whole`: those that build on no other."""
        known: dict[str, str] = {}
        for found in referrers.find(self._repository, image, model.ARTIFACT_TYPE):
            id_ = found.annotations.get(model.ID)
            if id_ is not None and not (whole and model.BASE in found.annotations):
                known.setdefault(id_, found.digest)
        return known

    def _shared(self, head: Head, image: str, tag: str | None) -> tuple[model.Base, Path] | None:
        """A whole snapshot that the repository has, of a like machine, whose file is at hand."""
        there = self.there(image, whole=True)
        if tag is not None:
            with contextlib.suppress(SupermachineError):
                data, _, digest = self._repository.manifest(tag)
                said = model.Manifest.decode(data, "what has the tag").annotations
                if model.BASE not in said and model.ID in said:
                    there.setdefault(said[model.ID], digest)
        for id_, digest in self._sessions.pushed().items():
            there.setdefault(id_, digest)
        if not there or head.id in there:
            return None
        for path in candidates(head.path.parent):
            with contextlib.suppress(OSError, SupermachineError):
                other = Head.read(path)
                like = (other.engine, other.memory, other.vcpus) == (head.engine, head.memory, head.vcpus)
                if other.parent is None and other.id in there and like:
                    self._repository.manifest(there[other.id])  # it may be gone
                    return model.Base(there[other.id], other.id), path
        return None
