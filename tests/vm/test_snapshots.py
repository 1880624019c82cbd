"""Snapshots on real guests: baked, taken, restored, forked, and what may go wrong with each."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import supermachine
from supermachine import VM, Snapshot, errors
from supermachine.images import Cache
from supermachine.machine import launch
from supermachine.snapshots import baking, capture, records

from .guests import output, wait_for, was_restored

pytestmark = pytest.mark.vm


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busybox: str) -> Path:
    """A cache with the image in it and nothing else."""
    path = tmp_path / "own-cache"
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(path))
    supermachine.images.resolve(busybox)
    return path


def baked(cache: Path) -> list[Path]:
    return sorted(cache.glob("snapshots/*/snapshot"))


def leftovers(cache: Path) -> list[Path]:
    return list((cache / "tmp").iterdir())


def python(script: str, **options: object) -> subprocess.Popen[str]:
    """Another process with this one's environment."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


# Baking.


def test_the_first_start_bakes_and_later_ones_go_on_from_it(own_cache: Path, busybox: str) -> None:
    with VM(busybox, environment={"SECRET": "of the first"}, working_dir="/tmp") as vm:
        assert not was_restored(vm)
        assert output(vm, "echo $SECRET $GREETING") == "of the first\n"
    (snapshot,) = baked(own_cache)
    assert snapshot.stat().st_mode & 0o777 == 0o600
    assert leftovers(own_cache) == []
    with VM(busybox, environment={"GREETING": "hello"}, hostname="named", working_dir="/tmp", user="1") as vm:
        assert was_restored(vm)
        steps = [name for name, _ in vm.timings]
        assert steps == ["open", "ram_map", "gic", "vcpu", "vtimer", "devices", "agent", "ready"]
        assert output(vm, "echo $GREETING $(hostname) $PWD $(id -u)") == "hello named /tmp 1\n"
    assert baked(own_cache) == [snapshot]
    with VM.restore(snapshot) as vm:
        # What the first one was given is nobody else's.
        assert output(vm, "echo $SECRET; pwd") == "\n/\n"
    with VM(busybox, memory="256m") as vm:
        assert not was_restored(vm)
    assert len(baked(own_cache)) == 2


