"""Where COPY and ADD take files from: the tar that a client sends, or one of another stage's files."""

from __future__ import annotations

import fnmatch
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..guest.copying import MAX_ENTRIES
from ..guest.tars import bounded
from ..oci.archive import compression_of, decompress
from .errors import ApiError, BadRequest

if TYPE_CHECKING:
    from ..machine.vm import VM

#: Links that are followed to what a source is.
_MAX_LINKS = 16


class Context:
    """The members of a tar, by their names without a slash at either end; the whole is ``.``."""

    def __init__(self, path: Path, limit: int) -> None:
        """Raises BadRequest for what is no tar, or names what is outside of it."""
        self.path = path
        if (compression := compression_of(path)) is not None:
            self.path = path.with_suffix(".plain")
            decompress(path, compression, self.path, limit)
        self._members: dict[str, tarfile.TarInfo] = {".": _directory(".")}
        try:
            with self.path.open("rb") as file, tarfile.open(fileobj=bounded(file), mode="r:") as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]
                    self._take(info)
        except tarfile.TarError as error:
            raise BadRequest(f"the build's context is no tar, or a damaged one: {error}") from None

    def _take(self, info: tarfile.TarInfo) -> None:
        name = posixpath.normpath(info.name.lstrip("/") or ".")
        if name.startswith(".."):
            raise BadRequest(f"the build's context has {info.name[:200]!r}, which is outside of it")
        if len(self._members) > MAX_ENTRIES:
            raise BadRequest(f"the build's context has more than {MAX_ENTRIES} files and directories")
        self._members[name] = info
        while (name := posixpath.dirname(name)) and name not in self._members:
            self._members[name] = _directory(name)

    def read(self, name: str, limit: int) -> bytes | None:
        """A file; ``None`` where there is none, or a larger one."""
        info = self._members.get(posixpath.normpath(name.lstrip("/")))
        if info is None or not info.isreg() or info.size > limit:
            return None
        with self.path.open("rb") as file:
            file.seek(info.offset_data)
            return file.read(info.size)

    def matching(self, pattern: str) -> list[str]:
        """Names that a source stands for. Raises BadRequest where it is none."""
        clean = posixpath.normpath(pattern.lstrip("/") or ".")
        if clean.startswith(".."):
            raise BadRequest(f"COPY failed: {pattern[:200]!r} is outside of the build's context")
        if not any(c in clean for c in "*?["):
            found = [clean] if clean in self._members else []
        else:
            wanted = clean.split("/")
            found = sorted(
                name
                for name in self._members
                if len(parts := name.split("/")) == len(wanted)
                and all(fnmatch.fnmatchcase(part, want) for part, want in zip(parts, wanted, strict=True))
            )
        if not found:
            raise BadRequest(
                f"COPY failed: file not found in build context or excluded by .dockerignore: "
                f"{pattern[:200]}: file does not exist"
            )
        return found

    def is_directory(self, name: str) -> bool:
        return self._followed(name)[1].isdir()

    def _followed(self, name: str) -> tuple[str, tarfile.TarInfo]:
        for _ in range(_MAX_LINKS):
            info = self._members.get(name)
            if info is None:
                break
            if not info.issym():
                return name, info
            name = posixpath.normpath(posixpath.join(posixpath.dirname(name), info.linkname)).lstrip("/") or "."
        raise BadRequest(f"COPY failed: {name[:200]} leads to nothing in the build's context")

    def below(self, name: str) -> Iterator[tuple[str, tarfile.TarInfo]]:
        """A file or a directory's contents, each with its path from there; "" for the thing itself."""
        top, info = self._followed(name)
        yield "", info
        if info.isdir():
            prefix = "" if top == "." else f"{top}/"
            for each, found in sorted(self._members.items()):
                if each != "." and each.startswith(prefix):
                    yield each.removeprefix(prefix), found

    def is_archive(self, name: str) -> bool:
        """Whether ADD unpacks it."""
        top, info = self._followed(name)
        del top
        if not info.isreg():
            return False
        with self.path.open("rb") as file:
            file.seek(info.offset_data)
            head = file.read(min(info.size, 512))
        return head[257:262] == b"ustar" or head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"))

    def extract(self, name: str, target: Path) -> None:
        """A file's content."""
        _, info = self._followed(name)
        with self.path.open("rb") as source, target.open("wb") as file:
            source.seek(info.offset_data)
            _copy(source, file, info.size)

    def copy(
        self,
        vm: VM,
        names: list[str],
        target: str,
        archive: Path,
        *,
        owner: tuple[int, int] | None,
        mode: int | None,
    ) -> None:
        """Writes a tar of what comes where in a guest, for `archives.unpack` at its root: as COPY puts it there.

        The owner is root's unless another is said; ``None`` keeps the files'.
        """
        into = target.endswith("/") or len(names) > 1 or vm.path(target).is_dir()
        with (
            self.path.open("rb") as source,
            tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name in names:
                own = "" if self.is_directory(name) else posixpath.basename(name) if into else ""
                top = posixpath.join(target, own) if own else target.rstrip("/") or "/"
                for path, info in self.below(name):
                    place = posixpath.join(top, path) if path else top
                    if place == "/" or (info.isdir() and vm.path(place).is_dir()):
                        continue
                    made = tarfile.TarInfo(place.lstrip("/"))
                    made.type, made.mtime, made.linkname = info.type, int(info.mtime), info.linkname
                    made.mode = info.mode if mode is None else mode
                    made.uid, made.gid = owner if owner is not None else (info.uid, info.gid)
                    if info.islnk():
                        # A second name of a file, which is copied: what it is of may not be.
                        _, info = self._followed(posixpath.normpath(info.linkname.lstrip("/")))
                        made.type, made.linkname = tarfile.REGTYPE, ""
                    if info.isreg():
                        made.size = info.size
                        source.seek(info.offset_data)
                        tar.addfile(made, source)
                    elif info.isdir() or info.issym() or info.isfifo():
                        tar.addfile(made)
                    else:
                        raise ApiError(501, f"{path or name} is a device, which cannot be made")


def _directory(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info


def _copy(source: IO[bytes], target: Any, size: int) -> None:
    while size > 0 and (block := source.read(min(size, 1 << 20))):
        target.write(block)
        size -= len(block)
