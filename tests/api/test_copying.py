"""Trees between host and guest: odd files, odd shapes, and what fails half way."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import threading
import warnings
from pathlib import Path

import pytest
from supermachine import errors
from supermachine.guest import copying, users

as_root = pytest.mark.skipif(os.getuid() != 0, reason="gives files away")
HOLE = 8 << 40


@pytest.fixture(params=["in", "out"])
def copy(request: pytest.FixtureRequest, guest):
    """Both ways: the stand-in's guest has this host's files."""

    def run(source: Path, target: Path | str, **options):
        if request.param == "in":
            return Path(str(guest.copy_in(source, str(target), **options)))
        return Path(guest.copy_out(str(source), target, **options))

    run.way = request.param
    return run


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_holes_are_kept_and_cost_nothing(copy, tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.write(b"start")
        file.seek(1 << 30)
        file.write(b"middle")
        file.truncate(HOLE)
    made = copy(sparse, tmp_path / "copy", max_bytes=1 << 20)
    assert made.stat().st_size == HOLE
    assert blocks(made) < 1 << 20
    with made.open("rb") as file:
        assert file.read(6) == b"start\0"
        file.seek((1 << 30) - 1)
        assert file.read(8) == b"\0middle\0"


def test_hard_links_and_fifos_stay_what_they_are(copy, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "a").write_text("A")
    os.link(tree / "a", tree / "below" / "b")
    os.link(tree / "a", tree / "c")
    (tree / "alone").write_text("A")
    os.mkfifo(tree / "fifo", 0o640)
    made = copy(tree, tmp_path / "copy")
    inodes = {(made / name).stat().st_ino for name in ("a", "below/b", "c")}
    assert len(inodes) == 1
    assert (made / "a").stat().st_nlink == 3
    assert (made / "alone").stat().st_nlink == 1
    assert stat.S_ISFIFO((made / "fifo").lstat().st_mode)
    assert stat.S_IMODE((made / "fifo").lstat().st_mode) == 0o640
    # Once more, over what is there: into it, as cp does.
    assert copy(tree, made.parent / "copy") == made / "tree"
    assert (made / "tree" / "a").stat().st_nlink == 3


def test_a_socket_is_left_out_and_named(copy, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("a", "z"):
        (tree / name).write_text(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tree / "agent.sock"))
    with pytest.warns(copying.SkippedFiles, match=r"agent\.sock \(a socket\)"):
        made = copy(tree, tmp_path / "copy")
    assert sorted(p.name for p in made.iterdir()) == ["a", "z"]
    with pytest.raises(errors.NotSupported, match="a socket"):
        copy(tree / "agent.sock", tmp_path / "alone")
    listener.close()


def test_a_tree_of_1500_levels(copy, tmp_path: Path) -> None:
    deep = tmp_path / "t"
    here = os.open(tmp_path, os.O_RDONLY)
    for name in ["t", *["d"] * 1500]:
        os.mkdir(name, dir_fd=here)
        there = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = there
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    made = copy(deep, tmp_path / "c")
    assert os.path.exists(str(made) + "/d" * 1500 + "/leaf")
    # And what is there gives way to a file.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copying._vacate(made)
        copying._vacate(deep)
    assert not made.exists()


def test_a_target_that_ends_in_a_slash_is_a_directory(copy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "tree").mkdir()
    (tmp_path / "there").mkdir()
    with pytest.raises(NotADirectoryError):
        copy(tmp_path / "file", f"{tmp_path}/new/")
    assert not (tmp_path / "new").exists()
    assert copy(tmp_path / "file", f"{tmp_path}/there/") == tmp_path / "there" / "file"
    assert copy(tmp_path / "tree", f"{tmp_path}/made/") == tmp_path / "made"
    with pytest.raises(NotADirectoryError):
        copy(tmp_path / "tree", f"{tmp_path}/file/")


def test_limits_end_a_copy_and_say_so(copy, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(bytes(10_000))
    (tree / "b").write_bytes(os.urandom(2 << 20))
    with pytest.raises(errors.CopyTooLarge, match="more than 1000000 bytes") as caught:
        copy(tree / "b", tmp_path / "single", max_bytes=1_000_000)
    assert "max_bytes" in str(caught.value.hint)
    assert not (tmp_path / "single").exists()
    with pytest.raises(errors.CopyIncomplete, match=r"in part, 3 entries"):
        copy(tree, tmp_path / "part", max_bytes=1_000_000)
    assert (tmp_path / "part" / "a").exists()
    assert not (tmp_path / "part" / "b").exists()
    with pytest.raises(errors.CopyIncomplete, match="within 0 seconds") as late:
        copy(tree, tmp_path / "late", timeout=0)
    assert isinstance(late.value.__cause__, errors.VMTimeout)


def test_a_file_that_grows_for_ever_is_copied_as_it_was(copy, tmp_path: Path) -> None:
    growing = tmp_path / "growing"
    growing.write_bytes(b"x" * 100_000)
    stop = threading.Event()

    def grow() -> None:
        with growing.open("ab", buffering=0) as file:
            while not stop.is_set() and file.tell() < 1 << 30:
                file.write(b"y" * 100_000)

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        made = copy(growing, tmp_path / "copy", max_bytes=4 << 30, timeout=60)
    finally:
        stop.set()
        thread.join()
    assert 100_000 <= made.stat().st_size <= growing.stat().st_size


def test_what_vanishes_is_left_out_and_named(guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("a", "b", "c"):
        (tree / name).write_text(name)
    real = os.listdir

    def listing(path):
        names = real(path)
        if Path(path) == tree:
            (tree / "b").unlink()
        return names

    monkeypatch.setattr(os, "listdir", listing)
    with pytest.warns(copying.SkippedFiles, match=r"b \(it vanished\)"):
        guest.copy_in(tree, str(tmp_path / "copy"))
    assert sorted(real(tmp_path / "copy")) == ["a", "c"]


@pytest.mark.parametrize("way", ["in", "out"])
def test_what_is_in_a_directory_that_becomes_a_file_has_vanished(
    guest, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, changes = tmp_path / "tree", tmp_path / "tree" / "d"
    changes.mkdir(parents=True)
    (changes / "f").write_text("f")
    (changes / "l").symlink_to("f")

    def change(path) -> None:
        if Path(str(path)) == changes and changes.is_dir():
            shutil.rmtree(changes)
            changes.write_text("a file")

    real, kind = os.listdir, type(guest.path("/"))
    entries = kind.entries
    monkeypatch.setattr(os, "listdir", lambda path: (real(path), change(path))[0])
    monkeypatch.setattr(kind, "entries", lambda self: (entries(self), change(self))[0])
    with pytest.warns(copying.SkippedFiles, match=r"f \(it vanished\)"):
        (guest.copy_in if way == "in" else guest.copy_out)(str(tree), str(tmp_path / "copy"))
    assert real(tmp_path / "copy" / "d") == []


def test_a_guest_that_lists_a_name_twice_is_not_believed(
    guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link and then a directory of one name would lead out of the target."""
    source = guest.path(str(tmp_path / "source"))
    source.mkdir()
    (source / "x").symlink_to("/etc")
    twice = source.entries() * 2
    monkeypatch.setattr(type(source), "entries", lambda _self: twice)
    with pytest.raises(errors.CopyIncomplete, match="twice"):
        guest.copy_out(str(source), tmp_path / "target")