def test_baking_can_be_turned_off(own_cache: Path, busybox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with VM(busybox, bake=False):
        pass
    monkeypatch.setenv("SUPERMACHINE_NO_SNAPSHOT", "1")
    with VM(busybox) as vm:
        assert not was_restored(vm)
    assert baked(own_cache) == []
    monkeypatch.setenv("SUPERMACHINE_NO_SNAPSHOT", "perhaps")
    with pytest.raises(errors.ConfigurationError):
        VM(busybox).start()


def test_a_warm_up_runs_once_and_its_work_is_there_ever_after(own_cache: Path, busybox: str) -> None:
    commands = ["echo $WHO >> /root/warm", ["sh", "-c", "sleep 1000 & echo $! > /root/pid"]]
    for _ in range(2):
        with VM(busybox, warmup=commands, environment={"WHO": "one"}) as vm:
            assert output(vm, "cat /root/warm; kill -0 $(cat /root/pid) && echo alive") == "one\nalive\n"
    assert was_restored(vm)
    with VM(busybox, warmup=commands, environment={"WHO": "two"}) as vm:
        assert output(vm, "cat /root/warm") == "two\n"
    text = "written by a function"

    def function(vm: VM) -> None:
        vm.path("/root/warm").write_text(text)

    path = supermachine.Image(busybox).bake(warmup=function)
    assert path in baked(own_cache)
    assert supermachine.bake(busybox, warmup=function) == path
    with VM(busybox, warmup=function) as vm:
        assert was_restored(vm)
        assert vm.path("/root/warm").read_text() == text
    before = len(baked(own_cache))
    with pytest.raises(subprocess.CalledProcessError), VM(busybox, warmup=["exit 3"]):
        pass
    assert len(baked(own_cache)) == before


START = """
    import sys, supermachine
    with supermachine.VM(sys.argv[1]) as vm:
        print("restored" if "ram_map" in dict(vm.timings) else "booted", vm.run(["echo", "hi"], text=True).stdout)
"""


def test_first_starts_at_once_bake_once(own_cache: Path, busybox: str) -> None:
    script = textwrap.dedent(START)
    processes = [
        subprocess.Popen([sys.executable, "-c", script, busybox], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = sorted(process.communicate(timeout=120)[0] for process in processes)
    assert said == ["booted hi\n\n"] + ["restored hi\n\n"] * 3
    assert len(baked(own_cache)) == 1
    assert leftovers(own_cache) == []


@pytest.mark.parametrize("moment", ["written", "publishing", "any"])
def test_who_is_killed_while_it_bakes_leaves_nothing_half(own_cache: Path, busybox: str, moment: str) -> None:
    script = f"""
        import os, signal, threading, time
        from supermachine import VM
        from supermachine.snapshots import capture
        from supermachine.cache import store as cache
        def die(*_, **__):
            os.kill(os.getpid(), signal.SIGKILL)
        write = capture.write
        def killed(*args, **options):
            if {moment!r} == "any":
                threading.Timer({random.uniform(0, 0.15)}, die).start()
            done = write(*args, **options)
            if {moment!r} == "written":
                die()
            if {moment!r} == "publishing":
                cache._sync_directory = die
            return done
        capture.write = killed
        with VM({busybox!r}):
            time.sleep(10)
    """
    process = python(script)
    assert process.wait(120) == -signal.SIGKILL
    if moment != "any":
        assert len(baked(own_cache)) == (moment == "publishing")
    with VM(busybox) as vm:
        assert output(vm, "echo hi") == "hi\n"
    assert len(baked(own_cache)) == 1
    Cache().prepare()
    assert leftovers(own_cache) == []
    with VM(busybox) as vm:
        assert was_restored(vm)


def test_a_disk_that_is_full_costs_the_snapshot_and_not_the_start(own_cache: Path, busybox: str) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    process = python(START.replace("sys.argv[1]", repr(busybox)), preexec_fn=limited)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "booted hi\n\n"), err
    assert err.count("warning: no snapshot was baked") == 1
    assert baked(own_cache) == []
    assert leftovers(own_cache) == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "ram"])
