"""The same operations on a share and on a tmpfs of the guest's, by one program in it: the same outcomes and errors."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from supermachine import VM, Share

from ..vm.guests import output

pytestmark = pytest.mark.vm

BUSYBOX = Path(__file__).parents[2] / "demo" / "busybox.oci.tar"
PROGRAM = Path(__file__).with_name("operations.c")


class Sides:
    """The program, in two empty directories of the guest's; the first of them is a share's."""

    def __init__(self, vm: VM, share: Path, number: int) -> None:
        self.directory = share / str(number)
        output(vm, f"mkdir /shared/{number} /plain/{number}")
        self._process = vm.popen(["/operations", f"/shared/{number}", f"/plain/{number}"], stdin=-1, stdout=-1)

    def ask(self, *words: object, where: str = "both") -> tuple[str, str]:
        """What came of an operation on either side."""
        line = " ".join(str(word) for word in (where, *words))
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().decode()
        assert answer, f"the program has ended at {line!r}"
        first, second = answer.rstrip("\n").split("\t")
        return first, second

    def same(self, *words: object) -> str:
        """What came of it on both sides."""
        first, second = self.ask(*words)
        assert first == second, f"{words}: {first!r} on the share, {second!r} on a tmpfs"
        return first

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait(60) == 0


class Bench:
    """A guest with a share and a tmpfs, for any number of examples."""

    def __init__(self, vm: VM, share: Path, keeps_owners: bool) -> None:
        self.vm, self.share, self.keeps_owners, self._count = vm, share, keeps_owners, 0

    @contextlib.contextmanager
    def sides(self) -> Iterator[Sides]:
        self._count += 1
        sides = Sides(self.vm, self.share, self._count)
        try:
            yield sides
        finally:
            sides.close()
            shutil.rmtree(sides.directory)
            output(self.vm, f"rm -rf /plain/{self._count}")


SHARES: dict[str, dict[str, Any]] = {
    "auto": {},
    "none": {"cache": "none"},
    "always": {"cache": "always"},
    "virtual": {"owner": "virtual", "quota": "1t"},
}


@pytest.fixture(scope="module", params=list(SHARES))
def bench(
    request: pytest.FixtureRequest,
    c_program: Callable[[Path, str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Bench]:
    share = tmp_path_factory.mktemp("share")
    with VM(str(BUSYBOX), mounts={"/shared": Share(share, **SHARES[request.param])}, tmpfs=["/plain"]) as vm:
        vm.copy_in(c_program(PROGRAM, output(vm, "uname -m").strip()), "/operations")
        yield Bench(vm, share, request.param == "virtual")


NAMES = st.sampled_from(["a", "b", "c", "d/a", "d/b", "d", "l" * 255, "d/" + "l" * 255, "l" * 256, "a/b", "gone/a"])
FILES = st.sampled_from([0, 0, 0, 1, 1, 2])
OFFSETS = st.sampled_from([0, 1, 100, 4095, 4096, 5000, 8192, 12_288, 20_000])
COUNTS = st.sampled_from([0, 1, 10, 4096, 5000, 9000])
BYTES = st.integers(1, 255)
MODES = st.sampled_from([0o644, 0o600, 0o755, 0o700, 0o666])
#: None that keeps the owner out of a directory: a guest's root is refused what the host's user is refused.
CHANGED_MODES = st.sampled_from([0o755, 0o700, 0o777, 0o1777])
HOWS = [os.O_RDONLY, os.O_RDWR, os.O_RDWR, os.O_WRONLY]
WITH = [0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_CREAT | os.O_TRUNC]
LOCKS = st.sampled_from([0, 1, 2])
#: Linux's, for fallocate(2) and renameat2(2).
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 0x10
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


class Operations(RuleBasedStateMachine):
    bench: Bench

    @initialize()
    def begin(self) -> None:
        self._end = contextlib.ExitStack()
        self.sides = self._end.enter_context(self.bench.sides())
        self.same("mkdir", "d", 0o755)
        self.same("open", 0, "a", os.O_RDWR | os.O_CREAT, 0o644)

    def teardown(self) -> None:
        if hasattr(self, "_end"):
            self._end.close()

    def same(self, *words: object) -> str:
        return self.sides.same(*words)

    @rule(
        file=FILES, name=NAMES, how=st.sampled_from(HOWS), more=st.sampled_from(WITH), append=st.booleans(), mode=MODES
    )
    def open_file(self, file: int, name: str, how: int, more: int, append: bool, mode: int) -> None:
        self.same("open", file, name, how | more | (os.O_APPEND if append else 0), mode)

    @rule(file=FILES)
    def close(self, file: int) -> None:
        self.same("close", file)

    @rule(file=FILES, offset=OFFSETS, count=COUNTS, byte=BYTES)
    def pwrite(self, file: int, offset: int, count: int, byte: int) -> None:
        self.same("pwrite", file, offset, count, byte)

    @rule(file=FILES, count=COUNTS, byte=BYTES)
    def write(self, file: int, count: int, byte: int) -> None:
        self.same("write", file, count, byte)

    @rule(file=FILES, offset=OFFSETS, count=COUNTS)
    def pread(self, file: int, offset: int, count: int) -> None:
        self.same("pread", file, offset, count)

    @rule(file=FILES, count=COUNTS)
    def read(self, file: int, count: int) -> None:
        self.same("read", file, count)

    @rule(file=FILES, offset=OFFSETS, whence=st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]))
    def seek(self, file: int, offset: int, whence: int) -> None:
        self.same("seek", file, offset, whence)

    @rule(file=FILES, offset=OFFSETS, whence=st.sampled_from([os.SEEK_DATA, os.SEEK_HOLE]))
    def seek_hole(self, file: int, offset: int, whence: int) -> None:
        # What was written and not yet sent is data to tmpfs alone, and so is what fallocate(2) has made.
        self.same("fsync", file)
        self.same("seek", file, offset, whence)

    @rule(file=FILES, append=st.booleans())
    def set_append(self, file: int, append: bool) -> None:
        self.same("setfl", file, os.O_APPEND if append else 0)

    @rule(file=FILES, offset=OFFSETS, count=COUNTS, byte=BYTES, sync=st.booleans())
    def write_mapped(self, file: int, offset: int, count: int, byte: int, sync: bool) -> None:
        self.same("mwrite", file, offset, count, byte, int(sync))

    @rule(file=FILES, offset=OFFSETS, count=COUNTS)
    def read_mapped(self, file: int, offset: int, count: int) -> None:
        self.same("mread", file, offset, count)

    @rule(file=FILES, size=OFFSETS)
    def ftruncate(self, file: int, size: int) -> None:
        self.same("ftruncate", file, size)

    @rule(name=NAMES, size=OFFSETS)
    def truncate(self, name: str, size: int) -> None:
        self.same("truncate", name, size)

    @rule(file=FILES, offset=OFFSETS, count=COUNTS)
    def punch(self, file: int, offset: int, count: int) -> None:
        self.same("fallocate", file, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, count)

    @rule(file=FILES, offset=OFFSETS, other=FILES, to=OFFSETS, count=COUNTS)
    def copy(self, file: int, offset: int, other: int, to: int, count: int) -> None:
        self.same("copy", file, offset, other, to, count)

    @rule(file=FILES)
    def fstat(self, file: int) -> None:
        self.same("fstat", file)

    @rule(name=NAMES)
    def attributes(self, name: str) -> None:
        self.same("stat", name)

    @rule(one=NAMES, other=NAMES)
    def same_file(self, one: str, other: str) -> None:
        self.same("same", one, other)

    @rule(name=NAMES, mode=MODES)
    def mkdir(self, name: str, mode: int) -> None:
        self.same("mkdir", name, mode | 0o700)

    @rule(name=NAMES)
    def rmdir(self, name: str) -> None:
        self.same("rmdir", name)

    @rule(name=NAMES)
    def unlink(self, name: str) -> None:
        self.same("unlink", name)

    @rule(name=NAMES, new=NAMES, flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, 3]))
    def rename(self, name: str, new: str, flags: int) -> None:
        self.same("rename", name, new, flags)

    @rule(name=NAMES, new=NAMES)
    def link(self, name: str, new: str) -> None:
        self.same("link", name, new)

    @rule(to=st.sampled_from(["a", "b", "d", "../c", "nowhere", "l" * 255]), name=NAMES)
    def symlink(self, to: str, name: str) -> None:
        self.same("symlink", to, name)

    @rule(name=NAMES)
    def readlink(self, name: str) -> None:
        self.same("readlink", name)

    @rule(name=NAMES, kind=st.sampled_from([stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK]))
    def mknod(self, name: str, kind: int) -> None:
        self.same("mknod", name, kind | 0o644)

    @rule(name=NAMES, mode=CHANGED_MODES)
    def chmod(self, name: str, mode: int) -> None:
        self.same("chmod", name, mode)

    @rule(file=FILES, mode=CHANGED_MODES)
    def fchmod(self, file: int, mode: int) -> None:
        self.same("fchmod", file, mode)

    @precondition(lambda self: self.bench.keeps_owners)
    @rule(name=NAMES, mode=st.integers(0, 0o7777))
    def chmod_to_any(self, name: str, mode: int) -> None:
        self.same("chmod", name, mode)

    @precondition(lambda self: self.bench.keeps_owners)
    @rule(name=NAMES, uid=st.sampled_from([0, 5, 70_000]), gid=st.sampled_from([0, 6, 70_001]))
    def chown(self, name: str, uid: int, gid: int) -> None:
        self.same("chown", name, uid, gid)

    @precondition(lambda self: self.bench.keeps_owners)
    @rule(name=NAMES, kind=st.sampled_from([stat.S_IFCHR, stat.S_IFBLK]))
    def make_device(self, name: str, kind: int) -> None:
        self.same("mknod", name, kind | 0o640)

    @rule(name=NAMES, seconds=st.integers(-2, 2**33), nanoseconds=st.integers(0, 999_999_999))
    def utimens(self, name: str, seconds: int, nanoseconds: int) -> None:
        self.same("utimens", name, seconds, nanoseconds, seconds + 1, nanoseconds)

    @rule(
        name=NAMES,
        key=st.sampled_from(["user.a", "user.b", "user.", "nonsense"]),
        size=st.sampled_from([0, 1, 100, 3000]),
        byte=BYTES,
        flags=st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE]),
    )
    def setxattr(self, name: str, key: str, size: int, byte: int, flags: int) -> None:
        self.same("setxattr", name, key, size, byte, flags)

    @rule(name=NAMES, key=st.sampled_from(["user.a", "user.b", "nonsense"]))
    def getxattr(self, name: str, key: str) -> None:
        self.same("getxattr", name, key)

    @rule(name=NAMES, key=st.sampled_from(["user.a", "user.b"]))
    def removexattr(self, name: str, key: str) -> None:
        self.same("removexattr", name, key)

    @rule(name=st.sampled_from([".", "d", "a", "b"]))
    def listing(self, name: str) -> None:
        self.same("list", name)

    @rule(file=FILES, name=st.sampled_from([".", "d", "a"]), exclusive=st.booleans())
    def tmpfile(self, file: int, name: str, exclusive: bool) -> None:
        self.same("tmpfile", file, name, os.O_EXCL if exclusive else 0, 0o644)

    @rule(file=FILES, name=NAMES)
    def give_a_name(self, file: int, name: str) -> None:
        self.same("name", file, name)

    @rule(file=FILES, how=st.sampled_from([1, 2, 8]))
    def flock(self, file: int, how: int) -> None:
        # With LOCK_NB.
        self.same("flock", file, how | 4)

    @rule(file=FILES, kind=LOCKS, start=st.integers(0, 5), length=st.integers(0, 5))
    def lock(self, file: int, kind: int, start: int, length: int) -> None:
        self.same("posix", file, kind, start, length)

    @rule(file=FILES, kind=LOCKS, start=st.integers(0, 5), length=st.integers(0, 5))
    def lock_description(self, file: int, kind: int, start: int, length: int) -> None:
        self.same("ofd", file, kind, start, length)

    @rule(
        name=st.sampled_from(["a", "b"]),
        kind=st.sampled_from([0, 1]),
        start=st.integers(0, 5),
        length=st.integers(0, 5),
    )
    def seen(self, name: str, kind: int, start: int, length: int) -> None:
        self.same("seen", name, kind, start, length)

    @invariant()
    def directories_are_the_same(self) -> None:
        if hasattr(self, "sides"):
            self.same("list", ".")


def test_a_share_behaves_like_a_tmpfs(bench: Bench) -> None:
    class OnThisBench(Operations):
        pass

    OnThisBench.bench = bench
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        OnThisBench,
        settings=settings(
            max_examples=int(os.environ.get("SUPERMACHINE_TEST_EXAMPLES", "20")),
            stateful_step_count=60,
            deadline=None,
            # A guest is too slow to shrink by: the failure names the operation and both outcomes.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


# Errors and outcomes that chance seldom meets, each a case of its own. What is expected is the word of POSIX and of the
# manual pages, so that a tmpfs cannot be wrong with it.
CREATE = os.O_RDWR | os.O_CREAT
CASES: dict[str, list[tuple[tuple[object, ...], str]]] = {
    "open": [
        (("open", 0, "gone/file", CREATE, 0o644), "ENOENT"),
        (("open", 0, "file", CREATE | os.O_EXCL, 0o644), "0"),
        (("open", 1, "file", CREATE | os.O_EXCL, 0o644), "EEXIST"),
        (("open", 1, "file/below", CREATE, 0o644), "ENOTDIR"),
        (("mkdir", "directory", 0o755), "0"),
        (("open", 1, "directory", os.O_WRONLY), "EISDIR"),
        (("open", 1, "directory", CREATE, 0o644), "EISDIR"),
        (("symlink", "loop", "loop"), "0"),
        (("open", 1, "loop", os.O_RDONLY), "ELOOP"),
        (("symlink", "file", "link"), "0"),
        (("open", 1, "link", CREATE | os.O_EXCL, 0o644), "EEXIST"),
        (("symlink", "made", "dangling"), "0"),
        (("open", 1, "dangling", CREATE, 0o644), "0"),
        (("stat", "made"), "100644 links 1 size 0 owner 0:0"),
        (("open", 1, "n" * 256, CREATE, 0o644), "ENAMETOOLONG"),
        (("open", 1, "n" * 255, CREATE, 0o644), "0"),
        (("mknod", "fifo", stat.S_IFIFO | 0o644), "0"),
        (("open", 1, "fifo", os.O_WRONLY), "ENXIO"),
        (("mknod", "socket", stat.S_IFSOCK | 0o644), "0"),
        (("open", 1, "socket", os.O_RDWR), "ENXIO"),
    ],
    "mkdir and rmdir": [
        (("mkdir", "directory", 0o777), "0"),
        (("stat", "directory"), "40755 links 0 size 0 owner 0:0"),
        (("mkdir", "directory", 0o755), "EEXIST"),
        (("mkdir", "gone/new", 0o755), "ENOENT"),
        (("mkdir", "directory/inner", 0o755), "0"),
        (("rmdir", "directory"), "ENOTEMPTY"),
        (("rmdir", "directory/inner"), "0"),
        (("rmdir", "directory/."), "EINVAL"),
        (("rmdir", "directory/.."), "ENOTEMPTY"),
        (("open", 0, "file", CREATE, 0o644), "0"),
        (("rmdir", "file"), "ENOTDIR"),
        (("mkdir", "file/new", 0o755), "ENOTDIR"),
        (("mkdir", "n" * 256, 0o755), "ENAMETOOLONG"),
        (("rmdir", "directory"), "0"),
        (("rmdir", "directory"), "ENOENT"),
    ],
    "rename": [
        (("mkdir", "one", 0o755), "0"),
        (("mkdir", "two", 0o755), "0"),
        (("open", 0, "file", CREATE, 0o644), "0"),
        (("open", 1, "two/file", CREATE, 0o644), "0"),
        (("rename", "gone", "new", 0), "ENOENT"),
        (("rename", "file", "one", 0), "EISDIR"),
        (("rename", "one", "file", 0), "ENOTDIR"),
        (("rename", "one", "two", 0), "ENOTEMPTY"),
        (("rename", "two", "one", 0), "0"),
        (("rename", "one", "one/inner", 0), "EINVAL"),
        (("rename", "one/file", "one", 0), "ENOTEMPTY"),
        (("rename", "file", "file", 0), "0"),
        (("rename", "file", "one/file", RENAME_NOREPLACE), "EEXIST"),
        (("rename", "file", "gone", RENAME_EXCHANGE), "ENOENT"),
        (("rename", "file", "one", RENAME_EXCHANGE), "0"),
        (("stat", "file/file"), "100644 links 1 size 0 owner 0:0"),
        (("rename", "file", "n" * 256, 0), "ENAMETOOLONG"),
        (("rename", "file/.", "new", 0), "EBUSY"),
        (("link", "one", "other"), "0"),
        # Two names of one file stay two.
        (("rename", "one", "other", 0), "0"),
        (("stat", "one"), "100644 links 2 size 0 owner 0:0"),
    ],
    "link and unlink": [
        (("open", 0, "file", CREATE, 0o644), "0"),
        (("mkdir", "directory", 0o755), "0"),
        (("link", "file", "other"), "0"),
        (("same", "file", "other"), "1"),
        (("link", "file", "other"), "EEXIST"),
        (("link", "gone", "new"), "ENOENT"),
        (("link", "directory", "new"), "EPERM"),
        (("link", "file", "gone/new"), "ENOENT"),
        (("unlink", "directory"), "EISDIR"),
        (("unlink", "gone"), "ENOENT"),
        (("unlink", "file/below"), "ENOTDIR"),
        (("unlink", "file"), "0"),
        (("fstat", 0), "100644 links 1 size 0 owner 0:0"),
        (("unlink", "other"), "0"),
        (("fstat", 0), "100644 links 0 size 0 owner 0:0"),
        (("pwrite", 0, 0, 3, 120), "3"),
        (("pread", 0, 0, 10), "78x3 "),
        (("ftruncate", 0, 1), "0"),
        (("fchmod", 0, 0o600), "0"),
        (("fstat", 0), "100600 links 0 size 1 owner 0:0"),
        (("symlink", "directory", "link"), "0"),
        (("unlink", "link"), "0"),
        (("tmpfile", 1, ".", 0, 0o644), "0"),
        (("name", 1, "named"), "0"),
        (("stat", "named"), "100644 links 1 size 0 owner 0:0"),
        (("tmpfile", 1, ".", os.O_EXCL, 0o644), "0"),
        (("name", 1, "never"), "ENOENT"),
    ],
    "sizes": [
        (("open", 0, "file", CREATE, 0o644), "0"),
        (("pwrite", 0, 0, 10, 97), "10"),
        (("ftruncate", 0, -1), "EINVAL"),
        (("ftruncate", 0, 5), "0"),
        (("ftruncate", 0, 8), "0"),
        (("pread", 0, 0, 100), "61x5 00x3 "),
        (("mkdir", "directory", 0o755), "0"),
        (("truncate", "directory", 0), "EISDIR"),
        (("open", 1, "file", os.O_RDONLY), "0"),
        (("ftruncate", 1, 0), "EINVAL"),
        (("pwrite", 1, 0, 1, 97), "EBADF"),
        (("open", 2, "file", os.O_WRONLY), "0"),
        (("pread", 2, 0, 1), "EBADF"),
        (("fallocate", 0, 0, 0, 0), "EINVAL"),
        (("fallocate", 0, 0, 0, 20_000), "0"),
        (("fstat", 0), "100644 links 1 size 20000 owner 0:0"),
        (("fallocate", 0, FALLOC_KEEP_SIZE, 0, 100_000), "0"),
        (("fstat", 0), "100644 links 1 size 20000 owner 0:0"),
        (("fallocate", 1, 0, 0, 10), "EBADF"),
        # Data, a hole and data, and the hole at the end that every file has.
        (("open", 3, "holes", CREATE, 0o644), "0"),
        (("pwrite", 3, 0, 4096, 1), "4096"),
        (("pwrite", 3, 1 << 20, 4096, 2), "4096"),
        (("fsync", 3), "0"),
        (("seek", 3, 0, os.SEEK_HOLE), "4096"),
        (("seek", 3, 4096, os.SEEK_DATA), str(1 << 20)),
        (("seek", 3, (1 << 20) + 1, os.SEEK_HOLE), str((1 << 20) + 4096)),
        (("seek", 3, 1 << 21, os.SEEK_DATA), "ENXIO"),
        (("copy", 3, 0, 3, 100, 200), "EINVAL"),
        (("copy", 3, 0, 0, 10, 4096), "4096"),
    ],
    "attributes": [
        (("open", 0, "file", CREATE, 0o600), "0"),
        (("setxattr", "file", "user.a", 3, 120, os.XATTR_REPLACE), "ENODATA"),
        (("setxattr", "file", "user.a", 3, 120, 0), "0"),
        (("setxattr", "file", "user.a", 3, 120, os.XATTR_CREATE), "EEXIST"),
        (("getxattr", "file", "user.a"), "78x3 "),
        (("getxattr", "file", "user.b"), "ENODATA"),
        (("removexattr", "file", "user.b"), "ENODATA"),
        (("setxattr", "file", "nonsense", 3, 120, 0), "EOPNOTSUPP"),
        (("setxattr", "file", "user." + "n" * 251, 1, 120, 0), "ERANGE"),
        (("chmod", "gone", 0o644), "ENOENT"),
        (("chmod", "file", 0o7777), "0"),
        (("stat", "file"), "107777 links 1 size 0 owner 0:0"),
        (("chmod", "file", 0o640), "0"),
        (("utimens", "file", 1, 2, 3, 4), "1.000000002 3.000000004"),
        (("utimens", "file", -1, 5, 1 << 33, 999_999_999), "-1.000000005 8589934592.999999999"),
        (("utimens", "gone", 1, 2, 3, 4), "ENOENT"),
        (("symlink", "nowhere", "link"), "0"),
        (("utimens", "link", 1, 2, 3, 4), "1.000000002 3.000000004"),
        (("readlink", "link"), "nowhere"),
        (("readlink", "file"), "EINVAL"),
        (("symlink", "x" * 4095, "long"), "0"),
        (("readlink", "long"), "x" * 4095),
        (("symlink", "x" * 4096, "longer"), "ENAMETOOLONG"),
    ],
    "owners": [
        (("open", 0, "file", CREATE, 0o644), "0"),
        (("chown", "file", 5, 6), "0"),
        (("stat", "file"), "100644 links 1 size 0 owner 5:6"),
        (("chmod", "file", 0o6711), "0"),
        # Set-user-id goes with the owner.
        (("chown", "file", 7, -1), "0"),
        (("stat", "file"), "100711 links 1 size 0 owner 7:6"),
        (("fchmod", 0, 0), "0"),
        (("open", 1, "file", CREATE, 0o644), "0"),
        (("fstat", 1), "100000 links 1 size 0 owner 7:6"),
        # What is made in a directory with set-group-id has its group.
        (("mkdir", "directory", 0o755), "0"),
        (("chown", "directory", 8, 9), "0"),
        (("chmod", "directory", 0o2555), "0"),
        (("mkdir", "directory/inner", 0o700), "0"),
        (("stat", "directory/inner"), "42700 links 0 size 0 owner 0:9"),
        (("open", 2, "directory/inner/file", CREATE, 0o444), "0"),
        (("stat", "directory/inner/file"), "100444 links 1 size 0 owner 0:9"),
        (("open", 2, "directory/inner/file", os.O_RDWR), "0"),
        (("mknod", "device", stat.S_IFCHR | 0o600), "0"),
        (("stat", "device"), "20600 links 1 size 0 owner 0:0"),
        (("mknod", "fifo", stat.S_IFIFO | 0o620), "0"),
        (("chown", "fifo", 1, 2), "0"),
        (("stat", "fifo"), "10600 links 1 size 0 owner 1:2"),
        (("open", 2, "fifo", os.O_RDWR), "0"),
        (("write", 2, 3, 97), "3"),
        (("read", 2, 3), "61x3 "),
        (("link", "fifo", "other"), "0"),
        (("rename", "fifo", "moved", 0), "0"),
        (("stat", "moved"), "10600 links 2 size 0 owner 1:2"),
        (("listxattr", "file"), ""),
    ],
    "appending and mappings": [
        (("open", 0, "file", CREATE | os.O_APPEND, 0o644), "0"),
        (("write", 0, 5000, 97), "5000"),
        (("mwrite", 0, 10, 10, 98, 1), "0"),
        (("fstat", 0), "100644 links 1 size 5000 owner 0:0"),
        (("pread", 0, 0, 30), "61x10 62x10 61x10 "),
        # pwrite(2) appends as well.
        (("pwrite", 0, 0, 1, 99), "1"),
        (("setfl", 0, 0), "0"),
        (("pwrite", 0, 0, 1, 100), "1"),
        (("pread", 0, 0, 6000), "64x1 61x9 62x10 61x4980 63x1 "),
        (("open", 1, "file", CREATE | os.O_APPEND, 0o644), "0"),
        (("seek", 1, 3, os.SEEK_SET), "3"),
        (("write", 1, 2, 101), "2"),
        (("seek", 1, 0, os.SEEK_CUR), "5003"),
        (("mread", 0, 4998, 10), "61x2 63x1 65x2 "),
    ],
    "locks": [
        (("open", 0, "file", CREATE, 0o644), "0"),
        (("open", 1, "file", CREATE, 0o644), "0"),
        (("flock", 0, 2 | 4), "0"),
        (("flock", 1, 1 | 4), "EAGAIN"),
        (("flock", 0, 1 | 4), "0"),
        (("flock", 1, 1 | 4), "0"),
        (("flock", 1, 2 | 4), "EAGAIN"),
        (("close", 0), "0"),
        (("flock", 1, 2 | 4), "0"),
        (("posix", 1, 1, 10, 5), "0"),
        (("seen", "file", 1, 0, 10), "free"),
        (("seen", "file", 1, 0, 0), "1 10 5"),
        (("posix", 1, 2, 12, 1), "0"),
        (("seen", "file", 1, 12, 0), "1 13 2"),
        (("posix", 1, 0, 13, 2), "0"),
        (("seen", "file", 0, 13, 1), "free"),
        (("seen", "file", 1, 13, 1), "0 13 2"),
        (("open", 0, "file", os.O_RDWR), "0"),
        # Any descriptor of the file that is closed lets all locks of the process go.
        (("close", 0), "0"),
        (("seen", "file", 1, 0, 0), "free"),
        (("open", 0, "file", os.O_RDWR), "0"),
        (("ofd", 0, 1, 0, 0), "0"),
        (("ofd", 1, 0, 0, 1), "EAGAIN"),
        (("ofd", 0, 2, 0, 0), "0"),
        (("ofd", 1, 0, 0, 1), "0"),
    ],
    "large directories": [
        (("mkdir", "directory", 0o755), "0"),
        (("fill", "directory", 3000, 200), "3000"),
        (("list", "directory"), "*"),
        (("empty", "directory"), "3000"),
        (("list", "directory"), ".,4 ..,4 "),
        (("rmdir", "directory"), "0"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CASES))
def test_what_the_manual_says(bench: Bench, name: str) -> None:
    if name == "owners" and not bench.keeps_owners:
        pytest.skip("the host's user has no others' files")
    with bench.sides() as sides:
        for words, expected in CASES[name]:
            said = sides.same(*words)
            assert expected in ("*", said), f"{words} gives {said}"


def test_a_directory_of_100_000_files_is_listed_whole_and_removed(bench: Bench) -> None:
    with bench.sides() as sides:
        sides.same("mkdir", "directory", 0o755)
        for number in range(100_000):
            (sides.directory / "directory" / f"{number:06}").touch()
        first, _ = sides.ask("list", "directory", where="first")
        assert first.split() == [".,4", "..,4", *(f"{number:06},8" for number in range(100_000))]
