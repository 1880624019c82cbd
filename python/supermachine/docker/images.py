"""Images as Docker has them: of the cache, of archives that were loaded, and names given in this session."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache.store import Cache
from ..errors import ImageNotFound, InvalidReference, SupermachineError
from ..images.resolution import ResolvedImage, resolve
from ..oci.archive import Archive, compression_of, decompress
from ..oci.model import MAX_JSON, ImageConfig, parse_config
from ..oci.platforms import Platform
from ..oci.references import DEFAULT_TAG, RegistryReference, is_digest, parse_registry_reference
from ..oci.transport import Transport
from .errors import BadRequest, Conflict, NotFound
from .filters import Filters
from .logins import Login
from .logs import timestamp
from .pulling import PACE, News, encoded, told

if TYPE_CHECKING:
    from .session import Session

#: An image that is no image: this process answers for it. A name ends so, whatever registry is before it.
REAPER = "testcontainers/ryuk"
#: Names given in a session.
MAX_NAMES = 10_000
#: Images in one archive.
_MAX_LOADED = 1000


@dataclass
class Image:
    """An image that can be started; one that is built in has no `resolved`."""

    id: str
    names: list[str]
    digests: list[str]
    created: str
    size: int
    architecture: str
    config: dict[str, Any]
    diff_ids: list[str]
    #: What has made it, the oldest first, as the image's configuration tells (OCI image specification, config.md).
    history: list[dict[str, Any]]
    said: ImageConfig
    resolved: ResolvedImage | None

    @property
    def labels(self) -> Mapping[str, str]:
        return self.said.labels

    def document(self) -> dict[str, Any]:
        """``docker image inspect``"""
        return {
            "Id": self.id,
            "RepoTags": self.names,
            "RepoDigests": self.digests,
            "Parent": "",
            "Comment": "",
            "Created": self.created,
            "DockerVersion": "",
            "Author": "",
            "Config": self.config,
            "Architecture": self.architecture,
            "Os": "linux",
            "Size": self.size,
            "VirtualSize": self.size,
            "GraphDriver": {"Name": "erofs", "Data": {}},
            "RootFS": {"Type": "layers", "Layers": self.diff_ids},
            "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
        }

    def steps(self) -> list[dict[str, Any]]:
        """``docker history``: the newest first. What each layer takes is not kept: the first one says what all do."""
        steps = self.history or [{"created": self.created}]
        first = next((n for n, step in enumerate(steps) if step.get("empty_layer") is not True), 0)
        lines: list[dict[str, Any]] = [
            {
                "Id": "<missing>",
                "Created": _unix(_text(step, "created")),
                "CreatedBy": _text(step, "created_by"),
                "Tags": None,
                "Size": self.size if number == first else 0,
                "Comment": _text(step, "comment"),
            }
            for number, step in enumerate(steps)
        ]
        lines[-1].update(Id=self.id, Tags=self.names)
        return lines[::-1]

    def line(self) -> dict[str, Any]:
        """``docker images``"""
        return {
            "Id": self.id,
            "ParentId": "",
            "RepoTags": self.names,
            "RepoDigests": self.digests,
            "Created": _unix(self.created),
            "Size": self.size,
            "VirtualSize": self.size,
            "SharedSize": -1,
            "Labels": dict(self.labels),
            "Containers": -1,
        }


class Images:
    """Names in this session go before those in the cache. What is loaded is in the cache, and its names are not."""

    def __init__(self, session: Session, sources: Mapping[str, str]) -> None:
        """`sources` are images by a name of their own: references, or paths of layouts and archives."""
        self._session = session
        self._named: dict[str, ResolvedImage] = {}
        self._sources = {str(reference(name)): source for name, source in sources.items()}

    # Finding.

    async def find(self, name: str, platform: str | None = None) -> Image:
        """The image of a name, an id or the beginning of one. Raises NotFound as docker does."""
        if is_reaper(name):
            return _reaper(name)
        return await self._session.call(self._find, name, platform)

    def _find(self, name: str, platform: str | None) -> Image:
        digits = name.removeprefix("sha256:")
        try:
            parsed = None if is_digest(name) else reference(name)
        except InvalidReference as error:
            if not _is_hexadecimal(digits):
                raise BadRequest(f"invalid reference format: {error}") from None
            parsed = None
        if parsed is not None and (resolved := self._by_name(parsed, platform)) is not None:
            return self.image_of(resolved)
        if _is_hexadecimal(digits) and len(digits) >= 4:
            found = {image.id: image for image in self._all() if image.id[7:].startswith(digits)}
            if len(found) > 1:
                raise BadRequest(f"{name[:80]} is the beginning of several images' ids")
            if found:
                return next(iter(found.values()))
        raise NotFound(f"No such image: {name[:300]}")

    def _by_name(self, name: RegistryReference, platform: str | None) -> ResolvedImage | None:
        wanted = platform or self._session.platform
        resolved = self._named.get(str(name))
        if resolved is None and (source := self._sources.get(str(name))) is not None:
            resolved = resolve(source, platform=wanted)
            self._named[str(name)] = resolved
        if resolved is not None:
            if platform and str(resolved.platform) != str(Platform.parse(platform)):
                return None
            return resolved
        try:
            return resolve(str(name), platform=wanted, pull="never")
        except ImageNotFound:
            return None

    def pulled(self, name: str, platform: str, *, always: bool = False) -> Image:
        """The image of a name, asked for at its registry where it is not here. Blocks."""
        if not always:
            with contextlib.suppress(NotFound):
                image = self._find(name, platform)
                image.resolved = image.resolved or self.resolved_by_id(image.id)
                return image
        return self.image_of(resolve(str(reference(name)), platform=platform, pull="always"))

    def image_of(self, resolved: ResolvedImage) -> Image:
        """Of what is in the cache. Blocks."""
        record = Cache().image_record(resolved.digest, str(resolved.platform)) or {}
        image = _of_record(record, resolved.digest, str(resolved.platform), resolved)
        for same in self._all():
            if same.id == image.id:
                image.names, image.digests = same.names, same.digests
        return image

    def _shown(self, own: list[str], cached: list[str], digest: str) -> tuple[list[str], list[str]]:
        """Names and digests as docker shows them."""
        names, digests = set(), set()
        for text in [*own, *(c for c in cached if c not in self._named)]:
            try:
                parsed = parse_registry_reference(text)
            except InvalidReference:
                continue  # a layout's or an archive's
            if parsed.tag:
                names.add(parsed.familiar if parsed.digest is None else parsed._replace(digest=None).familiar)
            if text not in own:
                digests.add(RegistryReference(parsed.domain, parsed.path, None, digest).familiar)
        return sorted(names), sorted(digests)

    def _all(self) -> list[Image]:
        """One for each id, the last used first. Several manifests may be of one, as compressions differ."""
        found: dict[str, Image] = {}
        own: dict[tuple[str, str], list[str]] = {}
        for name, resolved in list(self._named.items()):
            own.setdefault((resolved.digest, str(resolved.platform)), []).append(name)
        cache = Cache()
        for cached in cache.images():
            key = (cached.digest, cached.platform)
            record = cache.image_record(*key)
            if record is None:
                continue
            with contextlib.suppress(SupermachineError, ValueError):
                image = _of_record(record, cached.digest, cached.platform, None)
                image.size = cached.size
                names, digests = self._shown(own.get(key, []), list(cached.references), cached.digest)
                image = found.setdefault(image.id, image)
                image.names = sorted({*image.names, *names})
                image.digests = sorted({*image.digests, *digests})
        return list(found.values())

    async def all(self) -> list[Image]:
        return await self._session.call(self._all)

    async def matching(self, filters: Filters) -> list[Image]:
        """Images that match. Those that only a file of this host is a name of are shown when asked for as dangling."""
        wanted = [reference(text) for text in filters.values("reference") if not _is_pattern(text)]
        patterns = [text for text in filters.values("reference") if _is_pattern(text)]

        def shown(name: str) -> bool:
            own = reference(name)
            exact = any(own.name == w.name and (own.tag == w.tag or not _has_tag(filters, w)) for w in wanted)
            return exact or any(_matches(name, pattern) for pattern in patterns)

        images = await self.all()
        if wanted or patterns:
            # Of an image with several names those that were asked for.
            images = [replace(image, names=names) for image in images if (names := [*filter(shown, image.names)])]
        dangling = filters.flag("dangling")
        return [
            image
            for image in images
            if (image.names or image.digests or dangling)
            and filters.labels(image.labels)
            and (dangling is None or dangling == (not image.names and not image.digests))
        ]

    # Changing.

    async def tag(self, name: str, repository: str, tag: str) -> None:
        image = await self.find(name)
        if image.resolved is None:
            found = await self._session.call(self.resolved_by_id, image.id)
        else:
            found = image.resolved
        try:
            target = parse_registry_reference(f"{repository}:{tag or DEFAULT_TAG}")
        except InvalidReference as error:
            raise BadRequest(f"invalid reference format: {error}") from None
        self.name(target, found)

    def name(self, target: RegistryReference, found: ResolvedImage) -> None:
        """Gives an image a name of this session; for the event loop's thread. Raises Conflict."""
        if len(self._named) >= MAX_NAMES:
            raise Conflict(f"this session has {MAX_NAMES} names of images, which is the most it keeps")
        self._named[str(target)] = found
        self._session.events.publish("image", "tag", found.digest, {"name": target.familiar})

    def resolved_by_id(self, image_id: str) -> ResolvedImage:
        for resolved in list(self._named.values()):
            if self.image_of(resolved).id == image_id:
                return resolved
        for cached in Cache().images():
            record = Cache().image_record(cached.digest, cached.platform)
            if record is not None and _id(record) == image_id:
                return ResolvedImage(
                    cached.digest,
                    cached.digest,
                    Platform.parse(cached.platform),
                    _said(record),
                    cached.rootfs,
                    cached.size,
                )
        raise NotFound(f"No such image: {image_id}")

    async def usable(self, name: str, platform: str | None) -> Image:
        """An image that a container can be made of."""
        image = await self.find(name, platform)
        if image.resolved is None and not is_reaper(name):
            image.resolved = await self._session.call(self.resolved_by_id, image.id)
        return image

    async def remove(self, name: str, force: bool) -> list[dict[str, str]]:
        """Forgets a name; the cache's, too, where it is of a registry."""
        image = await self.find(name)
        users = [c for c in self._session.containers.all() if c.image.id == image.id]
        if users and not force:
            raise Conflict(
                f"conflict: unable to remove repository reference {name!r} (must force) - container "
                f"{users[0].id[:12]} is using its referenced image {image.id[7:19]}"
            )
        by_id = _is_hexadecimal(name.removeprefix("sha256:")) and image.id[7:].startswith(name.removeprefix("sha256:"))
        names = image.names if by_id else [reference(name).familiar]
        if by_id and len(names) > 1 and not force:
            raise Conflict(f"conflict: unable to delete {name[:80]} (must be forced) - image has several names")

        def forget() -> list[dict[str, str]]:
            said = []
            for text in names:
                full = str(reference(text))
                self._named.pop(full, None)
                self._sources.pop(full, None)
                Cache().remove(full)
                said.append({"Untagged": text})
            return said

        said = await self._session.call(forget)
        for line in said:
            self._session.events.publish("image", "untag", image.id, {"name": line["Untagged"]})
        if set(names) >= set(image.names):
            said.append({"Deleted": image.id})
            self._session.events.publish("image", "delete", image.id, {"name": image.id})
        return said

    async def load(self, path: Path) -> list[str]:
        """Takes the images of a ``docker save`` or an OCI archive up; gives their names as docker shows them."""
        return await self._session.call(self._load, path)

    def _load(self, path: Path) -> list[str]:
        plain = path
        if (compression := compression_of(path)) is not None:
            plain = path.with_suffix(".plain")
            decompress(path, compression, plain, self._session.max_upload)
        try:
            loaded = [(name, resolve(source, platform=self._session.platform)) for name, source in _contents(plain)]
        finally:
            if plain is not path:
                plain.unlink(missing_ok=True)
        shown = []
        for name, resolved in loaded:
            if name is not None:
                self._session.loop.call_soon_threadsafe(self.name, name, resolved)
                shown.append(f"Loaded image: {name.familiar}")
            else:
                shown.append(f"Loaded image ID: {self.image_of(resolved).id}")
        return shown

    # Pulling.

    async def pull(
        self, name: RegistryReference, platform: str | None, login: Login | None = None
    ) -> AsyncIterator[bytes]:
        """Lines of JSON that tell of a pull. Raises ApiError when it fails before there is anything to tell.

        A `login` is for the image's own registry, and no mirror of it.
        """
        if is_reaper(name.familiar) or str(name) in self._sources:
            await self.find(name.familiar, platform)
            return told([{"status": f"Status: Image is up to date for {name.familiar}"}])
        news = News()
        wanted = platform or self._session.platform

        def work() -> ResolvedImage:
            given = {login.domain or name.domain: login.credentials} if login is not None else None
            transport = Transport(credentials=given)
            try:
                return resolve(str(name), platform=wanted, pull="always", progress=news.tell, transport=transport)
            finally:
                transport.close()

        task = asyncio.ensure_future(self._session.call(work))

        def ended(done: asyncio.Future[ResolvedImage]) -> None:
            if not done.cancelled():
                done.exception()  # a client that goes does not ask how it ended
            news.wake()

        task.add_done_callback(ended)
        await news.first()
        if task.done() and (error := task.exception()) is not None:
            if isinstance(error, ImageNotFound):
                raise NotFound(
                    f"pull access denied for {name.familiar}, repository does not exist or may require 'docker login': "
                    f"{error}"
                )
            raise error
        return self._pulled(name, task, news)

    async def _pulled(
        self, name: RegistryReference, task: asyncio.Future[ResolvedImage], news: News
    ) -> AsyncIterator[bytes]:
        yield encoded({"status": f"Pulling from {name.path}", "id": name.tag or name.digest or ""})
        while not task.done():
            for line in news.take():
                yield encoded(line)
            await asyncio.wait([task], timeout=PACE)
        try:
            found = task.result()
        except (SupermachineError, OSError) as error:
            yield encoded({"errorDetail": {"message": str(error)}, "error": str(error)})
            return
        for line in news.take():
            yield encoded(line)
        # What the name stood for in this session is replaced, as docker's pull does.
        self._named.pop(str(name), None)
        yield encoded({"status": f"Digest: {found.digest}"})
        what = "Downloaded newer image" if news.downloaded else "Image is up to date"
        yield encoded({"status": f"Status: {what} for {name.familiar}"})
        self._session.events.publish("image", "pull", name.familiar, {"name": name.familiar})