def test_a_damaged_baked_snapshot_is_made_anew(
    own_cache: Path, busybox: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    baking._warned.clear()
    path = supermachine.bake(busybox)
    made = path.stat().st_mtime_ns
    if damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif damage == "emptied":
        os.truncate(path, 0)
    else:
        size = path.stat().st_size
        with path.open("r+b") as file:
            if damage == "flipped":
                file.seek(200)
                byte = file.read(1)
                file.seek(200)
                file.write(bytes([byte[0] ^ 1]))
            else:
                # Metadata is right, RAM is not: no restore reads all of it, so the guest tells.
                data = os.lseek(file.fileno(), size - (512 << 20), os.SEEK_DATA)
                file.seek(data)
                file.write(os.urandom(16 << 20))
    with VM(busybox, boot_timeout=8) as vm:
        assert not was_restored(vm)
        assert output(vm, "echo hi") == "hi\n"
    assert "is made anew" in capsys.readouterr().err
    assert path.stat().st_mtime_ns > made
    with VM(busybox) as vm:
        assert was_restored(vm)


def test_pruning_leaves_what_is_in_use(own_cache: Path, busybox: str, tmp_path: Path) -> None:
    supermachine.bake(busybox)
    cache = Cache()
    with VM(busybox) as vm:
        assert was_restored(vm)
        done = subprocess.run(
            [sys.executable, "-m", "supermachine", "prune"], capture_output=True, text=True, check=True
        )
        assert done.stdout == "0 B freed\n"
        assert len(baked(own_cache)) == 1
        assert output(vm, "echo hi") == "hi\n"
        diff = vm.snapshot(tmp_path / "diff", diff=True)
    freed = baking.prune(cache)
    assert freed > 1 << 20
    assert baked(own_cache) == []
    assert baking.prune(cache) == 0
    supermachine.bake(busybox)
    assert baking.prune(cache, orphans=True) == 0
    digest = supermachine.images.resolve(busybox).digest
    subprocess.run([sys.executable, "-m", "supermachine", "rmi", digest], capture_output=True, check=True)
    assert baked(own_cache) == []
    supermachine.images.resolve(busybox)
    # The diff has kept what it builds on.
    with VM.restore(diff) as vm:
        assert output(vm, "echo hi") == "hi\n"


def test_what_a_clone_touches_is_recorded_once_and_damage_is_no_matter(own_cache: Path, busybox: str) -> None:
    from supermachine.snapshots import working_set

    path = supermachine.bake(busybox).with_name("working-set")
    with VM(busybox, prefault=False) as vm:
        output(vm, "echo hi")
    assert not path.exists()
    with VM(busybox) as vm:
        output(vm, "echo hi")
        recorded = working_set.load(path)
        assert 0 < sum(count for _, count, _ in recorded) < 8192
        inode = path.stat().st_ino
        output(vm, "echo hi")
    with VM(busybox) as vm:
        assert output(vm, "echo hi") == "hi\n"
    assert path.stat().st_ino == inode
    path.write_bytes(path.read_bytes()[:-1])
    assert working_set.load(path) == []
    with VM(busybox) as vm:
        assert output(vm, "echo hi") == "hi\n"


# Taking and restoring.


@pytest.fixture(scope="module")
def taken(busybox: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    """A snapshot of a guest with a file, of a machine with settings."""
    path = tmp_path_factory.mktemp("snapshots") / "taken"
    environment = {"WHO": "the snapshot"}
    with VM(busybox, vcpus=2, environment=environment, working_dir="/tmp", ports={"80/tcp": None}) as vm:
        vm.path("/tmp/file").write_text("contents")
        snapshot = vm.snapshot(path)
        assert snapshot.path.stat().st_mode & 0o777 == 0o600
        # The machine goes on, and is not what was taken.
        vm.path("/tmp/file").write_text("changed afterwards")
        assert vm.path("/tmp/file").read_text() == "changed afterwards"
        yield snapshot


def test_a_snapshot_brings_back_the_guest_and_how_it_was_configured(taken: Snapshot) -> None:
    assert len(taken.id) == 64 and taken.parent is None and taken.pause > 0
    assert 1 << 20 < taken.data_bytes < 256 << 20
    with taken.restore(hostname="again") as vm:
        assert output(vm, "cat file; echo; echo $WHO; pwd; hostname; nproc") == (
            "contents\nthe snapshot\n/tmp\nagain\n2\n"
        )
    with VM.restore(taken, environment={"WHO": "somebody"}, working_dir="/") as vm:
        assert output(vm, "echo $WHO; pwd") == "somebody\n/\n"
        # Started again, it goes on from the snapshot again.
        vm.path("/tmp/file").unlink()
        vm.kill()
        vm.start()
        assert vm.path("/tmp/file").read_text() == "contents"


def test_another_process_restores_it(taken: Snapshot) -> None:
    process = python(f"""
        from supermachine import VM
        with VM.restore({str(taken.path)!r}) as vm:
            print(vm.path("/tmp/file").read_text())
    """)
    assert process.communicate(timeout=120)[0] == "contents\n"


def test_a_name_that_is_taken_is_never_written_over(taken: Snapshot, guest: VM, tmp_path: Path) -> None:
    before = taken.path.stat()
    with pytest.raises(errors.SnapshotExists):
        guest.snapshot(taken.path)
    after = taken.path.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    with pytest.raises(FileNotFoundError, match="its directory does not exist"):
        guest.snapshot(tmp_path / "no" / "such" / "directory")
    assert guest.run(["true"]).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_in_use_cannot_be_deleted(taken: Snapshot, tmp_path: Path) -> None:
    with taken.restore() as vm:
        own = vm.snapshot(tmp_path / "own")
    with own.restore():
        with pytest.raises(errors.SnapshotInUse):
            own.delete()
        assert own.path.exists()
    own.delete()
    assert not own.path.exists()
    with pytest.raises(errors.SnapshotNotFound):
        own.delete()
    with pytest.raises(errors.SnapshotNotFound):
        own.restore()


def test_capturing_what_was_restored_again_and_again_loses_nothing(taken: Snapshot, tmp_path: Path) -> None:
    last = taken
    sizes = []
    for generation in range(6):
        with last.restore() as vm:
            assert output(vm, "cat log 2>/dev/null; true") == "".join(f"{n}\n" for n in range(generation))
            output(vm, f"echo {generation} >> log")
            # Diffs on diffs, and now and then a whole one.
            last = vm.snapshot(tmp_path / str(generation), diff=generation % 3 != 2)
            sizes.append(last.data_bytes)
    assert sizes[0] < taken.data_bytes / 2
    with last.restore() as vm:
        assert output(vm, "cat log; cat file") == "0\n1\n2\n3\n4\n5\ncontents"
        log = vm.path("/tmp/log").read_text()
        diff = vm.snapshot(tmp_path / "diff", diff=True)
    whole = diff.flatten(tmp_path / "flat")
    for path in tmp_path.iterdir():
        if path != whole:
            path.unlink()
    with VM.restore(whole) as vm:
        assert vm.path("/tmp/log").read_text() == log


def test_a_diff_finds_what_it_builds_on_or_says_what_is_missing(taken: Snapshot, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    with taken.restore() as vm:
        base = vm.snapshot(first / "base")
    with base.restore() as vm:
        diff = vm.snapshot(first / "diff", diff=True)
    assert diff.parent == base.id
    assert [head.id for head in records.chain(diff.path)] == [base.id, diff.id]
    # Moved together, and renamed: a parent is known by its id.
    first.rename(second)
    (second / "base").rename(second / "another name")
    with VM.restore(second / "diff") as vm:
        assert output(vm, "cat file") == "contents"
    (second / "another name").unlink()
    with pytest.raises(errors.SnapshotNotFound) as caught:
        VM.restore(second / "diff")
    assert base.id in str(caught.value)


def test_a_diff_needs_something_to_build_on(busybox: str, tmp_path: Path) -> None:
    with VM(busybox, bake=False) as vm:
        with pytest.raises(errors.SnapshotFailed):
            vm.snapshot(tmp_path / "diff", diff=True)
        (fork,) = vm.fork()
        with fork, pytest.raises(errors.SnapshotFailed):
            fork.snapshot(tmp_path / "diff", diff=True)
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_is_not_there_is_named(taken: Snapshot, own_cache: Path, busybox: str) -> None:
    for path in own_cache.glob("rootfs/*"):
        path.unlink()
    with pytest.raises(errors.ImageNotFound) as caught:
        VM.restore(taken)
    assert busybox in str(caught.value)
    assert "supermachine pull" in str(caught.value.hint)
    with VM.restore(taken, pull="missing") as vm:
        assert output(vm, "cat file") == "contents"


def test_files_that_are_no_snapshots(tmp_path: Path, taken: Snapshot) -> None:
    text, fifo, cut, export = (tmp_path / name for name in ("text", "fifo", "cut", "export"))
    supermachine.snapshots.export(taken.path, export)
    text.write_text("SMSNAP, they said")
    os.mkfifo(fifo)
    with taken.path.open("rb") as file:
        cut.write_bytes(file.read(10_000))
    for path in (text, fifo, cut, export, tmp_path):
        with pytest.raises(errors.BadSnapshot):
            VM.restore(path)
    with pytest.raises(errors.SnapshotNotFound):
        VM.restore(tmp_path / "missing")


# Forks.


def test_forks_go_on_from_one_moment_each_for_itself(busybox: str, tmp_path: Path) -> None:
    with VM(busybox) as vm:
        vm.path("/root/file").write_text("before")
        forks = vm.fork(5)
        try:
            vm.path("/root/file").write_text("after")
            for number, fork in enumerate(forks):
                assert fork.path("/root/file").read_text() == "before"
                fork.path("/root/file").write_text(str(number))
            assert [fork.path("/root/file").read_text() for fork in forks] == list("01234")
            assert vm.path("/root/file").read_text() == "after"
            names = {output(fork, "hostname") for fork in [vm, *forks]}
            assert len(names) == 6
            # A fork of a fork, and its snapshot, stand for themselves.
            (again,) = forks[3].fork()
            with again:
                forks[3].kill()
                snapshot = again.snapshot(tmp_path / "snapshot")
            with snapshot.restore() as restored:
                assert restored.path("/root/file").read_text() == "3"
        finally:
            for fork in forks:
                fork.kill()
        with pytest.raises(errors.ConfigurationError):
            forks[0].start()
        assert vm.fork(0) == []


def test_a_fork_goes_to_the_disk_where_memory_is_short(
    own_cache: Path, busybox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "available_memory", lambda: 0)
    with VM(busybox) as vm:
        forks = vm.fork(2)
        assert leftovers(own_cache) == []
        for fork in forks:
            with fork:
                assert output(fork, "echo hi") == "hi\n"


# Endings.


def test_the_death_of_a_machine_ends_its_capture(busybox: str, tmp_path: Path) -> None:
    with VM(busybox) as vm:
        assert vm.pid is not None
        os.kill(vm.pid, signal.SIGSTOP)
        caught: list[BaseException] = []

        def take() -> None:
            try:
                vm.snapshot(tmp_path / "snapshot")
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=take)
        thread.start()
        wait_for(lambda: any(tmp_path.iterdir()), "a file of the capture")
        os.kill(vm.pid, signal.SIGKILL)
        thread.join(30)
        assert isinstance(caught[0], errors.VMExited)
    assert list(tmp_path.iterdir()) == []


def test_the_death_of_a_machine_ends_its_restore(taken: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_ready = launch.wait_ready

    def killed(worker, timeout):  # type: ignore[no-untyped-def]
        os.kill(worker.pid, signal.SIGKILL)
        return wait_ready(worker, timeout)

    monkeypatch.setattr(launch, "wait_ready", killed)
    with pytest.raises(errors.VMExited):
        taken.restore()


def test_a_capture_that_is_late_is_an_error_and_the_machine_goes_on(busybox: str, tmp_path: Path) -> None:
    with VM(busybox) as vm:
        assert vm.pid is not None
        os.kill(vm.pid, signal.SIGSTOP)
        with pytest.raises(errors.SnapshotFailed):
            vm.snapshot(tmp_path / "late", timeout=0.2)
        assert list(tmp_path.iterdir()) == []
        os.kill(vm.pid, signal.SIGCONT)
        # What is late is not taken for the answer to what comes next.
        vm.path("/root/file").write_text("contents")
        snapshot = vm.snapshot(tmp_path / "next")
        assert output(vm, "echo hi") == "hi\n"
    with snapshot.restore() as vm:
        assert vm.path("/root/file").read_text() == "contents"


def test_forks_that_die_as_they_start_are_an_error_and_none_is_left(
    busybox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = launch.spawn_restored
    pids = []

    def killed(*args, **options):  # type: ignore[no-untyped-def]
        worker = spawn(*args, **options)
        pids.append(worker.pid)
        if len(pids) == 2:
            os.kill(worker.pid, signal.SIGKILL)
        return worker

    with VM(busybox) as vm:
        monkeypatch.setattr(launch, "spawn_restored", killed)
        with pytest.raises(errors.VMExited):
            vm.fork(4)
        assert output(vm, "echo hi") == "hi\n"
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "an end of all workers")
