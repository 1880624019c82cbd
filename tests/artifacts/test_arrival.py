"""Guests that run while their memory is still on its way from a registry that is slow, breaks off, or lies."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import supermachine
from supermachine import VM, errors
from supermachine.artifacts import arrival as arriving
from supermachine.artifacts.trust import Keys
from supermachine.machine import remote
from supermachine.machine.remote import push_baked
from supermachine.oci import transport

from .registry import Registry
from .test_product import another_machine, command, with_demo

pytestmark = pytest.mark.vm

#: Bytes that a guest has in memory and not in its working set.
LARGE = 8 << 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Registry, str, str]]:
    """A registry with an image and a snapshot, the snapshot's name there, and the checksum of a file in its memory."""
    place = tmp_path_factory.mktemp("made")
    registry = Registry()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERMACHINE_CACHE", str(place / "cache"))
        patch.setenv("SUPERMACHINE_KEYS", str(place / "keys"))
        script = f"head -c {LARGE} /dev/urandom > /dev/shm/large && sha256sum /dev/shm/large"
        with VM(with_demo(registry), memory="256m", engine="soft", disk=0, bake=False) as vm:
            done = vm.run(script, shell=True, text=True, check=True)
            whole = vm.snapshot(place / "whole")
        # What a clone needs first is recorded when it has answered.
        with whole.restore() as vm:
            vm.run(["true"], check=True)
        digest = whole.push(f"{registry.host}/demo:whole").digest
    yield registry, digest, done.stdout
    registry.close()