def reference(text: str) -> RegistryReference:
    """A name as docker reads it: never a path of this host."""
    return parse_registry_reference(text).with_default_tag()


def is_reaper(name: str) -> bool:
    path = name.partition("@")[0].rpartition(":")[0] or name
    return path == REAPER or path.endswith("/" + REAPER)


def _reaper(name: str) -> Image:
    return Image(
        "sha256:" + hashlib.sha256(REAPER.encode()).hexdigest(),
        [name],
        [],
        "1970-01-01T00:00:00Z",
        0,
        "arm64",
        {"Cmd": ["/bin/ryuk"], "ExposedPorts": {"8080/tcp": {}}},
        [],
        [],
        ImageConfig(cmd=("/bin/ryuk",), exposed_ports=("8080/tcp",)),
        None,
    )


def _contents(path: Path) -> list[tuple[RegistryReference | None, str]]:
    """What is in an archive: names, and sources that `resolve` takes."""
    found: list[tuple[RegistryReference | None, str]] = []
    archive = Archive(path)
    if archive.find("manifest.json") is not None:
        entries = _json(archive, "manifest.json")
        if not isinstance(entries, list):
            raise BadRequest("manifest.json of the archive is no list")
        for entry in entries[:_MAX_LOADED]:
            for tag in (isinstance(entry, dict) and entry.get("RepoTags")) or ():
                if isinstance(tag, str):
                    found.append((reference(tag), f"docker-archive:{path}:{tag}"))
        return found or [(None, f"docker-archive:{path}")]
    if archive.find("index.json") is not None:
        index = _json(archive, "index.json")
        manifests = index.get("manifests") if isinstance(index, dict) else None
        for entry in (manifests if isinstance(manifests, list) else [])[:_MAX_LOADED]:
            notes = entry.get("annotations") if isinstance(entry, dict) else None
            notes = notes if isinstance(notes, dict) else {}
            tag = notes.get("org.opencontainers.image.ref.name")
            full = notes.get("io.containerd.image.name") or (tag if "/" in str(tag) or ":" in str(tag) else None)
            source = f"oci-archive:{path}:{tag}" if tag else f"oci-archive:{path}"
            found.append((reference(str(full)) if full else None, source))
        return found
    raise BadRequest("the archive has neither manifest.json nor index.json: it holds no image")