@as_root
def test_what_is_made_from_outside_is_the_machines_users(stand_in, tmp_path: Path) -> None:
    from supermachine import VM

    tmp_path.chmod(0o777)
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "below" / "secret").write_text("x")
    (tree / "below" / "secret").chmod(0o600)
    (tree / "link").symlink_to("nowhere")
    os.mkfifo(tree / "fifo")
    old = tmp_path / "old"
    old.write_text("root's")
    with VM("stand-in", user="12345:54") as vm:
        made = Path(str(vm.copy_in(tree, str(tmp_path / "copy"))))
        vm.path(str(tmp_path / "written")).write_text("x")
        vm.path(str(tmp_path / "a" / "b")).mkdir(parents=True)
        vm.path(str(tmp_path / "touched")).touch()
        vm.path(str(old)).write_text("new")
    owned = [made, *made.rglob("*"), *(tmp_path / name for name in ("written", "a", "a/b", "touched"))]
    assert len(owned) == 9
    for path in owned:
        assert (path.lstat().st_uid, path.lstat().st_gid) == (12345, 54), path
    assert old.stat().st_uid == 0
    assert stat.S_IMODE((made / "below" / "secret").stat().st_mode) == 0o600


class Etc:
    """The two files that a guest's users are in."""

    def __init__(self, passwd: bytes, group: bytes) -> None:
        self._contents = {b"/etc/passwd": passwd, b"/etc/group": group}

    def read(self, path, offset, length, write):
        write(self._contents[path][offset : offset + length])


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (0, 0)),
        ("root", (0, 0)),
        ("web", (33, 34)),
        ("33", (33, 34)),
        ("web:staff", (33, 50)),
        ("1234", (1234, 0)),
        ("1234:77", (1234, 77)),
        (":50", (0, 50)),
        ("nobody-here", (0, 0)),
        ("99999999999", (0, 0)),
    ],
)
def test_users_are_those_that_processes_run_as(user: str, expected: tuple[int, int]) -> None:
    etc = Etc(
        b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:/bin/false\nbad\xff line\n", b"root:x:0:\nstaff:x:50:web\n"
    )
    assert users.ids(etc, user) == expected