@pytest.fixture
def pushed(
    made: tuple[Registry, str, str], registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """The same in a registry of the test's own: the reference and the checksum. The cache has the image alone."""
    other, digest, checksum = made
    registry.blobs.update(other.blobs)
    registry.manifests.update(other.manifests)
    another_machine(monkeypatch, tmp_path, "other")
    assert command("pull", "-q", f"{registry.host}/demo:1")[0] == 0
    return f"{registry.host}/demo@{digest}", checksum


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulls that give up soon where nothing comes any more, and late where something is to come."""
    seconds = 2 if "harm" in request.fixturenames else 120
    limits = transport.Limits(connect=seconds, read=seconds, attempts=2, backoff=0.01, backoff_max=0.02)
    monkeypatch.setattr(transport.Limits, "from_environment", lambda: limits)


def blob_of(registry: Registry, reference: str, name: str) -> str:
    """The digest of a part."""
    manifest = json.loads(registry.manifests["demo", reference.partition("@")[2]][1])
    (found,) = [layer["digest"] for layer in manifest["layers"] if f".{name}.v1" in layer["mediaType"]]
    return str(found)


def hold(registry: Registry, digest: str) -> threading.Event:
    """Keeps a blob back until the event is set."""
    let_go = threading.Event()

    def change(name: str, data: bytes) -> bytes:
        if name == digest:
            let_go.wait(120)
        return data

    registry.change = change
    return let_go


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched but what a guest waits for, and what a whole snapshot needs."""
    monkeypatch.setattr(arriving, "_QUIET", 3600)
    monkeypatch.setattr(arriving, "_LATEST", 3600)


@pytest.mark.usefixtures("asked_for")
def test_a_guest_runs_before_its_memory_is_there(registry: Registry, pushed: tuple[str, str]) -> None:
    reference, checksum = pushed
    vm = remote.restored(reference)
    arrival = remote.arrival_of(vm)
    assert arrival is not None
    with vm:
        # Not before: a start may touch pages that the recorded one did not.
        let_go = hold(registry, blob_of(registry, reference, "ram"))
        done = []
        reader = threading.Thread(
            target=lambda: done.append(vm.run(["sha256sum", "/dev/shm/large"], text=True, timeout=60).stdout)
        )
        reader.start()
        reader.join(1.0)
        assert not done and not arrival.complete, "it waits for what is not there"
        let_go.set()
        reader.join(60)
        assert done == [checksum]
        arrival.wait(30)
        # All of it is there: it has its place in the cache, and what is taken of it builds on that.
        assert vm._source.files[0].is_file()
        again = vm.snapshot(vm._source.files[0].parent / "diff", diff=True)
        assert again.parent is not None
    with again.restore() as clone:
        assert clone.run(["sha256sum", "/dev/shm/large"], text=True).stdout == checksum
    asked = len(registry.requests)
    with remote.restored(reference) as vm:
        assert vm.run(["sha256sum", "/dev/shm/large"], text=True).stdout == checksum
    assert len(registry.requests) == asked


@pytest.mark.usefixtures("asked_for")
def test_a_snapshot_of_it_waits_until_all_is_there(registry: Registry, pushed: tuple[str, str], tmp_path: Path) -> None:
    reference, checksum = pushed
    with remote.restored(reference) as vm:
        let_go = hold(registry, blob_of(registry, reference, "ram"))
        with pytest.raises(errors.RegistryTimeout):
            vm.snapshot(tmp_path / "early", timeout=0.2)
        let_go.set()
        taken = vm.snapshot(tmp_path / "taken")
        (fork,) = vm.fork(1)
        with fork:
            assert fork.run(["sha256sum", "/dev/shm/large"], text=True).stdout == checksum
    with taken.restore() as vm:
        assert vm.run(["sha256sum", "/dev/shm/large"], text=True).stdout == checksum


def cut(registry: Registry, digest: str) -> None:
    """A registry that has gone when the rest is asked for."""
    registry.blobs.pop(("demo", digest))


def lie(registry: Registry, digest: str) -> None:
    registry.change = lambda name, data: data[:-5] + b"wrong" if name == digest else data


def stall(registry: Registry, digest: str) -> None:
    hold(registry, digest)


@pytest.mark.parametrize(
    ("harm", "error"),
    [(cut, errors.ImageNotFound), (lie, errors.DigestMismatch), (stall, errors.RegistryTimeout)],
)
def test_what_does_not_come_ends_the_guest(
    registry: Registry,
    pushed: tuple[str, str],
    harm: Callable[[Registry, str], None],
    error: type[Exception],
) -> None:
    reference, checksum = pushed
    harm(registry, blob_of(registry, reference, "ram"))
    began = time.monotonic()
    try:
        with remote.restored(reference) as vm:
            arrival = remote.arrival_of(vm)
            assert arrival is not None
            with pytest.raises(errors.VMExited) as caught:
                while True:
                    assert vm.run(["sha256sum", "/dev/shm/large"], text=True, timeout=60).stdout in ("", checksum)
            assert caught.value.reason == "snapshot-incomplete"
            assert isinstance(arrival.failure(), error)
    except error:
        pass  # it was known before the guest was ready
    assert time.monotonic() - began < 60
    with pytest.raises(error):
        supermachine.pull(reference)


@pytest.mark.parametrize("ranges", ["ignore", "refuse"])
def test_registries_without_ranges(registry: Registry, pushed: tuple[str, str], ranges: str) -> None:
    reference, checksum = pushed
    registry.ranges = ranges
    if ranges == "refuse":
        with pytest.raises(errors.RegistryError), remote.restored(reference) as vm:
            vm.run(["sha256sum", "/dev/shm/large"], text=True, timeout=60)
        return
    with remote.restored(reference) as vm:
        assert vm.run(["sha256sum", "/dev/shm/large"], text=True, timeout=60).stdout == checksum


def test_on_the_command_line(registry: Registry, pushed: tuple[str, str]) -> None:
    reference, checksum = pushed
    registry.delay = 0.02
    assert command("run", "-q", reference, "sha256sum", "/dev/shm/large")[:2] == (0, checksum)
    sent = registry.sent.total()
    assert command("run", "-q", reference, "echo", "again")[:2] == (0, "again\n")
    assert registry.sent.total() == sent, "the whole of it is in the cache when the command has ended"


@pytest.mark.usefixtures("asked_for")
def test_a_snapshot_is_restored_while_it_is_pulled(pushed: tuple[str, str]) -> None:
    reference, checksum = pushed
    found = supermachine.pull(reference, wait=False)
    with found.restore() as one, found.restore() as other:
        assert not found.path.exists()
        for vm in (one, other):
            assert vm.run(["sha256sum", "/dev/shm/large"], text=True, timeout=100).stdout == checksum
    found.wait(60)
    assert found.path.is_file()
    with found.restore() as vm:
        assert vm.run(["sha256sum", "/dev/shm/large"], text=True).stdout == checksum
    with pytest.raises(errors.ConfigurationError):
        supermachine.pull(reference, found.path.with_name("other"), wait=False)


@pytest.mark.usefixtures("asked_for")
def test_machines_of_a_fleet_start_before_the_snapshot_is_there(
    registry: Registry, pushed: tuple[str, str], tmp_path: Path
) -> None:
    from supermachine.fleet import Fleet

    reference, checksum = pushed
    asked = registry.count("GET", "/manifests/")
    with Fleet(snapshot=reference, per_host=3) as fleet:
        with fleet.acquire() as one, fleet.acquire() as other:
            assert not list((tmp_path / "other").glob("artifacts/*/snapshot"))
            for vm in (one, other):
                assert vm.run(["sha256sum", "/dev/shm/large"], text=True, timeout=100).stdout == checksum
        with fleet.acquire() as later:
            assert later.run(["sha256sum", "/dev/shm/large"], text=True, timeout=100).stdout == checksum
        assert registry.count("GET", "/manifests/") == asked + 1, "it was fetched once"


def test_a_fleet_asks_again_for_what_did_not_come(registry: Registry, pushed: tuple[str, str]) -> None:
    from supermachine.fleet import Fleet

    reference, checksum = pushed
    digest = blob_of(registry, reference, "ram")
    kept = registry.blobs.pop(("demo", digest))
    with Fleet(snapshot=reference, per_host=1) as fleet:
        with pytest.raises((errors.ImageNotFound, errors.VMExited)):  # noqa: SIM117
            with fleet.acquire() as vm:
                vm.run(["sha256sum", "/dev/shm/large"], text=True, timeout=60, check=True)
        registry.blobs["demo", digest] = kept
        with fleet.acquire() as vm:
            assert vm.run(["sha256sum", "/dev/shm/large"], text=True, timeout=60).stdout == checksum


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Registry, str, str, str]]:
    """A registry with an image and its baked snapshot: the image, the snapshot's digest, the key that signed it.

    A warm-up has left something large in its memory.
    """
    place = tmp_path_factory.mktemp("baked")
    registry = Registry()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERMACHINE_CACHE", str(place / "cache"))
        patch.setenv("SUPERMACHINE_KEYS", str(place / "keys"))
        public = Keys().generate("builder").text
        digest = push_baked(with_demo(registry), sign="builder", **WARM).digest
    yield registry, registry.host, digest, public
    registry.close()