def _json(archive: Archive, name: str) -> Any:
    try:
        return json.loads(archive.read(name, MAX_JSON) or b"")
    except (ValueError, RecursionError):
        raise BadRequest(f"{name} of the archive is not JSON") from None


def _of_record(record: Mapping[str, Any], digest: str, platform: str, resolved: ResolvedImage | None) -> Image:
    raw = _raw(record)
    said = resolved.config if resolved is not None else _said(record)
    inner, created, history = raw.get("config"), raw.get("created"), raw.get("history")
    return Image(
        _id(record) if record else digest,
        [],
        [],
        created if isinstance(created, str) and created else timestamp(0),
        resolved.size if resolved is not None else 0,
        Platform.parse(platform).architecture,
        inner if isinstance(inner, dict) else {},
        list(said.diff_ids),
        [step for step in history if isinstance(step, dict)] if isinstance(history, list) else [],
        said,
        resolved,
    )


def _text(step: Mapping[str, Any], name: str) -> str:
    value = step.get(name)
    return value if isinstance(value, str) else ""


def _raw(record: Mapping[str, Any]) -> dict[str, Any]:
    try:
        value = json.loads(str(record.get("config") or "{}"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _said(record: Mapping[str, Any]) -> ImageConfig:
    return parse_config(str(record.get("config") or "").encode(), "the cached configuration")


def _id(record: Mapping[str, Any]) -> str:
    """Docker's id of an image: the digest of its configuration."""
    return "sha256:" + hashlib.sha256(str(record.get("config") or "").encode()).hexdigest()


def _is_hexadecimal(text: str) -> bool:
    return 0 < len(text) <= 64 and all(c in "0123456789abcdef" for c in text)


def _is_pattern(text: str) -> bool:
    return any(c in text for c in "*?[")


def _matches(name: str, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(":")[0], pattern)


def _has_tag(filters: Filters, wanted: RegistryReference) -> bool:
    return any(parse_registry_reference(text).tag for text in filters.values("reference") if reference(text) == wanted)


def _unix(text: str) -> int:
    from datetime import datetime

    try:
        return int(datetime.fromisoformat(text[:19] + "+00:00").timestamp())
    except ValueError:
        return 0
