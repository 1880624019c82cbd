"""What restores have decoded is kept in the cache for later ones, and changes nothing but their time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import supermachine
from supermachine import VM, Snapshot
from supermachine.snapshots import baking, code

ECHO = ["/bin/echo", "hello"]
#: Loops, floating point, programs and files, whose results are the same each time.
WORK = (
    "i=0; while [ $i -lt 3000 ]; do i=$((i * 7 % 100003 + 1)); echo $i; done | md5sum; "
    "awk 'BEGIN { for (i = 1; i < 3000; i++) s += 1 / i; printf \"%.15f\\n\", s }'; "
    "cat /bin/busybox | sha256sum; seq 400 | sort -r | tr 1 2 | md5sum"
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="restores decode for themselves there")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def taken(own_cache: Path, busybox: str, tmp_path: Path) -> Iterator[Snapshot]:
    with VM(busybox, engine="soft", bake=False) as vm:
        vm.run(ECHO, check=True)
        yield vm.snapshot(tmp_path / "taken")


def went_by(vm: VM) -> bool:
    return code.was_taken(vm.timings)


def files(own_cache: Path) -> list[Path]:
    return sorted((own_cache / "code").iterdir())


def answer(vm: VM) -> str:
    return vm.run(["/bin/sh", "-c", WORK], check=True, capture_output=True, text=True).stdout


def test_a_baked_snapshot_has_it_from_its_first_answer_on(own_cache: Path, busybox: str) -> None:
    place = supermachine.bake(busybox, engine="soft").with_name("code")
    with VM(busybox, engine="soft") as vm:
        assert not went_by(vm) and not place.exists()
        expected = answer(vm)
        assert place.stat().st_mode & 0o777 == 0o600
    made = place.read_bytes()
    for _ in range(2):
        with VM(busybox, engine="soft") as vm:
            assert went_by(vm)
            assert answer(vm) == expected
    with VM(busybox, engine="soft", prefault=False) as vm:
        assert not went_by(vm)
        assert answer(vm) == expected
    assert place.read_bytes() == made
    size = place.stat().st_blocks * 512
    assert baking.prune(supermachine.images.Cache()) >= size
    assert not place.parent.exists()


@pytest.mark.parametrize("what", ["damaged", "empty", "writable", "link", "twice", "touched"])
def test_what_does_not_fit_is_left_and_made_anew(own_cache: Path, busybox: str, what: str) -> None:
    snapshot = supermachine.bake(busybox, engine="soft")
    place = snapshot.with_name("code")
    with VM(busybox, engine="soft") as vm:
        vm.run(ECHO, check=True)
    good = place.read_bytes()
    if what == "damaged":
        place.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    elif what == "empty":
        place.write_bytes(b"")
    elif what == "writable":
        place.chmod(0o622)
    elif what == "link":
        place.rename(place.with_name("elsewhere"))
        place.symlink_to("elsewhere")
    elif what == "twice":
        os.link(place, own_cache / "second")
    else:
        os.utime(snapshot)
    with VM(busybox, engine="soft") as vm:
        assert not went_by(vm)
        assert vm.run(ECHO, check=True, capture_output=True).stdout == b"hello\n"
    assert not place.is_symlink() and place.stat().st_mode & 0o777 == 0o600
    with VM(busybox, engine="soft") as vm:
        assert went_by(vm)
        assert vm.run(ECHO, check=True, capture_output=True).stdout == b"hello\n"


def test_a_snapshot_of_the_users_has_it_in_the_cache(own_cache: Path, taken: Snapshot, tmp_path: Path) -> None:
    with taken.restore() as vm:
        assert not went_by(vm)
        expected = answer(vm)
    (place,) = files(own_cache)
    for _ in range(2):
        with taken.restore() as vm:
            assert went_by(vm)
            assert answer(vm) == expected
    # A diff on it is another snapshot, and so is a copy.
    with taken.restore() as vm:
        vm.run(["/bin/sh", "-c", "echo more > /root/more"], check=True)
        diff = vm.snapshot(tmp_path / "diff", diff=True)
    for went in (False, True):
        with diff.restore() as vm:
            assert went_by(vm) is went
            assert vm.path("/root/more").read_text() == "more\n"
            assert answer(vm) == expected
    assert len(files(own_cache)) == 2
    diff.delete()
    assert files(own_cache) == [place]
    subprocess.run([sys.executable, "-m", "supermachine", "prune"], check=True, capture_output=True)
    assert files(own_cache) == []


def test_forks_go_on_as_ever(busybox: str) -> None:
    supermachine.bake(busybox, engine="soft")
    with VM(busybox, engine="soft") as vm:
        expected = answer(vm)
    with VM(busybox, engine="soft") as vm:
        assert went_by(vm)
        forks = vm.fork(4)
        try:
            assert [answer(fork) for fork in forks] == [expected] * 4
        finally:
            for fork in forks:
                fork.kill()


def test_a_cache_that_others_write_to_has_none(own_cache: Path, taken: Snapshot) -> None:
    (own_cache / "code").chmod(0o777)
    cache = supermachine.images.Cache()
    assert code.beside(cache, taken.id, taken.path) is None
    (own_cache / "code").chmod(0o700)
    assert code.beside(cache, taken.id, taken.path) is not None


def test_few_are_kept(own_cache: Path, taken: Snapshot) -> None:
    place = own_cache / "code"
    for number in range(code._KEPT):
        (place / f"old-{number}").write_bytes(b"")
        os.utime(place / f"old-{number}", (number, number))
    with taken.restore() as vm:
        vm.run(ECHO, check=True)
    found = files(own_cache)
    assert len(found) == code._KEPT and place / "old-0" not in found and place / "old-1" in found


def test_the_command_line_goes_by_it(own_cache: Path, busybox: str) -> None:
    supermachine.bake(busybox, engine="soft")
    command = [sys.executable, "-m", "supermachine", "run", "-q", "--engine", "soft", busybox, "--", *ECHO]
    for _ in range(3):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stdout == "hello\n"
    assert len(list(own_cache.glob("snapshots/*/code"))) == 1
    told = subprocess.run([*command[:5], "--timings", *command[5:]], check=True, capture_output=True, text=True).stderr
    assert "code" in told