#: What is baked: the memory has 8 MiB that nobody needs at first.
WARM: dict[str, Any] = {
    "memory": "128m",
    "engine": "soft",
    "warmup": [f"head -c {LARGE} /dev/urandom > /dev/shm/large && sha256sum /dev/shm/large > /dev/shm/sum"],
}
CHECK = ["sh", "-c", "cat /dev/shm/sum && exec sha256sum /dev/shm/large"]


def friend(baked: tuple[Registry, str, str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, str]:
    """A machine that trusts the key, and has the image in its cache: the image's name, the blob of the rest."""
    registry, host, digest, public = baked
    another_machine(monkeypatch, tmp_path, "friend")
    Keys().trust(public, "builder")
    image = f"{host}/demo:1"
    assert command("pull", "-q", image)[0] == 0
    return image, blob_of(registry, f"demo@{digest}", "ram")


def same(output: str) -> bool:
    """Whether what a guest had in memory is what it read there."""
    one, other = output.splitlines()
    return one == other


@pytest.mark.usefixtures("asked_for")
def test_an_images_baked_snapshot_is_started_before_it_is_there(
    baked: tuple[Registry, str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = baked[0]
    image, _ = friend(baked, monkeypatch, tmp_path)
    with VM(image, **WARM) as one, VM(image, **WARM) as other:
        assert not list((tmp_path / "friend").glob("snapshots/*/snapshot"))
        arrivals = {id(remote.arrival_of(vm)) for vm in (one, other)}
        assert len(arrivals) == 1, "the second machine waits for the same"
        for vm in (one, other):
            assert same(vm.run(CHECK, text=True, timeout=100).stdout)
        diff = one.snapshot(tmp_path / "diff", diff=True)
        assert diff.parent is not None
    with diff.restore() as vm:
        assert same(vm.run(CHECK, text=True).stdout)
    assert len(list((tmp_path / "friend").glob("snapshots/*/working-set"))) == 1
    sent = registry.sent.total()
    with VM(image, **WARM) as vm:
        assert same(vm.run(CHECK, text=True).stdout)
    assert registry.sent.total() == sent


@pytest.mark.usefixtures("asked_for")
def test_nobody_else_bakes_what_is_on_its_way(
    baked: tuple[Registry, str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process with the same cache boots: two snapshots of one key would be taken for the same one."""
    image, _ = friend(baked, monkeypatch, tmp_path)
    script = (
        "import supermachine; from supermachine.snapshots import baking; baking._WAIT_WARMUP = 0.2\n"
        f"with supermachine.VM({image!r}, **{WARM!r}) as vm: print(vm.run({CHECK!r}, text=True).stdout, end='')"
    )
    with VM(image, **WARM) as vm:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
        assert same(done.stdout), done.stderr
        assert not list((tmp_path / "friend").glob("snapshots/*/snapshot"))
        assert same(vm.run(CHECK, text=True, timeout=100).stdout)


def test_a_baked_snapshot_that_does_not_come_ends_the_guest_or_costs_a_boot(
    baked: tuple[Registry, str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = baked[0]
    image, blob = friend(baked, monkeypatch, tmp_path)
    registry.change = lambda name, data: data[:-5] + b"wrong" if name == blob else data
    try:
        with VM(image, **WARM) as vm:
            try:
                while True:
                    assert same(vm.run(CHECK, text=True, timeout=60, check=True).stdout)
                    if remote.arrival_of(vm) is None:
                        break  # it has booted
            except errors.VMExited as error:
                assert error.reason == "snapshot-incomplete"
    finally:
        registry.change = lambda _, data: data
    with VM(image, **WARM) as vm:
        assert same(vm.run(CHECK, text=True, timeout=60).stdout)


def test_run_of_an_image_starts_early(
    baked: tuple[Registry, str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the command line, which has no warm-up: what is pushed has none either."""
    registry, host, _, _ = baked
    with monkeypatch.context() as patch:
        patch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "builder"))
        patch.setenv("SUPERMACHINE_KEYS", str(tmp_path / "builder-keys"))
        image = f"{host}/demo:1"
        ours = Keys().generate("other").text
        digest = push_baked(image, sign="other", memory="128m", engine="soft").digest
    another_machine(monkeypatch, tmp_path, "friend")
    Keys().trust(ours, "other")
    words = ("run", "-q", "--memory", "128m", "--engine", "soft", image, "echo")
    asked: list[str] = []
    blob = blob_of(registry, f"demo@{digest}", "ram")

    def note(name: str, data: bytes) -> bytes:
        asked.append(name)
        return data

    registry.change = note
    try:
        assert command(*words, "hi")[:2] == (0, "hi\n")
        assert blob in asked and len(list((tmp_path / "friend").glob("snapshots/*/snapshot"))) == 1
        sent = registry.sent.total()
        assert command(*words, "again")[:2] == (0, "again\n")
        assert registry.sent.total() == sent
    finally:
        registry.change = lambda _, data: data
