"""Snapshots of version 8 under the Python interface, of real guests.

Between writing and restoring they are taken apart and put together again by an encoder of the tests' own.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recode_v8
from click.testing import CliRunner
from supermachine import VM, Snapshot, _core, errors, images, snapshots
from supermachine.cli.commands import cli
from supermachine.host import bundle, engines
from supermachine.machine import launch
from supermachine.snapshots import capture, legacy_v8

from .guests import output, refused, wait_for

pytestmark = pytest.mark.vm

#: Little, since the tests' own encoder reads all of it.
MEMORY = 128 << 20


def restore(snapshot: str | os.PathLike[str], **options: Any) -> VM:
    """On the engine that it was taken on, which no file of version 8 says."""
    return VM.restore(snapshot, engine="soft", **options)


def recode(source: Path, target: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Path:
    """The same snapshot, changed, as the tests' own encoder writes it."""
    recode_v8.recode(source, target, change)
    return target


@pytest.fixture(scope="module")
def taken(busybox: str, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Of a guest on the soft engine with a file, and a process that counts."""
    with VM(busybox, engine="soft", memory=MEMORY, disk=0) as vm:
        vm.path("/root/state").write_text("before")
        vm.run("(sleep 1; echo woke > /tmp/woke) > /dev/null 2>&1 &", shell=True, check=True)
        return vm.snapshot(tmp_path_factory.mktemp("v8") / "taken", format=8)


@pytest.mark.parametrize("name", ["soft", "hvf"])
@pytest.mark.parametrize("vcpus", [1, 4])
def test_guests_go_on_from_files_of_either_writer(
    name: str, vcpus: int, busybox: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name == "hvf":
        request.getfixturevalue("hvf")
    with VM(busybox, engine=name, vcpus=vcpus, memory=MEMORY, disk=0) as vm:
        vm.path("/root/state").write_text("before")
        snapshot = vm.snapshot(tmp_path / "ours", format=8)
        assert (snapshot.format, snapshot.id, snapshot.parent) == (8, None, None)
        assert snapshot.path.stat().st_mode & 0o777 == 0o600
        assert snapshot.data_bytes > 1 << 20
        vm.path("/root/state").write_text("after")
        names = [output(vm, "hostname")]
    theirs = recode(snapshot.path, tmp_path / "theirs")
    assert theirs.read_bytes() == snapshot.path.read_bytes()
    info = snapshots.inspect(theirs)
    assert (info.version, info.vcpus, info.memory_bytes) == (8, vcpus, MEMORY)
    assert info.devices == ("vsock", "block", "console", "rng", "net", "fs", *["block"] * 4, "balloon")
    assert (info.engine, info.image, info.listeners) == (None, None, ())
    assert snapshots.verify(theirs) is None
    bare = recode(theirs, tmp_path / "bare", recode_v8.bare)
    for path in (theirs, bare):
        with VM.restore(path, image=busybox, engine=name) as clone:
            assert (clone.engine, output(clone, "cat /root/state; nproc")) == (name, f"before{vcpus}\n")
            assert abs(float(output(clone, "date +%s")) - time.time()) < 60
            names.append(output(clone, "hostname"))
            clone.path("/root/state").write_text("in the clone")
            again = clone.snapshot(tmp_path / f"{path.name}-again", format=8)
            whole = clone.snapshot(tmp_path / f"{path.name}-whole")
            with pytest.raises(errors.SnapshotFailed, match="nothing for a diff"):
                clone.snapshot(tmp_path / "diff", diff=True)
        with again.restore(image=busybox, engine=name) as clone:
            assert output(clone, "cat /root/state") == "in the clone"
        with whole.restore() as clone:
            assert output(clone, "cat /root/state") == "in the clone"
    assert len(set(names)) == 3


def test_what_was_under_way_goes_on(taken: Snapshot, busybox: str) -> None:
    with restore(taken, image=busybox, environment={"NAME": "value"}, hostname="mine") as vm:
        assert output(vm, "while ! cat /tmp/woke 2>/dev/null; do sleep 0.1; done") == "woke\n"
        assert output(vm, "echo $NAME $(hostname)") == "value mine\n"
        (fork,) = vm.fork()
        with fork:
            assert output(fork, "cat /root/state") == "before"


def test_what_it_does_not_say_must_be_said(
    taken: Snapshot, busybox: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(errors.BadSnapshot, match="which image") as caught:
        restore(taken)
    assert "image=" in str(caught.value.hint)
    with pytest.raises(errors.BadSnapshot, match="give it the disks that it had"):
        restore(taken, image=busybox, disks=[taken.path])
    with pytest.raises(errors.ConfigurationError, match="cannot be used"):
        restore(taken, image=busybox, disks=[tmp_path / "missing"])
    with pytest.raises(errors.ConfigurationError, match="not a file"):
        restore(taken, image=busybox, disks=[tmp_path])
    with pytest.raises(errors.ConfigurationError, match="ports of the host"):
        restore(taken, image=busybox, ports="same")
    foreign = engines.Engine("kvm", "hardware", True, "", architecture="x86_64")
    monkeypatch.setitem(engines._PROBES, "kvm", lambda: foreign)
    monkeypatch.setitem(engines._PROBES, "hvf", lambda: engines.Engine("hvf", "hardware", False, "none here"))
    with pytest.raises(errors.NotSupported, match="arm64"):
        VM.restore(taken, image=busybox, engine="kvm")
    # It is not that engine which is taken when none is named, though it is preferred for other guests.
    with VM.restore(taken, image=busybox) as vm:
        assert vm.engine == "soft"
    with pytest.raises(errors.HardwareRequired):
        VM.restore(taken, image=busybox, require_hardware=True)


def test_what_the_format_cannot_hold_is_refused_and_leaves_nothing(busybox: str, tmp_path: Path) -> None:
    with VM(busybox, engine="soft", memory=MEMORY, disk=0) as vm:
        with pytest.raises(errors.NotSupported, match="no diffs"):
            vm.snapshot(tmp_path / "diff", format=8, diff=True)
        with pytest.raises(errors.ConfigurationError, match="version 8 or 9"):
            vm.snapshot(tmp_path / "seven", format=7)  # type: ignore[arg-type]
        assert list(tmp_path.iterdir()) == []
        snapshot = vm.snapshot(tmp_path / "nine")
        with pytest.raises(errors.ConfigurationError, match="says itself"):
            snapshot.restore(image=busybox)
    foreign = engines.Engine("kvm", "hardware", True, "", architecture="x86_64")
    with pytest.raises(errors.NotSupported, match="kvm engine's are x86_64"):
        legacy_v8.check_writable(foreign, diff=False)


#: The agent's own port, which is there in every guest of ours: something that listens on vsock.
AGENT = 1025
LISTENER = (3, 2000, AGENT, socket.AF_INET, socket.SOCK_STREAM)


def hear(place: tuple[str, int]) -> bytes:
    """What the agent, behind a port of the host, says of the file /root/state (rust/proto, files, read)."""
    path = b"/root/state"
    with socket.create_connection(place, 30) as stream:
        for body in (b"\x01", b"\x02" + bytes([len(path)]) + path + b"\0\0\0"):
            stream.sendall(struct.pack("<I", len(body)) + body)
        (length,) = struct.unpack("<I", stream.recv(4, socket.MSG_WAITALL))
        return stream.recv(length, socket.MSG_WAITALL)


def test_listeners_are_bound_again(taken: Snapshot, busybox: str, tmp_path: Path) -> None:
    path = recode(taken.path, tmp_path / "listening", lambda s: s["listeners"].append(LISTENER))
    assert snapshots.inspect(path).listeners == (AGENT,)
    with restore(path, image=busybox) as vm:
        assert list(vm.ports) == [f"{AGENT}/vsock"]
        (place,) = vm.ports[f"{AGENT}/vsock"]
        assert place[0] == "127.0.0.1"
        assert hear(place) == b"\x03\x06before"
        # They are the guest's own affair, and so are they there in what is taken of it.
        again = vm.snapshot(tmp_path / "again", format=8)
        assert snapshots.inspect(again.path).listeners == (AGENT,)
        (fork,) = vm.fork()
        with fork:
            (other,) = fork.ports[f"{AGENT}/vsock"]
            assert other != place
            assert hear(other) == b"\x03\x06before"
    wait_for(lambda: refused(place), "an end of the listener")
    with restore(path, image=busybox, ports={}) as vm:
        assert vm.ports == {}
    with restore(path, image=busybox, ports={f"{AGENT}/vsock": [None, None]}) as vm:
        assert {hear(place) for place in vm.ports[f"{AGENT}/vsock"]} == {b"\x03\x06before"}


@pytest.mark.parametrize(
    "listener", [(3, 0, 80, socket.AF_INET, socket.SOCK_DGRAM), (3, 0, 80, 77, socket.SOCK_STREAM)]
)
def test_listeners_that_cannot_be_bound_are_refused(
    taken: Snapshot, busybox: str, tmp_path: Path, listener: tuple[int, int, int, int, int]
) -> None:
    path = recode(taken.path, tmp_path / "listening", lambda s: s["listeners"].append(listener))
    with pytest.raises(errors.NotSupported, match="port 80") as caught:
        restore(path, image=busybox)
    assert "ports={}" in str(caught.value.hint)
    with restore(path, image=busybox, ports={}):
        pass


def test_a_file_may_not_have_as_many_listeners_as_it_likes(taken: Snapshot, busybox: str, tmp_path: Path) -> None:
    def change(snapshot: dict[str, Any]) -> None:
        snapshot["listeners"] += [(3, 0, 1000 + n, socket.AF_INET, socket.SOCK_STREAM) for n in range(300)]

    with pytest.raises(errors.NotSupported, match="300 listeners"):
        restore(recode(taken.path, tmp_path / "listening", change), image=busybox)


def test_guests_without_an_agent_are_reached_by_vsock_alone(taken: Snapshot, busybox: str, tmp_path: Path) -> None:
    path = recode(taken.path, tmp_path / "listening", lambda s: s["listeners"].append(LISTENER))
    with restore(path, image=busybox, agent=False) as vm:
        for use in (lambda: vm.run(["true"]), lambda: vm.path("/root").exists(), lambda: vm.popen(["true"])):
            with pytest.raises(errors.NotSupported, match="agent=False"):
                use()
        (place,) = vm.ports[f"{AGENT}/vsock"]
        assert hear(place) == b"\x03\x06before"
        again = vm.snapshot(tmp_path / "again", format=8)
        (fork,) = vm.fork()
        with fork:
            assert hear(fork.ports[f"{AGENT}/vsock"][0]) == b"\x03\x06before"
        began = time.monotonic()
        vm.stop()
        assert vm.wait(30) == "shutdown"
        assert time.monotonic() - began < 30
    with again.restore(image=busybox, engine="soft") as vm:
        assert output(vm, "cat /root/state") == "before"
    with pytest.raises(errors.NotSupported, match="agent"):
        restore(path, image=busybox, agent=False, ports={"80/tcp": None})


@pytest.fixture
def foreign(agentless: Path, busybox: str, tmp_path: Path) -> Path:
    """Of a guest that has never had our agent in it."""
    worker = _core.Worker.spawn(
        bundle.worker(),
        engine="soft",
        kernel=bundle.kernel("aarch64"),
        initramfs=str(agentless),
        disks=[(str(images.resolve(busybox).rootfs), True)],
        memory_bytes=MEMORY,
        vcpus=1,
        hostname="foreign",
        machine_id=bytes(16),
        entropy=bytes(64),
        root_fs="erofs",
        agent=False,
    )

    def has_begun() -> bool:
        told = worker.stats(60)
        return told is not None and any(count for _, count in told[0])

    try:
        wait_for(has_begun, "a guest that runs")
        with capture.published(tmp_path / "foreign") as fd:
            capture.write(worker, fd, v8=True, image=None, api=b"", timeout=60)
    finally:
        worker.kill()
    return tmp_path / "foreign"


def test_a_guest_in_which_our_agent_does_not_run_is_refused_with_the_way_out(foreign: Path, busybox: str) -> None:
    with pytest.raises(errors.RenewFailed, match="not ready within 1000 ms") as caught:
        restore(foreign, image=busybox, boot_timeout=1)
    assert "agent=False" in str(caught.value.hint)
    with restore(foreign, image=busybox, agent=False) as vm:
        assert vm.running


def test_a_guest_that_cannot_confirm_does_not_start(
    taken: Snapshot, busybox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in test_clones.py: more entropy than the agent takes."""
    urandom = os.urandom
    monkeypatch.setattr(launch.os, "urandom", lambda size: urandom(65 if size == 64 else size))
    with pytest.raises(errors.RenewFailed, match="identity"):
        restore(taken, image=busybox)


def test_a_guest_whose_image_is_not_known(taken: Snapshot, busybox: str, tmp_path: Path) -> None:
    with VM(busybox, engine="soft", memory=MEMORY, disk=0) as vm:
        disk = vm.image.rootfs
    with restore(taken, disks=[disk]) as vm:
        assert output(vm, "cat /root/state") == "before"
        with pytest.raises(errors.ConfigurationError, match="not known"):
            _ = vm.image
        with pytest.raises(errors.SnapshotFailed, match="not known"):
            vm.snapshot(tmp_path / "nine")
        again = vm.snapshot(tmp_path / "eight", format=8)
        (fork,) = vm.fork()
        with fork:
            assert output(fork, "cat /root/state") == "before"
    with again.restore(image=busybox, engine="soft") as vm:
        assert output(vm, "cat /root/state") == "before"


def test_damage_is_told_before_anything_runs(taken: Snapshot, busybox: str, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    recode(taken.path, cut)
    os.truncate(cut, cut.stat().st_size - 1)
    with pytest.raises(errors.BadSnapshot):
        restore(cut, image=busybox)

    def swapped(snapshot: dict[str, Any]) -> None:
        snapshot["gic_blob"] = bytes(len(snapshot["gic_blob"]))

    with pytest.raises(errors.BadSnapshot):
        restore(recode(taken.path, tmp_path / "gic", swapped), image=busybox)


def test_the_command_line_tells_what_is_in_one(taken: Snapshot, tmp_path: Path) -> None:
    path = str(recode(taken.path, tmp_path / "listening", lambda s: s["listeners"].append(LISTENER)))
    said = CliRunner().invoke(cli, ["snapshot", "inspect", path], catch_exceptions=False)
    assert said.exit_code == 0
    assert "version 8, whole" in said.output
    assert "vsock block console rng" in said.output
    assert f"{AGENT}/vsock" in said.output
    said = CliRunner().invoke(cli, ["snapshot", "verify", path], catch_exceptions=False)
    assert (said.exit_code, "no checksums" in said.output) == (0, True)
